"""The connections of each backend as they come and go: a live table on a terminal, else a line when something changed.

Entry point: ``run_table``.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import click
import trio
from attrs import frozen
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from userspace_proxy.balance.live_pool import Member
from userspace_proxy.demo.backend_process import BackendProcess

_LOOK_S = 0.25
_LOOK_WITHOUT_TERMINAL_S = 2.0
"""Lines that stay are wanted less often than a table that is overwritten."""


@frozen
class Row:
    """One backend at one moment."""

    name: str
    endpoint: str
    pid: int
    state: str
    connections: int
    """Made since the start."""
    open: int
    """Open now, or being dialled."""

    def __str__(self) -> str:
        """Return ``backend-1 (pid 812) running, connections 7, open 2``."""
        return f"{self.name} (pid {self.pid}) {self.state}, connections {self.connections}, open {self.open}"


def build_rows(backends: Iterable[BackendProcess], members: Iterable[Member]) -> list[Row]:
    """Return a row for each backend; one that is in no Pool (any more) has no connections."""
    by_backend = {member.backend: member for member in members}
    rows = []
    for one in backends:
        member = by_backend.get(one.backend)
        connections, is_open = (member.connections, member.open) if member else (0, 0)
        rows.append(Row(one.name, str(one.backend), one.pid, one.state, connections, is_open))
    return rows


async def run_table(look: Callable[[], list[Row]]) -> None:
    """Show rows on stdout, again whenever they have changed, until cancelled or the terminal is gone."""
    terminal = sys.stdout  # while the table is live, rich has another stream in its place
    console = Console(highlight=False)
    if not terminal.isatty() or console.is_dumb_terminal:
        await _show_changes(look, _print_line, _LOOK_WITHOUT_TERMINAL_S)
        return
    with Live(console=console, auto_refresh=False, redirect_stderr=sys.stderr.isatty()) as live, _log_above_table():

        def show(rows: Iterable[Row]) -> None:
            live.update(_table(rows), refresh=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show_changes, look, show, _LOOK_S)
            # SIGHUP would say so too, but it is taken: it makes the proxy read its manifests again
            while terminal.isatty():  # noqa: ASYNC110 - a terminal tells nobody
                await trio.sleep(_LOOK_S)
            nursery.cancel_scope.cancel()


async def _show_changes(
    look: Callable[[], list[Row]], show: Callable[[Iterable[Row]], None], interval_s: float
) -> NoReturn:
    shown: list[Row] = []
    while True:
        rows = look()
        if rows != shown:
            show(rows)
            shown = rows
        await trio.sleep(interval_s)


def _print_line(rows: Iterable[Row]) -> None:
    click.echo("; ".join(map(str, rows)))


@contextmanager
def _log_above_table() -> Iterator[None]:
    """Have the log written above the table, where the table will not overwrite it, if both are on the terminal.

    The log's handler was given stderr before rich put its own in place, which does that.
    """
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
    streams = [each.stream for each in handlers]
    for handler, stream in zip(handlers, streams, strict=True):
        if stream is sys.__stderr__:
            handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            handler.setStream(stream)


def _table(rows: Iterable[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("BACKEND", "ENDPOINT", "PID", "STATE"):
        table.add_column(head, no_wrap=True)
    for head in ("CONNECTIONS", "OPEN"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        style = "green" if row.state == "running" else "red"
        cells = (row.name, row.endpoint, str(row.pid), f"[{style}]{row.state}[/]", str(row.connections), str(row.open))
        table.add_row(*cells)
    return table

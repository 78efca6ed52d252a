"""Keeps the names of Services in a hosts file while the proxy runs. Entry point: ``HostsWriter``.

Changes that follow each other are written together. The file is read and written in a thread: its disk may be slow.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import trio

from userspace_proxy.control.pipeline import Pipeline
from userspace_proxy.errors import SteeringError
from userspace_proxy.steering.base import Placement
from userspace_proxy.steering.hosts_file import remove_hosts_block, write_hosts_block
from userspace_proxy.steering.hosts_text import read_hosts_lines

LOG = logging.getLogger(__name__)

REST_S = 1.0
"""Between two looks at whether anything has changed; arbitrary."""
RETRY_S = 5.0
"""Between two attempts at what has failed; arbitrary."""
REST_FACTOR = 20
"""A rest takes at least so many times as long as the work before it: less than 5 % of a core, whatever changes."""


class HostsWriter:
    """The block of one run in a hosts file.

    Args:
        path: The file.
        pipeline: Knows where Services are served.
        clients_dial_listener: See ``Steering``.
    """

    def __init__(self, path: Path, pipeline: Pipeline, *, clients_dial_listener: bool) -> None:
        self._path = path
        self._pipeline = pipeline
        self._clients_dial_listener = clients_dial_listener
        self._version: int | None = None
        """The version of the placements that was written last, or should have been; None: none was."""
        self._failure = ""

    async def run(self) -> None:
        """Write the block whenever placements have changed, for ever, and try again what has failed."""
        await self._pipeline.in_force.wait()
        while True:
            started = trio.current_time()
            if self._failure or self._version != self._pipeline.placements_version:
                self._version = self._pipeline.placements_version
                await self._write(tuple(self._pipeline.placements()))
            rest_s = RETRY_S if self._failure else REST_S
            await trio.sleep(max(rest_s, REST_FACTOR * (trio.current_time() - started)))

    async def aclose(self) -> None:
        """Remove the block, if one was written.

        Raises:
            SteeringError: it is still there; the sentence says why.
        """
        if self._version is not None:
            await trio.to_thread.run_sync(remove_hosts_block, self._path)

    async def _write(self, placements: Iterable[Placement]) -> None:
        try:
            await trio.to_thread.run_sync(self._write_block, placements)  # not abandoned: aclose comes after it
        except SteeringError as error:
            if self._failure != str(error):
                LOG.warning("%s; it is tried again", error)
            self._failure = str(error)
        else:
            if self._failure:
                LOG.info("the hosts file is written after all", extra={"resource": self._path})
            self._failure = ""

    def _write_block(self, placements: Iterable[Placement]) -> None:
        lines = read_hosts_lines(placements, clients_dial_listener=self._clients_dial_listener)
        write_hosts_block(self._path, lines)

"""The source that reads Services and EndpointSlices from manifest files, and watches these for changes.

It looks at the files by ``stat`` in a thread, lets the parser process read those that have changed, and says what that
changes for the objects. It decides nothing about their meaning. Entry points: ``run_manifests``, ``read_manifests``.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from attrs import define, field

from userspace_proxy.model.problem import Problem
from userspace_proxy.sources.base import ProblemsFound, Synced, WatchEvent, WatchEvents
from userspace_proxy.sources.manifest_files import (
    FileChanges,
    FileWatch,
    ManifestFile,
    list_files,
    require_paths,
    shown_path,
)
from userspace_proxy.sources.manifest_reader import read_files
from userspace_proxy.sources.manifest_store import FileContent, ManifestStore

_LOOK_INTERVAL_S = 0.2
"""Between two looks at the files: a change shall take effect within a second."""
_SETTLE_INTERVAL_S = 0.1
"""Until the second look at a file that has changed."""
_TRY_AGAIN_AFTER_S = 5.0
"""For a file that could not be read, though its content may be good. Arbitrary."""
_STEPS_PER_CHECKPOINT = 50
_MAX_BATCH = 500
"""Arbitrary: bounds how long the receiver is busy with one."""

LOG = logging.getLogger(__name__)

_T = TypeVar("_T")
PathProblems = Mapping[str, tuple[Problem, ...]]
Emit = Callable[[WatchEvents], Awaitable[object]]


async def run_manifests(
    paths: Sequence[Path],
    send: trio.MemorySendChannel[WatchEvents],
    reload_requested: trio.MemoryReceiveChannel[None],
) -> None:
    """Send what the manifests say, then what changes; does not return.

    Objects that are equal to what was sent cause no event; the place of an object in its file is part of it.

    Args:
        paths: Files, and directories whose ``*.yaml``, ``*.yml`` and ``*.json`` are read.
        send: Takes the events: what one look at the files has found in one batch, or in several when it is much. Stays
            open.
        reload_requested: Each item makes all files be read again at once, changed or not. Must stay open.

    Raises:
        ConfigError: a path leads nowhere at the start.

    Cancellation:
        No process and no thread is left, but for one that waits for a file system.
    """
    source = _Source(paths)
    delay_s = await source.start(send.send)
    await send.send([Synced()])
    while True:
        force = False
        with trio.move_on_after(delay_s):
            await reload_requested.receive()
            force = True
        delay_s = await source.look(send.send, force=force)


async def read_manifests(paths: Sequence[Path]) -> list[WatchEvent]:
    """Return what the manifests say now, as the events that ``run_manifests`` would send, ``Synced`` last.

    Raises:
        ConfigError: a path leads nowhere.
    """
    events: list[WatchEvent] = []

    async def keep(batch: WatchEvents) -> None:
        events.extend(batch)

    await _Source(paths).start(keep)
    return [*events, Synced()]


@define(eq=False)
class _Source:
    """Files, what was read there, and what was said about it."""

    _paths: Sequence[Path]
    _watch: FileWatch = field(factory=FileWatch, init=False)
    _store: ManifestStore = field(factory=ManifestStore, init=False)
    _seen_problems: PathProblems = field(factory=dict, init=False)
    """What was wrong with paths at the last look."""
    _said_problems: PathProblems = field(factory=dict, init=False)
    """What the receiver knows of that."""
    _named_kinds: frozenset[str] = field(default=frozenset(), init=False)
    """Kinds that are not read, as they were logged."""
    _unread: set[ManifestFile] = field(factory=set, init=False)
    """Files to be tried again."""
    _try_again_at: float = field(default=math.inf, init=False)
    """Time of the clock of trio."""
    _threads: trio.CapacityLimiter = field(factory=partial(trio.CapacityLimiter, 1), init=False)
    """Of its own: a file system that does not answer must not take the threads of others."""

    async def start(self, emit: Emit) -> float:
        """Check the paths and read all files; return the seconds until the next look."""
        await self._in_thread(partial(require_paths, self._paths))
        return await self.look(emit, force=True)

    async def look(self, emit: Emit, *, force: bool) -> float:
        """Look at the files, and read what has changed (``force``: all); return the seconds until the next look."""
        listing = await self._in_thread(partial(list_files, self._paths))
        if trio.current_time() >= self._try_again_at:
            self._watch.forget(self._unread)
        changes = self._watch.look(listing, force=force)
        # what is wrong with a path counts when two looks agree, as for files: it may be missing for a moment only
        is_settled = force or listing.problems == self._seen_problems
        self._seen_problems = listing.problems
        path_problems = listing.problems if is_settled else self._said_problems
        batch: list[WatchEvent] = [
            ProblemsFound(shown_path(path), ()) for path in self._said_problems.keys() - path_problems.keys()
        ]
        if changes.changed or changes.gone:
            batch = await self._read(changes, batch, emit)
        for path, problems in path_problems.items():
            if problems != self._said_problems.get(path):
                batch.append(ProblemsFound(shown_path(path), problems))
        if batch:
            await emit(batch)
        self._said_problems = path_problems
        return _SETTLE_INTERVAL_S if changes.settling or not is_settled else _LOOK_INTERVAL_S

    async def _read(self, changes: FileChanges, batch: list[WatchEvent], emit: Emit) -> list[WatchEvent]:
        """Read files and add what that changes to a batch; return what of it was not emitted yet."""
        contents = await read_files([file.path for file in changes.changed])
        updates: dict[ManifestFile, FileContent | None] = dict(zip(changes.changed, contents, strict=True))
        updates.update(dict.fromkeys(changes.gone))
        for step, event in enumerate(self._store.update(updates)):
            if event is not None:
                batch.append(event)
            if len(batch) >= _MAX_BATCH:
                await emit(batch)
                batch = []
            elif step % _STEPS_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
        again = {file for file, content in updates.items() if content is not None and content.try_again}
        self._unread = (self._unread - updates.keys()) | again
        self._try_again_at = trio.current_time() + _TRY_AGAIN_AFTER_S if self._unread else math.inf
        self._name_other_kinds()
        return batch

    def _name_other_kinds(self) -> None:
        counts = self._store.other_kinds()
        if counts and self._named_kinds != counts.keys():
            named = ", ".join(f"{kind} ({count})" for kind, count in counts.items())
            LOG.info("ignored objects of other kinds", extra={"resource": named})
        self._named_kinds = frozenset(counts)

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)

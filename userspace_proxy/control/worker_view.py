"""WorkerView: what one worker knows of a WorkerStore, and what it is to be told next. Pure.

Batches are numbered, and the worker confirms each; descriptors are under way in one batch at a time only (see
``ipc.frames``). The order is such that a listener never leads to a Pool the worker does not have: Pools first, then
what clients had before (see ``Remember``), then the listeners, and Pools that are gone last. Entry point:
``WorkerView``.
"""

from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping
from itertools import islice
from typing import TypeVar

from attrs import frozen

from userspace_proxy.control.worker_store import LentListener, WorkerStore
from userspace_proxy.errors import WorkerError
from userspace_proxy.ipc.commands import (
    Ask,
    Batch,
    Close,
    Command,
    Forget,
    Lead,
    LogState,
    Remember,
    RemovePool,
    Retire,
    Start,
    Stop,
)
from userspace_proxy.ipc.frames import MAX_FDS
from userspace_proxy.ipc.reports import Applied
from userspace_proxy.model.names import ServicePortName
from userspace_proxy.plan.state import ListenerKey

MAX_KEYS = MAX_FDS
"""Of one kind in one batch, and each may need a descriptor. Some milliseconds' work at either end."""

_RETIRED = 0
_LOST = -1
"""These stand for a version of sockets: the listener has retired, or could not be given its socket."""

_Key = TypeVar("_Key")


@frozen
class _Known:
    """What the worker has been told of a listener."""

    number: int
    version: int
    """Of its sockets, or one of the above."""
    batch: int
    """The one it came with."""


class WorkerView:
    """What one worker knows, and after ``restart`` its successor."""

    def __init__(self, store: WorkerStore, worker: int) -> None:
        """Start without a worker: there is nothing to be sent.

        Args:
            store: Has the values.
            worker: Its place among all.
        """
        self._store = store
        self._worker = worker
        self._dirty = store.dirty[worker]
        self._known: dict[ListenerKey, _Known] = {}
        self._seeds: deque[Remember] = deque()
        self._said: list[Command] = []
        self._forgotten: dict[ServicePortName, int] = {}
        """By what was told to be forgotten: the batch it was told with, until that is confirmed."""
        self._lost: set[ListenerKey] = set()
        self._sent: int | None = None
        """Number of the last batch; None: there is no worker."""
        self._confirmed = 0
        self._values_sent = 0
        """The last batch that was not only something said (see ``say``)."""
        self._fds_sent = 0
        """The last batch with descriptors."""

    @property
    def has_confirmed(self) -> bool:
        """Whether the worker has done anything yet."""
        return self._confirmed > 0

    @property
    def is_settled(self) -> bool:
        """Whether all that the store has is in force there."""
        return self.has_confirmed_all and not self._lost

    @property
    def has_confirmed_all(self) -> bool:
        """Whether the worker has done what it could of all that the store has."""
        has_more = self._dirty.are_there or self._seeds
        return self._confirmed > 0 and self._confirmed >= self._values_sent and not has_more

    @property
    def lost(self) -> int:
        """How many listeners it cannot serve, as it has no room for their descriptors."""
        return len(self._lost)

    def restart(self, start: Start, seeds: Iterable[Remember]) -> None:
        """Have a worker told everything that knows nothing.

        Args:
            start: The first it is told.
            seeds: What clients were given by its predecessors.
        """
        self._store.mark_all(self._worker)
        self._known.clear()
        self._forgotten.clear()
        self._lost.clear()
        self._seeds = deque(seeds)
        self._said = [start]
        self._sent = self._confirmed = self._values_sent = self._fds_sent = 0

    def end(self) -> None:
        """Have nothing sent until there is another worker."""
        self._sent = None
        self._confirmed = 0

    def say(self, command: Ask | LogState) -> None:
        """Have the worker told something that is no value, with the next batch."""
        self._said.append(command)

    def take_batch(self) -> tuple[Batch, list[int]] | None:
        """Return what is to be sent next, and the descriptors to be sent with it, at once: they remain their owner's.

        None: there is nothing, or nothing before the worker has confirmed more.
        """
        if self._sent is None:
            return None
        number = self._sent + 1
        fds: list[int] = []
        values = list(self._take_values(number, fds)) if self._sent else []
        commands = (*values, *self._said)
        if not commands:
            return None
        self._said = []
        self._sent = number
        if values or number == 1:
            self._values_sent = number
        if fds:
            self._fds_sent = number
        return Batch(number, commands), fds

    def confirm(self, applied: Applied) -> None:
        """Note how far the worker has come.

        Raises:
            WorkerError: it was not told so much.
        """
        if not self._confirmed <= applied.generation <= (self._sent or 0):
            raise WorkerError(f"it says that it has applied batch {applied.generation} of {self._sent}")
        self._confirmed = applied.generation
        for number in applied.lost:
            key = self._store.numbers.get(number)
            known = None if key is None else self._known.get(key)
            if key is not None and known is not None and known.number == number:
                self._known[key] = _Known(number, _LOST, known.batch)
                self._lost.add(key)
        for name in [name for name, batch in self._forgotten.items() if batch <= applied.generation]:
            del self._forgotten[name]

    def retry_lost(self) -> None:
        """Have the listeners sent once more that the worker had no room for."""
        self._dirty.listeners.update(dict.fromkeys(self._lost & self._store.listeners.keys()))
        self._lost.clear()

    def has_forgotten(self, name: ServicePortName) -> bool:
        """Return whether what the worker says of a ServicePort is of the one there is now, not of one before it."""
        return name not in self._dirty.forgotten and name not in self._forgotten

    def stopped_listener(self, number: int) -> ListenerKey | None:
        """Return the listener of which the worker says that it does not listen; None: it may not know better yet."""
        key = self._store.numbers.get(number)
        if key is None:
            return None
        lent, known = self._store.listeners[key], self._known.get(key)
        if known is None or not lent.sockets or known.version != lent.version or known.batch > self._confirmed:
            return None
        return key

    def _take_values(self, number: int, fds: list[int]) -> Iterator[Command]:
        """Yield commands, as many as belong into one batch, and collect their descriptors."""
        store, dirty = self._store, self._dirty
        if dirty.has_sources and store.sources is not None:
            dirty.has_sources = False
            yield store.sources
        for key in _take(dirty.pools):
            yield store.pools[key]
        for name in _take(dirty.forgotten):
            self._forgotten[name] = number
            yield Forget(name)
        if dirty.pools:
            return
        if self._seeds:
            yield self._seeds.popleft()
            return
        yield from self._take_listeners(number, fds)
        if dirty.listeners:
            return
        for key in _take(dirty.gone_pools):
            yield RemovePool(key)
        if dirty.has_stop:
            dirty.has_stop = False
            self._lost.clear()
            yield Stop()

    def _take_listeners(self, number: int, fds: list[int]) -> Iterator[Command]:
        store, dirty = self._store, self._dirty
        for listener in list(islice(dirty.listeners, MAX_KEYS)):
            lent = store.listeners.get(listener)
            if self._fds_sent > self._confirmed and self._needs_fd(listener, lent):
                return
            del dirty.listeners[listener]
            yield from self._change(listener, lent, number, fds)

    def _needs_fd(self, key: ListenerKey, lent: LentListener | None) -> bool:
        if lent is None or not lent.sockets:
            return False
        known = self._known.get(key)
        return known is None or known.number != lent.command.number or known.version != lent.version

    def _change(self, key: ListenerKey, lent: LentListener | None, number: int, fds: list[int]) -> Iterator[Command]:
        """Yield what the worker has to be told of a listener, and note that it knows then."""
        self._lost.discard(key)
        known = self._known.get(key)
        if known is not None and (lent is None or known.number != lent.command.number):
            yield Close(key)
            del self._known[key]
            known = None
        if lent is None:
            return
        if lent.sockets:
            if known is not None and known.version == lent.version:
                yield Lead(key, lent.command.route)
                return
            fds.append(lent.socket_of(self._worker).fileno())
            self._known[key] = _Known(lent.command.number, lent.version, number)
            yield lent.command
        elif known is not None and known.version == _LOST:  # it may have a socket from before, or nothing at all
            del self._known[key]
            yield Close(key)
        elif known is not None and known.version != _RETIRED:
            self._known[key] = _Known(known.number, _RETIRED, number)
            yield Retire(key)


def _take(keys: MutableMapping[_Key, None]) -> Iterator[_Key]:
    """Remove the first keys, and yield them."""
    for key in list(islice(keys, MAX_KEYS)):
        del keys[key]
        yield key

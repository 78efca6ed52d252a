"""WorkerStore: what all workers are to serve, as whole values by key. Pure; the sockets are only passed on.

A ListenerSet tells it what changes, and each change marks a key as dirty for every worker. What a worker is sent is
made from the values there are at that moment (see ``worker_view``), so that changes which follow each other cost one
command. Entry point: ``WorkerStore``.
"""

import socket
from collections.abc import Callable
from itertools import count

from attrs import define, evolve, field, frozen

from userspace_proxy.ipc.commands import Serve, SetPool, SetSources
from userspace_proxy.model.names import Family, Protocol, ServicePortName
from userspace_proxy.plan.state import (
    EndpointScope,
    ListenerKey,
    ListenerSpec,
    Pool,
    PoolKey,
    Route,
    SourceAddresses,
)


@frozen(eq=False)
class LentListener:
    """A listener, and the sockets that are lent to the workers for it."""

    command: Serve
    """What a worker is told that does not have it."""
    sockets: tuple[socket.socket, ...]
    """One for all workers, or one for each; none: it has retired."""
    version: int
    """Of ``sockets``; grows, and is another one for the same sockets when the listener has retired in between."""

    def socket_of(self, worker: int) -> socket.socket:
        """Return the socket that a worker serves; the listener must not have retired."""
        return self.sockets[worker if len(self.sockets) > 1 else 0]


@define(eq=False)
class DirtyKeys:
    """What one worker is still to be told of, each kind in the order in which it changed."""

    has_sources: bool = False
    pools: dict[PoolKey, None] = field(factory=dict)
    """Those there are."""
    forgotten: dict[ServicePortName, None] = field(factory=dict)
    listeners: dict[ListenerKey, None] = field(factory=dict)
    """Those there are, and those that are gone."""
    gone_pools: dict[PoolKey, None] = field(factory=dict)
    has_stop: bool = False

    @property
    def are_there(self) -> bool:
        """Whether there is anything to be told."""
        return bool(
            self.has_sources or self.pools or self.forgotten or self.listeners or self.gone_pools or self.has_stop
        )


class WorkerStore:
    """The values; for a ListenerSet it is the DataPlane."""

    def __init__(
        self, members: int, on_change: Callable[[], None], on_forget: Callable[[ServicePortName], None]
    ) -> None:
        """Start empty.

        Args:
            members: Number of workers.
            on_change: Called after each change.
            on_forget: Called when a ServicePort is served no more.
        """
        self._members = members
        self._on_change = on_change
        self._on_forget = on_forget
        self._numbers = count(1)
        self._versions = count(1)
        self.sources: SetSources | None = None
        """None: they were not told yet."""
        self.pools: dict[PoolKey, SetPool] = {}
        self.listeners: dict[ListenerKey, LentListener] = {}
        self.numbers: dict[int, ListenerKey] = {}
        """Which listener a worker means (see ``commands.Serve``)."""
        self.names: dict[tuple[str, Protocol], ServicePortName] = {}
        """The ServicePorts that are served, by what a worker calls them."""
        self.is_stopped = False
        self.dirty = tuple(DirtyKeys() for _ in range(members))
        """By worker."""

    @property
    def members(self) -> int:
        """See ``DataPlane``."""
        return self._members

    def mark_all(self, worker: int) -> None:
        """Have everything told to a worker that knows nothing."""
        dirty = self.dirty[worker]
        dirty.has_sources = self.sources is not None
        dirty.pools = dict.fromkeys(self.pools)
        dirty.forgotten = {}
        dirty.listeners = dict.fromkeys(self.listeners)
        dirty.gone_pools = {}
        dirty.has_stop = self.is_stopped

    def affinity_timeout_s(self, name: ServicePortName) -> int | None:
        """Return for how long clients of a ServicePort come back to the same Backend; None: it has no affinity."""
        for scope in EndpointScope:
            for family in Family:
                command = self.pools.get(PoolKey(name, scope, family))
                if command is not None and command.pool.affinity_timeout_s is not None:
                    return command.pool.affinity_timeout_s
        return None

    def apply_sources(self, sources: SourceAddresses) -> None:
        """See ``DataPlane``."""
        self.sources = SetSources(sources)
        for dirty in self.dirty:
            dirty.has_sources = True
        self._on_change()

    def apply_pool(self, pool: Pool) -> None:
        """See ``DataPlane``."""
        self.pools[pool.key] = SetPool(pool)
        for dirty in self.dirty:
            dirty.pools[pool.key] = None
            dirty.gone_pools.pop(pool.key, None)
        self._on_change()

    def remove_pool(self, key: PoolKey) -> None:
        """See ``DataPlane``."""
        self.pools.pop(key, None)
        for dirty in self.dirty:
            dirty.pools.pop(key, None)
            dirty.gone_pools[key] = None
        self._on_change()

    def serve(self, spec: ListenerSpec, route: Route, sockets: tuple[socket.socket, ...]) -> None:
        """See ``DataPlane``."""
        key = spec.key
        name = key.service_port
        before = self.listeners.get(key)
        if before is None:
            number = next(self._numbers)
            self.numbers[number] = key
            self.names[str(name), name.protocol] = name
        else:
            number = before.command.number
        is_same = before is not None and before.sockets == sockets
        command = Serve(number, spec, route, is_shared=len(sockets) < self._members)
        version = before.version if before is not None and is_same else next(self._versions)
        self._set_listener(key, LentListener(command, sockets, version))

    def lead(self, key: ListenerKey, route: Route) -> None:
        """See ``DataPlane``."""
        lent = self.listeners[key]
        self._set_listener(key, evolve(lent, command=evolve(lent.command, route=route)))

    def retire(self, key: ListenerKey) -> None:
        """See ``DataPlane``."""
        self._set_listener(key, evolve(self.listeners[key], sockets=()))

    def close(self, key: ListenerKey) -> None:
        """See ``DataPlane``."""
        lent = self.listeners.pop(key, None)
        if lent is not None:
            del self.numbers[lent.command.number]
            self._mark_listener(key)

    def forget(self, name: ServicePortName) -> None:
        """See ``DataPlane``."""
        if self.names.pop((str(name), name.protocol), None) is not None:
            for dirty in self.dirty:
                dirty.forgotten[name] = None
            self._on_forget(name)
            self._on_change()

    def stop(self) -> None:
        """See ``DataPlane``; nothing else is told any more, as the sockets are not to be passed on after that."""
        if self.is_stopped:
            return
        self.is_stopped = True
        self.listeners.clear()
        self.numbers.clear()
        for dirty in self.dirty:
            dirty.listeners.clear()
            dirty.has_stop = True
        self._on_change()

    def _set_listener(self, key: ListenerKey, lent: LentListener) -> None:
        self.listeners[key] = lent
        self._mark_listener(key)

    def _mark_listener(self, key: ListenerKey) -> None:
        for dirty in self.dirty:
            dirty.listeners[key] = None
        self._on_change()

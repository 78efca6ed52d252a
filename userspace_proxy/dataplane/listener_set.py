"""ListenerSet: all listeners and Pools of this process, changed by whole values.

The caller says what should be (``apply_*``, ``remove_*``) and then calls ``open_missing``, again later for those that
failed. A Pool that becomes empty has its listening sockets closed, so that clients are refused at once instead of
being accepted for nothing; the sockets come back with the first Backend. Open connections are never touched by any of
it.
"""

import socket
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator

from userspace_proxy.balance.live_pool import LivePool
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.sockets import open_listening_socket
from userspace_proxy.dataplane.tcp_listener import TcpListener
from userspace_proxy.dataplane.tcp_relay import TcpRelay
from userspace_proxy.errors import ListenError
from userspace_proxy.model.names import Family
from userspace_proxy.plan.state import ListenerKey, ListenerSpec, PolicyClass, Pool, PoolKey

MAX_HOLDERS_NAMED = 4
"""Ports in use for which the holder is looked up in one go: that takes milliseconds each on a node with many
processes."""


class ListenerSet:
    """Owns every listening socket of the engine."""

    def __init__(self, engine: Engine, limits: RelayLimits, random: Callable[[], float]) -> None:
        """Start without listeners; ``random`` is handed to the Pools (see ``LivePool``)."""
        self._engine = engine
        self._limits = limits
        self._random = random
        self._pools: dict[PoolKey, LivePool] = {}
        self._specs: dict[ListenerKey, ListenerSpec] = {}
        self._keys_by_pool: dict[PoolKey, set[ListenerKey]] = defaultdict(set)
        self._open: dict[ListenerKey, TcpListener] = {}
        self._missing: dict[ListenerKey, None] = {}
        """To be opened at the next opportunity, in this order."""
        self._failed: dict[ListenerKey, None] = {}
        """Could not be opened."""
        self._relays: set[TcpRelay] = set()

    @property
    def open_listeners(self) -> int:
        """Number of listening sockets."""
        return len(self._open)

    @property
    def open_relays(self) -> int:
        """Number of connections, those of removed listeners too."""
        return len(self._relays)

    @property
    def failed(self) -> Collection[ListenerKey]:
        """Listeners that should be open and could not be opened at the last attempt; a live view."""
        return self._failed.keys()

    def apply_pool(self, pool: Pool) -> None:
        """Put a Pool in force for all its listeners."""
        live = self._pools.get(pool.key)
        if live is None:
            self._pools[pool.key] = LivePool(pool, self._random)
        else:
            live.replace(pool)
        for key in self._keys_by_pool.get(pool.key, ()):
            self._suit(key)

    def remove_pool(self, key: PoolKey) -> None:
        """Forget a Pool; its listeners are closed or have been."""
        if self._pools.pop(key, None) is not None:
            for listener in self._keys_by_pool.get(key, ()):
                self._suit(listener)

    def apply_listener(self, spec: ListenerSpec) -> None:
        """Have a listener at that place, closing the one of the same key elsewhere."""
        if self._specs.get(spec.key) != spec:
            self._close(spec.key)
            self._specs[spec.key] = spec
            self._keys_by_pool[spec.key.pool].add(spec.key)
            self._suit(spec.key)

    def remove_listener(self, key: ListenerKey) -> None:
        """Close a listener for good; its connections live on."""
        if self._specs.pop(key, None) is None:
            return
        self._close(key)
        siblings = self._keys_by_pool[key.pool]
        siblings.discard(key)
        if not siblings:
            del self._keys_by_pool[key.pool]
        name = key.pool.service_port
        pool_keys = (PoolKey(name, policy, family) for policy in PolicyClass for family in Family)
        if not any(pool_key in self._keys_by_pool for pool_key in pool_keys):
            self._engine.counters.services.pop((str(name), name.protocol), None)

    def open_missing(self, *, retry: bool) -> dict[ListenerKey, ListenError | None]:
        """Open the listeners that should be open and are not.

        Args:
            retry: Try those again that could not be opened before.

        Returns:
            Those that could not be opened, with the reason, and (None) those opened now that could not be before.
        """
        outcomes: dict[ListenerKey, ListenError | None] = {}
        for key in [*self._missing, *(self._failed if retry else ())]:
            try:
                names_holder = key not in self._failed and len(outcomes) < MAX_HOLDERS_NAMED
                sock = open_listening_socket(self._specs[key], self._limits, names_holder=names_holder)
                self._start(key, sock)
            except ListenError as error:
                self._failed[key] = None
                outcomes[key] = error
            else:
                if key in self._failed:
                    del self._failed[key]
                    outcomes[key] = None
            self._missing.pop(key, None)  # not before: after a bug it is still to be done
        return outcomes

    def close_listeners(self) -> None:
        """Accept no more: close every listener; open connections go on."""
        for key in list(self._specs):
            self._close(key)

    def abort_relays(self) -> None:
        """Reset every connection."""
        for relay in list(self._relays):
            relay.abort()
        self._engine.close_waiting()

    def report_bytes(self) -> None:
        """Bring the byte counters up to date with the connections that are open."""
        for relay in self._relays:
            relay.listener.report_bytes(relay)

    def relays(self) -> Iterator[TcpRelay]:
        """Iterate over the connections that are open or being dialled."""
        return iter(self._relays)

    def pools(self) -> Iterator[tuple[PoolKey, LivePool]]:
        """Iterate over the Pools in force."""
        return iter(self._pools.items())

    def _start(self, key: ListenerKey, sock: socket.socket) -> None:
        name = key.pool.service_port
        try:
            self._open[key] = TcpListener(
                engine=self._engine,
                spec=self._specs[key],
                sock=sock,
                pool=self._pools[key.pool],
                limits=self._limits,
                counters=self._engine.counters.services[str(name), name.protocol],
                relays=self._relays,
            )
        except OSError as error:  # epoll_ctl(2)
            sock.close()
            raise ListenError(
                f"cannot watch the listener of {name}: {error.strerror}; raise fs.epoll.max_user_watches"
            ) from error

    def _suit(self, key: ListenerKey) -> None:
        """Close a listener whose Pool is empty; note one that has to be opened."""
        pool = self._pools.get(key.pool)
        if pool is None or not pool.members:
            self._close(key)
        elif key not in self._open and key not in self._failed:
            self._missing[key] = None

    def _close(self, key: ListenerKey) -> None:
        self._missing.pop(key, None)
        self._failed.pop(key, None)
        listener = self._open.pop(key, None)
        if listener is not None:
            listener.close()

"""ListenerSet: all listeners and Pools of this process, changed by whole values.

The caller says what should be (``apply_*``, ``remove_*``, in any order) and then calls ``open_missing``, again later
for those that failed. A listener whose Route leads nobody to a Backend is closed, so that clients are refused at once
instead of being accepted for nothing; it comes back with the first Backend. Open connections are never touched by any
of it, and neither are clients in the queue of a listener that stays open. Flows end with their listener, but where it
is closed only for want of Backends, late answers still have their time.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from weakref import WeakValueDictionary

from attrs import frozen

from userspace_proxy.balance.flow_outcome import FlowEnd
from userspace_proxy.balance.live_pool import LivePool
from userspace_proxy.balance.live_pools import LivePools
from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.dataplane.counters import ServiceCounters
from userspace_proxy.dataplane.datagram_buffers import DatagramBuffers
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.flow_table import FlowTable
from userspace_proxy.dataplane.sockets import open_listening_socket
from userspace_proxy.dataplane.tcp_listener import TcpListener
from userspace_proxy.dataplane.tcp_relay import TcpRelay
from userspace_proxy.dataplane.udp_listener import UdpListener
from userspace_proxy.dataplane.udp_sockets import open_datagram_socket
from userspace_proxy.errors import ListenError
from userspace_proxy.model.names import Protocol, ServicePortName
from userspace_proxy.plan.state import ListenerKey, ListenerSpec, Pool, PoolKey, Route, SourceAddresses

MAX_HOLDERS_NAMED = 4
"""Ports in use for which the holder is looked up in one go: that takes milliseconds each on a node with many
processes."""


@frozen
class _Wanted:
    """What a listener should be."""

    spec: ListenerSpec
    route: Route


class ListenerSet:
    """Owns every listening socket of the engine."""

    def __init__(
        self, engine: Engine, limits: RelayLimits, flow_limits: FlowLimits, random: Callable[[], float]
    ) -> None:
        """Start without listeners.

        Args:
            engine: Watches all sockets.
            limits: Bounds each connection.
            flow_limits: Bounds the flows; their number in all only if it is given here.
            random: Is handed to the Pools (see ``LivePool``).
        """
        self._engine = engine
        self._limits = limits
        self._flow_limits = flow_limits
        self._pools = LivePools(random, self._count_eviction)
        self._wanted: dict[ListenerKey, _Wanted] = {}
        self._keys: defaultdict[ServicePortName, set[ListenerKey]] = defaultdict(set)
        """Those of ``_wanted``, by what they serve: its Pools are all that their Routes lead to."""
        self._open: dict[ListenerKey, TcpListener | UdpListener] = {}
        self._retired: dict[ListenerKey, UdpListener] = {}
        """Those of ``_wanted`` that were open before and may deliver late answers still."""
        self._doubtful: dict[ListenerKey, None] = {}
        """To be opened or closed at the next opportunity, in this order, unless they are as they should be."""
        self._failed: dict[ListenerKey, None] = {}
        """Could not be opened."""
        self._relays: set[TcpRelay] = set()
        self._buffers: DatagramBuffers | None = None
        """None until the first UDP listener is opened."""
        self._flows = FlowTable(flow_limits.max_total_flows or sys.maxsize)
        self._ended_counters: WeakValueDictionary[ServicePortName, ServiceCounters] = WeakValueDictionary()
        """Of ServicePorts without a listener, while connections of theirs are open."""

    @property
    def open_listeners(self) -> int:
        """Number of listening sockets."""
        return len(self._open)

    @property
    def open_relays(self) -> int:
        """Number of connections, those of removed listeners too."""
        return len(self._relays)

    @property
    def open_flows(self) -> int:
        """Number of UDP flows, those too that only wait for late answers."""
        return len(self._flows)

    @property
    def failed(self) -> Collection[ListenerKey]:
        """Listeners that should be open and could not be opened at the last attempt; a live view."""
        return self._failed.keys()

    def apply_pool(self, pool: Pool) -> None:
        """Put a Pool in force for all listeners whose Route leads to it."""
        self._pools.apply(pool)
        self._doubt_all(pool.key.service_port)

    def remove_pool(self, key: PoolKey) -> None:
        """Forget a Pool; Routes that lead to it lead nowhere."""
        self._pools.remove(key)
        self._doubt_all(key.service_port)

    def apply_sources(self, sources: SourceAddresses) -> None:
        """Tell the class of clients by this from now on."""
        self._pools.apply_sources(sources)

    def apply_listener(self, spec: ListenerSpec, route: Route) -> None:
        """Have a listener at that place with that Route, closing the one of the same key elsewhere."""
        key = spec.key
        wanted = self._wanted.get(key)
        if wanted is not None and wanted.spec != spec:
            self._close(key)
        self._wanted[key] = _Wanted(spec, route)
        self._keys[key.service_port].add(key)
        self._doubt(key)

    def apply_route(self, key: ListenerKey, route: Route) -> None:
        """Give a listener that was applied another Route."""
        self.apply_listener(self._wanted[key].spec, route)

    def remove_listener(self, key: ListenerKey) -> None:
        """Close a listener for good; its connections live on, its flows end."""
        if self._wanted.pop(key, None) is None:
            return
        self._close(key)
        name = key.service_port
        self._keys[name].discard(key)
        if not self._keys[name]:
            del self._keys[name]
            if name.protocol is Protocol.UDP:  # a port of TCP may have had the same name
                self._engine.counters.udp_services.pop(str(name), None)
            counters = self._engine.counters.services.pop((str(name), name.protocol), None)
            if counters is not None:
                self._ended_counters[name] = counters

    def open_missing(self, *, retry: bool) -> dict[ListenerKey, ListenError | None]:
        """Open the listeners that should be open and are not, after closing those that should not be.

        Args:
            retry: Try those again that could not be opened before.

        Returns:
            Those that could not be opened, with the reason, and (None) those opened now that could not be before.
        """
        for key in list(self._doubtful):
            if not self._pools.serves(self._wanted[key].route):
                self._retire(key)
        outcomes: dict[ListenerKey, ListenError | None] = {}
        for key in {**self._doubtful, **(self._failed if retry else {})}:
            if key not in self._open and (retry or key not in self._failed):
                try:
                    names_holder = key not in self._failed and len(outcomes) < MAX_HOLDERS_NAMED
                    self._start(self._wanted[key], names_holder=names_holder)
                except ListenError as error:
                    self._failed[key] = None
                    outcomes[key] = error
                else:
                    if key in self._failed:
                        del self._failed[key]
                        outcomes[key] = None
            self._doubtful.pop(key, None)  # not before: after a bug it is still to be done
        return outcomes

    def close_listeners(self) -> None:
        """Accept no more: close every listener; open connections go on, and late answers of flows are delivered."""
        for key in list(self._wanted):
            listener = self._stop(key)
            if isinstance(listener, UdpListener):
                self._retired[key] = listener
                listener.stop()
            elif listener is not None:
                listener.close()

    def abort_relays(self) -> None:
        """Reset every connection."""
        for relay in list(self._relays):
            relay.abort()
        self._engine.close_waiting()

    def close_flows(self) -> None:
        """End every flow."""
        for listener in (*self._open.values(), *self._retired.values()):
            if isinstance(listener, UdpListener):
                listener.close(FlowEnd.STOPPED)
        self._engine.close_waiting()

    def report(self) -> None:
        """Bring the counters up to date with the connections and flows that are open."""
        for relay in self._relays:
            relay.listener.report_bytes(relay)
        for listener in (*self._open.values(), *self._retired.values()):
            if isinstance(listener, UdpListener):
                listener.report()

    def relays(self) -> Iterator[TcpRelay]:
        """Iterate over the connections that are open or being dialled."""
        return iter(self._relays)

    def pools(self) -> Iterator[tuple[PoolKey, LivePool]]:
        """Iterate over the Pools in force."""
        return self._pools.items()

    def _start(self, wanted: _Wanted, *, names_holder: bool) -> None:
        name = wanted.spec.key.service_port
        try:
            if name.protocol is Protocol.UDP:
                self._start_udp(wanted, names_holder=names_holder)
            else:
                self._start_tcp(wanted, names_holder=names_holder)
        except OSError as error:  # epoll_ctl(2)
            raise ListenError(
                f"cannot watch the listener of {name}: {error.strerror}; raise fs.epoll.max_user_watches"
            ) from error

    def _start_tcp(self, wanted: _Wanted, *, names_holder: bool) -> None:
        spec = wanted.spec
        sock = open_listening_socket(spec, self._limits, names_holder=names_holder)
        try:
            self._open[spec.key] = TcpListener(
                engine=self._engine,
                spec=spec,
                sock=sock,
                pools=self._pools,
                route=wanted.route,
                limits=self._limits,
                counters=self._counters_of(spec.key.service_port),
                relays=self._relays,
            )
        except OSError:
            sock.close()
            raise

    def _start_udp(self, wanted: _Wanted, *, names_holder: bool) -> None:
        spec = wanted.spec
        retired = self._retired.get(spec.key)
        if retired is not None:
            retired.release_socket()
        try:
            sock = open_datagram_socket(spec, names_holder=names_holder)
        except ListenError:
            if retired is not None:
                retired.close(FlowEnd.ENDPOINT_GONE)
            raise
        try:
            if retired is None:
                self._open[spec.key] = UdpListener(
                    engine=self._engine,
                    spec=spec,
                    sock=sock,
                    pools=self._pools,
                    route=wanted.route,
                    limits=self._flow_limits,
                    counters=self._engine.counters.udp_services[str(spec.key.service_port)],
                    table=self._flows,
                    buffers=self._datagram_buffers(),
                )
            else:
                retired.open(sock)
                retired.lead(wanted.route)
                self._open[spec.key] = self._retired.pop(spec.key)
        except OSError:
            sock.close()
            if retired is not None:
                retired.close(FlowEnd.ENDPOINT_GONE)
            raise

    def _counters_of(self, name: ServicePortName) -> ServiceCounters:
        """Return the counters of a ServicePort; if it was gone, and its connections were not: those they count with."""
        ended = self._ended_counters.pop(name, None)
        if ended is not None and ended.active:
            self._engine.counters.services[str(name), name.protocol] = ended
        return self._engine.counters.services[str(name), name.protocol]

    def _count_eviction(self) -> None:
        self._engine.counters.affinity_evictions += 1

    def _doubt_all(self, name: ServicePortName) -> None:
        for key in self._keys.get(name, ()):
            self._doubt(key)

    def _doubt(self, key: ListenerKey) -> None:
        """Have a listener that is open follow its Route, and have it looked at whether it should be."""
        listener = self._open.get(key)
        if listener is not None:
            listener.lead(self._wanted[key].route)
        self._doubtful[key] = None

    def _datagram_buffers(self) -> DatagramBuffers:
        if self._buffers is None:
            self._buffers = DatagramBuffers(self._engine)
        return self._buffers

    def _retire(self, key: ListenerKey) -> None:
        """Close a listener that may be opened again."""
        listener = self._stop(key)
        if isinstance(listener, UdpListener):
            self._retired[key] = listener
            listener.retire(FlowEnd.ENDPOINT_GONE)
        elif listener is not None:
            listener.close()

    def _close(self, key: ListenerKey) -> None:
        """Close a listener that will not be opened again, or elsewhere."""
        listener = self._stop(key) or self._retired.pop(key, None)
        if isinstance(listener, UdpListener):
            listener.close(FlowEnd.SERVICE_GONE)
            self._engine.close_waiting()
        elif listener is not None:
            listener.close()

    def _stop(self, key: ListenerKey) -> TcpListener | UdpListener | None:
        self._doubtful.pop(key, None)
        self._failed.pop(key, None)
        return self._open.pop(key, None)

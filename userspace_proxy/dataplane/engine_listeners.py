"""EngineListeners: the listeners, Pools, connections and flows of one engine.

It serves the clients of sockets it is lent, and opens none: which there are to be is the business of a ListenerSet, be
it in this process or in the one that has started it. Open connections are never touched by a change, and neither are
clients in the queue of a socket. Flows end with their listener, but where it retires only for want of Backends, late
answers still have their time.
"""

import socket
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from userspace_proxy.balance.flow_outcome import FlowEnd
from userspace_proxy.balance.live_pool import LivePool
from userspace_proxy.balance.live_pools import LivePools
from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.dataplane.counters import ServiceCounters
from userspace_proxy.dataplane.datagram_buffers import DatagramBuffers
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.flow_table import FlowTable
from userspace_proxy.dataplane.tcp_listener import TcpListener
from userspace_proxy.dataplane.tcp_relay import TcpRelay
from userspace_proxy.dataplane.udp_listener import UdpListener
from userspace_proxy.model.names import Protocol, ServicePortName
from userspace_proxy.plan.state import ListenerKey, ListenerSpec, Pool, PoolKey, Route, SourceAddresses


class EngineListeners:
    """All that one engine serves (see ``DataPlane``)."""

    members = 1

    def __init__(
        self,
        engine: Engine,
        limits: RelayLimits,
        flow_limits: FlowLimits,
        random: Callable[[], float],
        on_stopped: Callable[[ListenerKey], None],
    ) -> None:
        """Start without listeners.

        Args:
            engine: Watches all sockets.
            limits: Bounds each connection.
            flow_limits: Bounds the flows; their number in all only if it is given here.
            random: Is handed to the Pools (see ``LivePool``).
            on_stopped: Called when somebody has had the socket of a listener stop listening, now and then until it
                does again or the listener is told to retire.
        """
        self._engine = engine
        self._limits = limits
        self._flow_limits = flow_limits
        self._on_stopped = on_stopped
        self.live_pools = LivePools(random, self._count_eviction)
        self._listeners: dict[ListenerKey, TcpListener | UdpListener] = {}
        """Those that serve, and those that have retired."""
        self._keys: defaultdict[ServicePortName, set[ListenerKey]] = defaultdict(set)
        """Those of ``_listeners``, by what they serve: its Pools are all that their Routes lead to."""
        self._relays: dict[TcpRelay, None] = {}  # a set takes several times the memory
        self._buffers: DatagramBuffers | None = None
        """None until the first UDP listener is opened."""
        self._flows = FlowTable(flow_limits.max_total_flows or sys.maxsize)
        self._ended_counters: WeakValueDictionary[ServicePortName, ServiceCounters] = WeakValueDictionary()
        """Of ServicePorts without a listener, while connections of theirs are open."""

    @property
    def open_relays(self) -> int:
        """Number of connections, those of closed listeners too."""
        return len(self._relays)

    @property
    def open_flows(self) -> int:
        """Number of UDP flows, those too that only wait for late answers."""
        return len(self._flows)

    def apply_sources(self, sources: SourceAddresses) -> None:
        """See ``DataPlane``."""
        self.live_pools.apply_sources(sources)

    def apply_pool(self, pool: Pool) -> None:
        """See ``DataPlane``."""
        self.live_pools.apply(pool)
        self._lead_all(pool.key.service_port)

    def remove_pool(self, key: PoolKey) -> None:
        """See ``DataPlane``."""
        self.live_pools.remove(key)
        self._lead_all(key.service_port)

    def serve(
        self, spec: ListenerSpec, route: Route, sockets: tuple[socket.socket, ...], *, is_shared: bool = False
    ) -> None:
        """Serve the clients of one socket (see ``DataPlane``).

        Args:
            spec: See there.
            route: See there.
            sockets: One.
            is_shared: Other engines accept from the same socket.

        Raises:
            OSError: see there.
        """
        (sock,) = sockets
        key = spec.key
        listener = self._listeners.get(key) or self._new_listener(spec, route)
        if isinstance(listener, UdpListener):
            listener.open(sock)
        else:
            listener.open(sock, is_shared=is_shared)
        listener.lead(route)
        self._listeners[key] = listener
        self._keys[key.service_port].add(key)

    def lead(self, key: ListenerKey, route: Route) -> None:
        """See ``DataPlane``."""
        self._listeners[key].lead(route)

    def retire(self, key: ListenerKey) -> None:
        """See ``DataPlane``."""
        listener = self._listeners.get(key)
        if isinstance(listener, UdpListener):
            listener.retire(FlowEnd.ENDPOINT_GONE)
        elif listener is not None:
            listener.stop()

    def close(self, key: ListenerKey) -> None:
        """See ``DataPlane``."""
        listener = self._listeners.pop(key, None)
        if listener is None:
            return
        keys = self._keys[key.service_port]
        keys.discard(key)
        if not keys:
            del self._keys[key.service_port]
        if isinstance(listener, UdpListener):
            listener.close(FlowEnd.SERVICE_GONE)
            self._engine.close_waiting()
        else:
            listener.stop()

    def forget(self, name: ServicePortName) -> None:
        """See ``DataPlane``."""
        if name.protocol is Protocol.UDP:  # a port of TCP may have had the same name
            self._engine.counters.udp_services.pop(str(name), None)
        counters = self._engine.counters.services.pop((str(name), name.protocol), None)
        if counters is not None:
            self._ended_counters[name] = counters

    def stop(self) -> None:
        """See ``DataPlane``."""
        for listener in self._listeners.values():
            listener.stop()

    def abort(self) -> None:
        """Reset every connection and end every flow."""
        for relay in list(self._relays):
            relay.abort()
        for listener in self._listeners.values():
            if isinstance(listener, UdpListener):
                listener.close(FlowEnd.STOPPED)
        self._engine.close_waiting()

    def report(self) -> None:
        """Bring the counters up to date with the connections and flows that are open."""
        for relay in self._relays:
            relay.listener.report_bytes(relay)
        if self._buffers is None:
            return
        for listener in self._listeners.values():
            if isinstance(listener, UdpListener):
                listener.report()

    def relays(self) -> Iterator[TcpRelay]:
        """Iterate over the connections that are open or being dialled."""
        return iter(self._relays)

    def pools(self) -> Iterator[tuple[PoolKey, LivePool]]:
        """Iterate over the Pools in force."""
        return self.live_pools.items()

    def _lead_all(self, name: ServicePortName) -> None:
        """Have the listeners of a ServicePort look again at the Pools that their Routes lead to."""
        for key in self._keys.get(name, ()):
            self._listeners[key].lead_again()

    def _new_listener(self, spec: ListenerSpec, route: Route) -> TcpListener | UdpListener:
        name = spec.key.service_port
        if name.protocol is not Protocol.UDP:
            return TcpListener(
                engine=self._engine,
                spec=spec,
                pools=self.live_pools,
                route=route,
                limits=self._limits,
                counters=self._counters_of(name),
                relays=self._relays,
                on_stopped=self._on_stopped,
            )
        if self._buffers is None:
            self._buffers = DatagramBuffers(self._engine)
        return UdpListener(
            engine=self._engine,
            spec=spec,
            pools=self.live_pools,
            route=route,
            limits=self._flow_limits,
            counters=self._engine.counters.udp_services[str(name)],
            table=self._flows,
            buffers=self._buffers,
        )

    def _counters_of(self, name: ServicePortName) -> ServiceCounters:
        """Return the counters of a ServicePort; if it was gone, and its connections were not: those they count with."""
        ended = self._ended_counters.pop(name, None)
        if ended is not None and ended.active:
            self._engine.counters.services[str(name), name.protocol] = ended
        return self._engine.counters.services[str(name), name.protocol]

    def _count_eviction(self) -> None:
        self._engine.counters.affinity_evictions += 1

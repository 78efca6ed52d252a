"""ListenerSet: all listeners and Pools of this process, changed by whole values.

The caller says what should be (``apply_*``, ``remove_*``, in any order) and then calls ``open_missing``, again later
for those that failed. A listener whose Route leads nobody to a Backend only *holds* its port: clients are refused at
once instead of being accepted for nothing, nobody else can take the port, and it serves again with the first Backend.
Open connections are never touched by any of it, and neither are clients in the queue of a listener that stays open.
Flows end with their listener, but where it retires only for want of Backends, late answers still have their time.

Each listener that is wanted takes one descriptor, whether it serves or holds its port; only those that serve are
watched by the engine.
"""

import socket
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
from userspace_proxy.dataplane.shared_ports import SharedPorts
from userspace_proxy.dataplane.sockets import hold_port, share_port, start_listening
from userspace_proxy.dataplane.tcp_listener import TcpListener
from userspace_proxy.dataplane.tcp_relay import TcpRelay
from userspace_proxy.dataplane.udp_listener import UdpListener
from userspace_proxy.dataplane.udp_sockets import hold_datagram_port, open_datagram_socket
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
        self._ports = SharedPorts()
        """The places of ``_wanted``."""
        self._open: dict[ListenerKey, TcpListener | UdpListener] = {}
        self._retired: dict[ListenerKey, UdpListener] = {}
        """Those of ``_wanted`` that were open before: they hold their ports, and may deliver late answers still."""
        self._held: dict[ListenerKey, socket.socket] = {}
        """What holds the ports of all others of ``_wanted`` that have no Backends."""
        self._doubtful: dict[ListenerKey, None] = {}
        """To be brought about at the next opportunity, in this order, unless they are as they should be."""
        self._failed: dict[ListenerKey, None] = {}
        """Could not be opened, or could not get their ports."""
        self._relays: set[TcpRelay] = set()
        self._buffers: DatagramBuffers | None = None
        """None until the first UDP listener is opened."""
        self._flows = FlowTable(flow_limits.max_total_flows or sys.maxsize)
        self._ended_counters: WeakValueDictionary[ServicePortName, ServiceCounters] = WeakValueDictionary()
        """Of ServicePorts without a listener, while connections of theirs are open."""

    @property
    def open_listeners(self) -> int:
        """Number of listeners that serve; those that only hold their ports do not count."""
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
        """Listeners that could not be opened, or not get their ports, at the last attempt; a live view."""
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
        self._keys[key.service_port].add(key)
        self._wanted[key] = _Wanted(spec, route)
        if self._ports.add(spec):
            self._set_shared(spec, is_shared=True)
        self._doubt(key)

    def apply_route(self, key: ListenerKey, route: Route) -> None:
        """Give a listener that was applied another Route."""
        self.apply_listener(self._wanted[key].spec, route)

    def remove_listener(self, key: ListenerKey) -> None:
        """Close a listener for good; its connections live on, its flows end."""
        if key not in self._wanted:
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
        """Open the listeners that should be open, and have the others hold their ports.

        Args:
            retry: Try those again that failed before.

        Returns:
            Those that could not be opened, or not get their ports, with the reason, and (None) those that failed before
            and did not now.
        """
        outcomes: dict[ListenerKey, ListenError | None] = {}
        for key in {**self._doubtful, **(self._failed if retry else {})}:
            wanted = self._wanted[key]
            if self._is_as_wanted(wanted):
                self._failed.pop(key, None)
            elif retry or key not in self._failed:
                try:
                    names_holder = key not in self._failed and len(outcomes) < MAX_HOLDERS_NAMED
                    self._bring_about(wanted, names_holder=names_holder)
                except ListenError as error:
                    self._failed[key] = None
                    outcomes[key] = error
                except Exception:
                    self._doubtful.pop(key, None)
                    self._doubtful[key] = None  # it is still to be done, but not before all others
                    raise
                else:
                    if key in self._failed:
                        del self._failed[key]
                        outcomes[key] = None
            self._doubtful.pop(key, None)
        return outcomes

    def close_listeners(self) -> None:
        """Accept no more and hold no port; open connections go on, and late answers of flows are delivered."""
        self._doubtful.clear()
        self._failed.clear()
        while self._held:
            self._held.popitem()[1].close()
        while self._open:
            key, listener = self._open.popitem()
            if isinstance(listener, UdpListener):
                self._retired[key] = listener
            else:
                listener.close()
        for retired in self._retired.values():
            retired.stop()

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

    def _is_as_wanted(self, wanted: _Wanted) -> bool:
        key = wanted.spec.key
        return key in self._open if self._has_to_be_open(wanted) else key in self._held or key in self._retired

    def _has_to_be_open(self, wanted: _Wanted) -> bool:
        """Return whether a listener has to be open; without Backends it resets whom it accepts, or drops what it gets.

        One without Backends must be open if there is one at the wildcard address with the same port: to that one the
        kernel would lead the clients, and they are not for it.
        """
        spec = wanted.spec
        return self._pools.serves(wanted.route) or (not spec.address.is_unspecified and self._ports.is_shared(spec))

    def _bring_about(self, wanted: _Wanted, *, names_holder: bool) -> None:
        """Have a listener open, or hold its port, that does not.

        Raises:
            ListenError: it does not still.
        """
        key = wanted.spec.key
        if not self._has_to_be_open(wanted):
            if key in self._open:
                self._retire(key)
            else:
                self._held[key] = self._hold(wanted.spec, names_holder=names_holder)
            return
        try:
            if key.service_port.protocol is Protocol.UDP:
                self._start_udp(wanted, names_holder=names_holder)
            else:
                self._start_tcp(wanted, names_holder=names_holder)
        except OSError as error:  # epoll_ctl(2)
            raise ListenError(
                f"cannot watch the listener of {key.service_port}: {error.strerror}; raise fs.epoll.max_user_watches"
            ) from error

    def _hold(self, spec: ListenerSpec, *, names_holder: bool) -> socket.socket:
        hold = hold_datagram_port if spec.key.service_port.protocol is Protocol.UDP else hold_port
        return hold(spec, shares_port=self._shares_port(spec), names_holder=names_holder)

    def _start_tcp(self, wanted: _Wanted, *, names_holder: bool) -> None:
        spec = wanted.spec
        if spec.key not in self._held:
            self._held[spec.key] = self._hold(spec, names_holder=names_holder)
        sock = self._held[spec.key]
        listener = TcpListener(
            engine=self._engine,
            spec=spec,
            sock=sock,
            pools=self._pools,
            route=wanted.route,
            limits=self._limits,
            counters=self._counters_of(spec.key.service_port),
            relays=self._relays,
        )
        try:
            start_listening(sock, spec, self._limits, names_holder=names_holder)
        except ListenError:
            listener.stop()
            raise
        self._open[spec.key] = listener
        del self._held[spec.key]

    def _start_udp(self, wanted: _Wanted, *, names_holder: bool) -> None:
        spec = wanted.spec
        key = spec.key
        sock = open_datagram_socket(
            spec,
            shares_port=self._shares_port(spec),
            names_holder=names_holder,
            predecessor=self._socket_of(key),
        )
        try:
            listener = self._retired.get(key)
            if listener is None:
                listener = UdpListener(
                    engine=self._engine,
                    spec=spec,
                    sock=sock,
                    pools=self._pools,
                    route=wanted.route,
                    limits=self._flow_limits,
                    counters=self._engine.counters.udp_services[str(key.service_port)],
                    table=self._flows,
                    buffers=self._datagram_buffers(),
                )
            else:
                listener.lead(wanted.route)
                listener.open(sock)
        except Exception:
            sock.close()
            raise
        self._open[key] = listener
        self._retired.pop(key, None)
        self._release(key)

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
        """Have a listener only hold its port, until it is opened again.

        Raises:
            ListenError: it does not hold it.
        """
        listener = self._open.pop(key)
        if isinstance(listener, UdpListener):
            listener.retire(FlowEnd.ENDPOINT_GONE)
            self._retired[key] = listener
        elif (sock := listener.stop()) is not None:
            self._held[key] = sock

    def _close(self, key: ListenerKey) -> None:
        """Close a listener that is not wanted any more, or elsewhere."""
        self._doubtful.pop(key, None)
        self._failed.pop(key, None)
        spec = self._wanted.pop(key).spec
        if self._ports.remove(spec):
            self._set_shared(spec, is_shared=False)
        self._release(key)
        listener = self._open.pop(key, None) or self._retired.pop(key, None)
        if isinstance(listener, UdpListener):
            listener.close(FlowEnd.SERVICE_GONE)
            self._engine.close_waiting()
        elif listener is not None:
            listener.close()

    def _release(self, key: ListenerKey) -> None:
        """Close the socket that only holds a port, if there is one."""
        sock = self._held.pop(key, None)
        if sock is not None:
            sock.close()

    def _socket_of(self, key: ListenerKey) -> socket.socket | None:
        """Return what a listener has its port by; None: it has not got it."""
        listener = self._open.get(key) or self._retired.get(key)
        return self._held.get(key) if listener is None else listener.sock

    def _shares_port(self, spec: ListenerSpec) -> bool:
        """Return whether a socket about to be bound shares its port; never with one of ours at the same address."""
        others = (key for key in self._ports.at_place(spec) if key != spec.key)
        return self._ports.is_shared(spec) and not any(map(self._socket_of, others))

    def _set_shared(self, spec: ListenerSpec, *, is_shared: bool) -> None:
        """Have all listeners at the port of one share it from now on, or not any more."""
        for key in self._ports.at_port(spec):
            sock = self._socket_of(key)
            if sock is not None:
                share_port(sock, is_shared=is_shared)
            self._doubt(key)

"""The engine with its listeners: the proxy between two ``peers`` or ``udp_peers``.

Entry points: ``open_proxy`` (driven under trio), ``stepped_proxy`` (moves only when told to, on a virtual clock).
"""

import errno
import os
import select
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from random import Random
from time import monotonic

import trio
from builders import listener_key, pool_key, route
from udp_peers import flush_loopback

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.control.engine_loop import run_engine
from userspace_proxy.dataplane.counters import FlowCounters, ServiceCounters
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.engine_listeners import EngineListeners
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.dataplane.tcp_listener import TcpListener
from userspace_proxy.dataplane.udp_flow import UdpFlow
from userspace_proxy.dataplane.udp_listener import UdpListener
from userspace_proxy.model.names import Family, Protocol, family_of
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import Backend, ListenerKey, ListenerSpec, Pool, PoolKey, Route, UdpSettings

WEB = "shop/web:http"
DNS = "shop/dns:dns"
"""The ServicePort of UDP, unless a test names another one."""
DEADLINE_S = 30.0
_REASONS = {reason.value: reason for reason in CloseReason}

TICK_S = 1 / 1024
"""About a millisecond; sums of it are exact."""


class VirtualClock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def raise_bug(error: Exception) -> None:
    """Report a bug by failing the test."""
    raise error


class Proxy:
    """A ListenerSet (``listeners``) with the one engine that serves it (``served``), in this process."""

    def __init__(
        self,
        limits: RelayLimits,
        flow_limits: FlowLimits,
        clock: Callable[[], float],
        report_bug: Callable[[Exception], None],
    ) -> None:
        """Create the engine; nothing runs yet."""
        self.clock = clock
        self._after_turn = trio.lowlevel.ParkingLot()
        self.engine = Engine(clock, report_bug)
        self.served = EngineListeners(
            self.engine,
            limits,
            flow_limits,
            Random(0).random,  # noqa: S311
            lambda key: self.listeners.listen_again(key),  # noqa: PLW0108 - there is none yet
        )
        self.listeners = ListenerSet(self.served, limits)

    def set_pool(
        self, *backends: Backend, name: str = WEB, host: str = "127.0.0.1", affinity_timeout_s: int | None = None
    ) -> PoolKey:
        """Put the Pool of a ServicePort for the family of a host in force; return its key."""
        key = pool_key(name, family=family_of(ip_address(host)))
        self.listeners.apply_pool(Pool(key, backends, Balance.ROUND_ROBIN, affinity_timeout_s))
        self.open_all()
        return key

    def serve(
        self, *backends: Backend, name: str = WEB, host: str = "127.0.0.1", affinity_timeout_s: int | None = None
    ) -> tuple[str, int]:
        """Open a listener on a free port for a Pool of these Backends; return where it listens."""
        pool = self.set_pool(*backends, name=name, host=host, affinity_timeout_s=affinity_timeout_s)
        return self.listen(listener_key(name, family=pool.family), route(pool), host=host)

    def listen(self, key: ListenerKey, route: Route, host: str = "127.0.0.1") -> tuple[str, int]:
        """Open a listener on a free port with a Route that leads to Pools in force; return where it listens."""
        self.listeners.apply_listener(ListenerSpec(key, ip_address(host), 0), route)
        self.open_all()
        return self.address(key)

    def tcp_listener(self) -> TcpListener:
        """Return the only listener that is open, one of TCP."""
        (listener,) = self.served._listeners.values()
        assert isinstance(listener, TcpListener)
        return listener

    def open_all(self) -> None:
        """Open and close what is to be, which must not fail."""
        assert not self.listeners.open_missing(retry=False)

    def address(self, key: ListenerKey) -> tuple[str, int]:
        """Return where a listener that is open listens."""
        listener = self.served._listeners[key]
        assert listener.sock is not None
        host, port = listener.sock.getsockname()[:2]
        return host, port

    def set_udp_pool(
        self,
        *backends: Backend,
        name: str = DNS,
        family: Family = Family.IPV4,
        udp: UdpSettings = UdpSettings(),  # noqa: B008 - frozen
        affinity_timeout_s: int | None = None,
    ) -> PoolKey:
        """Put the Pool of a ServicePort of UDP in force; return its key."""
        key = pool_key(name, family=family, protocol=Protocol.UDP)
        self.listeners.apply_pool(Pool(key, backends, Balance.ROUND_ROBIN, affinity_timeout_s, udp))
        self.open_all()
        return key

    def serve_udp(
        self,
        *backends: Backend,
        name: str = DNS,
        host: str = "127.0.0.1",
        port: int = 0,
        udp: UdpSettings = UdpSettings(),  # noqa: B008 - frozen
        affinity_timeout_s: int | None = None,
    ) -> tuple[str, int]:
        """Open a UDP listener, on a free port unless it is given; return where clients of this host reach it."""
        family = family_of(ip_address(host))
        pool = self.set_udp_pool(*backends, name=name, family=family, udp=udp, affinity_timeout_s=affinity_timeout_s)
        key = udp_listener_key(name, family)
        self.listeners.apply_listener(ListenerSpec(key, ip_address(host), port), route(pool))
        self.open_all()
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        return loopback.get(host, host), self.address(key)[1]

    def flow_counters(self, name: str = DNS) -> FlowCounters:
        """Return the counters of a ServicePort of UDP, up to date."""
        self.served.report()
        return self.engine.counters.udp_services[name]

    def udp_listeners(self) -> list[UdpListener]:
        """Return the UDP listeners, the retired ones too."""
        return [listener for listener in self.served._listeners.values() if isinstance(listener, UdpListener)]

    def flows(self) -> list[UdpFlow]:
        """Return all flows, listener by listener."""
        return [flow for listener in self.udp_listeners() for flow in listener.flows]

    def counters(self, name: str = WEB) -> ServiceCounters:
        """Return the counters of a ServicePort."""
        return self.engine.counters.services[name, Protocol.TCP]

    def closed(self, name: str = WEB) -> dict[CloseReason, int]:
        """Return how many connections of a ServicePort ended, by reason."""
        return {_REASONS[value]: count for value, count in self.counters(name).closed.items()}

    def settle(self) -> None:
        """Do what there is to do right now."""
        while self.engine.poll(0):
            pass

    def pass_on(self) -> None:
        """Do what there is to do until no datagram is under way on the loopback interface."""
        flush_loopback()
        while self.engine.poll(0):
            flush_loopback()

    def advance(self, seconds: float) -> None:
        """Let virtual time pass, and do what is due at the moment it is due."""
        assert isinstance(self.clock, VirtualClock)
        end_s = self.clock.now_s + seconds
        self.settle()
        while self.engine.timers.next_s <= end_s:
            self.clock.now_s = self.engine.timers.next_s
            self.settle()
        self.clock.now_s = end_s

    async def run(self) -> None:
        """Drive the engine until cancelled."""
        await run_engine(self.engine, self._after_turn)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition that only the engine changes is true."""
        while not condition():
            await self._after_turn.park()

    async def poll_until(self, condition: Callable[[], object]) -> None:
        """Drive the engine until a condition is true, and not a batch of events longer."""
        while not condition():
            self.engine.poll(0)
            await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def driving(self) -> AsyncIterator[None]:
        """Drive the engine while the block runs."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.poll_until, lambda: False)
            yield
            nursery.cancel_scope.cancel()

    async def until_idle(self) -> None:
        """Wait until all connections have ended."""
        await self.until(lambda: not self.served.open_relays)

    def assert_nothing_left(self) -> None:
        """Fail if an ended connection or flow has left something behind."""
        tcp = [listener for listener in self.served._listeners.values() if isinstance(listener, TcpListener)]
        tcp_sockets = {listener.sock.fileno() for listener in tcp if listener.sock}
        udp_sockets = {listener.fd for listener in self._open_udp_listeners()}
        assert set(self.engine.handlers) == tcp_sockets | udp_sockets
        assert not self.served.open_flows
        self.assert_flows_consistent()
        assert not self.served.open_relays
        assert self.engine.pipes._open == len(self.engine.pipes._spare)
        assert all(not pipe.level for pipe in self.engine.pipes._spare)
        assert all(not member.open for _, live in self.served.pools() for member in live.members)
        assert all(not service.active for service in self.engine.counters.services.values())
        assert all(
            service.connections == sum(service.closed.values()) for service in self.engine.counters.services.values()
        )

    def assert_flows_consistent(self) -> None:
        """Fail unless all that is written down about the flows agrees."""
        flows = self.flows()
        assert len(set(flows)) == len(flows) == self.served.open_flows
        assert set(self.served._flows) == set(flows)
        for listener in self.udp_listeners():
            assert list(listener.flows.current) == [flow.key for flow in listener.flows.current.values()]
            assert all(flow.detached_s is None for flow in listener.flows.current.values())
            assert all(flow.detached_s is not None for flow in listener.flows._lingering)
        handlers = self.engine.handlers
        assert {handler for handler in handlers.values() if isinstance(handler, UdpFlow)} == set(flows)
        assert all(handlers[flow.sock.fileno()] is flow for flow in flows)
        open_now = Counter(flow.member for flow in flows)
        assert all(flow.member.open == open_now[flow.member] for flow in flows)
        for name, key in {(str(key.service_port), key) for key, _ in self.served.pools()}:
            known = {member for other, live in self.served.pools() for member in live.known if other == key}
            if key.service_port.protocol is Protocol.UDP:
                assert sum(member.open for member in known) == sum(open_now[member] for member in known), name
        by_service = Counter(str(flow.listener.spec.key.service_port) for flow in flows)
        for name, counters in self.engine.counters.udp_services.items():
            assert counters.active == by_service[name]
            assert counters.flows == sum(counters.ended.values()) + counters.active

    def _open_udp_listeners(self) -> Iterator[UdpListener]:
        """Iterate over those that clients can reach."""
        return (listener for listener in self.udp_listeners() if not listener.is_retired)

    def close(self) -> None:
        """Close everything."""
        self.listeners.close_listeners()
        self.served.abort()
        self.engine.close()
        self.listeners.close()


class FullEpoll:
    """An epoll of a kernel that watches no more than so many descriptors (epoll(7), max_user_watches)."""

    def __init__(self, epoll: select.epoll, room: int) -> None:
        self._epoll = epoll
        self.room = room
        self.poll, self.close, self.unregister = epoll.poll, epoll.close, epoll.unregister

    def register(self, fd: int, events: int) -> None:
        """Watch a descriptor while there is room."""
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        self._epoll.register(fd, events)


def fill_epoll(proxy: Proxy, room: int) -> FullEpoll:
    """Have the engine's epoll take only so many more descriptors."""
    full = FullEpoll(proxy.engine._epoll, room)
    proxy.engine._epoll = full  # type: ignore[assignment]
    return full


def udp_listener_key(name: str = DNS, family: Family = Family.IPV4) -> ListenerKey:
    """Return the key of the listener of a ServicePort of UDP."""
    return listener_key(name, family=family, protocol=Protocol.UDP)


@contextmanager
def stepped_proxy(
    flow_limits: FlowLimits = FlowLimits(),  # noqa: B008 - frozen
    *,
    report_bug: Callable[[Exception], None] = raise_bug,
) -> Iterator[Proxy]:
    """Yield a Proxy on a VirtualClock that moves only when told to, and needs no event loop."""
    proxy = Proxy(RelayLimits(), flow_limits, VirtualClock(), report_bug)
    try:
        yield proxy
        proxy.assert_flows_consistent()
    finally:
        proxy.close()


@asynccontextmanager
async def open_proxy(
    limits: RelayLimits = RelayLimits(),  # noqa: B008 - frozen
    *,
    flow_limits: FlowLimits = FlowLimits(),  # noqa: B008 - frozen
    clock: Callable[[], float] = monotonic,
    report_bug: Callable[[Exception], None] = raise_bug,
    driven: bool = True,
) -> AsyncIterator[Proxy]:
    """Yield a running Proxy, for a limited time; with ``driven`` false it moves only when ``settle`` is called."""
    proxy = Proxy(limits, flow_limits, clock, report_bug)
    try:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                if driven:
                    nursery.start_soon(proxy.run)
                yield proxy
                nursery.cancel_scope.cancel()
    finally:
        proxy.close()

"""The engine with its listeners, driven under trio: the proxy between two ``peers``. Entry point: ``open_proxy``."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from random import Random
from time import monotonic

import trio
from builders import listener_key, pool_key, route

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.config import RelayLimits
from userspace_proxy.control.engine_loop import run_engine
from userspace_proxy.dataplane.counters import ServiceCounters
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.model.names import Protocol, family_of
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import Backend, ListenerKey, ListenerSpec, Pool, PoolKey, Route

WEB = "shop/web:http"
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
    """An Engine with a ListenerSet."""

    def __init__(
        self, limits: RelayLimits, clock: Callable[[], float], report_bug: Callable[[Exception], None]
    ) -> None:
        """Create the engine; nothing runs yet."""
        self.clock = clock
        self._after_turn = trio.lowlevel.ParkingLot()
        self.engine = Engine(clock, report_bug)
        self.listeners = ListenerSet(self.engine, limits, Random(0).random)  # noqa: S311

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

    def open_all(self) -> None:
        """Open and close what is to be, which must not fail."""
        assert not self.listeners.open_missing(retry=False)

    def address(self, key: ListenerKey) -> tuple[str, int]:
        """Return where a listener that is open listens."""
        sock = self.listeners._open[key].sock
        assert sock is not None
        host, port = sock.getsockname()[:2]
        return host, port

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
        await self.until(lambda: not self.listeners.open_relays)

    def assert_nothing_left(self) -> None:
        """Fail if an ended connection has left something behind."""
        open_sockets = {listener.sock.fileno() for listener in self.listeners._open.values() if listener.sock}
        assert set(self.engine.handlers) == open_sockets
        assert not self.listeners.open_relays
        assert self.engine.pipes._open == len(self.engine.pipes._spare)
        assert all(not pipe.level for pipe in self.engine.pipes._spare)
        assert all(not member.open for _, live in self.listeners.pools() for member in live.members)
        assert all(not service.active for service in self.engine.counters.services.values())
        assert all(
            service.connections == sum(service.closed.values()) for service in self.engine.counters.services.values()
        )

    def close(self) -> None:
        """Close everything."""
        self.listeners.close_listeners()
        self.listeners.abort_relays()
        self.engine.close()


@asynccontextmanager
async def open_proxy(
    limits: RelayLimits = RelayLimits(),  # noqa: B008 - frozen
    *,
    clock: Callable[[], float] = monotonic,
    report_bug: Callable[[Exception], None] = raise_bug,
    driven: bool = True,
) -> AsyncIterator[Proxy]:
    """Yield a running Proxy, for a limited time; with ``driven`` false it moves only when ``settle`` is called."""
    proxy = Proxy(limits, clock, report_bug)
    try:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                if driven:
                    nursery.start_soon(proxy.run)
                yield proxy
                nursery.cancel_scope.cancel()
    finally:
        proxy.close()

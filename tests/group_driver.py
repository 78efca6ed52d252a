"""Several engines in this process that serve one ListenerSet, each with copies of the sockets, as workers have them.

They do what they are told at once, or where that is asked for only when they are let, as busy workers would. All of it
moves only when told to, on a virtual clock. Entry point: ``open_group``.
"""

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_address
from random import Random

from builders import listener_key, pool_key, route
from engine_driver import WEB, VirtualClock, raise_bug
from udp_peers import flush_loopback

from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.engine_listeners import EngineListeners
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.dataplane.udp_listener import UdpListener
from userspace_proxy.errors import ListenError
from userspace_proxy.model.names import Protocol, ServicePortName, family_of
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import (
    Backend,
    ListenerKey,
    ListenerSpec,
    Pool,
    PoolKey,
    Route,
    SourceAddresses,
    UdpSettings,
)

Address = tuple[str, int]


class Member:
    """One engine, with its own copies of the sockets it serves."""

    def __init__(
        self, limits: RelayLimits, clock: Callable[[], float], on_stopped: Callable[[ListenerKey], None]
    ) -> None:
        """Start without any."""
        self.engine = Engine(clock, raise_bug)
        self.served = EngineListeners(
            self.engine,
            limits,
            FlowLimits(),
            Random(0).random,  # noqa: S311
            on_stopped,
        )
        self.sockets: dict[ListenerKey, socket.socket] = {}
        self.told: deque[tuple[str, Callable[[], None]]] = deque()
        """What it has not done yet, by the names of the methods of ``DataPlane``."""

    @property
    def clients(self) -> set[Address]:
        """Those of its open connections and of its flows that get datagrams."""
        flows = [
            flow.client
            for listener in self.served._listeners.values()
            if isinstance(listener, UdpListener)
            for flow in listener.flows.current.values()
        ]
        return {relay.client_address for relay in self.served.relays()} | set(flows)

    def catch_up(self) -> None:
        """Do what it was told."""
        while self.told:
            self.told.popleft()[1]()

    def serve(self, spec: ListenerSpec, route: Route, sock: socket.socket, *, is_shared: bool) -> None:
        """Serve a socket, which it owns from here on."""
        self.served.serve(spec, route, (sock,), is_shared=is_shared)
        self._let_go(spec.key)
        self.sockets[spec.key] = sock

    def retire(self, key: ListenerKey) -> None:
        """Take no more clients of a listener; by a UDP socket late answers leave still."""
        self.served.retire(key)
        if key.service_port.protocol is not Protocol.UDP:
            self._let_go(key)

    def close_listener(self, key: ListenerKey) -> None:
        """Close a listener."""
        self.served.close(key)
        self._let_go(key)

    def close(self) -> None:
        """Close everything."""
        self.catch_up()
        self.served.stop()
        self.served.abort()
        for key in list(self.sockets):
            self._let_go(key)
        self.engine.close()

    def _let_go(self, key: ListenerKey) -> None:
        if key in self.sockets:
            self.sockets.pop(key).close()


class Group:
    """The engines, the ListenerSet that they serve, and clients; it is the DataPlane."""

    def __init__(self, size: int, limits: RelayLimits, stack: ExitStack) -> None:
        """Start without listeners; clients are closed by the stack."""
        self.clock = VirtualClock()
        self.stopped: list[tuple[float, ListenerKey]] = []
        """When an engine has found a listener stopped."""
        self.all = [Member(limits, self.clock, self._on_stopped) for _ in range(size)]
        self.members = size
        self.listens_again = True
        """Whether the ListenerSet is told of listeners that were stopped."""
        self.lags = False
        """Whether engines do what they are told only in ``catch_up``."""
        self.is_full = False
        """Whether engines can watch no more."""
        self.listeners = ListenerSet(self, limits)
        self._stack = stack

    # DataPlane

    def apply_sources(self, sources: SourceAddresses) -> None:
        """See ``DataPlane``."""
        self._tell_all("apply_sources", lambda member: member.served.apply_sources(sources))

    def apply_pool(self, pool: Pool) -> None:
        """See ``DataPlane``."""
        self._tell_all("apply_pool", lambda member: member.served.apply_pool(pool))

    def remove_pool(self, key: PoolKey) -> None:
        """See ``DataPlane``."""
        self._tell_all("remove_pool", lambda member: member.served.remove_pool(key))

    def serve(self, spec: ListenerSpec, route: Route, sockets: tuple[socket.socket, ...]) -> None:
        """See ``DataPlane``."""
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert len(sockets) in (1, self.members)
        for number, member in enumerate(self.all):
            copy = sockets[number % len(sockets)].dup()
            is_shared = len(sockets) < self.members
            self._tell(member, "serve", partial(member.serve, spec, route, copy, is_shared=is_shared))

    def lead(self, key: ListenerKey, route: Route) -> None:
        """See ``DataPlane``."""
        self._tell_all("lead", lambda member: member.served.lead(key, route))

    def retire(self, key: ListenerKey) -> None:
        """See ``DataPlane``."""
        self._tell_all("retire", lambda member: member.retire(key))

    def close(self, key: ListenerKey) -> None:
        """See ``DataPlane``."""
        self._tell_all("close", lambda member: member.close_listener(key))

    def forget(self, name: ServicePortName) -> None:
        """See ``DataPlane``."""
        self._tell_all("forget", lambda member: member.served.forget(name))

    def stop(self) -> None:
        """See ``DataPlane``."""
        self._tell_all("stop", lambda member: member.served.stop())

    def _tell_all(self, name: str, what: Callable[[Member], None]) -> None:
        for member in self.all:
            self._tell(member, name, partial(what, member))

    def _tell(self, member: Member, name: str, what: Callable[[], None]) -> None:
        member.told.append((name, what))
        if not self.lags:
            member.catch_up()

    def _on_stopped(self, key: ListenerKey) -> None:
        self.stopped.append((self.clock.now_s, key))
        if self.listens_again:
            self.listeners.listen_again(key)

    # What tests ask for

    def want(self, spec: ListenerSpec, *backends: Backend, affinity: bool = False) -> None:
        """Ask for a listener with a Pool of these Backends; nothing is opened yet."""
        name = spec.key.service_port
        key = pool_key(str(name), family=spec.key.family, protocol=name.protocol)
        udp = UdpSettings() if name.protocol is Protocol.UDP else None
        timeout_s = 10800 if affinity else None
        self.listeners.apply_pool(Pool(key, backends, Balance.ROUND_ROBIN, timeout_s, udp))
        self.listeners.apply_listener(spec, route(key))

    def serve_all(self, spec: ListenerSpec, *backends: Backend, affinity: bool = False) -> None:
        """Have a listener with a Pool of these Backends, which must not fail."""
        self.want(spec, *backends, affinity=affinity)
        assert self.listeners.open_missing(retry=False) == {}

    def failure(self, *, retry: bool = False) -> str:
        """Open what is missing; return why the one listener that fails does."""
        (error,) = self.listeners.open_missing(retry=retry).values()
        assert isinstance(error, ListenError)
        return str(error)

    def catch_up(self) -> None:
        """Have all engines do what they were told, and go on doing so at once."""
        self.lags = False
        for member in self.all:
            member.catch_up()

    def forget_retirements(self) -> None:
        """Have engines not hear of listeners that have retired meanwhile: a worker is told what is, not what was."""
        for member in self.all:
            member.told = deque(one for one in member.told if one[0] != "retire")

    def settle(self) -> None:
        """Have all engines do what there is to do, until nothing is under way on the loopback interface."""
        flush_loopback()
        while any([member.engine.poll(0) for member in self.all]):  # noqa: C419 - each has its turn
            flush_loopback()

    def advance(self, seconds: float) -> None:
        """Let virtual time pass, and have all engines do what is due then."""
        self.clock.now_s += seconds
        self.settle()

    def connect(self, spec: ListenerSpec, source: str = "127.0.0.1", *, host: str = "") -> socket.socket:
        """Return a TCP client of a listener; nobody has accepted it yet. ``host``: where, if not at its address."""
        address = host or str(spec.address)
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._stack.enter_context(client)
        client.settimeout(5.0)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
        client.bind((source, 0))
        client.connect((address, spec.port))
        return client

    def owner(self, client: socket.socket) -> int:
        """Return the number of the one engine that serves a client, once all have done what there is to do."""
        self.settle()
        address = client.getsockname()[:2]
        (number,) = (number for number, member in enumerate(self.all) if address in member.clients)
        return number

    def owner_of(self, spec: ListenerSpec, source: str, *, host: str = "") -> int:
        """Return the number of the engine that serves a new TCP client from an address."""
        return self.owner(self.connect(spec, source, host=host))

    def sockets(self, spec: ListenerSpec) -> list[int]:
        """Return which socket each engine has for a listener, as numbers that tell them apart."""
        return [os.fstat(member.sockets[spec.key].fileno()).st_ino for member in self.all]

    def close_all(self) -> None:
        """Close everything, and see that nothing is left behind."""
        self.lags = False
        self.listeners.close_listeners()
        for member in self.all:
            member.close()
        self.listeners.close()
        assert not self.listeners._sockets


def spec_of(host: str, port: int, name: str = WEB, protocol: Protocol = Protocol.TCP) -> ListenerSpec:
    """Return the place of the one listener of a ServicePort."""
    address = ip_address(host)
    return ListenerSpec(listener_key(name, family=family_of(address), protocol=protocol), address, port)


@contextmanager
def open_group(size: int, limits: RelayLimits = RelayLimits()) -> Iterator[Group]:  # noqa: B008 - frozen
    """Yield a Group of that many engines."""
    flush_loopback()
    with ExitStack() as stack:
        group = Group(size, limits, stack)
        try:
            yield group
        finally:
            group.close_all()

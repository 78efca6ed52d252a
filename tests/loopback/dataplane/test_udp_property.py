"""Listeners of UDP and TCP under random changes: whatever happens, nothing is sent astray, kept or forgotten."""

import socket
from contextlib import ExitStack
from ipaddress import ip_address

from builders import backend, pool_key, route
from engine_driver import Proxy, stepped_proxy, udp_listener_key
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from peers import is_taken, own_host
from udp_peers import Address, UdpPeer, flush_loopback, open_udp_peers, own_port

from userspace_proxy.config import FlowLimits
from userspace_proxy.model.names import Protocol
from userspace_proxy.model.service_port import Balance, UdpBalance
from userspace_proxy.plan.state import ListenerSpec, Pool, UdpSettings

SERVICES = ("shop/dns:dns", "shop/log:log")
PORT, OTHER_PORT = own_port(6), own_port(7)
"""Ports that nobody else wants, so that nobody has one while a listener is removed."""
PLACES = {"shop/dns:dns": (own_host(4), PORT), "shop/log:log": ("0.0.0.0", OTHER_PORT)}
ADDRESSES: dict[str, Address] = {"shop/dns:dns": PLACES["shop/dns:dns"], "shop/log:log": (own_host(5), OTHER_PORT)}
"""Where clients send to."""
SERVERS = 4
CLIENTS = 5
LIMITS = FlowLimits(idle_timeout_s=20.0, max_flows=4, max_total_flows=6)

services = st.sampled_from(SERVICES)
some_servers = st.sets(st.integers(0, SERVERS - 1))
WITHIN, BEYOND = ["127.0.0.0/8"], ["198.51.100.0/24"]


class Listeners(RuleBasedStateMachine):
    """Two Services of UDP and one of TCP in one engine."""

    @initialize()
    def start(self) -> None:
        """Open everything."""
        self.stack = ExitStack()
        self.proxy: Proxy = self.stack.enter_context(stepped_proxy(LIMITS))
        self.peers = self.stack.enter_context(open_udp_peers())
        self.servers = [self.peers.server() for _ in range(SERVERS)]
        self.dead: set[int] = set()
        self.in_pool: dict[str, set[int]] = {name: set() for name in SERVICES}
        self.serving: dict[str, set[int]] = {name: set() for name in SERVICES}
        self.ranges: dict[str, list[str]] = {name: [] for name in SERVICES}
        self.clients: dict[tuple[str, int], UdpPeer] = {}
        self.number = 0
        self.web = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.web_address = self.proxy.serve(backend("{}:{}".format(*self.web.getsockname())))
        for name in SERVICES:
            self.set_pool(name, {0, 1}, set(), by_datagram=False, idle_timeout_s=None)
            self.listen(name)

    @rule(
        name=services,
        chosen=some_servers,
        serving=some_servers,
        by_datagram=st.booleans(),
        idle_timeout_s=st.sampled_from([None, 5.0]),
    )
    def set_pool(
        self, name: str, chosen: set[int], serving: set[int], *, by_datagram: bool, idle_timeout_s: float | None
    ) -> None:
        """Put other Backends and settings in force."""
        self.in_pool[name], self.serving[name] = chosen, serving
        udp = UdpSettings(
            UdpBalance.DATAGRAM if by_datagram else UdpBalance.FLOW,
            idle_timeout_s,
            frozenset(self.servers[one].backend for one in serving),
        )
        backends = tuple(self.servers[one].backend for one in chosen)
        self.proxy.listeners.apply_pool(
            Pool(pool_key(name, protocol=Protocol.UDP), backends, Balance.ROUND_ROBIN, None, udp)
        )
        self.proxy.open_all()

    @rule(name=services)
    def listen(self, name: str) -> None:
        """Have a listener."""
        key = udp_listener_key(name)
        host, port = PLACES[name]
        spec = ListenerSpec(key, ip_address(host), port)
        if key not in self.proxy.listeners._wanted:
            wanted = route(pool_key(name, protocol=Protocol.UDP), source_ranges=self.ranges[name])
            self.proxy.listeners.apply_listener(spec, wanted)
            self.proxy.open_all()

    @rule(name=services)
    def remove(self, name: str) -> None:
        """Remove a listener: none of its flows is there any more."""
        self.proxy.listeners.remove_listener(udp_listener_key(name))
        assert not [flow for flow in self.proxy.flows() if str(flow.listener.spec.key.service_port) == name]

    @rule(name=services, ranges=st.sampled_from([[], WITHIN, BEYOND]))
    def set_ranges(self, name: str, ranges: list[str]) -> None:
        """Let all clients in, or none."""
        self.ranges[name] = ranges
        key = udp_listener_key(name)
        if key in self.proxy.listeners._wanted:
            self.proxy.listeners.apply_route(key, route(pool_key(name, protocol=Protocol.UDP), source_ranges=ranges))
            self.proxy.open_all()

    @rule(number=st.integers(0, SERVERS - 1))
    def die_or_revive(self, number: int) -> None:
        """Have a Backend refuse, or take datagrams again."""
        self.take_at_servers()
        if number in self.dead:
            self.servers[number].revive()
        else:
            self.servers[number].die()
        self.dead ^= {number}

    @rule(name=services, number=st.integers(0, CLIENTS - 1), burst=st.sampled_from([1, 2, 3, 40]))
    def send(self, name: str, number: int, burst: int) -> None:
        """Send datagrams: each arrives at most once, only where it may, and for certain where nobody is dead."""
        client = self.clients.get((name, number))
        if client is None:
            client = self.clients[name, number] = self.peers.client(ADDRESSES[name])
        sent = [b"%s %d %d" % (name.encode(), number, self.number + one) for one in range(burst)]
        self.number += burst
        try:
            client.send(*sent)
        except ConnectionRefusedError:  # of this one or an earlier one
            sent = []
        self.proxy.pass_on()
        is_open = udp_listener_key(name) in self.proxy.listeners._serving and self.ranges[name] != BEYOND
        allowed = self.in_pool[name] | self.serving[name] if is_open else set()
        arrived = self.take_at_servers()
        assert {place for place, _ in arrived} <= allowed
        datagrams = [datagram for _, datagram in arrived]
        assert len(set(datagrams)) == len(datagrams)
        assert set(datagrams) <= set(sent)
        if is_open and not self.dead and self.in_pool[name] and sent:
            assert sorted(datagrams) == sorted(sent)

    @rule()
    def answer(self) -> None:
        """Have every Backend answer whoever has sent to it lately: only the client that was meant gets it."""
        for one, server in enumerate(self.servers):
            for sender in server.senders[-6:]:
                if one not in self.dead:
                    owner = next((flow for flow in self.proxy.flows() if flow.sock.getsockname()[1] == sender[1]), None)
                    server.answer(b"" if owner is None else b"%d" % owner.client[1], to=sender)
        self.proxy.pass_on()
        for client in self.clients.values():
            try:
                taken = client.take()
            except ConnectionRefusedError:
                taken = []
            assert set(taken) <= {b"%d" % client.address[1]}

    @rule(seconds=st.sampled_from([0.5, 1.5, 4.0, 6.0, 30.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass: after half a minute of silence nothing is left."""
        self.proxy.advance(seconds)
        self.proxy.pass_on()
        if seconds == 30.0:
            self.take_at_servers()
            self.proxy.assert_nothing_left()

    @rule()
    def connect_by_tcp(self) -> None:
        """Use the neighbour."""
        with socket.create_connection(self.web_address) as client:
            self.proxy.settle()
            self.web.settimeout(10)
            peer, _ = self.web.accept()
            with peer:
                self.proxy.settle()
                client.sendall(b"ping")
                flush_loopback()
                self.proxy.settle()
                assert peer.recv(10) == b"ping"
        flush_loopback()
        self.proxy.settle()
        assert not self.proxy.served.open_relays

    @precondition(lambda self: hasattr(self, "proxy"))
    @invariant()
    def holds(self) -> None:
        """All that is written down agrees, the caps are kept, and ports are held exactly while they are wanted."""
        for name, (host, port) in PLACES.items():
            is_wanted = udp_listener_key(name) in self.proxy.listeners._wanted
            assert is_taken(host, port, socket.SOCK_DGRAM) == is_wanted
        self.proxy.assert_flows_consistent()
        assert self.proxy.served.open_flows <= LIMITS.max_total_flows  # type: ignore[operator]
        for listener in self.proxy.udp_listeners():
            assert len(listener.flows.current) <= LIMITS.max_flows
            balance = {flow.key == flow.origin for flow in listener.flows.current.values()}
            assert len(balance) <= 1
        timers = sum(len(queue) for queue in self.proxy.engine.timers._queues.values())
        assert timers <= 200

    def take_at_servers(self) -> list[tuple[int, bytes]]:
        """Return what has arrived, and where."""
        arrived = []
        for place, server in enumerate(self.servers):
            arrived += [(place, datagram) for datagram in server.take()]
        return arrived

    def teardown(self) -> None:
        """Remove everything, and see that nothing is left."""
        if hasattr(self, "proxy"):
            with self.stack:
                for name in SERVICES:
                    self.remove(name)
                self.proxy.pass_on()
                self.proxy.assert_nothing_left()
                assert not self.proxy.udp_listeners()
                del self.proxy


TestListeners = Listeners.TestCase
TestListeners.settings = settings(stateful_step_count=40)

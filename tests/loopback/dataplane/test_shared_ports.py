"""A NodePort and a cluster address with the same port: each client is served by the one it has dialled, or by none."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from itertools import permutations

import pytest
from attrs import evolve
from builders import listener_key, pool_key, route
from engine_driver import Proxy, stepped_proxy
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from peers import is_taken, own_host
from udp_peers import UdpServer, flush_loopback, open_udp_peers, own_port

from userspace_proxy.model.names import Protocol, family_of
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import Backend, ListenerKey, ListenerSpec, Pool, UdpSettings

PORT = own_port(0)
ONE, OTHER = own_host(10), own_host(11)
HOSTS = {"node": "0.0.0.0", "one": ONE, "other": OTHER}
"""Where the listener of each Service is."""
KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
of_every_protocol = pytest.mark.parametrize("protocol", KINDS)


class Servers:
    """A Backend for each Service, and clients."""

    def __init__(self, proxy: Proxy, protocol: Protocol, stack: ExitStack) -> None:
        """Open the Backends, which are closed by the stack."""
        self.proxy = proxy
        self.protocol = protocol
        self.udp: dict[str, UdpServer] = {}
        self.tcp: dict[str, socket.socket] = {}
        self.stack = stack
        peers = stack.enter_context(open_udp_peers())
        self.client = peers.client
        for name in HOSTS:
            self.udp[name] = peers.server()
            self.tcp[name] = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            self.tcp[name].setblocking(False)  # noqa: FBT003

    def want(self, name: str, *, is_empty: bool = False, host: str = "", port: int = PORT) -> ListenerSpec:
        """Ask for the listener of a Service, and return where it is; nothing is opened yet."""
        address = ip_address(host or HOSTS[name])
        service = f"shop/{name}:p"
        udp = UdpSettings() if self.protocol is Protocol.UDP else None
        key = pool_key(service, family=family_of(address), protocol=self.protocol)
        if self.protocol is Protocol.UDP:
            backend = self.udp[name].backend
        else:
            server, server_port = self.tcp[name].getsockname()
            backend = Backend(ip_address(server), server_port)
        backends = () if is_empty else (backend,)
        spec = ListenerSpec(listener_key(service, family=family_of(address), protocol=self.protocol), address, port)
        self.proxy.listeners.apply_pool(Pool(key, backends, Balance.ROUND_ROBIN, None, udp))
        self.proxy.listeners.apply_listener(spec, route(key))
        return spec

    def reached_at(self, host: str, port: int = PORT) -> list[str]:
        """Return the Services whose Backends a client of an address reaches: one or none."""
        return self._reached_by_udp(host, port) if self.protocol is Protocol.UDP else self._reached_by_tcp(host, port)

    def _reached_by_udp(self, host: str, port: int) -> list[str]:
        client = self.client((host, port))
        client.is_refused()
        self.proxy.pass_on()
        return [name for name, server in self.udp.items() if server.take()]

    def _reached_by_tcp(self, host: str, port: int) -> list[str]:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
            if client.connect_ex((host, port)):
                return []
            self.proxy.settle()
            flush_loopback()
            reached = []
            for name, server in self.tcp.items():
                try:
                    server.accept()[0].close()
                except BlockingIOError:
                    continue
                reached.append(name)
        flush_loopback()
        self.proxy.settle()
        return reached

    def is_shared(self, key: ListenerKey) -> bool:
        """Return whether the socket of a listener says that its port may be shared."""
        (sock,) = self.proxy.listeners._sockets[key]
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT))


@contextmanager
def open_servers(protocol: Protocol) -> Iterator[Servers]:
    """Yield Servers with a Proxy."""
    flush_loopback()
    with stepped_proxy() as proxy, ExitStack() as stack:
        yield Servers(proxy, protocol, stack)


@of_every_protocol
@pytest.mark.parametrize("order", list(permutations(HOSTS)), ids="-".join)
@pytest.mark.parametrize("starts_empty", [False, True], ids=["never empty", "empty at first"])
def test_clients_are_served_by_the_listener_they_dialled(
    order: tuple[str, ...],
    protocol: Protocol,
    starts_empty: bool,  # noqa: FBT001
) -> None:
    """In whatever order listeners come and get Backends; elsewhere the one at the wildcard address answers."""
    with open_servers(protocol) as servers:
        for name in order:
            servers.want(name, is_empty=starts_empty)
            servers.proxy.open_all()
        for name in order:
            servers.want(name)
            servers.proxy.open_all()
        assert servers.reached_at(ONE) == ["one"]
        assert servers.reached_at(OTHER) == ["other"]
        assert servers.reached_at(own_host(12)) == ["node"]


@of_every_protocol
@pytest.mark.parametrize("is_node_first", [True, False])
def test_clients_of_both_families_are_served_by_the_listener_they_dialled(
    protocol: Protocol,
    is_node_first: bool,  # noqa: FBT001
) -> None:
    """IPv6 is no different."""
    places = [("node", "::"), ("one", "::1")]
    with open_servers(protocol) as servers:
        for name, host in places if is_node_first else reversed(places):
            servers.want(name, host=host)
            servers.proxy.open_all()
        assert servers.reached_at("::1") == ["one"]


@of_every_protocol
def test_clients_of_a_service_without_backends_are_not_led_to_that_of_the_node_port(protocol: Protocol) -> None:
    """The kernel would do it if there was no socket at the address; nobody may be led to another Service."""
    with open_servers(protocol) as servers:
        one = servers.want("one", is_empty=True)
        servers.proxy.open_all()
        assert servers.proxy.listeners.open_listeners == 0
        node = servers.want("node")
        servers.proxy.open_all()
        assert servers.reached_at(ONE) == []
        assert servers.reached_at(OTHER) == ["node"]
        for is_empty in (False, True):
            servers.want("one", is_empty=is_empty)
            servers.proxy.open_all()
            assert servers.reached_at(ONE) == ([] if is_empty else ["one"])
        assert servers.proxy.listeners.open_listeners == 2
        servers.proxy.listeners.remove_listener(node.key)
        servers.proxy.open_all()
        assert servers.proxy.listeners.open_listeners == 0
        assert servers.reached_at(ONE) == []
        assert is_taken(ONE, PORT, KINDS[protocol])
        servers.want("node")
        servers.proxy.open_all()
        servers.proxy.listeners.remove_listener(one.key)
        assert servers.reached_at(ONE) == ["node"]


@of_every_protocol
def test_port_says_that_it_is_shared_only_while_it_is(protocol: Protocol) -> None:
    """Another process must never share a place in silence."""
    with open_servers(protocol) as servers:
        one, other = servers.want("one"), servers.want("other", is_empty=True)
        servers.proxy.open_all()
        assert not servers.is_shared(one.key)
        node = servers.want("node")
        servers.proxy.open_all()
        assert all(servers.is_shared(spec.key) for spec in (one, other, node))
        servers.proxy.listeners.remove_listener(one.key)
        assert all(servers.is_shared(spec.key) for spec in (other, node))
        servers.proxy.listeners.remove_listener(other.key)
        assert not servers.is_shared(node.key)
        servers.want("one")
        servers.proxy.open_all()
        servers.proxy.listeners.apply_listener(evolve(node, port=own_port(1)), route())
        assert not servers.is_shared(one.key)


def test_port_of_udp_does_not_stay_shared_after_a_listener_has_got_its_backends_back() -> None:
    """For the change of sockets it is, for a moment, whether that succeeds or not."""
    with open_servers(Protocol.UDP) as servers, socket.socket(type=socket.SOCK_DGRAM) as stranger:
        node = servers.want("node")
        for is_empty in (True, False, True, False, True):
            servers.want("node", is_empty=is_empty)
            servers.proxy.open_all()
            assert not servers.is_shared(node.key)
        stranger.bind((OTHER, PORT))
        servers.want("node")
        assert list(servers.proxy.listeners.open_missing(retry=False)) == [node.key]
        assert not servers.is_shared(node.key)


@of_every_protocol
def test_two_instances_do_not_share_a_port(protocol: Protocol) -> None:
    """The second one fails, whether the first has Backends or not."""
    for name in HOSTS:
        for is_empty in (False, True):
            with open_servers(protocol) as first, open_servers(protocol) as second:
                first.want(name, is_empty=is_empty)
                first.proxy.open_all()
                for other in ("node", name):
                    spec = second.want(other)
                    assert list(second.proxy.listeners.open_missing(retry=False)) == [spec.key]
                    second.proxy.listeners.remove_listener(spec.key)


@of_every_protocol
def test_two_listeners_at_one_place_never_share_it(protocol: Protocol) -> None:
    """Not even where the port is shared: clients of a Service must not be spread over two of them."""
    with open_servers(protocol) as servers:
        servers.want("node")
        one = servers.want("one")
        servers.proxy.open_all()
        other = servers.want("other", host=ONE)
        (error,) = servers.proxy.listeners.open_missing(retry=False).values()
        assert "in use by" in str(error)
        assert [servers.reached_at(ONE) for _ in range(5)] == [["one"]] * 5
        servers.proxy.listeners.remove_listener(one.key)
        assert servers.proxy.listeners.open_missing(retry=True) == {other.key: None}
        assert servers.reached_at(ONE) == ["other"]


@of_every_protocol
def test_shared_port_that_a_stranger_has_at_one_address_is_an_error(protocol: Protocol) -> None:
    """That we share it among ourselves does not hide who else is there."""
    with open_servers(protocol) as servers, socket.socket(type=KINDS[protocol]) as stranger:
        servers.want("one")
        servers.proxy.open_all()
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, protocol is Protocol.TCP)
        stranger.bind((OTHER, PORT))
        if protocol is Protocol.TCP:
            stranger.listen()
        node = servers.want("node")
        (error,) = servers.proxy.listeners.open_missing(retry=False).values()
        assert f"cannot listen on 0.0.0.0:{PORT} for shop/node:p: in use by " in str(error)
        assert servers.reached_at(ONE) == ["one"]
        stranger.close()
        assert servers.proxy.listeners.open_missing(retry=True) == {node.key: None}
        assert servers.reached_at(OTHER) == ["node"]


names = st.sampled_from(list(HOSTS))
protocols = st.sampled_from(list(KINDS))
PORTS = [PORT, own_port(1)]
CLIENTS_DIAL = [ONE, OTHER, own_host(12)]


class Places(RuleBasedStateMachine):
    """Listeners of TCP and UDP that come, go and move between few places, with and without Backends."""

    @initialize()
    def start(self) -> None:
        """Begin without listeners."""
        flush_loopback()
        self.stack = ExitStack()
        self.proxy = self.stack.enter_context(stepped_proxy())
        self.servers = {protocol: Servers(self.proxy, protocol, self.stack) for protocol in KINDS}
        self.specs: dict[tuple[Protocol, str], ListenerSpec] = {}
        self.empty: set[tuple[Protocol, str]] = set()

    @rule(
        protocol=protocols,
        name=names,
        host=st.sampled_from(list(HOSTS.values())),
        port=st.sampled_from(PORTS),
        is_empty=st.booleans(),
    )
    def want(self, protocol: Protocol, name: str, host: str, port: int, *, is_empty: bool) -> None:
        """Have a listener somewhere, or somewhere else."""
        one = (protocol, name)
        self.specs[one] = self.servers[protocol].want(name, is_empty=is_empty, host=host, port=port)
        (self.empty.add if is_empty else self.empty.discard)(one)

    @rule(protocol=protocols, name=names)
    def change_backends(self, protocol: Protocol, name: str) -> None:
        """Have a listener lose its Backends, or get some."""
        spec = self.specs.get((protocol, name))
        if spec is not None:
            is_empty = (protocol, name) not in self.empty
            self.want(protocol, name, str(spec.address), spec.port, is_empty=is_empty)

    @rule(protocol=protocols, name=names)
    def remove(self, protocol: Protocol, name: str) -> None:
        """Remove a listener."""
        spec = self.specs.pop((protocol, name), None)
        if spec is not None:
            self.proxy.listeners.remove_listener(spec.key)

    @rule(retry=st.booleans(), seconds=st.sampled_from([0.0, 6.0]))
    def open_missing(self, *, retry: bool, seconds: float) -> None:
        """Bring it about, at least what has not failed, and let time pass."""
        self.proxy.listeners.open_missing(retry=retry)
        self.proxy.advance(seconds)

    @rule()
    def check(self) -> None:
        """See who is reached where, once all has been tried."""
        self.proxy.listeners.open_missing(retry=True)
        places = Counter((one, spec.address, spec.port) for (one, _), spec in self.specs.items())
        assert len(self.proxy.listeners.failed) == sum(places.values()) - len(places)
        for protocol in KINDS:
            for port in PORTS:
                self.check_port(protocol, port)

    def check_port(self, protocol: Protocol, port: int) -> None:
        """See who is reached at the port of all addresses."""
        at_wildcard = self.names_at(protocol, "0.0.0.0", port)
        for host in CLIENTS_DIAL:
            candidates = self.names_at(protocol, host, port) or at_wildcard
            backed = {name for name in candidates if (protocol, name) not in self.empty}
            reached = self.servers[protocol].reached_at(host, port)
            assert set(reached) <= backed
            assert len(reached) <= 1
            if candidates == backed:
                assert bool(reached) == bool(backed)
            if protocol is Protocol.TCP or not at_wildcard:
                assert is_taken(host, port, KINDS[protocol]) == bool(candidates)
        is_any = any(spec.port == port for (one, _), spec in self.specs.items() if one is protocol)
        assert is_taken("0.0.0.0", port, KINDS[protocol]) == is_any

    def names_at(self, protocol: Protocol, host: str, port: int) -> set[str]:
        """Return the Services with a listener at a place."""
        return {
            name
            for (one, name), spec in self.specs.items()
            if one is protocol and (str(spec.address), spec.port) == (host, port)
        }

    def teardown(self) -> None:
        """Remove everything, and see that nothing is left."""
        if hasattr(self, "proxy"):
            with self.stack:
                for spec in self.specs.values():
                    self.proxy.listeners.remove_listener(spec.key)
                self.proxy.advance(300.0)
                listeners = self.proxy.listeners
                assert not any((listeners._sockets, listeners._serving, listeners._ports._places))
                assert not any((listeners._failed, listeners._doubtful, listeners._wanted, listeners._keys))
                assert not any((self.proxy.served._listeners, self.proxy.served._keys))
                self.proxy.assert_nothing_left()
                assert not any(is_taken("0.0.0.0", port, kind) for port in PORTS for kind in KINDS.values())
                del self.proxy


TestPlaces = Places.TestCase
TestPlaces.settings = settings(stateful_step_count=40)

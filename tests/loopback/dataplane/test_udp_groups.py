"""UDP listeners of several engines: a group of sockets, of which each flow has one."""

import os
import socket
from collections import Counter
from collections.abc import Iterator
from itertools import count

import pytest
from attrs import frozen
from engine_driver import DNS
from group_driver import Group, open_group, spec_of
from peers import count_descriptors, descriptors_left, is_taken, nothing_left_open, own_host
from udp_peers import UdpPeer, UdpPeers, UdpServer, flush_loopback, open_udp_peers, own_port

from userspace_proxy.balance.flow_outcome import DropReason
from userspace_proxy.model.names import Protocol
from userspace_proxy.plan.state import ListenerSpec

HOST = own_host(35)
PORT = own_port(7)
SPEC = spec_of(HOST, PORT, DNS, Protocol.UDP)
SIZE = 3
SOURCES = [f"127.0.{1 + one // 100}.{1 + one % 100}" for one in range(200)]
CLIENT_PORTS = count(20000)
"""Below those that the kernel chooses: where several may have one port, it would choose the same for two clients."""
PLACES = [HOST, "0.0.0.0", "::1", "::"]
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
in_every_place = pytest.mark.parametrize("host", PLACES)
when_engines_are_busy_too = pytest.mark.parametrize("lags", [False, True], ids=["at once", "engines busy"])


@frozen
class Setup:
    """A group of engines, and a Backend."""

    group: Group
    peers: UdpPeers
    server: UdpServer

    def client(self, spec: ListenerSpec = SPEC, source: str = "") -> UdpPeer:
        """Return a client of a listener."""
        host = LOOPBACK.get(str(spec.address), str(spec.address))
        return self.peers.client((host, spec.port), (source, next(CLIENT_PORTS)) if source else None)

    def owner(self, client: UdpPeer) -> int:
        """Have a client send a datagram, and be answered; return the engine that has its flow."""
        client.send(b"ping")
        self.group.settle()
        assert self.server.echo() == 1
        self.group.settle()
        assert client.take() == [b"ping"]
        return self.group.owner(client.sock)

    def owners(self, sources: list[str]) -> list[int]:
        """Return the engine that has the flow of a new client from each source."""
        return [self.owner(self.client(source=source)) for source in sources]

    def dropped(self) -> int:
        """Return how many datagrams the engines have dropped as there was no Backend."""
        counters = (member.engine.counters.udp_services[DNS] for member in self.group.all)
        return sum(each.dropped[DropReason.NO_ENDPOINT] for each in counters)


@pytest.fixture
def setup() -> Iterator[Setup]:
    """Yield a Setup, which leaves no descriptor open."""
    flush_loopback()
    with nothing_left_open(), open_udp_peers() as peers, open_group(SIZE) as group:
        yield Setup(group, peers, peers.server())


@in_every_place
def test_flow_stays_with_one_engine(host: str, setup: Setup) -> None:
    """Whichever it is, it gets all datagrams of the flow; and all engines have some flows."""
    spec = spec_of(host, PORT, DNS, Protocol.UDP)
    server = setup.peers.server(LOOPBACK.get(host, host))
    setup.group.serve_all(spec, server.backend)
    with_host = Setup(setup.group, setup.peers, server)
    clients = [setup.client(spec) for _ in range(40)]
    first = [with_host.owner(client) for client in clients]
    assert [with_host.owner(client) for client in clients] == first
    assert set(first) == set(range(SIZE))
    assert sum(member.served.open_flows for member in setup.group.all) == len(clients)


def test_d_5_client_with_affinity_has_all_its_flows_with_one_engine(setup: Setup) -> None:
    """Each engine has its own table of affinity, which is right only if it gets all flows of a client."""
    setup.group.serve_all(SPEC, setup.server.backend, affinity=True)
    first = setup.owners(SOURCES)
    assert setup.owners(SOURCES[:20]) == setup.owners(SOURCES[:20]) == first[:20]
    counts = Counter(first)
    even = len(SOURCES) / SIZE
    assert 0.75 * even < min(counts.values()) <= max(counts.values()) < 1.25 * even, counts


def test_listener_that_gets_or_loses_affinity_keeps_its_sockets(setup: Setup) -> None:
    """New flows of one client go where its address says, or to all engines."""
    group = setup.group
    group.serve_all(SPEC, setup.server.backend)
    sockets = group.sockets(SPEC)
    for _ in range(2):
        assert set(setup.owners(SOURCES[:1] * 40)) == set(range(SIZE))
        group.serve_all(SPEC, setup.server.backend, affinity=True)
        assert len(set(setup.owners(SOURCES[:1] * 20))) == 1
        group.serve_all(SPEC, setup.server.backend)
    assert group.sockets(SPEC) == sockets


@in_every_place
@when_engines_are_busy_too
def test_group_without_backends_refuses_at_once_and_holds_its_port(host: str, lags: bool, setup: Setup) -> None:  # noqa: FBT001
    """Also while engines do not know yet; late answers are delivered by the engine of the flow."""
    spec = spec_of(host, PORT, DNS, Protocol.UDP)
    server = setup.peers.server(LOOPBACK.get(host, host))
    setup.group.serve_all(spec, server.backend)
    clients = [setup.client(spec) for _ in range(12)]
    for client in clients:
        client.send(b"asked")
    setup.group.settle()
    assert len(server.take()) == len(clients)
    setup.group.lags = lags
    setup.group.serve_all(spec)
    assert is_taken(host, PORT, socket.SOCK_DGRAM)
    assert all(setup.client(spec).is_refused() for _ in range(2 * SIZE))
    setup.group.catch_up()
    assert all(setup.client(spec).is_refused() for _ in range(2 * SIZE))
    for sender in server.senders:
        server.answer(b"late", to=sender)
    setup.group.settle()
    assert [client.take() for client in clients] == [[b"late"]] * len(clients)
    setup.group.advance(10.0)
    assert not any(member.served.open_flows for member in setup.group.all)


@pytest.mark.parametrize("affinity", [False, True])
@when_engines_are_busy_too
def test_group_whose_backends_return_serves_all_by_its_new_sockets(
    affinity: bool,  # noqa: FBT001
    lags: bool,  # noqa: FBT001
    setup: Setup,
) -> None:
    """1-0-1 Backends: no datagram is led to a socket that was retired; each client finds its engine again."""
    group = setup.group
    group.serve_all(SPEC, setup.server.backend, affinity=affinity)
    first = setup.owners(SOURCES[:40])
    for _ in range(2):
        group.lags = lags
        group.serve_all(SPEC, affinity=affinity)
        group.serve_all(SPEC, setup.server.backend, affinity=affinity)
        clients = [setup.client(source=source) for source in SOURCES[:40]]
        for client in clients:
            client.send(b"early")
        group.settle()
        group.catch_up()
        group.settle()
        assert setup.server.echo() == len(clients)
        group.settle()
        assert [client.take() for client in clients] == [[b"early"]] * len(clients)
        owners = [group.owner(client.sock) for client in clients]
        if affinity:
            assert owners == first
        else:
            assert set(owners) == set(range(SIZE))
    assert setup.dropped() == 0


def test_datagram_in_the_queue_when_the_backends_went_is_counted_as_dropped(setup: Setup) -> None:
    """Also where the engine hears of it only together with the return of the Backends."""
    group = setup.group
    group.serve_all(SPEC, setup.server.backend)
    for lags in (False, True):
        group.lags = lags
        before = setup.dropped()
        setup.client().send(b"1", b"2")
        group.serve_all(SPEC)
        group.serve_all(SPEC, setup.server.backend)
        group.forget_retirements()
        group.catch_up()
        group.settle()
        assert setup.dropped() == before + 2


@pytest.mark.parametrize("left", range(SIZE + 1))
@pytest.mark.parametrize("serves_before", [False, True])
def test_group_that_finds_no_descriptor_goes_on_refusing_and_is_retried(
    left: int,
    serves_before: bool,  # noqa: FBT001
    setup: Setup,
) -> None:
    """Whichever member it is; nothing leaks, and late answers are delivered."""
    group = setup.group
    client = setup.client()
    if serves_before:
        group.serve_all(SPEC, setup.server.backend)
        client.send(b"asked")
        group.settle()
        assert setup.server.take() == [b"asked"]
    group.serve_all(SPEC)
    descriptors = count_descriptors()
    group.want(SPEC, setup.server.backend)
    if left < SIZE:
        with descriptors_left(left):
            assert "no file descriptor is left" in group.failure()
        assert count_descriptors() == descriptors
        assert setup.client().is_refused()
        assert is_taken(HOST, PORT, socket.SOCK_DGRAM)
        for sock in group.listeners._sockets[SPEC.key]:
            assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)  # somebody could share the port
        if serves_before:
            setup.server.answer(b"late")
            group.settle()
            assert client.take() == [b"late"]
        assert group.listeners.open_missing(retry=True) == {SPEC.key: None}
    else:
        assert group.listeners.open_missing(retry=False) == {}
    setup.owners(SOURCES[:10])


@pytest.mark.parametrize("serves_before", [False, True])
def test_group_that_engines_cannot_watch_goes_on_refusing_and_is_retried(serves_before: bool, setup: Setup) -> None:  # noqa: FBT001
    """The sentence says which limit it is."""
    group = setup.group
    if serves_before:
        group.serve_all(SPEC, setup.server.backend)
    group.serve_all(SPEC)
    descriptors = count_descriptors()
    group.is_full = True
    group.want(SPEC, setup.server.backend)
    assert "raise fs.epoll.max_user_watches" in group.failure()
    assert count_descriptors() == descriptors
    assert setup.client().is_refused()
    assert is_taken(HOST, PORT, socket.SOCK_DGRAM)
    group.is_full = False
    assert group.listeners.open_missing(retry=True) == {SPEC.key: None}
    setup.owners(SOURCES[:10])


@pytest.mark.parametrize("affinity", [False, True])
@pytest.mark.parametrize("shares_port", [False, True])
def test_port_of_a_group_that_was_closed_is_free_for_the_next_listener_of_ours_at_once(
    affinity: bool,  # noqa: FBT001
    shares_port: bool,  # noqa: FBT001
    setup: Setup,
) -> None:
    """Whether it serves or holds its port, though engines have the sockets still; nothing is led to those."""
    group = setup.group
    if shares_port:
        group.serve_all(spec_of("0.0.0.0", PORT, "shop/node:dns", Protocol.UDP))
    for number, backends in enumerate(([setup.server.backend], [], [setup.server.backend])):
        spec = spec_of(HOST, PORT, f"shop/dns{number}:dns", Protocol.UDP)
        group.serve_all(spec, setup.server.backend, affinity=affinity)
        group.serve_all(spec, affinity=affinity)
        group.serve_all(spec, *backends, affinity=affinity)
        setup.client().send(b"")
        group.settle()
        setup.server.take()
        group.lags = True
        group.listeners.remove_listener(spec.key)
        assert setup.client().is_refused()
    group.serve_all(SPEC, setup.server.backend, affinity=affinity)
    clients = [setup.client(source=source) for source in SOURCES[:20]]
    for client in clients:
        client.send(b"early")
    group.catch_up()
    group.settle()
    assert setup.server.take() == [b"early"] * len(clients)
    assert all(set(member.sockets) == {SPEC.key} for member in group.all)


def test_group_at_a_port_in_use_names_the_holder_and_is_retried(setup: Setup) -> None:
    """Also where it is one of ours that would share the port, as a group does."""
    group = setup.group
    group.serve_all(SPEC, setup.server.backend)
    twin = spec_of(HOST, PORT, "shop/twin:dns", Protocol.UDP)
    descriptors = count_descriptors()
    group.want(twin, setup.server.backend)
    assert f"in use by pid {os.getpid()} (" in group.failure()
    assert count_descriptors() == descriptors
    setup.owners(SOURCES[:10])
    group.listeners.remove_listener(SPEC.key)
    assert group.listeners.open_missing(retry=True) == {twin.key: None}
    setup.owners(SOURCES[:10])


def test_groups_share_a_port_at_the_wildcard_address_and_at_a_single_one(setup: Setup) -> None:
    """A NodePort and a cluster address of the same number: each flow is with its listener."""
    group = setup.group
    node_port = spec_of("0.0.0.0", PORT, "shop/node:dns", Protocol.UDP)
    other = setup.peers.server()
    group.serve_all(node_port, other.backend, affinity=True)
    for backends in ([setup.server.backend], [], [setup.server.backend]):
        group.serve_all(SPEC, *backends, affinity=True)
        for client in [setup.peers.client((own_host(36), PORT)) for _ in range(6)]:
            client.send(b"node")
        group.settle()
        assert other.take() == [b"node"] * 6
        if backends:
            assert set(setup.owners(SOURCES[:20])) == set(range(SIZE))


def test_listeners_closed_at_the_end_refuse_and_deliver_late_answers_by_all_engines(setup: Setup) -> None:
    """The ports are held until all is closed."""
    group = setup.group
    group.serve_all(SPEC, setup.server.backend)
    clients = [setup.client() for _ in range(12)]
    for client in clients:
        client.send(b"asked")
    group.settle()
    setup.server.take()
    group.listeners.close_listeners()
    assert all(setup.client().is_refused() for _ in range(2 * SIZE))
    for sender in setup.server.senders:
        setup.server.answer(b"late", to=sender)
    group.settle()
    assert [client.take() for client in clients] == [[b"late"]] * len(clients)
    assert is_taken(HOST, PORT, socket.SOCK_DGRAM)
    group.listeners.close()
    for member in group.all:
        member.close_listener(SPEC.key)
    assert not is_taken(HOST, PORT, socket.SOCK_DGRAM)

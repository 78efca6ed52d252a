"""Routes of UDP listeners: who is served, who is dropped and counted, and what a change does to open flows."""

from ipaddress import ip_address

import pytest
from attrs import evolve
from builders import pool_key, route
from engine_driver import DNS, Proxy, stepped_proxy, udp_listener_key
from udp_peers import Address, UdpPeer, UdpPeers, UdpServer, open_udp_peers, own_port

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.model.names import Protocol
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import (
    EndpointScope,
    ListenerSpec,
    Pool,
    PoolKey,
    Route,
    SourceAddresses,
    UdpSettings,
    Verdict,
)

LINGER_S = 5.0
"""For so long late answers are delivered."""

CLUSTER = pool_key(DNS, protocol=Protocol.UDP)
LOCAL = evolve(CLUSTER, scope=EndpointScope.LOCAL)
EXTERNAL_LOCAL = Route(CLUSTER, CLUSTER, LOCAL)
HERE = ["127.0.0.0/8"]
PORT = own_port(4)
ELSEWHERE = ["198.51.100.0/24"]


def set_pool(proxy: Proxy, key: PoolKey, *servers: UdpServer) -> None:
    """Put a Pool in force."""
    backends = tuple(server.backend for server in servers)
    proxy.listeners.apply_pool(Pool(key, backends, Balance.ROUND_ROBIN, None, UdpSettings()))
    proxy.open_all()


def listen(proxy: Proxy, wanted: Route, host: str = "127.0.0.1", port: int = 0) -> Address:
    """Open a listener with a Route; return where clients reach it."""
    spec = ListenerSpec(udp_listener_key(), ip_address(host), port)
    proxy.listeners.apply_listener(spec, wanted)
    proxy.open_all()
    return "127.0.0.1", proxy.address(spec.key)[1]


def set_route(proxy: Proxy, wanted: Route) -> None:
    """Give the listener another Route."""
    proxy.listeners.apply_route(udp_listener_key(), wanted)
    proxy.open_all()


def ask(proxy: Proxy, client: UdpPeer, datagram: bytes = b"ping") -> None:
    """Have a datagram of a client passed on."""
    client.send(datagram)
    proxy.pass_on()


def denied(proxy: Proxy) -> int:
    """Return how many datagrams were denied; fail if any were lost for another reason."""
    dropped = proxy.flow_counters().dropped
    assert {reason for reason, count in dropped.items() if count} <= {DropReason.DENIED}
    return dropped[DropReason.DENIED]


def pools_of_both_scopes(proxy: Proxy, peers: UdpPeers) -> tuple[UdpServer, UdpServer]:
    """Put two Pools in force; return their Backends."""
    cluster, local = peers.server(), peers.server()
    set_pool(proxy, CLUSTER, cluster)
    set_pool(proxy, LOCAL, local)
    return cluster, local


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("wanted", "served_by"),
    [
        pytest.param(EXTERNAL_LOCAL, "cluster", id="policy local, node"),
        pytest.param(Route(LOCAL, CLUSTER, LOCAL), "cluster", id="node apart"),
        pytest.param(route(LOCAL), "local", id="policy local for everybody"),
        pytest.param(evolve(EXTERNAL_LOCAL, host=Verdict.DROP), "", id="node denied"),
        pytest.param(route(CLUSTER, source_ranges=ELSEWHERE), "", id="out of range"),
        pytest.param(route(CLUSTER, source_ranges=HERE), "cluster", id="in range"),
    ],
)
def test_d_3_client_is_led_to_the_pool_of_its_class(host: str, wanted: Route, served_by: str) -> None:
    """A client at loopback is this node; who is denied gets nothing, costs no flow, and is counted."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        cluster, local = pools_of_both_scopes(proxy, peers)
        client = peers.client(listen(proxy, wanted, host))
        for _ in range(3):
            ask(proxy, client)
        assert len(cluster.take()) == (3 if served_by == "cluster" else 0)
        assert len(local.take()) == (3 if served_by == "local" else 0)
        assert denied(proxy) == (0 if served_by else 3)
        assert proxy.served.open_flows == (1 if served_by else 0)


def test_source_ranges_let_in_and_keep_out_client_by_client() -> None:
    """Two clients of one listener fare differently."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        set_pool(proxy, CLUSTER, server)
        address = listen(proxy, route(CLUSTER, source_ranges=["127.0.6.0/25"]))
        for _ in range(2):
            ask(proxy, peers.client(address, ("127.0.6.127", 0)), b"in")
            ask(proxy, peers.client(address, ("127.0.6.128", 0)), b"out")
        assert server.take() == [b"in"] * 2
        assert denied(proxy) == 2


def test_source_ranges_that_are_tightened_cut_the_flows_of_who_is_out() -> None:
    """The next datagram is denied; answers in flight are delivered for 5 s; who is still in notices nothing."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        set_pool(proxy, CLUSTER, server)
        address = listen(proxy, route(CLUSTER))
        stays, goes = (peers.client(address, (host, 0)) for host in ("127.0.6.1", "127.0.6.2"))
        for client in (stays, goes):
            ask(proxy, client)
        assert len(server.take()) == 2
        goes.send(b"waits")
        set_route(proxy, route(CLUSTER, source_ranges=["127.0.6.1/32"]))
        for client in (stays, goes):
            ask(proxy, client)
        assert server.take() == [b"ping"]
        assert server.senders[2] == server.senders[0]
        assert denied(proxy) == 2
        server.answer(b"late", to=server.senders[1])
        proxy.pass_on()
        assert goes.take() == [b"late"]
        proxy.advance(LINGER_S)
        server.answer(b"too late", to=server.senders[1])
        proxy.pass_on()
        assert goes.take() == []
        assert (proxy.flow_counters().flows, proxy.flow_counters().active) == (2, 1)
        set_route(proxy, route(CLUSTER))
        ask(proxy, goes)
        assert server.take() == [b"ping"]


def test_source_ranges_that_change_while_there_is_no_backend_hold_when_there_is_one() -> None:
    """The listener that comes back does not go by what was in force when it went."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        set_pool(proxy, CLUSTER, server)
        address = listen(proxy, route(CLUSTER), port=PORT)
        client = peers.client(address)
        ask(proxy, client)
        set_pool(proxy, CLUSTER)
        set_route(proxy, route(CLUSTER, source_ranges=ELSEWHERE))
        set_pool(proxy, CLUSTER, server)
        ask(proxy, client)
        assert server.take() == [b"ping"]
        assert denied(proxy) == 1


def test_route_that_leads_to_another_pool_leaves_flows_where_they_are() -> None:
    """A change of policy moves new clients only, while the Endpoint of an old one serves."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        cluster, local = pools_of_both_scopes(proxy, peers)
        address = listen(proxy, route(CLUSTER))
        client = peers.client(address)
        ask(proxy, client)
        set_route(proxy, route(LOCAL))
        ask(proxy, client)
        ask(proxy, peers.client(address), b"new")
        assert (cluster.take(), local.take()) == ([b"ping"] * 2, [b"new"])
        assert denied(proxy) == 0


def test_client_whose_class_has_no_backend_is_dropped_and_counted() -> None:
    """Others are served by the listener, so it stays open; this client is told nothing."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        set_pool(proxy, CLUSTER)
        set_pool(proxy, LOCAL, server)
        client = peers.client(listen(proxy, EXTERNAL_LOCAL))
        for _ in range(3):
            ask(proxy, client)
        assert server.take() == []
        assert proxy.flow_counters().dropped[DropReason.NO_ENDPOINT] == 3
        set_pool(proxy, CLUSTER, server)
        ask(proxy, client)
        assert server.take() == [b"ping"]


def test_sources_that_change_hold_for_new_flows() -> None:
    """A client that counts as a pod from now on gets the Pool of pods."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        cluster, local = pools_of_both_scopes(proxy, peers)
        address = listen(proxy, route(CLUSTER, source_ranges=["192.0.2.77/32"]))
        ask(proxy, peers.client(address))
        assert denied(proxy) == 1
        local_addresses = frozenset({ip_address("192.0.2.77")})
        proxy.listeners.apply_sources(SourceAddresses(local_addresses=local_addresses))
        ask(proxy, peers.client(address))
        assert (cluster.take(), local.take()) == ([b"ping"], [])
        assert denied(proxy) == 1
        assert proxy.flow_counters().ended.get(FlowEnd.ENDPOINT_GONE, 0) == 0

"""Balancing by datagram: each datagram is the next Backend's, and answers come back all the same."""

import pytest
from builders import udp_settings
from engine_driver import Proxy, stepped_proxy
from udp_peers import UdpPeer, UdpPeers, UdpServer, open_udp_peers

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.config import FlowLimits
from userspace_proxy.dataplane.udp_flow import TOUCH_S
from userspace_proxy.model.service_port import UdpBalance

LINGER_S = 5.0
"""For so long late answers are delivered."""

BY_DATAGRAM = udp_settings(balance=UdpBalance.DATAGRAM)


def servers_in_order(peers: UdpPeers, count: int) -> list[UdpServer]:
    """Return Backends in the order of their turns."""
    return sorted((peers.server() for _ in range(count)), key=lambda server: server.backend.port)


def set_pool(proxy: Proxy, *servers: UdpServer) -> None:
    """Put a Pool in force that is balanced by datagram."""
    proxy.set_udp_pool(*(server.backend for server in servers), udp=BY_DATAGRAM)


def serve(proxy: Proxy, *servers: UdpServer, host: str = "127.0.0.1") -> tuple[str, int]:
    """Open a listener that balances by datagram."""
    return proxy.serve_udp(*(server.backend for server in servers), host=host, udp=BY_DATAGRAM)


def ask(proxy: Proxy, client: UdpPeer, *datagrams: bytes) -> None:
    """Have datagrams of a client passed on."""
    client.send(*datagrams)
    proxy.pass_on()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("clients", [1, 2, 7])
def test_datagrams_are_shared_exactly_and_in_turn(host: str, clients: int) -> None:
    """Whoever sends: datagram n goes to Backend n modulo their number, so that one busy client is shared evenly too."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = servers_in_order(peers, 3)
        address = serve(proxy, *servers, host=host)
        senders = [peers.client(address) for _ in range(clients)]
        for number in range(60):
            senders[number % clients].send(b"%d" % number)
        proxy.pass_on()
        for place, server in enumerate(servers):
            assert server.take() == [b"%d" % number for number in range(60) if number % 3 == place]
        counters = proxy.flow_counters()
        assert counters.datagrams_to_backend == 60
        assert (
            counters.flows == counters.active == (3 if clients == 1 else len({(n % clients, n % 3) for n in range(60)}))
        )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_answers_of_all_backends_come_back_to_the_client(host: str) -> None:
    """From the one address that it has sent to, in whatever order; those of strangers do not."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = servers_in_order(peers, 3)
        client = peers.client(serve(proxy, *servers, host=host))
        ask(proxy, client, b"0", b"1", b"2")
        for server in servers:
            server.take()
        servers[0].answer(b"lie", to=servers[1].senders[0])
        for place in (2, 0, 1):
            servers[place].answer(b"to %d" % place)
        proxy.pass_on()
        assert sorted(client.take()) == [b"to 0", b"to 1", b"to 2"]


def test_balance_that_changes_holds_for_open_flows_from_the_next_datagram() -> None:
    """Flow -> datagram -> flow: nothing is lost, and answers of before are delivered for 5 s."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = servers_in_order(peers, 3)
        backends = [server.backend for server in servers]
        client = peers.client(proxy.serve_udp(*backends))
        ask(proxy, client, *[b"flow"] * 6)
        assert [len(server.take()) for server in servers] == [6, 0, 0]
        proxy.set_udp_pool(*backends, udp=BY_DATAGRAM)
        ask(proxy, client, *[b"datagram"] * 6)
        assert [len(server.take()) for server in servers] == [2, 2, 2]
        servers[0].answer(b"late", to=servers[0].senders[0])
        proxy.pass_on()
        assert client.take() == [b"late"]
        proxy.set_udp_pool(*backends)
        ask(proxy, client, *[b"flow"] * 6)
        assert sorted(len(server.take()) for server in servers) == [0, 0, 6]
        assert not any(proxy.flow_counters().dropped.values())
        proxy.advance(LINGER_S)
        assert proxy.flow_counters().ended == {FlowEnd.ENDPOINT_GONE: 4}
        assert proxy.flow_counters().active == 1


def test_datagrams_for_a_backend_that_leaves_go_to_the_others() -> None:
    """Only its flow ends; the turn goes on where it was, and nothing is lost."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = servers_in_order(peers, 3)
        client = peers.client(serve(proxy, *servers))
        ask(proxy, client, *[b"three"] * 6)
        set_pool(proxy, servers[0], servers[2])
        ask(proxy, client, *[b"two"] * 6)
        assert [len(server.take()) for server in servers] == [5, 2, 5]
        set_pool(proxy, *servers)
        ask(proxy, client, *[b"three"] * 6)
        assert [len(server.take()) for server in servers] == [2, 2, 2]
        assert not any(proxy.flow_counters().dropped.values())


@pytest.mark.parametrize("burst", [1, 2, 30])
def test_datagrams_for_a_backend_that_refuses_go_to_the_others(burst: int) -> None:
    """statsd: each that is refused is sent once more; none is lost while the others live."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = servers_in_order(peers, 3)
        servers[1].die()
        client = peers.client(serve(proxy, *servers))
        for first in range(0, 30, burst):
            ask(proxy, client, *(b"%d" % number for number in range(first, first + burst)))
        arrived = servers[0].take() + servers[2].take()
        assert sorted(arrived) == sorted(b"%d" % number for number in range(30))
        assert not any(proxy.flow_counters().dropped.values())
        assert proxy.served.open_flows <= 3


@pytest.mark.parametrize("burst", [1, 2, 5, 64])
def test_datagrams_for_backends_that_all_refuse_are_counted_and_cost_bounded_work(burst: int) -> None:
    """As with flows: at most two are sent for each, and as many are lost as came."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = servers_in_order(peers, 3)
        for server in servers:
            server.die()
        client = peers.client(serve(proxy, *servers))
        for _ in range(4):
            ask(proxy, client, *[b"ping"] * burst)
        counters = proxy.flow_counters()
        assert {reason: count for reason, count in counters.dropped.items() if count} == {DropReason.REFUSED: 4 * burst}
        assert counters.datagrams_to_backend <= 8 * burst
        assert counters.active <= 3


def test_flows_by_datagram_end_when_idle_and_at_the_cap() -> None:
    """Each is a flow of its own: for time-outs, and for who gives way."""
    with stepped_proxy(FlowLimits(max_flows=4)) as proxy, open_udp_peers() as peers:
        servers = servers_in_order(peers, 3)
        address = serve(proxy, *servers)
        clients = [peers.client(address) for _ in range(2)]
        for client in clients:
            for number in range(3):
                proxy.advance(2 * TOUCH_S)
                ask(proxy, client, b"%d" % number)
        assert proxy.flow_counters().ended == {FlowEnd.EVICTED: 2}
        assert [server.take() for server in servers] == [[b"0"] * 2, [b"1"] * 2, [b"2"] * 2]
        open_now = [(flow.client, flow.member.backend) for flow in proxy.flows()]
        assert open_now == [
            (clients[0].address, servers[2].backend),
            *((clients[1].address, server.backend) for server in servers),
        ]
        proxy.advance(70.0)
        proxy.assert_nothing_left()

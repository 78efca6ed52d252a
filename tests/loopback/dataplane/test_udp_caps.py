"""Too many flows: which of them gives way, with exact order and counts, and what happens without descriptors."""

import gc
import logging
import socket

import pytest
from builders import backend, pool_key, udp_settings
from engine_driver import DNS, Proxy, fill_epoll, stepped_proxy, udp_listener_key
from peers import count_descriptors, descriptors_left, own_host
from udp_peers import Address, UdpPeer, flush_loopback, open_udp_peers, own_port

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.config import FlowLimits
from userspace_proxy.dataplane.udp_flow import TOUCH_S, UdpFlow
from userspace_proxy.model.names import Protocol
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import Pool, UdpSettings

LINGER_S = 5.0
"""For so long late answers are delivered."""

LISTENER_LOG = "userspace_proxy.dataplane.udp_listener"
OTHER = "shop/other:udp"
PORT = own_port(3)


def ask(proxy: Proxy, client: UdpPeer) -> None:
    """Have a datagram of a client passed on, a little later than the last one."""
    proxy.advance(2 * TOUCH_S)
    client.send(b"ping")
    proxy.pass_on()


def clients_of(proxy: Proxy) -> set[Address]:
    """Return whose flows are open."""
    return {flow.client for flow in proxy.flows()}


def test_flow_beyond_the_cap_ends_the_one_that_was_silent_for_longest() -> None:
    """One for one, in the order of use, whichever side used it; the datagram of the new one arrives."""
    with stepped_proxy(FlowLimits(max_flows=10)) as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        clients = [peers.client(address) for _ in range(20)]
        for client in clients[:10]:
            ask(proxy, client)
        server.take()
        ask(proxy, clients[2])
        proxy.advance(2 * TOUCH_S)
        server.answer(b"pong", to=server.senders[5])
        proxy.pass_on()
        order = [0, 1, 3, 4, 6, 7, 8, 9, 2, 5]
        for number, gone in enumerate(order, 1):
            assert clients[gone].address in clients_of(proxy)
            ask(proxy, clients[9 + number])
            assert clients[gone].address not in clients_of(proxy)
            assert proxy.flow_counters().ended == {FlowEnd.EVICTED: number}
            assert proxy.flow_counters().active == 10
        assert len(server.take()) == 11
        assert clients_of(proxy) == {client.address for client in clients[10:]}


def test_flow_that_gave_way_comes_back_with_its_next_datagram() -> None:
    """More clients than flows: each datagram arrives, none is lost, each answer finds its client."""
    with stepped_proxy(FlowLimits(max_flows=3)) as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        clients = [peers.client(address) for _ in range(4)]
        for _ in range(5):
            for client in clients:
                ask(proxy, client)
                assert server.echo() == 1
                proxy.pass_on()
                assert client.take() == [b"ping"]
        counters = proxy.flow_counters()
        assert (counters.flows, counters.ended) == (20, {FlowEnd.EVICTED: 17})
        assert not any(counters.dropped.values())


def test_flow_beyond_the_cap_in_all_ends_the_oldest_of_any_listener() -> None:
    """The cap of one listener is not reached; the oldest is that of the other one."""
    with stepped_proxy(FlowLimits(max_flows=8, max_total_flows=10)) as proxy, open_udp_peers() as peers:
        server, other = peers.server(), peers.server()
        address, other_address = proxy.serve_udp(server.backend), proxy.serve_udp(other.backend, name=OTHER)
        old = [peers.client(address) for _ in range(5)]
        new = [peers.client(other_address) for _ in range(9)]
        for client in (*old, *new[:5]):
            ask(proxy, client)
        for number in range(3):
            ask(proxy, new[5 + number])
            assert proxy.served.open_flows == 10
            assert {client.address for client in old[number + 1 :]} <= clients_of(proxy)
        ask(proxy, new[8])  # now the cap of the listener
        assert proxy.flow_counters().ended == {FlowEnd.EVICTED: 3}
        assert proxy.flow_counters(OTHER).ended == {FlowEnd.EVICTED: 1}
        assert clients_of(proxy) == {client.address for client in (*old[3:], *new[1:])}


def test_flows_that_linger_count_for_the_cap_in_all() -> None:
    """An endpoint that leaves under many flows does not double what is open."""
    with stepped_proxy(FlowLimits(max_total_flows=6)) as proxy, open_udp_peers() as peers:
        server, other = peers.server(), peers.server()
        clients = [peers.client(proxy.serve_udp(server.backend))]
        clients += [peers.client(clients[0].sock.getpeername()) for _ in range(3)]
        for client in clients:
            ask(proxy, client)
        proxy.set_udp_pool(other.backend)
        for client in clients:
            ask(proxy, client)
        assert proxy.served.open_flows == 6
        assert proxy.flow_counters().ended == {FlowEnd.EVICTED: 2}
        assert len(other.take()) == 4
        proxy.advance(LINGER_S)
        assert proxy.flow_counters().active == 4


@pytest.mark.slow
def test_20000_clients_at_a_cap_of_5000_are_all_served_with_bounded_memory() -> None:
    """Every datagram arrives; never are there more flows, descriptors or objects than the cap allows."""
    cap, count, burst = 5000, 20_000, 50
    with stepped_proxy(FlowLimits(max_flows=cap)) as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        descriptors = count_descriptors()
        arrived = 0
        for number in range(count):
            send_once((f"127.8.{number // 250}.{1 + number % 250}", 4000), address, b"%d" % number)
            if number % burst == burst - 1:
                proxy.advance(2 * TOUCH_S)
                proxy.pass_on()
                assert server.take() == [b"%d" % one for one in range(number + 1 - burst, number + 1)]
                arrived += burst
                assert proxy.served.open_flows == min(number + 1, cap)
        counters = proxy.flow_counters()
        assert (arrived, counters.datagrams_to_backend, counters.flows) == (count, count, count)
        assert (counters.active, counters.ended) == (cap, {FlowEnd.EVICTED: count - cap})
        assert not any(counters.dropped.values())
        assert count_descriptors() == descriptors + cap
        assert sum(isinstance(one, UdpFlow) and one.listener.engine is proxy.engine for one in gc.get_objects()) == cap
        oldest = count - cap
        expected = {(f"127.8.{number // 250}.{1 + number % 250}", 4000) for number in range(oldest, count)}
        assert clients_of(proxy) == expected
        proxy.assert_flows_consistent()


def send_once(source: Address, destination: Address, datagram: bytes) -> None:
    """Send a datagram from a source, by a socket of its own that is closed then."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(source)
        sock.sendto(datagram, destination)


@pytest.mark.parametrize("burst", [1, 3, 12, 40])
def test_flows_without_descriptors_end_the_oldest_and_lose_no_datagram(burst: int) -> None:
    """Each new client takes the descriptor of the flow that was silent for longest, also within one batch of events."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        clients = [peers.client(address) for _ in range(5 + burst)]
        for client in clients[:5]:
            ask(proxy, client)
        proxy.advance(1.0)
        assert len(server.take()) == 5
        with descriptors_left(0):
            for client in clients[5:]:
                client.send(b"new")
            proxy.pass_on()
            assert server.take() == [b"new"] * burst
            assert proxy.served.open_flows == 5
            assert clients_of(proxy) == {client.address for client in clients[-5:]}
            server.answer(b"pong", to=server.senders[-1])
            proxy.pass_on()
            assert clients[-1].take() == [b"pong"]
        assert proxy.flow_counters().ended == {FlowEnd.EVICTED: burst}
        assert not any(proxy.flow_counters().dropped.values())


def test_flow_without_descriptors_takes_that_of_another_listener() -> None:
    """The oldest flow of all gives way."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        old = peers.client(proxy.serve_udp(server.backend))
        new = peers.client(proxy.serve_udp(server.backend, name=OTHER))
        ask(proxy, old)
        with descriptors_left(0):
            ask(proxy, new)
        assert len(server.take()) == 2
        assert proxy.flow_counters().ended == {FlowEnd.EVICTED: 1}
        assert clients_of(proxy) == {new.address}


def test_first_flow_without_descriptors_is_dropped_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """No flow can give way: datagrams are counted, one line is logged; TCP goes on; later all is well again."""
    with stepped_proxy() as proxy, open_udp_peers() as peers, socket.create_server(("127.0.0.1", 0)) as web:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        with socket.create_connection(proxy.serve(backend("{}:{}".format(*web.getsockname())))) as tcp_client:
            proxy.settle()
            tcp_backend, _ = web.accept()
            proxy.settle()
            for round_ in range(1, 3):
                with descriptors_left(0):
                    for _ in range(3):
                        client.send(b"ping")
                        proxy.pass_on()
                    tcp_client.sendall(b"over TCP")
                    flush_loopback()
                    proxy.settle()
                    assert tcp_backend.recv(100) == b"over TCP"
                assert proxy.flow_counters().dropped[DropReason.NO_DESCRIPTOR] == 3 * round_
                assert proxy.served.open_flows == 0
                (record,) = caplog.records
                assert (record.name, record.levelno) == (LISTENER_LOG, logging.WARNING)
                assert (vars(record)["service"], vars(record)["errno"]) == (DNS, "EMFILE")
                caplog.clear()
                client.send(b"pong")
                proxy.pass_on()
                assert server.take() == [b"pong"]
                proxy.advance(120.0)
            tcp_backend.close()
        proxy.settle()


def test_flows_of_a_listener_with_a_short_time_out_are_no_older_than_others() -> None:
    """What counts is when a flow was used last, not when it will end."""
    with stepped_proxy(FlowLimits(max_total_flows=2)) as proxy, open_udp_peers() as peers:
        server = peers.server()
        short = peers.client(proxy.serve_udp(server.backend, udp=udp_settings(idle_timeout_s=30.0)))
        long = peers.client(proxy.serve_udp(server.backend, name=OTHER, udp=udp_settings(idle_timeout_s=600.0)))
        ask(proxy, long)
        ask(proxy, short)
        newest = peers.client(short.sock.getpeername())
        ask(proxy, newest)
        assert clients_of(proxy) == {short.address, newest.address}


def test_flow_that_cannot_be_watched_is_dropped_counted_and_leaves_no_socket() -> None:
    """No room in epoll is like no descriptor: no bug, no leak, and it goes on when there is room."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        epoll = fill_epoll(proxy, room=0)
        descriptors = count_descriptors()
        for number in range(1, 4):
            ask(proxy, client)
            assert proxy.flow_counters().dropped[DropReason.NO_DESCRIPTOR] == number
            assert count_descriptors() == descriptors
        proxy.assert_nothing_left()
        epoll.room = 1
        ask(proxy, client)
        assert server.take() == [b"ping"]


def test_listener_that_cannot_be_watched_again_goes_on_refusing_and_is_retried() -> None:
    """A retired listener that comes back finds no room in epoll: an error that says what to do, and no leak."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend, host=own_host(6), port=PORT))
        ask(proxy, client)
        assert server.take() == [b"ping"]
        proxy.set_udp_pool()
        epoll = fill_epoll(proxy, room=0)
        descriptors = count_descriptors()
        key = pool_key(DNS, protocol=Protocol.UDP)
        proxy.listeners.apply_pool(Pool(key, (server.backend,), Balance.ROUND_ROBIN, None, UdpSettings()))
        (error,) = proxy.listeners.open_missing(retry=False).values()
        assert "raise fs.epoll.max_user_watches" in str(error)
        assert count_descriptors() == descriptors
        assert client.is_refused()
        server.answer(b"late")
        proxy.pass_on()
        assert client.take() == [b"late"]
        epoll.room = 2
        assert proxy.listeners.open_missing(retry=True) == {udp_listener_key(): None}
        ask(proxy, client)
        assert server.take() == [b"ping"]

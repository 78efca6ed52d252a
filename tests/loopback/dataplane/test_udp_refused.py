"""Backends that refuse: what is sent once more, what is lost, and that all of it is counted."""

import os
import socket
import struct

import pytest
from builders import backend
from engine_driver import Proxy, stepped_proxy
from peers import own_host
from udp_peers import UdpPeer, UdpPeers, UdpServer, open_udp_peers

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd

KEPT_BYTES = 1500
KEPT_S = 1.0
"""What is sent once more is no larger and no older."""
UDP_SEGMENT = 103
"""Of linux/udp.h; Python has no name for it."""
in_both_families = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


def lost(proxy: Proxy) -> dict[DropReason, int]:
    """Return how many datagrams were dropped, by reason."""
    return {reason: count for reason, count in proxy.flow_counters().dropped.items() if count}


def serve(proxy: Proxy, *servers: UdpServer, host: str = "127.0.0.1", affinity_s: int | None = None) -> tuple[str, int]:
    """Open a listener for Backends."""
    return proxy.serve_udp(*(server.backend for server in servers), host=host, affinity_timeout_s=affinity_s)


def dead_and_live(peers: UdpPeers, host: str = "127.0.0.1") -> tuple[UdpServer, UdpServer]:
    """Return two Backends; the first, whose turn it is at first, refuses."""
    dead, live = sorted((peers.server(host) for _ in range(2)), key=lambda server: server.backend.port)
    dead.die()
    return dead, live


def ask(proxy: Proxy, client: UdpPeer, *datagrams: bytes) -> None:
    """Have datagrams of a client passed on."""
    client.send(*(datagrams or (b"ping",)))
    proxy.pass_on()


@in_both_families
def test_backend_that_refuses_loses_no_datagram_of_clients_with_one(host: str) -> None:
    """DNS: each query has a port of its own, and each reaches the Backend that lives, be it at the second try."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        dead, live = dead_and_live(peers, host)
        address = serve(proxy, dead, live, host=host)
        clients = [peers.client(address) for _ in range(20)]
        for number, client in enumerate(clients):
            ask(proxy, client, b"%d" % number)
            assert live.echo() == 1
            proxy.pass_on()
            assert client.take() == [b"%d" % number]
        assert lost(proxy) == {}
        counters = proxy.flow_counters()
        assert (counters.active, counters.ended) == (20, {FlowEnd.REFUSED: counters.resent})
        assert counters.resent >= 10


@pytest.mark.parametrize("count", [2, 3, 10, 100])
def test_backend_that_refuses_loses_no_datagram_of_a_burst_of_a_client(count: int) -> None:
    """Each reaches the Backend that lives, once, in order, although they were there before the first was refused."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        dead, live = dead_and_live(peers)
        datagrams = [b"%d" % number for number in range(count)]
        ask(proxy, peers.client(serve(proxy, dead, live)), *datagrams)
        assert live.take() == datagrams
        assert lost(proxy) == {}
        assert proxy.flow_counters().resent == 1


def test_backends_that_refuse_all_but_one_lose_only_what_was_sent_twice() -> None:
    """A datagram is sent once more, not twice: a client whose second Backend is dead too loses its first only."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        live = peers.server()
        dead = [peers.dead() for _ in range(2)]
        address = serve(proxy, live, *dead)
        for _ in range(3):
            client = peers.client(address)
            for number in range(3):
                ask(proxy, client, b"%d" % number)
        arrived = live.take()
        assert sorted(one for one in arrived if one != b"0") == [b"1"] * 3 + [b"2"] * 3
        assert lost(proxy) == {DropReason.REFUSED: 9 - len(arrived)}


def test_burst_of_a_client_with_two_dead_backends_reaches_the_third_and_the_rest_is_counted() -> None:
    """What never left is not lost for the refusal of another datagram; what is lost is counted."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        live = peers.server()
        dead = [peers.dead() for _ in range(2)]
        address = serve(proxy, live, *dead)
        for _ in range(3):
            ask(proxy, peers.client(address), *(b"%d" % number for number in range(10)))
        arrived = live.take()
        assert [one for one in arrived if one != b"0"] == [b"%d" % number for number in range(1, 10)] * 3
        assert lost(proxy) == {DropReason.REFUSED: 30 - len(arrived)}


@pytest.mark.parametrize("size", [KEPT_BYTES, KEPT_BYTES + 1])
def test_datagram_is_sent_once_more_up_to_the_size_that_is_kept(size: int) -> None:
    """A larger one is lost and counted; the next one of its client goes elsewhere."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        dead, live = dead_and_live(peers)
        client = peers.client(serve(proxy, dead, live))
        ask(proxy, client, bytes(size))
        is_kept = size <= KEPT_BYTES
        assert live.take() == ([bytes(size)] if is_kept else [])
        assert lost(proxy) == ({} if is_kept else {DropReason.REFUSED: 1})
        proxy.set_udp_pool(live.backend)
        ask(proxy, client, b"next")
        assert live.take() == [b"next"]


@pytest.mark.parametrize(("age_s", "arrives"), [(0.0, True), (KEPT_S, True), (KEPT_S + 0.125, False)])
def test_datagram_is_sent_once_more_while_it_is_young(age_s: float, arrives: bool) -> None:  # noqa: FBT001
    """A client that wants an answer has sent an older one again itself: it is counted as lost."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        live, dead = peers.server(), peers.dead()
        client = peers.client(serve(proxy, dead))
        client.send(b"ping")
        proxy.engine.poll(0)  # the refusal has come, and is not looked at yet
        proxy.set_udp_pool(live.backend, dead.backend)
        proxy.clock.now_s += age_s  # type: ignore[attr-defined]
        proxy.pass_on()
        assert live.take() == ([b"ping"] if arrives else [])
        assert lost(proxy) == ({} if arrives else {DropReason.REFUSED: 1})


def test_datagram_after_the_first_answer_is_not_kept() -> None:
    """The Backend has shown that it lives; when it dies later, one datagram is lost and counted, the next is not."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = [peers.server() for _ in range(2)]
        client = peers.client(serve(proxy, *servers))
        ask(proxy, client)
        first = next(server for server in servers if server.echo())
        second = servers[1 - servers.index(first)]
        proxy.pass_on()
        first.die()
        ask(proxy, client, b"lost")
        assert lost(proxy) == {DropReason.REFUSED: 1}
        ask(proxy, client, b"found")
        assert second.take() == [b"found"]
        assert proxy.flow_counters().resent == 0


def test_backend_that_dies_under_a_one_way_sender_loses_nothing() -> None:
    """Syslog: no answer ever comes, so the last datagram is always kept."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = [peers.server() for _ in range(2)]
        client = peers.client(serve(proxy, *servers))
        for deaths in range(5):
            for number in range(10):
                ask(proxy, client, b"%d" % number)
                taken = [server.take() for server in servers]
                assert sorted(taken) == [[], [b"%d" % number]]
            assert proxy.flow_counters().resent == deaths
            busy, idle = sorted(servers, key=lambda server: taken[servers.index(server)] == [])
            if deaths:
                idle.revive()
            busy.die()
        assert lost(proxy) == {}


@pytest.mark.parametrize("backends", [1, 2, 5])
@pytest.mark.parametrize("burst", [1, 2, 7, 64])
def test_backends_that_all_refuse_cost_bounded_work_and_every_datagram_is_counted(backends: int, burst: int) -> None:
    """No datagram goes round: at most two are sent for each, and as many are counted as lost as came."""
    rounds = 5
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client = peers.client(serve(proxy, *(peers.dead() for _ in range(backends))))
        for _ in range(rounds):
            polls = proxy.engine.polls
            ask(proxy, client, *[b"ping"] * burst)
            assert proxy.engine.polls - polls <= 4 + burst
        counters = proxy.flow_counters()
        assert sum(lost(proxy).values()) == rounds * burst
        assert counters.datagrams_to_backend <= 2 * rounds * burst
        assert counters.flows <= (rounds if backends == 1 else 2 * rounds * burst)  # a new socket would change nothing
        assert counters.active <= 1


def test_backend_that_was_dead_is_used_again_once_it_lives() -> None:
    """A client whose Backends were all dead goes on at once when one is back."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = [peers.dead() for _ in range(2)]
        client = peers.client(serve(proxy, *servers))
        for _ in range(5):
            ask(proxy, client)
        servers[0].revive()
        for _ in range(3):
            ask(proxy, client, b"again")
        assert servers[0].take() == [b"again"] * 3


def test_flow_refused_while_it_lingers_sends_the_last_datagram_to_the_new_backend() -> None:
    """The endpoint left before it had taken what was on its way: it is not lost, and the new flow keeps its Backend."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        live, dead = peers.server(), peers.dead()
        client = peers.client(serve(proxy, dead))
        client.send(b"1")
        proxy.engine.poll(0)
        proxy.set_udp_pool(live.backend)
        ask(proxy, client, b"2")
        assert sorted(live.take()) == [b"1", b"2"]
        assert len(set(live.senders)) == 1
        assert lost(proxy) == {}


def test_flow_refused_while_it_lingers_and_the_new_one_too_loses_each_datagram_once() -> None:
    """Both endpoints were dead: two datagrams are lost, and counted as two."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client = peers.client(serve(proxy, peers.dead()))
        client.send(b"1")
        proxy.engine.poll(0)
        proxy.set_udp_pool(peers.dead().backend)
        ask(proxy, client, b"2")
        assert lost(proxy) == {DropReason.REFUSED: 2}
        assert proxy.served.open_flows == 0


def test_flow_refused_while_there_is_no_backend_is_counted() -> None:
    """There is nobody to send it to once more."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client = peers.client(serve(proxy, peers.dead()))
        client.send(b"1")
        proxy.engine.poll(0)
        proxy.set_udp_pool()
        proxy.pass_on()
        assert lost(proxy) == {DropReason.NO_ENDPOINT: 1}
        assert proxy.served.open_flows == 0


def test_flow_refused_after_the_listeners_were_closed_makes_no_new_one() -> None:
    """The proxy stops: there are Backends, but nothing is led to them any more."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        dead, live = dead_and_live(peers)
        client = peers.client(serve(proxy, dead, live))
        client.send(b"1")
        proxy.engine.poll(0)
        counters = proxy.flow_counters()
        proxy.listeners.close_listeners()
        proxy.pass_on()
        assert live.take() == []
        assert counters.dropped[DropReason.NO_ENDPOINT] == 1
        assert proxy.served.open_flows == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_client_with_affinity_comes_back_to_its_backend(host: str) -> None:
    """Chosen when the flow is made, by the address of the client: its other ports, and later flows, go there too."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = [peers.server() for _ in range(3)]
        address = serve(proxy, *servers, host=host, affinity_s=10800)
        for source in ("127.0.5.1", "127.0.5.2", "127.0.5.3"):
            for _ in range(3):
                ask(proxy, peers.client(address, (source, 0)), source.encode())
            proxy.advance(100.0)
            ask(proxy, peers.client(address, (source, 0)), source.encode())
        taken = [server.take() for server in servers]
        assert sorted(taken) == [[b"127.0.5.%d" % number] * 4 for number in (1, 2, 3)]


def test_client_with_affinity_whose_backend_refuses_moves_to_the_one_that_answers() -> None:
    """The record is replaced by the first answer, and not before: then all new flows go there at once."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = [peers.server() for _ in range(3)]
        address = serve(proxy, *servers, affinity_s=10800)
        ask(proxy, peers.client(address))
        first = next(server for server in servers if server.echo())
        proxy.pass_on()
        first.die()
        client = peers.client(address)
        ask(proxy, client, b"moves")
        second = next(server for server in servers if server is not first and server.echo())
        proxy.pass_on()
        assert client.take() == [b"moves"]
        assert proxy.flow_counters().resent == 1
        for _ in range(3):
            ask(proxy, peers.client(address), b"stays")
        assert second.take() == [b"stays"] * 3
        assert proxy.flow_counters().resent == 1
        assert lost(proxy) == {}


def test_backend_that_cannot_be_reached_gives_way_to_another() -> None:
    """No route to it: connect(2) or the first send says so, and nothing is lost while another can be reached."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        live = peers.server()
        unreachable = backend("255.255.255.255:53")  # nobody may send to all
        address = proxy.serve_udp(live.backend, unreachable)
        for number in range(4):
            ask(proxy, peers.client(address), b"%d" % number)
        assert live.take() == [b"0", b"1", b"2", b"3"]
        assert lost(proxy) == {}
        proxy.set_udp_pool(unreachable)
        for number in range(4):
            ask(proxy, peers.client(address), b"%d" % number)
        assert lost(proxy) == {DropReason.UNREACHABLE: 4}


def icmp_error(server: UdpServer, code: int, *, mtu: int = 0) -> None:
    """Send the sender of the last datagram to a Backend ICMP "destination unreachable" about it (RFC 792)."""
    ours, theirs = server.senders[-1], (str(server.backend.address), server.backend.port)
    udp = struct.pack("!HHHH", ours[1], theirs[1], 8, 0)
    addresses = socket.inet_aton(ours[0]) + socket.inet_aton(theirs[0])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    message = struct.pack("!BBHHH", 3, code, 0, 0, mtu) + ip + udp
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + message[4:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.bind((theirs[0], 0))
        raw.sendto(message, (ours[0], 0))


FRAGMENTATION_NEEDED, HOST_PROHIBITED = 4, 10
needs_raw_sockets = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it writes ICMP messages")


@needs_raw_sockets
@pytest.mark.parametrize("size", [KEPT_BYTES, KEPT_BYTES + 1])
def test_backend_behind_a_firewall_that_rejects_is_as_one_that_refuses(size: int) -> None:
    """ICMP "host prohibited", as firewalld sends it: what is kept goes to another Backend, what is not is counted."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        walled, free = sorted((peers.server() for _ in range(2)), key=lambda server: server.backend.port)
        client = peers.client(serve(proxy, walled, free))
        ask(proxy, client, bytes(size))
        assert walled.take() == [bytes(size)]
        icmp_error(walled, HOST_PROHIBITED)
        proxy.pass_on()
        is_kept = size <= KEPT_BYTES
        assert free.take() == ([bytes(size)] if is_kept else [])
        assert sum(lost(proxy).values()) == (0 if is_kept else 1)
        assert proxy.flow_counters().ended == {FlowEnd.REFUSED: 1}


@needs_raw_sockets
def test_datagram_that_may_not_leave_goes_elsewhere_and_the_one_before_is_not_sent_again() -> None:
    """A firewall rule, a route that is gone: what was sent before has most likely arrived."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        first, second = sorted((peers.server() for _ in range(2)), key=lambda server: server.backend.port)
        client = peers.client(serve(proxy, first, second))
        ask(proxy, client, b"before")
        proxy.flows()[0].sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1)  # more segments than there may be: EINVAL
        ask(proxy, client, bytes(1000))
        assert first.take() == [b"before"]
        assert second.take() == [bytes(1000)]
        assert proxy.flow_counters().datagrams_to_backend == 2
        assert proxy.flow_counters().resent == 0
        assert lost(proxy) == {}


def test_datagram_too_big_for_the_way_is_counted_and_its_flow_goes_on() -> None:
    """ICMP "fragmentation needed": the kernel knows now, and sends the next one in pieces."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server(own_host(7))  # an address of its own, as the kernel remembers this
        client = peers.client(serve(proxy, server))
        ask(proxy, client, bytes(2000))
        assert server.take() == [bytes(2000)]
        icmp_error(server, FRAGMENTATION_NEEDED, mtu=1400)
        proxy.pass_on()
        assert lost(proxy) == {DropReason.TOO_BIG: 1}
        client.send(bytes(3000))  # the error is told when this one is to be sent
        icmp_error(server, FRAGMENTATION_NEEDED, mtu=1300)
        proxy.pass_on()
        assert lost(proxy) == {DropReason.TOO_BIG: 2}
        assert server.take() == [bytes(3000)]
        assert proxy.flow_counters().flows == proxy.flow_counters().active == 1

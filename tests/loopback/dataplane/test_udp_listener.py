"""UdpListener: datagrams of every size reach one Backend, and answers come from where the client has sent to."""

import os
import random
import socket
import struct
from ipaddress import ip_address

import pytest
from attrs import evolve
from builders import frontend, route, udp_settings
from engine_driver import DNS, Proxy, stepped_proxy, udp_listener_key
from peers import nothing_left_open, own_host
from udp_peers import LARGEST_DATAGRAM, UdpPeer, UdpServer, flush_loopback, open_udp_peers, own_port

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.dataplane.datagram_memory import BATCH
from userspace_proxy.dataplane.udp_listener import BATCHES_PER_EVENT
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import ListenerSpec, SourceAddresses

PLACES = ["127.0.0.1", "0.0.0.0", "::1", "::"]
EDGES = [0, 1, 1472, 1473, 1500, 1501, 4096, 4097, 65506, LARGEST_DATAGRAM]
"""Sizes at which something ends: Ethernet's frames, what is kept, the buffer of kube-proxy 1.25, UDP itself."""
DATAGRAMS_PER_EVENT = BATCH * BATCHES_PER_EVENT
PORT = own_port(5)
needs_raw_sockets = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it writes the headers of datagrams")
in_every_place = pytest.mark.parametrize("host", PLACES)


def loopback_of(host: str) -> str:
    """Return the loopback address of the family of a host."""
    return "::1" if ":" in host else "127.0.0.1"


def exchange(proxy: Proxy, client: UdpPeer, server: UdpServer, *datagrams: bytes) -> list[bytes]:
    """Have a client send datagrams, and the Backend send back what it gets; return what comes back."""
    client.send(*datagrams)
    proxy.pass_on()
    server.echo()
    proxy.pass_on()
    return client.take()


@in_every_place
def test_datagrams_of_all_sizes_arrive_as_they_were_sent_both_ways(host: str) -> None:
    """Each byte, in order and uncut, from nothing to as much as a datagram can carry."""
    dice = random.Random(4)  # noqa: S311
    sizes = EDGES + [dice.randint(0, LARGEST_DATAGRAM) for _ in range(40)]
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server(loopback_of(host))
        client = peers.client(proxy.serve_udp(server.backend, host=host))
        total = 0
        for size in sizes:
            question, answer = dice.randbytes(size), dice.randbytes(sizes[-1 - sizes.index(size)])
            client.send(question)
            proxy.pass_on()
            assert server.take() == [question]
            server.answer(answer)
            proxy.pass_on()
            assert client.take() == [answer]
            total += len(question) - len(answer)
        counters = proxy.flow_counters()
        assert (counters.datagrams_to_backend, counters.datagrams_to_client) == (len(sizes), len(sizes))
        assert counters.bytes_to_backend - counters.bytes_to_client == total
        assert (counters.flows, counters.active, counters.dropped) == (1, 1, {DropReason.BUFFER_FULL: 0})


@in_every_place
def test_datagrams_without_a_byte_arrive_and_are_counted(host: str) -> None:
    """A datagram of no length is a datagram, not an end."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server(loopback_of(host))
        client = peers.client(proxy.serve_udp(server.backend, host=host))
        for _ in range(2):
            assert exchange(proxy, client, server, b"", b"x", b"") == [b"", b"x", b""]
        counters = proxy.flow_counters()
        assert (counters.datagrams_to_backend, counters.bytes_to_backend) == (6, 2)
        assert (counters.datagrams_to_client, counters.bytes_to_client) == (6, 2)


def test_largest_datagram_of_ipv6_arrives() -> None:
    """IPv6 does not count its header: 20 bytes more fit in (RFC 8200, section 4.5)."""
    data = bytes(LARGEST_DATAGRAM + 20)
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server("::1")
        client = peers.client(proxy.serve_udp(server.backend, host="::1"))
        assert exchange(proxy, client, server, data) == [data]


@in_every_place
def test_clients_have_a_flow_each_and_get_only_their_own_answers(host: str) -> None:
    """One upstream socket for each client port, kept for all its datagrams; answers may come in any order."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server(loopback_of(host))
        address = proxy.serve_udp(server.backend, host=host)
        clients = [peers.client(address) for _ in range(5)]
        for _ in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d" % number)
        proxy.pass_on()
        assert server.take() == [b"0", b"1", b"2", b"3", b"4"] * 3
        senders = server.senders[:5]
        assert len(set(senders)) == 5
        assert server.senders == senders * 3
        for number in (3, 1, 4, 0, 2):
            server.answer(b"to %d" % number, to=senders[number])
        proxy.pass_on()
        assert [client.take() for client in clients] == [[b"to %d" % number] for number in range(5)]
        assert proxy.flow_counters().flows == 5


@in_every_place
def test_backend_may_send_more_than_it_is_asked(host: str) -> None:
    """Many answers to one question, in order, as SIP, QUIC and games have it."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server(loopback_of(host))
        client = peers.client(proxy.serve_udp(server.backend, host=host))
        client.send(b"go")
        proxy.pass_on()
        assert server.take() == [b"go"]
        answers = [b"%d" % number for number in range(3 * DATAGRAMS_PER_EVENT)]
        server.answer(*answers)
        proxy.pass_on()
        assert client.take() == answers


def test_answers_of_several_listeners_in_one_batch_of_events_find_their_clients() -> None:
    """More than are sent by one system call, mixed: each from its own listener, of its own length, in its own order."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        pairs = []
        for number, host in enumerate((*PLACES, *PLACES)):
            server = peers.server(loopback_of(host))
            address = proxy.serve_udp(server.backend, name=f"shop/{number}:udp", host=host)
            pairs += [(peers.client(address), server) for _ in range(BATCH // 4)]
        for client, _ in pairs:
            client.send(b"go")
        proxy.pass_on()
        for _, server in pairs[:: BATCH // 4]:
            assert len(server.take()) == BATCH // 4
        for round_ in range(3):
            for place in range(BATCH // 4):
                for number, (_, server) in enumerate(pairs[:: BATCH // 4]):
                    sender = server.senders[place]
                    server.answer(bytes([place, round_]) * (1 + number + place + round_), to=sender)
        proxy.pass_on()
        for number, (client, _) in enumerate(pairs):
            listener, place = divmod(number, BATCH // 4)
            expected = [bytes([place, round_]) * (1 + listener + place + round_) for round_ in range(3)]
            assert client.take() == expected


@pytest.mark.parametrize("last", [1, 2, 77, 254])
def test_answer_of_a_wildcard_listener_comes_from_the_address_that_was_sent_to(last: int) -> None:
    """Where the kernel would choose another source, the client's connected socket would not take the answer."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        _, port = proxy.serve_udp(server.backend, host="0.0.0.0")
        client = peers.client((f"127.0.3.{last}", port), ("127.0.0.1", 0))
        assert exchange(proxy, client, server, b"one", b"two") == [b"one", b"two"]


def test_client_port_that_sends_to_two_local_addresses_has_two_flows() -> None:
    """Each answer comes from the address that its question went to, although the client is the same."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        _, port = proxy.serve_udp(server.backend, host="0.0.0.0")
        first = peers.client(("127.0.3.1", port), ("127.0.0.9", 0))
        second = peers.client(("127.0.3.2", port), first.address)
        assert first.address == second.address
        first.send(b"first")
        second.send(b"second")
        proxy.pass_on()
        assert server.take() == [b"first", b"second"]
        assert len(set(server.senders)) == 2
        for sender, answer in zip(server.senders[::-1], (b"to second", b"to first"), strict=True):
            server.answer(answer, to=sender)
        proxy.pass_on()
        assert (first.take(), second.take()) == ([b"to first"], [b"to second"])
        assert proxy.flow_counters().flows == 2


def test_families_of_a_service_are_served_apart() -> None:
    """An IPv6 wildcard listener takes nothing of IPv4: both can have the same port."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server, server6 = peers.server(), peers.server("::1")
        _, port = proxy.serve_udp(server.backend, host="0.0.0.0")
        pool6 = proxy.set_udp_pool(server6.backend, family=Family.IPV6)
        proxy.listeners.apply_listener(
            ListenerSpec(udp_listener_key(family=Family.IPV6), ip_address("::"), port), route(pool6)
        )
        proxy.open_all()
        for host, one in (("127.0.0.1", server), ("::1", server6)):
            assert exchange(proxy, peers.client((host, port)), one, b"ping") == [b"ping"]
        assert proxy.flow_counters().flows == 2


@in_every_place
def test_stranger_that_answers_instead_of_the_backend_is_not_heard(host: str) -> None:
    """The upstream socket is connected: what anybody else sends to it does not come to the client."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server, stranger = (peers.server(loopback_of(host)) for _ in range(2))
        client = peers.client(proxy.serve_udp(server.backend, host=host))
        client.send(b"ping")
        proxy.pass_on()
        server.take()
        stranger.answer(b"lie", to=server.senders[0])
        server.answer(b"truth")
        proxy.pass_on()
        assert client.take() == [b"truth"]
        assert proxy.flow_counters().datagrams_to_client == 1


def test_backends_take_turns_flow_by_flow() -> None:
    """Round robin over the clients; each keeps its Backend."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = sorted((peers.server() for _ in range(3)), key=lambda server: server.backend.port)
        address = proxy.serve_udp(*(server.backend for server in servers))
        clients = [peers.client(address) for _ in range(6)]
        for round_ in range(2):
            for number, client in enumerate(clients):
                client.send(b"%d %d" % (round_, number))
        proxy.pass_on()
        assert [server.take() for server in servers] == [
            [b"0 %d" % place, b"0 %d" % (place + 3), b"1 %d" % place, b"1 %d" % (place + 3)] for place in range(3)
        ]


def test_flood_is_passed_on_in_bounded_turns() -> None:
    """One event passes on a bounded number of datagrams; another Service has its turn in the same batch of events."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server, quiet = peers.server(), peers.server()
        flooder = peers.client(proxy.serve_udp(server.backend))
        client = peers.client(proxy.serve_udp(quiet.backend, name="shop/quiet:udp"))
        flooder.send(*[b"flood"] * (4 * DATAGRAMS_PER_EVENT))
        client.send(b"ping")
        for turn in range(1, 5):
            proxy.engine.poll(0)
            flush_loopback()
            assert proxy.flow_counters().datagrams_to_backend == turn * DATAGRAMS_PER_EVENT
            assert quiet.take() == ([b"ping"] if turn == 1 else [])
        proxy.pass_on()
        assert len(server.take()) == 4 * DATAGRAMS_PER_EVENT


def test_datagrams_that_found_no_room_in_the_listener_are_counted() -> None:
    """Sent while the engine does something else: what arrives and what is counted as dropped is all there was."""
    sent = 400
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        for round_ in range(1, 3):
            for _ in range(sent):
                client.sock.send(bytes(60000))
            flush_loopback()
            arrived = 0
            while proxy.engine.poll(0):
                arrived += len(server.take())
            assert 0 < arrived < sent
            counters = proxy.flow_counters()
            assert counters.datagrams_to_backend + counters.dropped[DropReason.BUFFER_FULL] == round_ * sent
        dropped = proxy.flow_counters().dropped[DropReason.BUFFER_FULL]
        assert proxy.flow_counters().dropped[DropReason.BUFFER_FULL] == dropped > sent / 2


def test_answers_that_found_no_room_in_a_flow_are_counted_with_its_end() -> None:
    """A Backend that answers faster than the engine reads loses answers, not the numbers of them."""
    sent = 400
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        client.send(b"go")
        proxy.pass_on()
        server.take()
        server.answer(*[bytes(1000)] * sent)
        proxy.pass_on()
        delivered = len(client.take())
        assert 0 < delivered < sent
        counters = proxy.flow_counters()
        proxy.served.abort()
        assert counters.datagrams_to_client == delivered
        assert counters.dropped[DropReason.BUFFER_FULL] == sent - delivered
        assert counters.ended == {FlowEnd.STOPPED: 1}


def raw_datagram(source: tuple[str, int], destination: tuple[str, int], data: bytes) -> None:
    """Send a UDP datagram over IPv4 with any source; without a checksum (RFC 768 allows that)."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 28 + len(data), 0, 0, 64, socket.IPPROTO_UDP, 0,
            socket.inet_aton(source[0]), socket.inet_aton(destination[0]),
        )  # fmt: skip
        raw.sendto(
            header + struct.pack("!HHHH", source[1], destination[1], 8 + len(data), 0) + data, (destination[0], 0)
        )
    flush_loopback()


@needs_raw_sockets
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_datagram_from_port_0_is_passed_on_and_its_answer_is_dropped(host: str) -> None:
    """Nobody can be answered at port 0; that is counted, and no bug."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend, host=host)
        raw_datagram(("127.0.0.5", 0), address, b"from nowhere")
        proxy.pass_on()
        assert server.take() == [b"from nowhere"]
        server.answer(b"to nowhere")
        proxy.pass_on()
        counters = proxy.flow_counters()
        assert counters.datagrams_to_client == 0
        assert counters.dropped == {DropReason.UNREACHABLE: 1, DropReason.BUFFER_FULL: 0}
        assert counters.active == 1
        assert exchange(proxy, peers.client(address), server, b"ping") == [b"ping"]


@needs_raw_sockets
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_client_that_pretends_to_be_the_listener_is_denied(host: str) -> None:
    """Its answer would come back here as the next question, for ever."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend, host=host)
        raw_datagram(address, address, b"loop")
        proxy.pass_on()
        assert server.take() == []
        assert proxy.flow_counters().dropped[DropReason.DENIED] == 1
        assert proxy.served.open_flows == 0


@needs_raw_sockets
def test_client_that_pretends_to_be_a_wildcard_listener_at_another_address_is_denied() -> None:
    """Such a listener is at every address of the node: the answer would come back here all the same."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        host, port = proxy.serve_udp(server.backend, host="0.0.0.0")
        proxy.listeners.apply_sources(SourceAddresses(local_addresses=frozenset({ip_address("192.0.2.7")})))
        for source in ("127.0.0.7", "192.0.2.7"):
            raw_datagram((source, port), (host, port), b"loop")
        raw_datagram(("127.0.0.7", port - 1), (host, port), b"client")
        proxy.pass_on()
        assert server.take() == [b"client"]
        assert proxy.flow_counters().dropped[DropReason.DENIED] == 2


def test_garbage_from_many_addresses_harms_nobody() -> None:
    """Random datagrams from random sources to everything that is bound; afterwards all works, and nothing is lost."""
    dice = random.Random(5)  # noqa: S311
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend, host="0.0.0.0"))
        assert exchange(proxy, client, server, b"ping") == [b"ping"]
        targets = [client.sock.getpeername(), server.senders[0]]
        hosts = [f"127.0.{dice.randrange(256)}.{dice.randrange(1, 255)}" for _ in range(20)]
        strangers = [peers.server(host) for host in hosts]
        for _ in range(300):
            data = dice.randbytes(dice.choice(EDGES[:-2]))
            dice.choice(strangers).answer(data, to=dice.choice(targets))
            if dice.random() < 0.1:
                proxy.pass_on()
        proxy.pass_on()
        server.take()
        assert client.take() == []
        assert exchange(proxy, client, server, b"pong") == [b"pong"]
        counters = proxy.flow_counters()
        assert counters.flows == counters.active <= 21
        assert not any(counters.dropped.values())


def test_bug_with_one_flow_ends_that_flow_only() -> None:
    """The others go on, and so does its client: with a new flow."""
    bugs: list[Exception] = []
    with stepped_proxy(report_bug=bugs.append) as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        clients = [peers.client(address) for _ in range(2)]
        for client in clients:
            assert exchange(proxy, client, server, b"ping") == [b"ping"]
        proxy.flows()[0]._receive = _divide_by_zero  # type: ignore[assignment]
        for client, answers in zip(clients, ([], [b"ping"]), strict=True):
            assert exchange(proxy, client, server, b"ping") == answers
        assert [type(bug) for bug in bugs] == [ZeroDivisionError]
        assert proxy.flow_counters().ended == {FlowEnd.BUG: 1}
        for client in clients:
            assert exchange(proxy, client, server, b"pong") == [b"pong"]
        assert proxy.flow_counters().flows == 3


def _divide_by_zero(*_: object) -> int:
    return 1 // 0


def test_flows_and_listener_leave_nothing_behind() -> None:
    """Handlers, sockets, counters, Members: nothing of a flow outlives it, and nothing of a listener."""
    flush_loopback()
    with nothing_left_open(), stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = [peers.server(), peers.dead()]
        address = proxy.serve_udp(*(server.backend for server in servers), udp=udp_settings(idle_timeout_s=10.0))
        clients = [peers.client(address) for _ in range(10)]
        for client in clients:
            assert exchange(proxy, client, servers[0], b"ping") == [b"ping"]
        proxy.assert_flows_consistent()
        assert proxy.served.open_flows == 10
        proxy.advance(20.0)
        proxy.assert_nothing_left()
        proxy.listeners.remove_listener(udp_listener_key())
        assert not proxy.engine.handlers
        assert DNS not in proxy.engine.counters.udp_services


def test_listeners_of_several_frontends_each_answer_from_their_own_address() -> None:
    """Each has a socket of its own; they share the Pool, its turns and the counters."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = sorted((peers.server() for _ in range(2)), key=lambda server: server.backend.port)
        pool = proxy.set_udp_pool(*(server.backend for server in servers))
        for last, server in enumerate(servers, 1):
            host = own_host(8 + last)
            key = evolve(udp_listener_key(), frontend=frontend(f"{host}:{PORT}", DNS, protocol=Protocol.UDP))
            proxy.listeners.apply_listener(ListenerSpec(key, ip_address(host), PORT), route(pool))
            proxy.open_all()
            assert exchange(proxy, peers.client((host, PORT)), server, b"ping") == [b"ping"]
        assert proxy.flow_counters().flows == 2

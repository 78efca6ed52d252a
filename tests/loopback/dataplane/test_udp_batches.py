"""Datagrams are received and answered many at a time: what one of them meets with is no business of the others."""

import errno
import gc
import socket
from collections.abc import Callable

from engine_driver import stepped_proxy, udp_listener_key
from udp_peers import flush_loopback, open_udp_peers

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.config import FlowLimits
from userspace_proxy.dataplane.datagram_memory import BATCH, DatagramMemory
from userspace_proxy.dataplane.datagram_reader import DatagramReader
from userspace_proxy.dataplane.engine import LISTENER_EVENTS
from userspace_proxy.dataplane.udp_addresses import address_layout
from userspace_proxy.dataplane.udp_flow import ANSWERS_PER_EVENT, UdpFlow

NO_FAMILY = b"\xff\xff"


def misdirect(flow: UdpFlow) -> None:
    """Have the answers of a flow go to an address of a family that does not exist."""
    flow.answer = NO_FAMILY + flow.answer[len(NO_FAMILY) :]


def test_answer_that_fails_for_an_unknown_reason_keeps_no_other_one_back() -> None:
    """It is reported as a bug and not counted; all flows go on, that which fills the batch with its answer too."""
    bugs: list[Exception] = []
    with stepped_proxy(report_bug=bugs.append) as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        clients = [peers.client(address) for _ in range(BATCH + 3)]
        for client in clients:
            client.send(b"ping")
        proxy.pass_on()
        misdirect(proxy.flows()[1])
        assert server.echo() == len(clients)
        proxy.pass_on()
        assert [client.take() for client in clients] == [[] if i == 1 else [b"ping"] for i in range(len(clients))]
        assert [bug.errno for bug in bugs if isinstance(bug, OSError)] == [errno.EAFNOSUPPORT]
        counters = proxy.flow_counters()
        assert counters.datagrams_to_client == len(clients) - 1
        assert counters.bytes_to_client == len(b"ping") * (len(clients) - 1)
        assert not counters.ended


def test_answer_that_fails_when_its_flow_has_ended_is_counted_as_dropped_only() -> None:
    """The flow gives way to another one while its answer waits to be sent."""
    with stepped_proxy(FlowLimits(max_flows=1)) as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        peers.client(address).send(b"first")
        proxy.pass_on()
        (flow,) = proxy.flows()
        flow.answer = flow.answer[:2] + bytes(2) + flow.answer[4:]  # to port 0
        assert server.echo() == 1
        peers.client(address).send(b"second")
        flush_loopback()
        proxy.engine.poll(0)
        counters = proxy.flow_counters()
        assert counters.ended == {FlowEnd.EVICTED: 1}
        assert counters.dropped[DropReason.UNREACHABLE] == 1
        assert counters.datagrams_to_client == 0
        assert counters.bytes_to_client == 0


class _Command:
    """A handler that does what it is told when its socket is readable, as the channel of a worker does."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do = do

    def on_event(self, mask: int) -> None:  # noqa: ARG002
        """Do it."""
        self._do()

    def on_bug(self) -> None:
        """Give up nothing."""


def test_answer_that_waits_when_its_listener_is_closed_is_delivered() -> None:
    """A worker is told to close a listener in the very batch of events in which an answer has come."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        client.send(b"ping")
        proxy.pass_on()
        assert server.echo() == 1
        near, far = socket.socketpair()
        with near, far:
            command = _Command(lambda: proxy.served.close(udp_listener_key()))
            proxy.engine.add(near.fileno(), command, LISTENER_EVENTS)
            far.send(b"x")
            flush_loopback()
            proxy.engine.poll(0)
            proxy.engine.remove(near.fileno())
        flush_loopback()
        assert client.take() == [b"ping"]
        assert proxy.flow_counters().datagrams_to_client == 1


def test_bug_with_one_datagram_keeps_no_other_one_back() -> None:
    """Those that were received together with it are passed on, in order."""
    bugs: list[Exception] = []
    with stepped_proxy(report_bug=bugs.append) as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        client, unlucky, *others = (peers.client(address) for _ in range(BATCH // 2))
        unlucky.send(b"ping")
        proxy.pass_on()
        assert server.take() == [b"ping"]
        proxy.flows()[0].send = _divide_by_zero
        expected = [b"%d" % i for i in range(len(others))]
        client.send(b"before")
        unlucky.send(b"lost")
        for other, datagram in zip(others, expected, strict=True):
            other.send(datagram)
        flush_loopback()
        proxy.engine.poll(0)
        assert server.take() == [b"before", *expected]
        assert [type(bug) for bug in bugs] == [ZeroDivisionError]


def _divide_by_zero(*_: object) -> int:
    return 1 // 0


def test_reader_keeps_the_memory_that_the_kernel_writes_to() -> None:
    """Whoever has made both may let go of the memory: it is not freed while there are pointers that lead there."""
    with open_udp_peers() as peers:
        server = peers.server()
        reader = DatagramReader(DatagramMemory(), address_layout(socket.AF_INET, is_wildcard=False))
        gc.collect()
        zeros = [bytes(bytearray(512)) for _ in range(500)]  # where freed memory was, these are now
        peers.client(server.sock.getsockname()).send(b"ping")
        assert [bytes(datagram) for _, datagram in reader.receive(server.sock.fileno())] == [b"ping"]
        assert not any(any(each) for each in zeros)


def test_what_is_left_of_the_addresses_of_another_layout_makes_no_other_origin() -> None:
    """The kernel does not write to the gaps between them, and they count when flows are told apart."""
    memory = DatagramMemory()
    reader = DatagramReader(memory, address_layout(socket.AF_INET6, is_wildcard=True))
    _, others = memory.describe(address_layout(socket.AF_INET, is_wildcard=True))
    with open_udp_peers() as peers:
        server = peers.server("::")
        server.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        client = peers.client(("::1", server.backend.port))
        origins = []
        for left in (b"\0", b"\xff"):
            for other in others:
                other[:] = left * len(other)
            client.send(b"ping")
            origins += [origin for origin, _ in reader.receive(server.sock.fileno())]
    assert len(origins) == 2
    assert origins[0] == origins[1]


def test_answers_that_come_in_a_row_are_taken_many_at_a_time_but_bounded() -> None:
    """A flow that is behind catches up, in order, and takes no more than its share of a batch of events."""
    answers = [b"%d" % number for number in range(5 * ANSWERS_PER_EVENT)]
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        client.send(b"ping")
        proxy.pass_on()
        server.take()
        server.answer(*answers)
        flush_loopback()
        taken = []
        for _ in range(8):
            proxy.engine.poll(0)
            flush_loopback()
            taken.append(client.take())
        assert [len(each) for each in taken] == [1, *[ANSWERS_PER_EVENT] * 4, ANSWERS_PER_EVENT - 1, 0, 0]
        assert [answer for each in taken for answer in each] == answers
        assert proxy.flow_counters().datagrams_to_client == len(answers)


def test_backend_that_dies_behind_its_answers_loses_none_of_them() -> None:
    """What it has sent is delivered; that it is gone is told after that."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend, peers.dead().backend))
        client.send(b"ping")
        proxy.pass_on()
        server.take()
        server.answer(b"1", b"2", b"3")
        server.die()
        client.send(b"ping")
        proxy.pass_on()
        assert client.take() == [b"1", b"2", b"3"]
        assert proxy.flow_counters().ended[FlowEnd.REFUSED] >= 1


def test_datagram_whose_answer_has_come_is_not_sent_again_when_its_backend_dies() -> None:
    """The refusal is of another datagram, though it is told first."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server, other = peers.server(), peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        client.send(b"1")
        proxy.pass_on()
        assert server.echo() == 1
        server.die()
        (flow,) = proxy.flows()
        flow.send(b"probe")
        flush_loopback()
        proxy.set_udp_pool(other.backend)
        proxy.pass_on()
        assert client.take() == [b"1"]
        assert other.take() == []

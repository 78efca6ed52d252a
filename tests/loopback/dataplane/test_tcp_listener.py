"""TcpListener: accepting in bounded turns, at the cap, without descriptors, and after errors of accept."""

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
import trio
from builders import listener_key, pool, route
from engine_driver import WEB, Proxy, VirtualClock, fill_epoll, open_proxy
from peers import End, Peer, descriptors_left, echo, open_peers

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.tcp_listener import ACCEPTS_PER_EVENT, PAUSE_S, TcpListener
from userspace_proxy.dataplane.tcp_relay import OPEN
from userspace_proxy.plan.state import ListenerKey, ListenerSpec

LISTENER_LOG = "userspace_proxy.dataplane.tcp_listener"
CONNECTION_LOG = "userspace_proxy.connections"


def ended_well(proxy: Proxy, count: int) -> Callable[[], bool]:
    """Return a condition: that many connections ended as they should, and none in another way."""
    return lambda: proxy.closed() == {CloseReason.NORMAL: count}


async def get_answer(proxy: Proxy, client: Peer) -> None:
    """Fail unless what the client sends comes back."""
    async with proxy.driving():
        await client.send(b"ping")
        client.fin()
        assert await client.receive_to_end() == (b"ping", End.FIN)


async def test_accept_without_descriptors_pauses_and_loses_no_client(caplog: pytest.LogCaptureFixture) -> None:
    """Clients queue in the kernel; one line is logged, pauses are counted, nothing spins; later all are served."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        clients = [peers.connect_nowait(address) for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()  # the Backend waits for a client and does not call accept
        with descriptors_left(0):
            await proxy.poll_until(lambda: proxy.engine.counters.accept_pauses)
            for _ in range(10):
                assert proxy.engine.poll(0) is False
            assert proxy.engine.counters.accept_pauses == {"EMFILE": 1}
            assert [record.name for record in caplog.records] == [LISTENER_LOG]
            assert caplog.records[0].levelno == logging.WARNING
            assert vars(caplog.records[0])["errno"] == "EMFILE"
            assert vars(caplog.records[0])["service"] == WEB
            assert proxy.engine.wait_s() == pytest.approx(PAUSE_S)
            proxy.advance(PAUSE_S)
            assert proxy.engine.counters.accept_pauses == {"EMFILE": 2}
        proxy.advance(PAUSE_S)
        for client in clients:
            await get_answer(proxy, client)
        assert proxy.closed() == {CloseReason.NORMAL: 3}
        proxy.assert_nothing_left()


async def test_dial_without_descriptors_is_made_later(caplog: pytest.LogCaptureFixture) -> None:
    """The last descriptor goes to the client; the Backend is dialled once there are more, within the budget."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        server = peers.listen()
        address = proxy.serve(server.backend)
        proxy.settle()
        proxy.settle()  # quiet before: so it accepts one client at its first event, and has not yet tried a second
        clients = [peers.connect_nowait(address) for _ in range(2)]
        with descriptors_left(1):
            await proxy.poll_until(lambda: proxy.served.open_relays)
            assert proxy.engine.counters.accept_pauses == {"EMFILE": 1}  # accepting more would only make it worse
            proxy.advance(1.0)
            assert proxy.counters().dials == {"no_descriptor": 5}
            assert proxy.counters().connections == 1
            assert proxy.engine.counters.accept_pauses["EMFILE"] > 5
            assert {record.name for record in caplog.records} == {LISTENER_LOG}
        proxy.advance(0.25)
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN, OPEN])
        for client in clients:
            client.close()
            (await server.accept()).close()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert proxy.closed() == {CloseReason.NORMAL: 2}


async def test_dial_without_descriptors_for_the_whole_budget_resets_the_client() -> None:
    """The client learns it after 2 s, and the reason says that it was this node's fault."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client = peers.connect_nowait(proxy.serve(peers.listen().backend))
        with descriptors_left(1):
            await proxy.poll_until(lambda: proxy.served.open_relays)
            proxy.advance(2.0)
        assert proxy.closed() == {CloseReason.RESOURCE: 1}
        assert await client.receive_to_end() == (b"", End.RST)
        proxy.advance(PAUSE_S)
        proxy.assert_nothing_left()


async def test_dial_that_is_refused_after_one_without_a_descriptor_is_the_backend_s_fault() -> None:
    """The reason is that of the last dial: by then this node was not short of anything."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client = peers.connect_nowait(proxy.serve(peers.refuse()))
        with descriptors_left(1):
            await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(0.25)
        assert proxy.counters().dials == {"no_descriptor": 1, "refused": 1}
        assert proxy.closed() == {CloseReason.BACKEND_DIALLING: 1}
        assert await client.receive_to_end() == (b"", End.RST)


async def test_accept_that_cannot_be_watched_resets_the_client_and_pauses() -> None:
    """No room in epoll is like no descriptor: no bug, no leak, and it goes on when there is room."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        client = await peers.connect(address)
        epoll = fill_epoll(proxy, room=0)
        await proxy.poll_until(lambda: proxy.engine.counters.accept_pauses)
        assert await client.receive_to_end() == (b"", End.RST)
        assert proxy.engine.counters.accept_pauses == {"ENOSPC": 1}
        assert proxy.closed() == {CloseReason.RESOURCE: 1}
        for _ in range(3):
            proxy.advance(PAUSE_S)  # there is no room for the listener either
            assert not proxy.engine.handlers
        epoll.room = 100
        proxy.advance(PAUSE_S)
        await get_answer(proxy, await peers.connect(address))
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        proxy.assert_nothing_left()


async def test_listener_that_cannot_be_watched_fails_alone_and_opens_once_there_is_room() -> None:
    """No room in epoll for a listener is a failure like a port in use: told, no socket left, tried again."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        epoll = fill_epoll(proxy, room=0)
        spec = ListenerSpec(listener_key(WEB), IPv4Address("127.0.0.1"), 0)
        proxy.listeners.apply_pool(pool(str(peers.listen(echo).backend)))
        proxy.listeners.apply_listener(spec, route())
        outcomes = proxy.listeners.open_missing(retry=False)
        assert list(outcomes) == [spec.key]
        assert "fs.epoll.max_user_watches" in str(outcomes[spec.key])
        assert proxy.listeners.open_listeners == 0
        epoll.room = 100
        assert proxy.listeners.open_missing(retry=True) == {spec.key: None}
        assert proxy.listeners.open_listeners == 1


async def test_dial_that_cannot_be_watched_goes_on_or_resets_the_client() -> None:
    """A dial without room in epoll has failed for want of it, and is dropped."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client = await peers.connect(proxy.serve(peers.listen(echo).backend))
        fill_epoll(proxy, room=1)
        await proxy.poll_until(lambda: proxy.counters().closed)
        assert await client.receive_to_end() == (b"", End.RST)
        assert proxy.counters().dials == {"no_descriptor": 1}
        assert proxy.closed() == {CloseReason.RESOURCE: 1}
        proxy.assert_nothing_left()


async def test_accept_at_the_cap_waits_for_a_connection_to_end() -> None:
    """No more than the cap are open; the others queue, and each end lets one in."""
    limits = RelayLimits(max_connections=2)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        clients = [await peers.connect(address) for _ in range(5)]
        await proxy.poll_until(lambda: proxy.counters().dials.get("connected") == 2)
        for number, client in enumerate(clients):
            proxy.settle()
            assert proxy.served.open_relays == min(2, 5 - number)
            await client.send(b"ping")
            client.fin()
            await proxy.poll_until(ended_well(proxy, number + 1))
            assert await client.receive_to_end() == (b"ping", End.FIN)
        assert proxy.counters().connections == 5
        proxy.assert_nothing_left()


async def test_accept_at_the_cap_and_without_descriptors_resumes_when_both_are_over() -> None:
    """A pause that ends at the cap starts nothing, and an end of a connection in a pause starts nothing."""
    limits = RelayLimits(max_connections=1)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        clients = [await peers.connect(address) for _ in range(3)]
        await proxy.poll_until(lambda: proxy.counters().dials.get("connected") == 1)
        proxy.settle()  # looks for the second one, and is full
        listener = proxy.tcp_listener()
        listener.pause(errno.EMFILE)
        proxy.advance(PAUSE_S)
        assert proxy.counters().connections == 1
        listener.pause(errno.EMFILE)
        await get_answer(proxy, clients[0])
        proxy.settle()
        assert proxy.counters().connections == 1
        proxy.advance(PAUSE_S)
        assert proxy.counters().connections == 2
        for client in clients[1:]:
            await client.send(b"ping")
            client.fin()
        await proxy.poll_until(lambda: proxy.closed() == {CloseReason.NORMAL: 3})
        proxy.assert_nothing_left()


async def test_accept_in_one_turn_is_bounded() -> None:
    """A crowd at the door is let in over several turns, ever more at a time, so that open connections get theirs."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        for _ in range(200):
            await peers.connect(address)
        accepted = [0]
        while accepted[-1] < 200:
            proxy.engine.poll(0)
            accepted.append(proxy.counters().connections)
        turns = [after - before for before, after in pairwise(accepted)]
        assert max(turns) <= ACCEPTS_PER_EVENT
        assert len(turns) <= 5 + 200 / ACCEPTS_PER_EVENT + 1


class FailingSocket(socket.socket):
    """A listening socket whose accept first fails in given ways."""

    def fail_with(self, *numbers: int) -> None:
        """Have the next calls fail."""
        self.numbers = list(numbers)

    def _accept(self) -> tuple[int, object]:
        if self.numbers:
            number = self.numbers.pop(0)
            raise OSError(number, os.strerror(number))
        return super()._accept()  # type: ignore[misc,no-any-return]


def fail_if_called(key: ListenerKey) -> None:
    """Be told that somebody has had a listener stop."""
    raise AssertionError(key)


@contextmanager
def failing_listener(proxy: Proxy, *numbers: int) -> Iterator[TcpListener]:
    """Yield a listener whose accept fails with these errnos before it works."""
    sock = FailingSocket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.fail_with(*numbers)
    listener = TcpListener(
        engine=proxy.engine,
        spec=ListenerSpec(listener_key(), IPv4Address("127.0.0.1"), 0),
        pools=proxy.served.live_pools,
        route=route(),
        limits=RelayLimits(),
        counters=proxy.counters(),
        relays=proxy.served._relays,
        on_stopped=fail_if_called,
    )
    with sock:
        listener.open(sock, is_shared=False)
        yield listener
        listener.stop()


async def test_accept_that_loses_one_client_takes_the_next() -> None:
    """A client that is gone, or that a firewall rule refuses, is no reason to stop (accept(2))."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        with failing_listener(proxy, errno.ECONNABORTED, errno.EPERM, errno.EHOSTUNREACH) as listener:
            assert listener.sock is not None
            client = await peers.connect(listener.sock.getsockname())
            await proxy.poll_until(lambda: proxy.counters().connections)
            proxy.settle()
            assert await client.receive_to_end() == (b"", End.RST)
            assert proxy.closed() == {CloseReason.NO_BACKEND: 1}
            assert not proxy.engine.counters.accept_pauses


async def test_accept_that_fails_in_an_unknown_way_is_a_bug_that_does_not_spin() -> None:
    """It is reported once, the listener rests, and then goes on."""
    bugs: list[Exception] = []
    async with (
        open_proxy(clock=VirtualClock(), driven=False, report_bug=bugs.append) as proxy,
        open_peers() as peers,
    ):
        with failing_listener(proxy, errno.EBADF) as listener:
            assert listener.sock is not None
            await peers.connect(listener.sock.getsockname())
            await proxy.poll_until(lambda: bugs)
            for _ in range(10):
                assert proxy.engine.poll(0) is False
            assert len(bugs) == proxy.engine.counters.unexpected_errors == 1
            proxy.advance(PAUSE_S)
            assert proxy.closed() == {CloseReason.NO_BACKEND: 1}


async def test_listener_closed_in_a_pause_stays_closed() -> None:
    """The end of a pause does not open what was closed meanwhile, nor does the end of a connection."""
    limits = RelayLimits(max_connections=1)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        client = await peers.connect(address)
        await peers.connect(address)
        await proxy.poll_until(lambda: proxy.counters().dials.get("connected") == 1)
        proxy.settle()
        listener = proxy.tcp_listener()
        listener.pause(errno.EMFILE)
        proxy.set_pool()
        proxy.advance(PAUSE_S)
        await get_answer(proxy, client)
        proxy.assert_nothing_left()
        listener.stop()
        listener.pause(errno.EMFILE)


async def test_bug_in_a_relay_ends_that_relay_alone() -> None:
    """It is counted and reported, both its sides are reset, and its neighbour goes on."""
    bugs: list[Exception] = []
    async with open_proxy(driven=False, report_bug=bugs.append) as proxy, open_peers() as peers:
        server = peers.listen()
        address = proxy.serve(server.backend)
        client, neighbour = [await peers.connect(address) for _ in range(2)]
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN, OPEN])
        backend, other_backend = [await server.accept() for _ in range(2)]
        (relay,) = (one for one in proxy.served.relays() if one.client_address[1] == client.sock.getsockname()[1])
        relay.client.peer = None  # type: ignore[assignment]
        await client.send(b"boom")
        await proxy.poll_until(lambda: bugs)
        assert isinstance(bugs[0], AttributeError)
        assert len(bugs) == proxy.engine.counters.unexpected_errors == 1
        assert (await client.receive_to_end())[1] is End.RST
        assert (await backend.receive_to_end())[1] is End.RST
        assert proxy.closed() == {CloseReason.BUG: 1}
        await neighbour.send(b"alive")
        await proxy.poll_until(lambda: sum(one.client.byte_count for one in proxy.served.relays()))
        assert await other_backend.receive(5) == b"alive"


async def test_bug_at_the_end_of_a_relay_is_reported_once() -> None:
    """When the account of a connection fails, its sockets are closed all the same, and it is not closed twice."""
    bugs: list[Exception] = []
    async with open_proxy(driven=False, report_bug=bugs.append) as proxy, open_peers() as peers:
        server = peers.listen()
        client = await peers.connect(proxy.serve(server.backend))
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
        listener = proxy.tcp_listener()
        listener.counters = None  # type: ignore[assignment]
        client.rst()
        await proxy.poll_until(lambda: bugs)
        assert (await (await server.accept()).receive_to_end())[1] is End.RST
        proxy.settle()
        assert len(bugs) == 1
        assert proxy.served.open_relays == 0


async def test_bug_while_dialling_ends_that_connection_alone() -> None:
    """An exception right after accept leaves no client hanging for ever, and no counter wrong."""
    bugs: list[Exception] = []
    async with (
        open_proxy(clock=VirtualClock(), driven=False, report_bug=bugs.append) as proxy,
        open_peers() as peers,
    ):
        address = proxy.serve(peers.listen(echo).backend)
        ((_, live),) = proxy.served.pools()
        pick = live.pick
        live.pick = None  # type: ignore[assignment]
        client = await peers.connect(address)
        await proxy.poll_until(lambda: bugs)
        proxy.advance(2.0)
        assert (await client.receive_to_end())[1] is End.RST
        assert proxy.closed() == {CloseReason.BUG: 1}
        proxy.assert_nothing_left()
        live.pick = pick
        await get_answer(proxy, await peers.connect(address))


async def test_connection_log_has_one_record_per_connection(caplog: pytest.LogCaptureFixture) -> None:
    """When turned on, it says who talked to whom, for how long, how much, and why it ended."""
    caplog.set_level(logging.INFO, CONNECTION_LOG)
    clock = VirtualClock()
    async with open_proxy(clock=clock, driven=False) as proxy, open_peers() as peers:
        hole, server = await peers.black_hole("127.0.0.1"), peers.listen(host="127.0.0.2")
        client = await peers.connect(proxy.serve(hole.backend, server.backend))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(0.25)
        assert [relay.state for relay in proxy.served.relays()] == [OPEN]
        backend = await server.accept()
        proxy.advance(8.0)
        await client.send(b"12345")
        client.fin()
        async with proxy.driving():
            assert await backend.receive_to_end() == (b"12345", End.FIN)
        await backend.send(b"123")
        port = client.sock.getsockname()[1]
        backend.close()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        (record,) = caplog.records
        assert record.getMessage() == "connection ended"
        expected = {
            "service": WEB,
            "client": f"127.0.0.1 port {port}",
            "backend": str(server.backend),
            "reason": "--",
            "dial_duration_s": 0.25,
            "duration_s": 8.25,
            "bytes_to_backend": 5,
            "bytes_to_client": 3,
        }
        assert {key: vars(record)[key] for key in expected} == expected


async def test_connection_log_of_a_connection_without_a_backend(caplog: pytest.LogCaptureFixture) -> None:
    """It has no Backend and no bytes, and the time that was spent on dialling."""
    caplog.set_level(logging.INFO, CONNECTION_LOG)
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        await peers.connect(proxy.serve(hole.backend))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(2.0)
        (record,) = caplog.records
        expected = {
            "backend": None,
            "reason": "BD",
            "dial_duration_s": 2.0,
            "duration_s": 2.0,
            "bytes_to_backend": 0,
            "bytes_to_client": 0,
        }
        assert {key: vars(record)[key] for key in expected} == expected


async def test_connection_log_is_off_by_default(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that ends as it should leaves no record."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        await get_answer(proxy, await peers.connect(proxy.serve(peers.listen(echo).backend)))
        assert not caplog.records

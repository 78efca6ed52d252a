"""One direction of a relay: bulk through pipes or copied, slow readers, urgent data, a fair share of the engine."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
import trio
from engine_driver import Proxy, VirtualClock, open_proxy, raise_bug
from peers import End, Peer, connect_through, echo, open_peers

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.dataplane.engine import BUFFER_BYTES, Engine
from userspace_proxy.dataplane.pipe_pool import PIPE_BYTES
from userspace_proxy.dataplane.relay_side import BLOCKED, BULK, MOVES_PER_TURN, Side
from userspace_proxy.dataplane.tcp_relay import OPEN

MUCH = bytes(range(251)) * 16_000
"""4 MB in which no buffer's worth is like the next one: 251 does not divide its size."""


async def send_and_end(peer: Peer, data: bytes) -> None:
    """Send everything, then FIN."""
    await peer.send(data)
    peer.fin()


async def exchange(proxy: Proxy, client: Peer, backend: Peer) -> None:
    """Fail unless bulk arrives whole in both directions at the same time, with nothing left behind."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, client, MUCH)
        nursery.start_soon(send_and_end, backend, MUCH[::-1])
        nursery.start_soon(expect, backend, MUCH)
        nursery.start_soon(expect, client, MUCH[::-1])
    await proxy.until_idle()
    assert proxy.closed() == {CloseReason.NORMAL: 1}
    assert proxy.counters().bytes_to_backend == proxy.counters().bytes_to_client == len(MUCH)
    proxy.assert_nothing_left()


async def expect(peer: Peer, data: bytes) -> None:
    """Fail unless exactly this comes, and then FIN."""
    assert await peer.receive_to_end() == (data, End.FIN)


async def test_bulk_goes_through_pipes_that_come_back() -> None:
    """A direction that fills the buffer is promoted to a pipe, which is free again when it ends."""
    async with open_proxy() as proxy, open_peers() as peers:
        server = peers.listen()
        client, backend = await connect_through(peers, proxy.serve(server.backend), server)
        await exchange(proxy, client, backend)
        assert proxy.engine.pipes._open >= 1


async def test_small_traffic_takes_no_pipe() -> None:
    """Requests and answers below the size of the buffer never open one."""
    async with open_proxy() as proxy, open_peers() as peers:
        client = await peers.connect(proxy.serve(peers.listen(echo).backend))
        for _ in range(20):
            await client.send(b"x" * 1000)
            assert await client.receive(1000) == b"x" * 1000
        assert proxy.engine.pipes._open == 0


async def test_bulk_without_a_pipe_to_be_had_is_copied() -> None:
    """When all pipes are in use, the stream is the same."""
    async with open_proxy() as proxy, open_peers() as peers:
        taken = []
        while (pipe := proxy.engine.pipes.take()) is not None:
            taken.append(pipe)
        server = peers.listen()
        client, backend = await connect_through(peers, proxy.serve(server.backend), server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_end, client, MUCH)
            nursery.start_soon(expect, backend, MUCH)
        backend.close()
        await proxy.until_idle()
        for pipe in taken:
            proxy.engine.pipes.give_back(pipe)
        proxy.assert_nothing_left()


def refuse_splice(monkeypatch: pytest.MonkeyPatch, end: str, number: int) -> None:
    """Have splice(2) into pipes ("fill") or out of them ("drain") fail.

    No socket at hand refuses it as old kernels and sandboxes do, so the system call itself is replaced.
    """
    splice = os.splice

    def refusing_splice(source: int, target: int, count: int) -> int:
        fills = stat.S_ISFIFO(os.fstat(target).st_mode)
        if fills == (end == "fill"):
            raise OSError(number, os.strerror(number))
        return splice(source, target, count)

    monkeypatch.setattr(os, "splice", refusing_splice)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("end", ["fill", "drain"])
async def test_splice_that_does_not_work_here_falls_back_to_copying(
    end: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a byte is lost or moved, also of those that stand in a pipe already, and no pipe is taken again."""
    refuse_splice(monkeypatch, end, number)
    async with open_proxy() as proxy, open_peers() as peers:
        server = peers.listen()
        client, backend = await connect_through(peers, proxy.serve(server.backend), server)
        await exchange(proxy, client, backend)
        assert proxy.engine.pipes._open == 0
        assert proxy.engine.pipes.take() is None


@pytest.mark.parametrize("takes_some", [True, False])
async def test_splice_that_does_not_drain_here_leaves_a_slow_reader_its_bytes(
    *, takes_some: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in the pipe by then, and is not taken at once, follows when the reader goes on."""
    refuse_splice(monkeypatch, "drain", errno.EINVAL)
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen(buffer_bytes=1)  # means: as few as the kernel allows
        client = await peers.connect(proxy.serve(server.backend))
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
        (relay,) = proxy.served.relays()
        assert relay.backend is not None
        relay.backend.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        backend = await server.accept()
        filled = 0 if takes_some else await fill_up(proxy, relay.backend.sock)
        relay.client.flags |= BULK
        await client.send(MUCH[: 2 * BUFFER_BYTES])
        await proxy.poll_until(lambda: relay.client.flags & BLOCKED)
        async with proxy.driving():
            await backend.receive(filled)
            assert await backend.receive(2 * BUFFER_BYTES) == MUCH[: 2 * BUFFER_BYTES]


async def test_splice_that_fails_for_good_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the socket is not taken for splice being unsupported."""

    def failing_splice(source: int, target: int, count: int) -> int:
        raise OSError(errno.ETIMEDOUT, "as keepalive has it")

    monkeypatch.setattr(os, "splice", failing_splice)
    async with open_proxy() as proxy, open_peers() as peers:
        server = peers.listen()
        client, backend = await connect_through(peers, proxy.serve(server.backend), server)
        with pytest.raises(ConnectionError):
            await client.send(MUCH * 4)
        await proxy.until_idle()
        data, end = await backend.receive_to_end()
        assert end is End.RST
        assert MUCH.startswith(data)
        assert proxy.closed() == {CloseReason.CLIENT_OPEN: 1}
        proxy.assert_nothing_left()


async def fill_up(proxy: Proxy, sender: socket.SocketType) -> int:
    """Send until nothing more fits in between; return how much that was."""
    sent = idle = 0
    while idle < 3:
        try:
            count = sender.send(MUCH[sent % len(MUCH) :])
        except BlockingIOError:
            count = 0
        sent += count
        idle = 0 if count or proxy.engine.poll(0) else idle + 1
        await trio.lowlevel.checkpoint()
    return sent


@pytest.mark.parametrize("splices", [True, False], ids=["splice", "copy"])
async def test_slow_reader_holds_one_buffer_and_stops_the_sender(splices: bool) -> None:  # noqa: FBT001
    """What one side does not take stays with the other, but for one buffer or pipe; nobody else notices."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        if not splices:
            proxy.engine.pipes.disable()
        server = peers.listen()
        client = await peers.connect(proxy.serve(server.backend))
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
        (relay,) = proxy.served.relays()
        backend = await server.accept()
        sent = await fill_up(proxy, client.sock)
        side = relay.client
        side.flush()  # changes nothing before the reader has made room
        assert side.flags & BLOCKED
        assert (side.pending is None) == splices
        assert (len(side.pending) if side.pending is not None else 0) <= BUFFER_BYTES
        assert proxy.engine.pipes._open == splices
        assert (side.pipe.level if side.pipe is not None else 0) <= PIPE_BYTES

        other = await peers.connect(proxy.serve(peers.listen(echo).backend, name="shop/other:http"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proxy.poll_until, lambda: relay.state != OPEN)
            await other.send(b"not affected" * 5000)
            assert await other.receive(60_000) == b"not affected" * 5000
            assert side.flags & BLOCKED
            client.fin()
            assert await backend.receive(sent) == (MUCH * 8)[:sent]


async def test_copy_to_a_peer_that_takes_nothing_at_all_keeps_everything() -> None:
    """Bytes that were read when the other side was full already wait whole."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen()
        client = await peers.connect(proxy.serve(server.backend))
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
        (relay,) = proxy.served.relays()
        assert relay.backend is not None
        backend = await server.accept()
        filled = await fill_up(proxy, relay.backend.sock)
        await client.send(b"all of this")
        await proxy.poll_until(lambda: relay.client.flags & BLOCKED)
        assert relay.client.byte_count == 0
        async with proxy.driving():
            await backend.receive(filled)
            assert await backend.receive(11) == b"all of this"


@pytest.mark.parametrize("ends", [True, False], ids=["with FIN", "without"])
async def test_slow_reader_gets_one_buffer_in_many_parts(ends: bool) -> None:  # noqa: FBT001
    """What did not fit at once follows bit by bit, and the FIN that came with it after the last byte."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen(buffer_bytes=1)  # means: as few as the kernel allows
        server.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        client = await peers.connect(proxy.serve(server.backend))
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
        (relay,) = proxy.served.relays()
        assert relay.backend is not None
        relay.backend.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        backend = await server.accept()
        await client.send(MUCH[:20_000])
        if ends:
            client.fin()
        await proxy.poll_until(lambda: relay.client.flags & BLOCKED)
        async with proxy.driving():
            assert await backend.receive(20_000) == MUCH[:20_000]
            if ends:
                assert await backend.receive_to_end() == (b"", End.FIN)
            await backend.send(b"thanks")
            assert await client.receive(6) == b"thanks"


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((10, 10), id="in small traffic"),
        pytest.param((0, 0), id="alone"),
        pytest.param((300_000, 10), id="behind bulk"),
        pytest.param((300_000, 300_000), id="within bulk"),
        pytest.param((60_000, 300_000), id="before bulk"),
    ],
)
@pytest.mark.parametrize("splices", [True, False], ids=["splice", "copy"])
async def test_urgent_data_does_not_stall_the_stream(sizes: tuple[int, int], splices: bool) -> None:  # noqa: FBT001
    """An urgent byte becomes part of the stream at its place (or is dropped), and all around it arrives."""
    before, after = (MUCH[:size] for size in sizes)
    async with open_proxy() as proxy, open_peers() as peers:
        if not splices:
            proxy.engine.pipes.disable()
        server = peers.listen()
        client, backend = await connect_through(peers, proxy.serve(server.backend), server)

        async def talk() -> None:
            await client.send(before)
            client.send_urgent(b"!")
            await client.send(after)
            client.fin()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            data, end = await backend.receive_to_end()
        assert end is End.FIN
        assert data in (before + b"!" + after, before + after)
        backend.close()
        await proxy.until_idle()
        assert proxy.closed() == {CloseReason.NORMAL: 1}
        proxy.assert_nothing_left()


async def test_urgent_data_that_waits_is_kept_at_its_place() -> None:
    """An urgent byte that is there when the engine looks is passed on like any other."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen()
        client = await peers.connect(proxy.serve(server.backend))
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
        proxy.settle()
        await client.send(b"a")
        client.send_urgent(b"!")
        await client.send(b"b")
        await client.wait_sent()
        client.fin()
        backend = await server.accept()
        async with proxy.driving():
            assert await backend.receive_to_end() == (b"a!b", End.FIN)


async def test_urgent_data_that_comes_with_the_client_is_kept_at_its_place() -> None:
    """An urgent byte that is there when the client is accepted is passed on like any other."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen()
        client = await peers.connect(proxy.serve(server.backend))
        client.send_urgent(b"!")
        await client.send(b"b")
        await client.wait_sent()
        client.fin()
        async with proxy.driving():
            backend = await server.accept()
            assert await backend.receive_to_end() == (b"!b", End.FIN)


async def test_urgent_data_behind_a_full_pipe_does_not_stall_the_stream() -> None:
    """An urgent mark that has arrived by the time a pipe is emptied is passed without another event."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen()
        client = await peers.connect(proxy.serve(server.backend))
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
        (relay,) = proxy.served.relays()
        assert relay.backend is not None
        filled = await fill_up(proxy, relay.backend.sock)
        relay.client.flags |= BULK
        await client.send(b"in the pipe, ")
        await proxy.poll_until(lambda: relay.client.flags & BLOCKED)
        assert relay.client.pipe is not None
        client.send_urgent(b"!")
        await client.send(b"the rest")
        await client.wait_sent()
        proxy.settle()
        assert relay.client.flags & BLOCKED
        backend = await server.accept()
        async with proxy.driving():
            await backend.receive(filled)
            assert await backend.receive(22) == b"in the pipe, !the rest"


class Endless:
    """What a Side needs of a socket, on a device that never runs dry (or full)."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "r+b", buffering=0)  # noqa: PTH123, SIM115

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._file.fileno()

    def gettimeout(self) -> float:
        """Return that this never blocks."""
        return 0.0

    def close(self) -> None:
        """Close the device."""
        self._file.close()


class StubRelay:
    """A relay that is open and nothing else."""

    active_s = 0.0

    def on_unconnected_event(self, side: Side, mask: int) -> None:
        """Fail: it is connected."""
        pytest.fail(f"event {mask} of unconnected {side}")

    def on_end(self, side: Side) -> None:
        """Fail: it has no end."""
        pytest.fail(f"end of {side}")

    def on_failure(self, side: Side, error: OSError) -> None:
        """Fail: nothing can go wrong."""
        pytest.fail(f"{error} of {side}")

    def on_bug(self) -> None:
        """Fail: nothing can go wrong."""
        pytest.fail("bug")


@contextmanager
def endless_side(engine: Engine) -> Iterator[Side]:
    """Yield a Side in bulk with no end of bytes to move."""
    zero, null = Endless("/dev/zero"), Endless("/dev/null")
    side, peer = (Side(StubRelay(), engine, cast("socket.SocketType", one)) for one in (zero, null))
    side.connect(peer)
    side.flags |= BULK
    try:
        yield side
    finally:
        for one in (side, peer):
            one.release()


def test_side_with_endless_bulk_moves_a_bounded_amount_in_a_turn() -> None:
    """One busy direction gets a megabyte or so, then it is the turn of all others before it goes on."""
    engine = Engine(VirtualClock(), raise_bug)
    try:
        with endless_side(engine) as one, endless_side(engine) as other:
            for side in (one, one, other):  # two events for the first: still one turn more
                side.pump()
            turn = MOVES_PER_TURN * PIPE_BYTES
            assert (one.byte_count, other.byte_count) == (2 * turn, turn)
            for turns in range(2, 5):
                assert engine.wait_s() == 0
                assert engine.poll(0)
                assert (one.byte_count, other.byte_count) == ((turns + 1) * turn, turns * turn)
    finally:
        engine.close()

"""RST at every stage, from either side: the other side is reset too, what came before it is kept, it is counted."""

import os
import struct
from collections.abc import Callable

import pytest
import trio
from engine_driver import Proxy, open_proxy
from peers import End, Peer, Peers, Server, open_peers

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.dataplane.relay_side import BLOCKED, BULK
from userspace_proxy.dataplane.tcp_relay import BACKEND_ENDED, CLIENT_ENDED, DIALLING, OPEN

DATA = bytes(range(256)) * 200


def state_is(proxy: Proxy, *states: int) -> Callable[[], bool]:
    """Return a condition: there is one relay, in one of these states."""
    return lambda: [relay.state in states for relay in proxy.served.relays()] == [True]


async def connect_and_open(proxy: Proxy, peers: Peers, server: Server) -> tuple[Peer, Peer]:
    """Return client and Backend of a relay that is open, driving the engine no further than that."""
    client = await peers.connect(proxy.serve(server.backend))
    await proxy.poll_until(state_is(proxy, OPEN))
    return client, await server.accept()


async def clog(proxy: Proxy, sender: Peer) -> int:
    """Send until no more fits in between, with nobody reading at the other side; return how much was sent."""
    (relay,) = proxy.served.relays()
    assert relay.backend is not None
    sent = 0
    while True:
        count = sender.send_nowait(pattern(sent, 65536))
        sent += count
        busy = proxy.engine.poll(0)
        if not count and not busy and (relay.client.flags | relay.backend.flags) & BLOCKED:
            return sent
        await trio.lowlevel.checkpoint()


def pattern(start: int, count: int) -> bytes:
    """Return a part of a stream that never repeats itself soon."""
    first = start // 4
    words = struct.pack(f">{count // 4 + 2}I", *range(first, first + count // 4 + 2))
    return words[start % 4 : start % 4 + count]


@pytest.mark.parametrize("who", ["client", "backend"])
async def test_reset_of_an_open_idle_connection_resets_the_other_side(who: str) -> None:
    """A reset is passed on as a reset, not as the end of a stream."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        client, backend = await connect_and_open(proxy, peers, peers.listen())
        bad, good = (client, backend) if who == "client" else (backend, client)
        bad.rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert await good.receive_to_end() == (b"", End.RST)
        reason = CloseReason.CLIENT_OPEN if who == "client" else CloseReason.BACKEND_OPEN
        assert proxy.closed() == {reason: 1}
        proxy.assert_nothing_left()


@pytest.mark.parametrize("ended", [False, True], ids=["", "FIN before RST"])
@pytest.mark.parametrize("who", ["client", "backend"])
async def test_reset_behind_data_in_one_batch_comes_after_the_data(who: str, ended: bool) -> None:  # noqa: FBT001
    """What was received before the RST is delivered, then comes the RST; a FIN between both does not hide it."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        client, backend = await connect_and_open(proxy, peers, peers.listen())
        bad, good = (client, backend) if who == "client" else (backend, client)
        await bad.send(DATA)
        await bad.wait_sent()
        if ended:
            bad.fin()
        bad.rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert await good.receive_to_end() == (DATA, End.RST)
        reason = CloseReason.CLIENT_OPEN if who == "client" else CloseReason.BACKEND_OPEN
        assert proxy.closed() == {reason: 1}
        proxy.assert_nothing_left()


@pytest.mark.parametrize("splices", [True, False], ids=["splice", "copy"])
@pytest.mark.parametrize("ended", [False, True], ids=["", "FIN before RST"])
@pytest.mark.parametrize("who", ["client", "backend"])
async def test_reset_in_mid_bulk_reaches_a_side_that_reads_nothing(who: str, ended: bool, splices: bool) -> None:  # noqa: FBT001
    """A reset does not wait behind bytes that the other side does not take; what it has received is a prefix."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        if not splices:
            proxy.engine.pipes.disable()
        client, backend = await connect_and_open(proxy, peers, peers.listen())
        bad, good = (client, backend) if who == "client" else (backend, client)
        sent = await clog(proxy, bad)
        if ended:
            bad.fin()
        bad.rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        await good.wait_reset()
        data, _ = await good.receive_to_end()
        assert data == pattern(0, len(data))
        assert 0 < len(data) < sent
        reason = CloseReason.CLIENT_OPEN if who == "client" else CloseReason.BACKEND_OPEN
        assert proxy.closed() == {reason: 1}
        proxy.assert_nothing_left()


@pytest.mark.parametrize("splices", [True, False], ids=["splice", "copy"])
@pytest.mark.parametrize("who", ["client", "backend"])
async def test_reset_by_the_side_that_reads_nothing_in_mid_bulk_reaches_the_sender(who: str, splices: bool) -> None:  # noqa: FBT001
    """Whoever is blocked in sending learns that nobody will take it any more."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        if not splices:
            proxy.engine.pipes.disable()
        client, backend = await connect_and_open(proxy, peers, peers.listen())
        bad, good = (client, backend) if who == "client" else (backend, client)
        await clog(proxy, good)
        bad.rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert await good.receive_to_end() == (b"", End.RST)
        reason = CloseReason.CLIENT_OPEN if who == "client" else CloseReason.BACKEND_OPEN
        assert proxy.closed() == {reason: 1}
        proxy.assert_nothing_left()


@pytest.mark.parametrize(
    ("first", "who", "reason"),
    [
        pytest.param("client", "client", CloseReason.CLIENT_HALF_CLOSED, id="client ends and resets"),
        pytest.param("client", "backend", CloseReason.BACKEND_HALF_CLOSED, id="client ends, Backend resets"),
        pytest.param("backend", "backend", CloseReason.BACKEND_HALF_CLOSED, id="Backend ends and resets"),
        pytest.param("backend", "client", CloseReason.CLIENT_HALF_CLOSED, id="Backend ends, client resets"),
    ],
)
async def test_reset_of_a_half_closed_connection_resets_the_other_side(
    first: str, who: str, reason: CloseReason
) -> None:
    """Whichever side has ended its direction, and whichever is reset then, the other one is told."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        client, backend = await connect_and_open(proxy, peers, peers.listen())
        sides = {"client": client, "backend": backend}
        sides[first].fin()
        await proxy.poll_until(state_is(proxy, CLIENT_ENDED, BACKEND_ENDED))
        sides.pop(who).rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        (good,) = sides.values()
        await good.wait_reset()
        assert proxy.closed() == {reason: 1}
        proxy.assert_nothing_left()


async def test_reset_by_the_client_while_dialling_ends_the_dial() -> None:
    """A client that is gone is not dialled for any longer."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        client = await peers.connect(proxy.serve(hole.backend))
        await proxy.poll_until(state_is(proxy, DIALLING))
        client.rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert proxy.closed() == {CloseReason.CLIENT_DIALLING: 1}
        proxy.assert_nothing_left()


async def test_reset_by_a_backend_before_it_counts_as_connected_is_a_failed_dial() -> None:
    """A Backend that accepts and resets in one go has taken nothing of the client yet: the next one is dialled."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        bad, good = await peers.black_hole("127.0.0.1"), peers.listen(host="127.0.0.2")
        client = await peers.connect(proxy.serve(bad.backend, good.backend))
        await client.send(b"hello")
        await proxy.poll_until(state_is(proxy, DIALLING))
        await bad.accept()
        (await bad.accept()).rst()
        await proxy.poll_until(lambda: proxy.counters().dials == {"reset": 1, "connected": 1})
        proxy.settle()
        assert await (await good.accept()).receive(5) == b"hello"


@pytest.mark.parametrize("who", ["client", "backend"])
async def test_reset_that_comes_with_the_end_of_the_other_side_is_a_reset(who: str) -> None:
    """A FIN that can be passed on to nobody any more ends nothing well; what the reset side had said is delivered."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        client, backend = await connect_and_open(proxy, peers, peers.listen())
        proxy.settle()
        bad, good = (client, backend) if who == "client" else (backend, client)
        good.fin()
        await bad.send(b"farewell")
        await bad.wait_sent()
        bad.rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert await good.receive_to_end() == (b"farewell", End.RST)
        reason = CloseReason.CLIENT_OPEN if who == "client" else CloseReason.BACKEND_OPEN
        assert proxy.closed() == {reason: 1}
        proxy.assert_nothing_left()


async def test_reset_of_both_sides_in_one_batch_is_one_end() -> None:
    """Two failures of one connection in one batch of events are counted once."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        client, backend = await connect_and_open(proxy, peers, peers.listen())
        client.rst()
        backend.rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert sum(proxy.closed().values()) == 1
        proxy.assert_nothing_left()


@pytest.mark.parametrize("place", ["pipe", "buffer"])
async def test_reset_never_lets_late_bytes_overtake_those_that_wait(place: str) -> None:
    """What a reset side sent last is dropped rather than delivered in place of what its peer has not taken yet."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        client, backend = await connect_and_open(proxy, peers, peers.listen())
        proxy.settle()
        (relay,) = proxy.served.relays()
        # As after a turn that ended with a partial write: the next turn would go on with what waits.
        if place == "pipe":
            relay.client.pipe = pipe = proxy.engine.pipes.take()
            assert pipe is not None
            pipe.level = os.write(pipe.write_fd, b"first, ")
            relay.client.flags |= BULK
        else:
            relay.client.pending = memoryview(b"first, ")
            relay.client.flags |= BLOCKED
        await backend.send(b"makes the Backend's event the first one")
        await client.send(b"second")
        await client.wait_sent()
        client.rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        data, end = await backend.receive_to_end()
        assert end is End.RST
        assert b"first, second".startswith(data)
        proxy.assert_nothing_left()


async def test_reset_of_the_proxy_s_own_is_seen_as_that_on_both_sides() -> None:
    """Connections that the proxy ends because it stops are reset, whatever they were doing, and counted so."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        server = peers.listen()
        address = proxy.serve(server.backend)
        dialling = await peers.connect(proxy.serve(hole.backend, name="shop/hole:http"))
        first, second, third = [await peers.connect(address) for _ in range(3)]
        backends: list[Peer] = []
        while len(backends) < 3:
            proxy.settle()
            backend = server.accept_nowait()
            backends += [backend] if backend else []
            await trio.lowlevel.checkpoint()
        second.fin()
        await backends[2].send(b"unread")
        backends[2].fin()
        await proxy.poll_until(
            lambda: (
                sorted(relay.state for relay in proxy.served.relays()) == [DIALLING, OPEN, CLIENT_ENDED, BACKEND_ENDED]
            )
        )
        relays = list(proxy.served.relays())
        proxy.served.abort()
        for relay in relays:
            relay.abort()  # once is enough
        assert (await dialling.receive_to_end())[1] is End.RST
        for peer in (first, second, third, *backends):
            await peer.wait_reset()
        assert proxy.closed("shop/hole:http") == {CloseReason.KILLED_DIALLING: 1}
        assert proxy.closed() == {CloseReason.KILLED_OPEN: 1, CloseReason.KILLED_HALF_CLOSED: 2}
        proxy.assert_nothing_left()

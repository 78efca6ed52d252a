"""Whatever two peers do to each other through a relay, the streams are those of one TCP connection, and nothing stays.

A script says what the two ends of a connection do: send chunks, end their direction, reset, read slowly. Scripts are
run several at a time through one engine.
"""

import errno
from functools import partial

import pytest
import trio
from attrs import define, frozen
from engine_driver import Proxy, open_proxy
from hypothesis import given
from hypothesis import strategies as st
from peers import CHUNK_BYTES, End, Peer, Peers, Server, nothing_left_open, open_peers

from userspace_proxy.balance.close_reason import CloseReason

PATTERN = bytes(range(251)) * 6_000
"""No two windows of a few bytes less than 251 apart are alike, and 251 divides no size of a buffer."""


@frozen
class Script:
    """What one end of a connection does, in two tasks at the same time."""

    chunk_sizes: tuple[int, ...]
    """Sends these, one after the other."""
    pauses: tuple[int, ...]
    """Lets others run that many times before each send, over and over."""
    resets: bool
    """Ends with RST instead of FIN."""
    read_sizes: tuple[int, ...]
    """Reads at most that many bytes at a time, over and over."""
    read_pauses: tuple[int, ...]
    """Lets others run that many times before each read, over and over."""

    @property
    def data(self) -> bytes:
        """All that is sent."""
        return PATTERN[: sum(self.chunk_sizes)]


@define
class Received:
    """What one end got, and how its stream ended; None: this end was gone before."""

    data: bytearray
    end: End | None = None


sizes = st.one_of(st.integers(1, 3000), st.sampled_from([1, 65535, 65536, 65537, 131072]), st.integers(1, 300_000))
pauses = st.lists(st.sampled_from([0, 0, 0, 1, 2, 20]), min_size=1, max_size=4).map(tuple)
scripts = st.builds(
    Script,
    chunk_sizes=st.lists(sizes, max_size=4).map(tuple),
    pauses=pauses,
    resets=st.sampled_from([False, False, False, True]),
    read_sizes=st.lists(st.sampled_from([10_000, CHUNK_BYTES, CHUNK_BYTES]), min_size=1, max_size=3).map(tuple),
    read_pauses=pauses,
)
buffer_sizes = st.sampled_from([None, None, None, 20_000])


async def let_others_run(times: int) -> None:
    """Give all other tasks that many turns."""
    for _ in range(times):
        await trio.lowlevel.checkpoint()


async def send(peer: Peer, script: Script, received: Received) -> None:
    """Do the sending half of a script; it may be the half that is told of an RST, and then the only one."""
    sent = 0
    try:
        for number, size in enumerate(script.chunk_sizes):
            await let_others_run(script.pauses[number % len(script.pauses)])
            await peer.send(PATTERN[sent : sent + size])
            sent += size
        await let_others_run(script.pauses[-1])
        if script.resets:
            peer.rst()
        else:
            peer.fin()
    except ConnectionError:
        received.end = End.RST
    except OSError as error:
        if error.errno != errno.ENOTCONN:  # FIN after an RST, of which the receiving half is told
            raise


async def receive(peer: Peer, script: Script, received: Received) -> None:
    """Do the receiving half of a script."""
    number = 0
    while received.end is None:
        await let_others_run(script.read_pauses[number % len(script.read_pauses)])
        try:
            chunk = await peer.receive_some(script.read_sizes[number % len(script.read_sizes)])
        except ConnectionError:
            received.end = End.RST
        except (trio.ClosedResourceError, OSError):
            assert script.resets  # by its own RST
            return
        else:
            received.data += chunk
            if not chunk and received.end is None:
                received.end = End.FIN
        number += 1


async def run_end(peer: Peer, script: Script, received: Received) -> None:
    """Do both halves of a script at the same time, then close."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, peer, script, received)
        nursery.start_soon(receive, peer, script, received)
    peer.close()


async def run_backend(server: Server, script: Script, received: Received) -> None:
    """Do what a script says with the one connection that comes."""
    await run_end(await server.accept(), script, received)


@define
class Conversation:
    """A client, a Backend and a Service of their own."""

    client_script: Script
    backend_script: Script
    buffer_bytes: int | None
    """Of the kernel, for both ends; None: as it likes. Small ones make for partial writes."""
    name: str
    at_client: Received
    at_backend: Received

    async def run(self, proxy: Proxy, peers: Peers) -> None:
        """Have both ends do what they should until the connection is over; a Backend may never get to know of it."""
        server = peers.listen(buffer_bytes=self.buffer_bytes)
        address = proxy.serve(server.backend, name=self.name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_backend, server, self.backend_script, self.at_backend)
            client = await peers.connect(address, buffer_bytes=self.buffer_bytes)
            await run_end(client, self.client_script, self.at_client)
            await proxy.until(lambda: sum(proxy.counters(self.name).closed.values()))
            if not server.accepted:
                # Whatever may still stand in the queue, there was nobody at the other end when the relay ended.
                nursery.cancel_scope.cancel()

    def check(self, proxy: Proxy) -> None:
        """Fail unless both ends saw what the ends of one connection may see."""
        closed = proxy.closed(self.name)
        assert sum(closed.values()) == 1
        for script, other, received in (
            (self.client_script, self.backend_script, self.at_backend),
            (self.backend_script, self.client_script, self.at_client),
        ):
            assert script.data.startswith(received.data)
            if received.end is End.FIN:
                assert received.data == script.data
                assert not script.resets
            elif not other.resets:
                assert script.resets
        if not (self.client_script.resets or self.backend_script.resets):
            assert closed == {CloseReason.NORMAL: 1}
            assert self.at_client.end is self.at_backend.end is End.FIN
            assert proxy.counters(self.name).bytes_to_backend == len(self.client_script.data)
            assert proxy.counters(self.name).bytes_to_client == len(self.backend_script.data)


async def run_all(pairs: list[tuple[Script, Script, int | None]], pipes: int | None) -> None:
    """Run all conversations at the same time and check them; ``pipes``: how many there are to be had, None: all."""
    async with open_proxy() as proxy, open_peers() as peers:
        taken = []
        if pipes == 0:
            proxy.engine.pipes.disable()
        elif pipes is not None:
            while (pipe := proxy.engine.pipes.take()) is not None:
                taken.append(pipe)
            for _ in range(pipes):
                proxy.engine.pipes.give_back(taken.pop())
        conversations = [
            Conversation(*pair, f"shop/web{number}:http", Received(bytearray()), Received(bytearray()))
            for number, pair in enumerate(pairs)
        ]
        async with trio.open_nursery() as nursery:
            for conversation in conversations:
                nursery.start_soon(conversation.run, proxy, peers)
        for conversation in conversations:
            conversation.check(proxy)
        for pipe in taken:
            proxy.engine.pipes.give_back(pipe)
        proxy.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("pipes", [None, 0, 1], ids=["splice", "copy", "one pipe"])
@given(pairs=st.lists(st.tuples(scripts, scripts, buffer_sizes), min_size=1, max_size=4))
def test_relay_of_any_scripts_is_one_connection(
    pairs: list[tuple[Script, Script, int | None]], pipes: int | None
) -> None:
    """Streams arrive whole, or as a prefix with RST; every end is passed on; nothing stays behind."""
    with nothing_left_open():
        trio.run(partial(run_all, pairs, pipes))

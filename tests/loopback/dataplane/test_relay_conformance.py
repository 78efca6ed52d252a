"""A relay is a TCP connection with a man in the middle: to both ends it behaves as one connection."""

import pytest
import trio
from engine_driver import Proxy, open_proxy
from peers import Peer, connect_through, open_peers
from trio.testing import check_half_closeable_stream


async def clog(proxy: Proxy, *ends: Peer) -> None:
    """Send from each end until nothing more fits between the two."""
    for end in ends:
        relayed = -1
        while end.send_nowait(bytes(65536)) or relayed != total_bytes(proxy):
            relayed = total_bytes(proxy)
            await trio.testing.wait_all_tasks_blocked()


def total_bytes(proxy: Proxy) -> int:
    """Return how many bytes live relays have moved."""
    return sum(
        relay.client.byte_count + (relay.backend.byte_count if relay.backend else 0) for relay in proxy.served.relays()
    )


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("splices", [True, False], ids=["splice", "copy"])
async def test_relay_between_two_streams_is_a_half_closeable_stream(host: str, splices: bool) -> None:  # noqa: FBT001
    """Client end and Backend end pass trio's conformance suite for a pair of connected streams."""
    async with open_proxy() as proxy, open_peers() as peers:
        if not splices:
            proxy.engine.pipes.disable()
        server = peers.listen(host=host)
        address = proxy.serve(server.backend, host=host)

        async def make_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
            client, backend = await connect_through(peers, address, server)
            return client.stream(), backend.stream()

        async def make_clogged_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
            client, backend = await connect_through(peers, address, server)
            await clog(proxy, client, backend)
            return client.stream(), backend.stream()

        await check_half_closeable_stream(make_pair, make_clogged_pair)

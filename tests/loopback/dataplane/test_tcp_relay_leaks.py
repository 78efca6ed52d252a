"""Connections that are over leave nothing behind: no descriptor, no relay, no pipe, no garbage to be collected."""

import gc
from collections.abc import Iterator
from math import inf

import pytest
import trio
from engine_driver import VirtualClock, open_proxy
from peers import Peers, echo, nothing_left_open, open_peers

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.relay_side import Side
from userspace_proxy.dataplane.tcp_dialling import Dial, Dialling
from userspace_proxy.dataplane.tcp_relay import TcpRelay

CONNECTIONS = 10_000
CLIENTS = 20


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    """Turn the collector of reference cycles off."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live_objects() -> int:
    """Return how many objects of connections there are in memory, garbage included."""
    return sum(isinstance(one, TcpRelay | Side | Dialling | Dial) for one in gc.get_objects())


async def call_often(peers: Peers, address: tuple[str, int], times: int) -> None:
    """Be a client that makes one short connection after the other."""
    for number in range(times):
        client = await peers.connect(address)
        await client.send(b"ping")
        assert await client.receive(4) == b"ping"
        if number % 10 == 9:
            client.rst()
        else:
            client.close()


@pytest.mark.slow
async def test_many_short_connections_leave_nothing_behind(no_garbage_collector: None) -> None:
    """10,000 connections, a tenth of them reset, dialled over refusals: afterwards all is as it was before."""
    with nothing_left_open():
        async with open_proxy() as proxy, open_peers() as peers:
            address = proxy.serve(peers.refuse(), *(peers.listen(echo).backend for _ in range(3)))
            async with trio.open_nursery() as nursery:
                for _ in range(CLIENTS):
                    nursery.start_soon(call_often, peers, address, CONNECTIONS // CLIENTS)
            await proxy.until_idle()
            assert proxy.counters().connections == CONNECTIONS
            assert proxy.closed().keys() <= {
                CloseReason.NORMAL,
                CloseReason.CLIENT_OPEN,
                CloseReason.CLIENT_HALF_CLOSED,
            }
            proxy.assert_nothing_left()
            await proxy.until(lambda: proxy.engine.timers.next_s == inf)
            assert live_objects() == 0
            ((_, live),) = proxy.served.pools()
            shares = [member.connections for member in live.members if member.connections]
            assert sum(shares) == CONNECTIONS
            assert max(shares) - min(shares) <= 1


async def test_relay_in_each_state_leaves_no_garbage_when_it_is_reset(no_garbage_collector: None) -> None:
    """A relay that is ended by the proxy frees its memory at once, without the help of the collector."""
    async with open_proxy() as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        addresses = [proxy.serve(hole.backend, name="shop/hole:http"), proxy.serve(peers.listen(echo).backend)]
        clients = [await peers.connect(address) for address in addresses * 2]
        await proxy.until(lambda: proxy.served.open_relays == 4 and proxy.counters().dials.get("connected") == 2)
        for client in clients[2:]:
            client.fin()
        assert live_objects() == 4 * 2 + 2 * 1 + 2 * 2  # relays and clients, Backends, dials
        proxy.served.abort()
        await proxy.until(lambda: proxy.engine.timers.next_s == inf)
        assert live_objects() == 0


async def test_relay_with_long_time_outs_is_not_kept_by_its_timers(no_garbage_collector: None) -> None:
    """Time-outs of an hour do not keep the connections of an hour in memory, but those of the last 10 s."""
    limits = RelayLimits(idle_timeout_s=3600.0, half_closed_timeout_s=3600.0)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        for _ in range(10):
            (await peers.connect(address)).close()
        await proxy.poll_until(lambda: proxy.closed() == {CloseReason.NORMAL: 10})
        assert live_objects() == 10 * 3
        proxy.advance(10.0)
        assert live_objects() == 0


async def test_relay_that_ended_is_not_kept_by_the_look_it_does_not_need_any_more(no_garbage_collector: None) -> None:
    """Short connections free their memory when they end, not some time later."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        for _ in range(10):
            (await peers.connect(address)).close()
        await proxy.poll_until(lambda: proxy.closed() == {CloseReason.NORMAL: 10})
        assert live_objects() == 0

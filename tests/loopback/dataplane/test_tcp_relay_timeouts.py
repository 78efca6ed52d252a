"""Idle connections are reset when their time is over, not before, and never while bytes move."""

import pytest
from engine_driver import TICK_S, Proxy, VirtualClock, open_proxy
from peers import End, Peer, Peers, open_peers

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.tcp_relay import BACKEND_ENDED, CLIENT_ENDED, OPEN

IDLE_S = 64.0
CHECK_S = IDLE_S / 8
"""How late an idle connection may be noticed."""


async def connect_and_open(proxy: Proxy, peers: Peers) -> tuple[Peer, Peer]:
    """Return client and Backend of a relay that has just become open."""
    server = peers.listen()
    client = await peers.connect(proxy.serve(server.backend))
    await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
    backend = await server.accept()
    proxy.settle()
    return client, backend


async def send_through(proxy: Proxy, peer: Peer) -> None:
    """Send one byte from one side and have it relayed."""
    before = total_bytes(proxy)
    await peer.send(b"x")
    await proxy.poll_until(lambda: total_bytes(proxy) == before + 1)


def total_bytes(proxy: Proxy) -> int:
    """Return how many bytes have been relayed."""
    proxy.served.report()
    return proxy.counters().bytes_to_backend + proxy.counters().bytes_to_client


async def test_idle_connection_without_a_time_out_lives_on() -> None:
    """By default, silence is no reason to end a connection, half-closed or not."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client, _ = await connect_and_open(proxy, peers)
        proxy.advance(1e6)
        client.fin()
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [CLIENT_ENDED])
        proxy.advance(1e6)
        assert proxy.served.open_relays == 1
        assert proxy.engine.wait_s() is None


@pytest.mark.parametrize("who", ["client", "backend"])
async def test_idle_connection_is_reset_after_its_time(who: str) -> None:
    """A byte of either side starts the time anew; when it is over, both sides are reset and the reason is counted."""
    limits = RelayLimits(idle_timeout_s=IDLE_S)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client, backend = await connect_and_open(proxy, peers)
        for _ in range(4):
            proxy.advance(IDLE_S - TICK_S)
            await send_through(proxy, client if who == "client" else backend)
        proxy.advance(IDLE_S - TICK_S)
        assert proxy.served.open_relays == 1
        proxy.advance(TICK_S + CHECK_S)
        assert proxy.closed() == {CloseReason.IDLE_OPEN: 1}
        assert (await client.receive_to_end())[1] is End.RST
        assert (await backend.receive_to_end())[1] is End.RST
        proxy.assert_nothing_left()


async def test_idle_connection_that_was_never_used_is_reset_by_the_next_check() -> None:
    """A connection on which no byte ever moved lives for the time-out, and an eighth of it longer at most."""
    limits = RelayLimits(idle_timeout_s=IDLE_S)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        await connect_and_open(proxy, peers)
        proxy.advance(IDLE_S - TICK_S)
        assert proxy.served.open_relays == 1
        proxy.advance(TICK_S + CHECK_S)
        assert proxy.closed() == {CloseReason.IDLE_OPEN: 1}


@pytest.mark.parametrize("who", ["client", "backend"])
async def test_half_closed_connection_is_reset_after_its_own_time(who: str) -> None:
    """The time-out for half-closed connections counts from the end of the first direction, or the last byte since."""
    limits = RelayLimits(half_closed_timeout_s=IDLE_S)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client, backend = await connect_and_open(proxy, peers)
        first, other = (client, backend) if who == "client" else (backend, client)
        proxy.advance(10 * IDLE_S)
        first.fin()
        await proxy.poll_until(
            lambda: [relay.state in (CLIENT_ENDED, BACKEND_ENDED) for relay in proxy.served.relays()] == [True]
        )
        for _ in range(4):
            proxy.advance(IDLE_S - TICK_S)
            await send_through(proxy, other)
        proxy.advance(IDLE_S - TICK_S)
        assert proxy.served.open_relays == 1
        proxy.advance(TICK_S + CHECK_S)
        assert proxy.closed() == {CloseReason.IDLE_HALF_CLOSED: 1}
        await other.wait_reset()
        proxy.assert_nothing_left()


async def test_half_closed_connection_that_stays_silent_is_reset_by_the_next_check() -> None:
    """A connection on which no byte moved after the first end lives for the time-out, and an eighth longer at most."""
    limits = RelayLimits(half_closed_timeout_s=IDLE_S)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client, _ = await connect_and_open(proxy, peers)
        client.fin()
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [CLIENT_ENDED])
        proxy.advance(IDLE_S - TICK_S)
        assert proxy.served.open_relays == 1
        proxy.advance(TICK_S + CHECK_S)
        assert proxy.closed() == {CloseReason.IDLE_HALF_CLOSED: 1}


async def test_idle_time_out_applies_to_half_closed_connections_as_well() -> None:
    """With only the general time-out set, a silent half-closed connection ends too, counted as half-closed."""
    limits = RelayLimits(idle_timeout_s=IDLE_S)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client, _ = await connect_and_open(proxy, peers)
        client.fin()
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [CLIENT_ENDED])
        proxy.advance(IDLE_S + CHECK_S)
        assert proxy.closed() == {CloseReason.IDLE_HALF_CLOSED: 1}


async def test_timers_of_a_connection_that_has_ended_do_nothing() -> None:
    """Both time-outs pass without effect after a normal end."""
    limits = RelayLimits(idle_timeout_s=IDLE_S, half_closed_timeout_s=IDLE_S)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client, backend = await connect_and_open(proxy, peers)
        client.close()
        backend.close()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        proxy.advance(10 * IDLE_S)
        assert proxy.closed() == {CloseReason.NORMAL: 1}
        assert proxy.engine.wait_s() is None


async def test_idle_time_out_shorter_than_the_dialling_leaves_the_dial_its_time() -> None:
    """Waiting for a Backend is no idleness: the budget for dialling bounds it, and the reason is that of the dial."""
    limits = RelayLimits(idle_timeout_s=0.5, dial_timeout_s=2.0)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        await peers.connect(proxy.serve(hole.backend))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(2.0 - TICK_S)
        assert proxy.served.open_relays == 1
        proxy.advance(TICK_S)
        assert proxy.closed() == {CloseReason.BACKEND_DIALLING: 1}

"""Dialling: who is dialled when, to the millisecond of a clock that only moves when it is told to."""

import socket
from collections.abc import Callable

import pytest
import trio
from builders import pool
from engine_driver import TICK_S, Proxy, VirtualClock, open_proxy
from peers import End, Peer, echo, open_peers

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.tcp_dialling import Dial
from userspace_proxy.dataplane.tcp_relay import CLOSED, DIALLING, OPEN
from userspace_proxy.plan.state import Backend

FIRST, SECOND, THIRD = "127.0.0.1", "127.0.0.2", "127.0.0.3"
"""Backends are dialled in the order of their addresses."""
HEDGED = RelayLimits(dial_next_after_s=0.25, dial_timeout_s=2.0)
UNREACHABLE = Backend(pool("255.255.255.255:80").backends[0].address, 80)
"""connect(2) fails at once and without a packet."""


def dials_are(proxy: Proxy, **outcomes: int) -> Callable[[], bool]:
    """Return a condition: dials ended in just these ways."""
    return lambda: proxy.counters().dials == outcomes


def relays_are(proxy: Proxy, count: int) -> Callable[[], bool]:
    """Return a condition: that many connections have been accepted and not ended."""
    return lambda: proxy.served.open_relays == count


def pending(proxy: Proxy) -> list[str]:
    """Return the hosts that are being dialled, for the one connection there is."""
    return [dial.member.address[0] for dial in dials(proxy)]


def dials(proxy: Proxy) -> tuple[Dial, ...]:
    """Return the dials under way, for the one connection there is."""
    (relay,) = proxy.served.relays()
    return () if relay.dialling is None else relay.dialling.dials


async def assert_answers(proxy: Proxy, client: Peer) -> None:
    """Fail unless the client is connected to a Backend that echoes, without any time passing."""
    async with proxy.driving():
        await client.send(b"ping")
        assert await client.receive(4) == b"ping"


async def test_dial_that_is_refused_goes_on_to_the_next_backend_at_once() -> None:
    """The same client gets through however many Backends refuse before, without any time passing."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        good = peers.listen(echo, host=THIRD).backend
        address = proxy.serve(peers.refuse(FIRST), peers.refuse(SECOND), UNREACHABLE, good)
        await assert_answers(proxy, await peers.connect(address))
        assert proxy.counters().dials == {"refused": 2, "connected": 1}


async def test_e_5_dial_that_fails_everywhere_resets_the_client() -> None:
    """Each Backend is dialled once, then the client sees RST and not a clean end."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client = await peers.connect(proxy.serve(peers.refuse(FIRST), peers.refuse(SECOND), UNREACHABLE))
        await client.send(b"anybody?")
        await proxy.poll_until(dials_are(proxy, refused=2, unreachable=1))
        proxy.settle()
        assert await client.receive_to_end() == (b"", End.RST)
        assert proxy.closed() == {CloseReason.BACKEND_DIALLING: 1}
        proxy.assert_nothing_left()


async def test_dial_without_an_answer_for_250_ms_gets_a_second_one_beside_it() -> None:
    """Not a millisecond earlier; the first to connect wins, the other one is dropped."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole(FIRST)
        server = peers.listen(echo, host=SECOND)
        client = await peers.connect(proxy.serve(hole.backend, server.backend))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(0.25 - TICK_S)
        assert pending(proxy) == [FIRST]
        proxy.advance(TICK_S)
        await assert_answers(proxy, client)
        assert pending(proxy) == []
        assert proxy.counters().dials == {"superseded": 1, "connected": 1}
        assert [member.open for _, live in proxy.served.pools() for member in live.members] == [0, 1]
        assert len(proxy.engine.handlers) == 3  # listener, client, Backend
        client.close()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        proxy.assert_nothing_left()


async def test_dial_beside_a_slow_one_that_is_refused_goes_on_at_once() -> None:
    """A refusal is known now: no other 250 ms are waited for the third Backend."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole(FIRST)
        third = peers.listen(echo, host=THIRD).backend
        client = await peers.connect(proxy.serve(hole.backend, peers.refuse(SECOND), third))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(0.25)
        await assert_answers(proxy, client)
        assert proxy.counters().dials == {"refused": 1, "superseded": 1, "connected": 1}


@pytest.mark.parametrize("outcome", ["refused", "unreachable"])
async def test_dial_beside_the_only_other_one_that_fails_leaves_the_first_its_time(outcome: str) -> None:
    """When all other Backends fail, at once or a little later, the slow one has until the end of the budget."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole(FIRST)
        other = peers.refuse(SECOND) if outcome == "refused" else UNREACHABLE
        await peers.connect(proxy.serve(hole.backend, other))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(2.0 - TICK_S)
        assert pending(proxy) == [FIRST]
        assert proxy.counters().dials == {outcome: 1}
        proxy.advance(TICK_S)
        assert proxy.counters().dials == {outcome: 1, "timeout": 1}
        assert proxy.closed() == {CloseReason.BACKEND_DIALLING: 1}


async def test_dial_of_an_old_backend_that_fails_leaves_the_newer_one_its_time() -> None:
    """A failure of the first dial while the second is still young starts no third."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        holes = [await peers.black_hole(host) for host in (FIRST, SECOND, THIRD)]
        await peers.connect(proxy.serve(*(hole.backend for hole in holes)))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(0.25)
        assert pending(proxy) == [FIRST, SECOND]
        dials(proxy)[0].sock.shutdown(socket.SHUT_RDWR)  # hangs up, as a failing dial does
        await proxy.poll_until(lambda: pending(proxy) == [SECOND])
        proxy.advance(0.25 - TICK_S)
        assert pending(proxy) == [SECOND]
        proxy.advance(TICK_S)
        assert pending(proxy) == [SECOND, THIRD]


async def test_dial_of_black_holes_only_ends_with_the_budget() -> None:
    """One more Backend each 250 ms, and RST for the client after exactly 2 s."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        holes = [await peers.black_hole(host) for host in (FIRST, SECOND, THIRD)]
        client = await peers.connect(proxy.serve(*(hole.backend for hole in holes)))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        for expected in ([FIRST], [FIRST, SECOND], [FIRST, SECOND, THIRD], [FIRST, SECOND, THIRD]):
            assert pending(proxy) == expected
            proxy.advance(0.25)
        proxy.advance(1.0 - TICK_S)
        assert pending(proxy) == [FIRST, SECOND, THIRD]
        proxy.advance(TICK_S)
        assert await client.receive_to_end() == (b"", End.RST)
        assert proxy.counters().dials == {"timeout": 3}
        assert proxy.closed() == {CloseReason.BACKEND_DIALLING: 1}
        proxy.assert_nothing_left()


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(HEDGED, id="usual"),
        pytest.param(RelayLimits(dial_next_after_s=5.0, dial_timeout_s=2.0), id="never beside"),
        pytest.param(RelayLimits(dial_next_after_s=2.0, dial_timeout_s=2.0), id="beside at the very end"),
        pytest.param(RelayLimits(dial_next_after_s=0.375, dial_timeout_s=2.0), id="not a multiple"),
    ],
)
async def test_dial_of_the_only_backend_waits_out_the_budget(limits: RelayLimits) -> None:
    """A single Backend is dialled once, and all the time there is is left to it."""
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        client = await peers.connect(proxy.serve(hole.backend))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(2.0 - TICK_S)
        assert pending(proxy) == [FIRST]
        proxy.advance(TICK_S)
        assert await client.receive_to_end() == (b"", End.RST)
        assert proxy.counters().dials == {"timeout": 1}
        proxy.assert_nothing_left()


async def test_dials_that_time_out_are_counted_whatever_else_is_due() -> None:
    """Every dial under way when the budget ends is a time-out, however the timers of connections interleave."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        address = proxy.serve(hole.backend)
        for number in range(1, 4):
            await peers.connect(address)
            await proxy.poll_until(relays_are(proxy, number))
            proxy.advance(0.0625)
        proxy.advance(2.0)
        assert proxy.counters().dials == {"timeout": 3}
        assert proxy.closed() == {CloseReason.BACKEND_DIALLING: 3}


@pytest.mark.slow
async def test_dial_that_loses_after_all_is_reset() -> None:
    """When both Backends have connected by the time the engine looks, one gets the client, the other an RST."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        holes = [await peers.black_hole(host) for host in (FIRST, SECOND)]
        client = await peers.connect(proxy.serve(*(hole.backend for hole in holes)))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(0.25)
        for hole in holes:
            await hole.accept()  # room for one: the SYN that is sent again after 1 s is answered
        (relay,) = proxy.served.relays()
        for dial in dials(proxy):
            await trio.lowlevel.wait_writable(dial.sock.fileno())
        backends = [await hole.accept() for hole in holes]
        await proxy.poll_until(lambda: proxy.counters().dials == {"superseded": 1, "connected": 1})
        proxy.settle()
        assert relay.member is not None
        winner, loser = backends if relay.member.address[0] == FIRST else reversed(backends)
        assert await loser.receive_to_end() == (b"", End.RST)
        await client.send(b"ping")
        await proxy.poll_until(lambda: relay.client.byte_count)
        assert await winner.receive(4) == b"ping"


async def test_what_a_client_says_during_a_dial_is_passed_on_when_that_connects() -> None:
    """Its event has passed by then, and does not come again."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        client = await peers.connect(proxy.serve(hole.backend))
        await client.send(b"early")
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.settle()
        await hole.accept()  # room for one: the SYN that is sent again after 1 s is answered
        (dial,) = dials(proxy)
        await trio.lowlevel.wait_writable(dial.sock.fileno())
        backend = await hole.accept()
        proxy.settle()
        assert await backend.receive(5) == b"early"
        await backend.send(b"late")
        proxy.settle()
        assert await client.receive(4) == b"late"


async def test_dial_of_a_client_that_has_said_all_goes_on() -> None:
    """FIN is no reason to stop: the client waits for the answer to what it has sent."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole(FIRST)
        client = await peers.connect(proxy.serve(hole.backend, peers.listen(echo, host=SECOND).backend))
        await client.send(b"last")
        client.fin()
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.settle()
        proxy.advance(0.25)
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert await client.receive_to_end() == (b"last", End.FIN)
        assert proxy.closed() == {CloseReason.NORMAL: 1}


async def test_dial_while_the_pool_is_replaced_turns_to_the_new_backends() -> None:
    """A client that hangs on a Backend that is gone is helped by one that has come."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole(FIRST)
        client = await peers.connect(proxy.serve(hole.backend))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.set_pool(peers.listen(echo, host=SECOND).backend)
        proxy.advance(0.25)
        await assert_answers(proxy, client)


async def test_dial_while_the_pool_becomes_empty_waits_for_what_is_under_way() -> None:
    """The dials under way keep their budget; then the client is reset."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        client = await peers.connect(proxy.serve(hole.backend))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.set_pool()
        proxy.advance(2.0 - TICK_S)
        assert pending(proxy) == [FIRST]
        proxy.advance(TICK_S)
        assert await client.receive_to_end() == (b"", End.RST)
        assert proxy.closed() == {CloseReason.BACKEND_DIALLING: 1}
        proxy.assert_nothing_left()


async def test_dial_for_a_client_accepted_for_an_empty_pool_is_none() -> None:
    """A client that slips in between is reset at once and counted apart."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        client = await peers.connect(proxy.serve(peers.refuse()))
        for _, live in proxy.served.pools():
            live.replace(pool())
        await proxy.poll_until(lambda: proxy.counters().closed)
        proxy.settle()
        assert await client.receive_to_end() == (b"", End.RST)
        assert proxy.closed() == {CloseReason.NO_BACKEND: 1}
        assert proxy.counters().dials == {}
        proxy.assert_nothing_left()


async def test_dial_of_a_black_hole_delays_no_other_client() -> None:
    """While half of the clients hang on a Backend that does not answer, the other half are served at once."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole(FIRST)
        address = proxy.serve(hole.backend, peers.listen(echo, host=SECOND).backend)
        clients = [await peers.connect(address) for _ in range(40)]
        await proxy.poll_until(lambda: proxy.counters().dials.get("connected") == 20)
        states = sorted(relay.state for relay in proxy.served.relays())
        assert states == [DIALLING] * 20 + [OPEN] * 20
        proxy.advance(0.25)
        for client in clients:
            await assert_answers(proxy, client)
        assert proxy.counters().dials == {"connected": 40, "superseded": 20}


async def test_dial_that_connects_late_is_probed_too() -> None:
    """A Backend that was connected after the first look at the connection has keepalive like any other."""
    limits = RelayLimits(keepalive_idle_s=77)
    async with open_proxy(limits, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole(FIRST)
        client = await peers.connect(proxy.serve(hole.backend, peers.listen(echo, host=SECOND).backend))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(0.25)
        await assert_answers(proxy, client)
        (relay,) = proxy.served.relays()
        proxy.advance(0.25)
        assert relay.backend is not None
        assert relay.backend.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
        assert relay.backend.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_dial_timers_of_ended_connections_do_nothing() -> None:
    """Timers are never taken back: those of a connection that is over pass without effect."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        client = await peers.connect(proxy.serve(hole.backend))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        (relay,) = proxy.served.relays()
        proxy.advance(0.25)
        client.rst()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        proxy.advance(0.25)
        proxy.advance(2.0)
        assert relay.state == CLOSED
        assert proxy.engine.wait_s() is None
        assert proxy.closed() == {CloseReason.CLIENT_DIALLING: 1}

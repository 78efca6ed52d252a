"""What a relay does within one batch of events, and what wakes the engine and what does not."""

from engine_driver import Proxy, VirtualClock, open_proxy
from peers import Peer, Peers, Server, echo, open_peers

from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.engine import FEW_EVENTS
from userspace_proxy.dataplane.tcp_relay import CLIENT_ENDED, DIALLING, OPEN

MANY_EVENTS = FEW_EVENTS + 1
HEDGED = RelayLimits(dial_next_after_s=0.25, dial_timeout_s=2.0)


def states(proxy: Proxy) -> list[int]:
    """Return the state of each relay."""
    return [relay.state for relay in proxy.served.relays()]


def bytes_from_clients(proxy: Proxy) -> list[int]:
    """Return how many bytes of each client were delivered."""
    return [relay.client.byte_count for relay in proxy.served.relays()]


async def connect_and_send(peers: Peers, address: tuple[str, int]) -> Peer:
    """Return a client whose connection waits to be accepted and whose first bytes have come with it."""
    client = await peers.connect(address)
    await client.send(b"hello")
    await client.wait_sent()
    return client


async def open_many(proxy: Proxy, peers: Peers, server: Server, address: tuple[str, int]) -> list[Peer]:
    """Return clients with a connection each, so many that events of all of them make a batch that is not calm."""
    clients = [await peers.connect(address) for _ in range(MANY_EVENTS)]
    await proxy.poll_until(lambda: states(proxy) == [OPEN] * len(clients))
    for _ in clients:
        await server.accept()
    proxy.settle()
    return clients


async def test_backend_on_this_node_is_connected_within_the_batch_that_accepts_the_client() -> None:
    """It has answered when connect returns: no event is waited for."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        await peers.connect(proxy.serve(peers.listen().backend))
        assert proxy.engine.poll(0)
        assert states(proxy) == [OPEN]
        assert proxy.counters().dials == {"connected": 1}


async def test_first_bytes_of_a_client_are_passed_on_within_the_batch_that_accepts_it() -> None:
    """While little happens, what has come with a client is not left to another event."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        await connect_and_send(peers, proxy.serve(peers.listen().backend))
        assert proxy.engine.poll(0)
        assert bytes_from_clients(proxy) == [5]


async def test_first_bytes_of_a_client_in_a_busy_batch_are_passed_on_in_the_next_one() -> None:
    """They are left, and told of by another event."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen()
        address = proxy.serve(server.backend)
        for client in await open_many(proxy, peers, server, address):
            await client.send(b"12345")
            await client.wait_sent()
        await connect_and_send(peers, address)
        assert proxy.engine.poll(0)
        assert sorted(bytes_from_clients(proxy)) == [0, *[5] * MANY_EVENTS]
        proxy.settle()
        assert bytes_from_clients(proxy) == [5] * (MANY_EVENTS + 1)


async def test_bytes_that_came_during_a_dial_are_passed_on_when_a_busy_batch_connects_the_next_one() -> None:
    """Their event has passed and does not come again."""
    async with open_proxy(HEDGED, clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole, server = await peers.black_hole("127.0.0.1"), peers.listen(host="127.0.0.2")
        busy_server = peers.listen()
        clients = await open_many(proxy, peers, busy_server, proxy.serve(busy_server.backend, name="shop/busy:http"))
        await connect_and_send(peers, proxy.serve(hole.backend, server.backend))
        await proxy.poll_until(lambda: DIALLING in states(proxy))
        proxy.settle()
        for client in clients:
            await client.send(b"12345")
            await client.wait_sent()
        proxy.clock.now_s += 0.25  # type: ignore[attr-defined]
        proxy.engine.poll(0)
        assert not proxy.engine.is_calm
        proxy.settle()
        backend = await server.accept()
        assert await backend.receive(5) == b"hello"


async def test_fin_that_is_acknowledged_wakes_nobody() -> None:
    """A half-closed connection costs nothing until its other side says something."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen()
        client = await peers.connect(proxy.serve(server.backend))
        await proxy.poll_until(lambda: states(proxy) == [OPEN])
        backend = await server.accept()
        client.fin()
        await proxy.poll_until(lambda: states(proxy) == [CLIENT_ENDED])
        await backend.receive_to_end()
        assert not proxy.engine.poll(0)


async def test_idle_connections_cost_nothing() -> None:
    """Once each has been looked after, neither an event nor a timer wakes the engine."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        clients = [await connect_and_send(peers, address) for _ in range(100)]
        async with proxy.driving():
            for client in clients:
                await client.receive(5)
        proxy.advance(0.25)
        assert proxy.engine.wait_s() is None
        assert not proxy.engine.poll(0)
        assert proxy.served.open_relays == len(clients)

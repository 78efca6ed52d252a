"""Session affinity through real connections: where clients come back to, and what a switch of it disturbs."""

from builders import listener_key, pool, pool_key
from engine_driver import Proxy, VirtualClock, open_proxy
from peers import Peer, Peers, Server, echo, open_peers

from userspace_proxy.balance.affinity import MAX_CLIENTS
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.tcp_relay import OPEN
from userspace_proxy.plan.state import EndpointScope, PolicyClass, Pool, Route

TIMEOUT_S = 10800
FIRST, SECOND, THIRD = HOSTS = [f"127.0.0.{number}" for number in (11, 12, 13)]
CLIENT, OTHER = "127.0.0.21", "127.0.0.22"


def listen(peers: Peers, *hosts: str) -> list[Server]:
    """Return Servers at these hosts: Backends are in the order of their addresses."""
    return [peers.listen(echo, host=host) for host in hosts]


async def visit(proxy: Proxy, peers: Peers, address: tuple[str, int], host: str = CLIENT) -> str:
    """Connect, and return the host of the Backend that answers; the connection stays open."""
    client = await peers.connect(address, source=(host, 0))
    async with proxy.driving():
        await client.send(b"ping")
        assert await client.receive(4) == b"ping"
    return backend_host(proxy, client)


def backend_host(proxy: Proxy, client: Peer) -> str:
    """Return the host of the Backend at which the connection of a client ends."""
    name = client.sock.getsockname()[:2]
    (relay,) = (one for one in proxy.served.relays() if one.client_address == name)
    assert relay.member is not None
    return relay.member.address[0]


async def test_c_2_client_comes_back_whichever_listener_it_dials() -> None:
    """Internal and external addresses share the records, and the Pools of both policies do."""
    local = pool_key(scope=EndpointScope.LOCAL)
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        servers = listen(peers, *HOSTS)
        internal = proxy.serve(*(server.backend for server in servers), affinity_timeout_s=TIMEOUT_S)
        proxy.listeners.apply_pool(
            Pool(local, tuple(server.backend for server in servers[1:]), pool().balance, TIMEOUT_S)
        )
        external = proxy.listen(listener_key(policy=PolicyClass.EXTERNAL), Route(pool_key(), local, local))
        assert [await visit(proxy, peers, internal, OTHER), await visit(proxy, peers, internal)] == [FIRST, SECOND]
        assert await visit(proxy, peers, external) == SECOND
        assert await visit(proxy, peers, external, OTHER) == SECOND  # its own is not local
        assert await visit(proxy, peers, internal, OTHER) == SECOND


async def test_c_3_client_that_stays_away_is_balanced_afresh() -> None:
    """Its open connection does not keep the record alive, a new one does."""
    clock = VirtualClock()
    async with open_proxy(RelayLimits(idle_timeout_s=None), clock=clock, driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(*(server.backend for server in listen(peers, *HOSTS)), affinity_timeout_s=TIMEOUT_S)
        assert await visit(proxy, peers, address) == FIRST
        for _ in range(2):
            clock.now_s += TIMEOUT_S - 1
            assert await visit(proxy, peers, address) == FIRST
        clock.now_s += TIMEOUT_S
        assert await visit(proxy, peers, address) == SECOND


async def test_c_4_client_of_a_backend_that_leaves_gets_another_one() -> None:
    """Its open connection lives on."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        servers = listen(peers, *HOSTS)
        address = proxy.serve(*(server.backend for server in servers), affinity_timeout_s=TIMEOUT_S)
        assert await visit(proxy, peers, address) == FIRST
        proxy.set_pool(*(server.backend for server in servers[1:]), affinity_timeout_s=TIMEOUT_S)
        assert await visit(proxy, peers, address) == SECOND
        assert [len(proxy.closed()), proxy.served.open_relays] == [0, 2]
        assert await visit(proxy, peers, address) == SECOND


async def test_c_5_client_of_a_backend_that_refuses_moves_to_the_one_that_answers() -> None:
    """From then on the dead Backend costs it no dial."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        dead = peers.listen(host=FIRST)
        backends = [dead.backend, *(server.backend for server in listen(peers, SECOND, THIRD))]
        address = proxy.serve(*backends, affinity_timeout_s=TIMEOUT_S)
        client = await peers.connect(address, source=(CLIENT, 0))
        await proxy.poll_until(lambda: proxy.counters().dials)
        assert backend_host(proxy, client) == FIRST
        dead.close()
        for _ in range(3):
            assert await visit(proxy, peers, address) == SECOND
        assert proxy.counters().dials == {"connected": 4, "refused": 1}


async def test_c_5_client_of_a_backend_that_is_silent_moves_to_the_one_that_answers() -> None:
    """A node that is gone does not delay each connection of its clients."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole(FIRST)
        (server,) = listen(peers, SECOND)
        address = proxy.serve(hole.backend, server.backend, affinity_timeout_s=TIMEOUT_S)
        await peers.connect(address, source=(CLIENT, 0))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.advance(0.25)
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
        assert await visit(proxy, peers, address) == SECOND
        assert proxy.counters().dials == {"connected": 2, "superseded": 1}


async def test_burst_of_a_new_client_goes_to_one_backend() -> None:
    """All of its connections that come before the first is connected go where that goes."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        address = proxy.serve(*(server.backend for server in listen(peers, *HOSTS)), affinity_timeout_s=TIMEOUT_S)
        clients = [await peers.connect(address, source=(CLIENT, 0)) for _ in range(20)]
        await proxy.poll_until(lambda: proxy.counters().dials.get("connected") == len(clients))
        assert {backend_host(proxy, client) for client in clients} == {FIRST}


async def test_c_7_switch_of_affinity_touches_no_client() -> None:
    """On and off: connections live on, clients in the queue are served, and the next ones follow the new value."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        backends = [server.backend for server in listen(peers, *HOSTS)]
        address = proxy.serve(*backends)
        assert [await visit(proxy, peers, address) for _ in range(2)] == [FIRST, SECOND]
        queued = await peers.connect(address, source=(CLIENT, 0))
        proxy.set_pool(*backends, affinity_timeout_s=TIMEOUT_S)
        assert [await visit(proxy, peers, address) for _ in range(2)] == [THIRD, THIRD]
        assert backend_host(proxy, queued) == THIRD
        queued = await peers.connect(address, source=(CLIENT, 0))
        proxy.set_pool(*backends)
        assert [await visit(proxy, peers, address) for _ in range(2)] == [SECOND, THIRD]
        assert backend_host(proxy, queued) == FIRST
        proxy.set_pool(*backends, affinity_timeout_s=TIMEOUT_S)
        assert await visit(proxy, peers, address) == FIRST  # what was remembered before has been forgotten
        assert not proxy.closed()
        assert proxy.address(listener_key()) == address


async def test_clients_that_are_forgotten_before_their_time_are_counted() -> None:
    """More clients than are remembered show in a counter of the engine."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        (server,) = listen(peers, FIRST)
        address = proxy.serve(server.backend, affinity_timeout_s=TIMEOUT_S)
        ((_, live),) = proxy.served.pools()
        for number in range(MAX_CLIENTS):
            live.pick_for(str(number), (), proxy.engine.now_s)
        assert proxy.engine.counters.affinity_evictions == 0
        assert await visit(proxy, peers, address) == FIRST
        assert proxy.engine.counters.affinity_evictions == 1

"""ListenerSet: what should listen does, what should not does not, and open connections never notice."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_address

import pytest
import trio
from attrs import evolve
from builders import frontend, listener_key, pool, pool_key, route
from engine_driver import WEB, Proxy, VirtualClock, open_proxy
from peers import End, Peer, Peers, connect_through, echo, nothing_left_open, open_peers, own_host

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.listener_set import MAX_HOLDERS_NAMED
from userspace_proxy.errors import ListenError
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import Backend, EndpointScope, ListenerSpec, PolicyClass, Pool, Route

HOST = own_host(1)
PORT = 8080
FRONTENDS = [frontend(f"10.96.0.10:{port}") for port in (80, 443)]


def spec(name: str = WEB, host: str = HOST, port: int = PORT) -> ListenerSpec:
    """Return where the one Listener of a ServicePort is."""
    return ListenerSpec(listener_key(name), ip_address(host), port)


def to(name: str = WEB) -> Route:
    """Return the Route that leads everybody to the Pool of a ServicePort."""
    return route(pool_key(name))


def pool_of(*backends: Backend, name: str = WEB) -> Pool:
    """Return the Pool of a ServicePort."""
    return evolve(pool(key=pool_key(name)), backends=backends)


def open_all(proxy: Proxy) -> None:
    """Open what is missing, which must not fail."""
    assert proxy.listeners.open_missing(retry=False) == {}


def refuses(host: str = HOST, port: int = PORT) -> bool:
    """Return whether nobody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) != 0


async def assert_echoes(peers: Peers, host: str = HOST, port: int = PORT) -> None:
    """Fail unless a new connection there gets an echo."""
    await assert_answers(await peers.connect((host, port)))


async def assert_answers(client: Peer) -> None:
    """Fail unless an open connection gets an echo."""
    await client.send(b"ping")
    assert await client.receive(4) == b"ping"


@pytest.fixture
def occupied() -> Iterator[socket.socket]:
    """Yield a foreign socket that listens at the usual place."""
    with socket.create_server((HOST, PORT)) as sock:
        yield sock


async def test_e_1_listener_of_a_pool_that_becomes_empty_refuses_until_it_is_not() -> None:
    """No Backend: connection refused, as from a Service without endpoints; what is open lives on, counters go on."""
    async with open_proxy() as proxy, open_peers() as peers:
        backend = peers.listen(echo).backend
        proxy.listeners.apply_pool(pool_of(backend))
        proxy.listeners.apply_listener(spec(), to())
        assert refuses()
        open_all(proxy)
        client = await peers.connect((HOST, PORT))
        await assert_answers(client)
        proxy.listeners.apply_pool(pool_of())
        open_all(proxy)
        assert refuses()
        assert proxy.listeners.open_listeners == 0
        await assert_answers(client)
        proxy.listeners.apply_pool(pool_of(backend))
        open_all(proxy)
        await assert_echoes(peers)
        await assert_answers(client)
        assert proxy.counters().connections == 2


async def test_listener_and_pool_may_come_in_any_order() -> None:
    """A listener waits for its Pool, and goes with it."""
    async with open_proxy() as proxy, open_peers() as peers:
        wanted = pool_of(peers.listen(echo).backend)
        proxy.listeners.apply_listener(spec(), to())
        open_all(proxy)
        assert refuses()
        proxy.listeners.apply_pool(wanted)
        open_all(proxy)
        await assert_echoes(peers)
        proxy.listeners.remove_pool(wanted.key)
        open_all(proxy)
        assert refuses()
        assert list(proxy.served.pools()) == []
        proxy.listeners.remove_pool(wanted.key)
        open_all(proxy)
        proxy.listeners.apply_pool(wanted)
        open_all(proxy)
        await assert_echoes(peers)


async def test_listener_applied_again_unchanged_keeps_its_socket() -> None:
    """A client that waits in the queue of a listener does not suffer from another one's change."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        wanted = pool_of(peers.listen(echo).backend)
        proxy.listeners.apply_pool(wanted)
        proxy.listeners.apply_listener(spec(), to())
        open_all(proxy)
        client = await peers.connect((HOST, PORT))
        proxy.listeners.apply_listener(spec(), to())
        proxy.listeners.apply_pool(wanted)
        open_all(proxy)
        async with proxy.driving():
            await assert_answers(client)


async def test_listener_that_moves_leaves_its_connections_alone() -> None:
    """A changed spec closes the old place and opens the new one."""
    async with open_proxy() as proxy, open_peers() as peers:
        proxy.listeners.apply_pool(pool_of(peers.listen(echo).backend))
        proxy.listeners.apply_listener(spec(), to())
        open_all(proxy)
        client = await peers.connect((HOST, PORT))
        await assert_answers(client)
        proxy.listeners.apply_listener(spec(port=PORT + 1), to())
        assert refuses()
        open_all(proxy)
        await assert_echoes(peers, port=PORT + 1)
        await assert_answers(client)
        assert proxy.listeners.open_listeners == 1


async def test_listener_that_is_removed_leaves_its_connections_alone_and_takes_its_counters_away() -> None:
    """The series of a ServicePort end with its last listener; its connections may still end as they should."""
    async with open_proxy() as proxy, open_peers() as peers:
        proxy.listeners.apply_pool(pool_of(peers.listen(echo).backend))
        proxy.listeners.apply_listener(spec(), to())
        open_all(proxy)
        client = await peers.connect((HOST, PORT))
        await assert_answers(client)
        assert (WEB, Protocol.TCP) in proxy.engine.counters.services
        proxy.listeners.remove_listener(spec().key)
        proxy.listeners.remove_listener(spec().key)
        assert refuses()
        assert (WEB, Protocol.TCP) not in proxy.engine.counters.services
        await assert_answers(client)
        client.fin()
        assert await client.receive_to_end() == (b"", End.FIN)
        await proxy.until_idle()
        assert (WEB, Protocol.TCP) not in proxy.engine.counters.services
        proxy.assert_nothing_left()


async def test_counters_of_a_service_port_stay_while_any_of_its_listeners_does() -> None:
    """Families, policy classes and several Frontends of one ServicePort are counted together."""
    async with open_proxy() as proxy, open_peers() as peers:
        backend = peers.listen(echo).backend
        keys = [
            pool_key(),
            pool_key(scope=EndpointScope.LOCAL),
            pool_key(family=Family.IPV6),
        ]
        specs = [
            spec(),
            ListenerSpec(listener_key(policy=PolicyClass.EXTERNAL), ip_address(HOST), PORT + 1),
            ListenerSpec(listener_key(family=Family.IPV6), IPv6Address("::1"), 0),
        ]
        for key, wanted in zip(keys, specs, strict=True):
            proxy.listeners.apply_pool(Pool(key, (backend,), pool().balance))
            proxy.listeners.apply_listener(wanted, route(key))
        open_all(proxy)
        await assert_echoes(peers)
        await assert_echoes(peers, port=PORT + 1)
        for number, wanted in enumerate(specs):
            assert proxy.counters().connections == 2
            assert proxy.listeners.open_listeners == len(specs) - number
            proxy.listeners.remove_listener(wanted.key)
        assert not proxy.engine.counters.services


async def test_listeners_of_one_pool_share_its_turns() -> None:
    """Two Frontends of one Pool take turns over its Backends together."""
    async with open_proxy() as proxy, open_peers() as peers:
        servers = [peers.listen() for _ in range(2)]
        proxy.listeners.apply_pool(pool_of(*(server.backend for server in servers)))
        for number in range(2):
            frontend_spec = spec(port=PORT + number)
            key = evolve(frontend_spec.key, frontend=FRONTENDS[number])
            proxy.listeners.apply_listener(evolve(frontend_spec, key=key), to())
        open_all(proxy)
        for _ in range(3):
            for number in range(2):
                await peers.connect((HOST, PORT + number))
        for server in servers:
            for _ in range(3):
                await server.accept()
            assert server.accept_nowait() is None


async def test_listeners_of_one_pool_refuse_together() -> None:
    """A Pool that becomes empty has all refuse that led to it, and opens them again."""
    async with open_proxy() as proxy, open_peers() as peers:
        backend = peers.listen(echo).backend
        proxy.listeners.apply_pool(pool_of(backend))
        for number in range(2):
            key = listener_key(frontend=FRONTENDS[number])
            proxy.listeners.apply_listener(evolve(spec(port=PORT + number), key=key), to())
        for backends, is_open in (((backend,), True), ((), False), ((backend,), True)):
            proxy.listeners.apply_pool(pool_of(*backends))
            open_all(proxy)
            assert [refuses(port=PORT + number) for number in range(2)] == [not is_open] * 2


async def test_listener_at_a_port_in_use_fails_alone_and_opens_once_it_is_free(occupied: socket.socket) -> None:
    """The failure says where, for whom and because of whom; all others open; a later retry succeeds and says so."""
    async with open_proxy() as proxy, open_peers() as peers:
        backend = peers.listen(echo).backend
        for wanted in (spec(), spec("shop/other:http", port=PORT + 1)):
            name = str(wanted.key.service_port)
            proxy.listeners.apply_pool(pool_of(backend, name=name))
            proxy.listeners.apply_listener(wanted, to(name))
        outcomes = proxy.listeners.open_missing(retry=False)
        assert list(outcomes) == list(proxy.listeners.failed) == [spec().key]
        error = outcomes[spec().key]
        assert isinstance(error, ListenError)
        assert str(error).startswith(f"cannot listen on {HOST}:{PORT} for {WEB}: in use by pid {os.getpid()} (")
        await assert_echoes(peers, port=PORT + 1)

        (again,) = proxy.listeners.open_missing(retry=True).values()
        assert "in use by another process" in str(again)  # not looked for again: that is slow
        occupied.close()
        open_all(proxy)
        assert refuses()
        assert proxy.listeners.open_missing(retry=True) == {spec().key: None}
        assert not proxy.listeners.failed
        await assert_echoes(peers)
        assert proxy.listeners.open_missing(retry=True) == {}


async def test_listener_that_failed_is_not_tried_again_by_a_change_of_endpoints(occupied: socket.socket) -> None:
    """Endpoints may change many times a second: only a retry tries again."""
    async with open_proxy() as proxy, open_peers() as peers:
        proxy.listeners.apply_pool(pool_of(peers.listen(echo).backend))
        proxy.listeners.apply_listener(spec(), to())
        assert list(proxy.listeners.open_missing(retry=False)) == [spec().key]
        proxy.listeners.apply_pool(pool_of(peers.listen(echo).backend))
        open_all(proxy)
        assert list(proxy.listeners.failed) == [spec().key]


@pytest.mark.parametrize("change", ["removed", "pool empty"])
async def test_listener_taken_back_before_it_was_opened_is_not_opened(change: str) -> None:
    """Changes that cancel each other leave nothing to be done."""
    async with open_proxy() as proxy, open_peers() as peers:
        proxy.listeners.apply_pool(pool_of(peers.listen(echo).backend))
        proxy.listeners.apply_listener(spec(), to())
        if change == "removed":
            proxy.listeners.remove_listener(spec().key)
        else:
            proxy.listeners.apply_pool(pool_of())
        open_all(proxy)
        assert refuses()
        assert proxy.listeners.open_listeners == 0


@pytest.mark.parametrize("change", ["removed", "moved"])
async def test_listener_that_failed_and_is_not_wanted_any_more_is_forgotten(
    change: str, occupied: socket.socket
) -> None:
    """No retry opens what has been taken back meanwhile."""
    async with open_proxy() as proxy, open_peers() as peers:
        proxy.listeners.apply_pool(pool_of(peers.listen(echo).backend))
        proxy.listeners.apply_listener(spec(), to())
        assert list(proxy.listeners.open_missing(retry=False)) == [spec().key]
        if change == "removed":
            proxy.listeners.remove_listener(spec().key)
        else:
            proxy.listeners.apply_listener(spec(port=PORT + 1), to())
        occupied.close()
        assert proxy.listeners.open_missing(retry=True) == {}
        assert refuses()
        assert refuses(port=PORT + 1) == (change != "moved")


async def test_listeners_at_many_ports_in_use_name_only_some_holders() -> None:
    """Looking for the holders of ports is bounded, however many there are."""
    with ExitStack() as stack:
        for number in range(MAX_HOLDERS_NAMED + 2):
            stack.enter_context(socket.create_server((HOST, PORT + number)))
        async with open_proxy() as proxy, open_peers() as peers:
            backend = peers.listen(echo).backend
            for number in range(MAX_HOLDERS_NAMED + 2):
                name = f"shop/web{number}:http"
                proxy.listeners.apply_pool(pool_of(backend, name=name))
                proxy.listeners.apply_listener(spec(name, port=PORT + number), to(name))
            texts = [str(error) for error in proxy.listeners.open_missing(retry=False).values()]
            assert sum("in use by pid" in text for text in texts) == MAX_HOLDERS_NAMED
            assert sum("in use by another process" in text for text in texts) == 2


async def test_report_bytes_counts_connections_that_are_still_open() -> None:
    """A scrape in the middle of a long connection sees its bytes, and none of them twice."""
    async with open_proxy() as proxy, open_peers() as peers:
        proxy.listeners.apply_pool(pool_of(peers.listen(echo).backend))
        proxy.listeners.apply_listener(spec(), to())
        open_all(proxy)
        client = await peers.connect((HOST, PORT))
        for rounds in range(1, 4):
            await assert_answers(client)
            for _ in range(2):
                proxy.served.report()
                counters = proxy.counters()
                assert (counters.bytes_to_backend, counters.bytes_to_client) == (4 * rounds, 4 * rounds)
        client.close()
        await proxy.until_idle()
        assert (proxy.counters().bytes_to_backend, proxy.counters().bytes_to_client) == (12, 12)


async def test_report_bytes_of_a_connection_without_a_backend_is_nothing() -> None:
    """A connection that is being dialled has moved nothing yet."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        client = await peers.connect(proxy.serve(hole.backend))
        await client.send(b"waits")
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.served.report()
        assert (proxy.counters().bytes_to_backend, proxy.counters().bytes_to_client) == (0, 0)


async def test_close_listeners_accepts_no_more_and_leaves_connections_alone() -> None:
    """The first half of stopping: new clients are refused, open connections go on, and are reset by the second."""
    with nothing_left_open():
        async with open_proxy() as proxy, open_peers() as peers:
            server = peers.listen()
            proxy.listeners.apply_pool(pool_of(server.backend))
            proxy.listeners.apply_listener(spec(), to())
            open_all(proxy)
            client, backend = await connect_through(peers, (HOST, PORT), server)
            counters = proxy.counters()
            proxy.listeners.close_listeners()
            assert refuses()
            assert proxy.listeners.open_listeners == 0
            await client.send(b"still here")
            assert await backend.receive(10) == b"still here"
            proxy.served.abort()
            assert await client.receive_to_end() == (b"", End.RST)
            assert await backend.receive_to_end() == (b"", End.RST)
            assert proxy.served.open_relays == 0
            assert counters.closed == {CloseReason.KILLED_OPEN.value: 1}
            proxy.assert_nothing_left()


async def test_client_in_the_queue_of_a_listener_that_closes_is_reset() -> None:
    """Nobody waits for an answer that cannot come."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        client = await peers.connect(proxy.serve(peers.listen(echo).backend))
        proxy.listeners.close_listeners()
        assert await client.receive_to_end() == (b"", End.RST)


async def test_connections_to_backends_that_leave_the_pool_live_on() -> None:
    """A change of endpoints touches no socket."""
    async with open_proxy() as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        client = await peers.connect(address)
        await assert_answers(client)
        proxy.set_pool(peers.listen(echo).backend)
        await assert_answers(client)
        await assert_echoes(peers, *address)
        client.close()
        await proxy.until(lambda: proxy.closed() == {CloseReason.NORMAL: 1})


async def test_cap_counts_for_each_listener_apart() -> None:
    """One Service at its cap takes nothing from another."""
    async with open_proxy(RelayLimits(max_connections=1)) as proxy, open_peers() as peers:
        backend = peers.listen(echo).backend
        addresses = [proxy.serve(backend, name=f"shop/web{number}:http") for number in range(2)]
        for address in addresses:
            await assert_echoes(peers, *address)
        waiting = await peers.connect(addresses[0])
        await waiting.send(b"ping")
        await trio.testing.wait_all_tasks_blocked()
        assert proxy.served.open_relays == 2

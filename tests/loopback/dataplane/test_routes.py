"""Routes of listeners: who is served, who is reset at the door, and that a change disturbs nobody who is inside."""

import logging
import socket

import pytest
from attrs import evolve
from builders import backend, frontend, listener_key, pool, pool_key, route
from engine_driver import WEB, Proxy, VirtualClock, open_proxy
from peers import End, Peer, Peers, echo, greet, nothing_left_open, open_peers, own_host

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.tcp_listener import TcpListener
from userspace_proxy.model.names import Family
from userspace_proxy.plan.state import (
    Backend,
    EndpointScope,
    FrontendKind,
    ListenerSpec,
    PolicyClass,
    Pool,
    PoolKey,
    Route,
    SourceAddresses,
    Verdict,
)

CONNECTION_LOG = "userspace_proxy.connections"
CLUSTER, LOCAL = pool_key(), pool_key(scope=EndpointScope.LOCAL)
EXTERNAL = listener_key(policy=PolicyClass.EXTERNAL)
EXTERNAL_LOCAL = Route(CLUSTER, CLUSTER, LOCAL)
ALL_CLUSTER = route(CLUSTER)


def set_pool(proxy: Proxy, key: PoolKey, *backends: Backend) -> None:
    """Put a Pool in force; no listener is opened or closed yet."""
    proxy.listeners.apply_pool(evolve(pool(key=key), backends=backends))


def greeting_pools(proxy: Proxy, peers: Peers) -> None:
    """Put two Pools in force whose Backends say their names."""
    set_pool(proxy, CLUSTER, peers.listen(greet(b"cluster")).backend)
    set_pool(proxy, LOCAL, peers.listen(greet(b"local..")).backend)


async def greeting(peers: Peers, address: tuple[str, int], host: str = "127.0.0.1") -> bytes:
    """Return what a client at a host is greeted with; nothing if it is reset."""
    try:
        client = await peers.connect(address, source=(host, 0))
        return await client.receive_some()
    except ConnectionError:
        return b""


async def assert_answers(client: Peer) -> None:
    """Fail unless an open connection gets an echo."""
    await client.send(b"ping")
    assert await client.receive(4) == b"ping"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param(EXTERNAL_LOCAL, b"cluster", id="policy local, node"),
        pytest.param(Route(LOCAL, CLUSTER, LOCAL), b"cluster", id="node apart"),
        pytest.param(ALL_CLUSTER, b"cluster", id="policy cluster"),
        pytest.param(route(LOCAL), b"local..", id="policy local for everybody"),
        pytest.param(evolve(EXTERNAL_LOCAL, host=Verdict.DROP), b"", id="node denied"),
        pytest.param(route(CLUSTER, source_ranges=["198.51.100.0/24"]), b"", id="out of range"),
        pytest.param(route(CLUSTER, source_ranges=["127.0.0.0/8"]), b"cluster", id="in range"),
    ],
)
async def test_d_3_client_is_led_to_the_pool_of_its_class(wanted: Route, expected: bytes) -> None:
    """A client at loopback is this node, whatever else is known."""
    with nothing_left_open():
        async with open_proxy() as proxy, open_peers() as peers:
            greeting_pools(proxy, peers)
            address = proxy.listen(EXTERNAL, wanted)
            assert await greeting(peers, address) == expected


async def test_d_3_client_without_a_pool_is_reset_and_counted_apart(caplog: pytest.LogCaptureFixture) -> None:
    """It gets RST at once, costs no Backend a dial, leaves one record, and does not count as open."""
    caplog.set_level(logging.INFO, CONNECTION_LOG)
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        greeting_pools(proxy, peers)
        client = await peers.connect(proxy.listen(EXTERNAL, evolve(EXTERNAL_LOCAL, host=Verdict.DROP)))
        await proxy.poll_until(lambda: proxy.counters().connections)
        assert await client.receive_to_end() == (b"", End.RST)
        assert proxy.closed() == {CloseReason.DENIED: 1}
        assert (proxy.counters().active, proxy.counters().dials) == (0, {})
        (record,) = caplog.records
        expected = {
            "service": WEB,
            "client": f"127.0.0.1 port {client.sock.getsockname()[1]}",
            "backend": None,
            "reason": "PA",
            "dial_duration_s": 0.0,
            "duration_s": 0.0,
            "bytes_to_backend": 0,
            "bytes_to_client": 0,
        }
        assert {key: vars(record)[key] for key in expected} == expected
        proxy.assert_nothing_left()


async def test_clients_that_are_reset_at_the_door_take_no_room() -> None:
    """They do not count towards the cap of connections."""
    denying = route(CLUSTER, source_ranges=["127.0.0.2/32"])
    async with open_proxy(RelayLimits(max_connections=1)) as proxy, open_peers() as peers:
        greeting_pools(proxy, peers)
        address = proxy.listen(EXTERNAL, denying)
        for _ in range(3):
            assert await greeting(peers, address) == b""
        assert await greeting(peers, address, "127.0.0.2") == b"cluster"
        assert proxy.closed() == {CloseReason.DENIED: 3}


@pytest.mark.parametrize("gone", ["empty", "removed"])
async def test_e_4_client_whose_pool_has_just_gone_is_reset(gone: str) -> None:
    """Between the change of a Pool and that of the Route a client may slip in: it is reset as for want of a Backend."""
    async with open_proxy() as proxy, open_peers() as peers:
        greeting_pools(proxy, peers)
        address = proxy.listen(EXTERNAL, EXTERNAL_LOCAL)
        if gone == "empty":
            set_pool(proxy, CLUSTER)
        else:
            proxy.listeners.remove_pool(CLUSTER)
        assert await greeting(peers, address) == b""
        assert proxy.closed() == {CloseReason.NO_BACKEND: 1}


async def test_client_of_the_only_pool_that_has_just_gone_is_reset() -> None:
    """The same where the Route leads everybody to one Pool; it is used again as soon as it is back."""
    async with open_proxy() as proxy, open_peers() as peers:
        server = peers.listen(greet(b"hello"))
        set_pool(proxy, CLUSTER, server.backend)
        address = proxy.listen(EXTERNAL, ALL_CLUSTER)
        proxy.listeners.remove_pool(CLUSTER)
        assert await greeting(peers, address) == b""
        assert proxy.closed() == {CloseReason.NO_BACKEND: 1}
        set_pool(proxy, CLUSTER, server.backend)
        assert await greeting(peers, address) == b"hello"


async def test_sources_hold_for_the_next_client() -> None:
    """What is known of this node's addresses decides whom its ranges let in."""
    async with open_proxy() as proxy, open_peers() as peers:
        greeting_pools(proxy, peers)
        address = proxy.listen(EXTERNAL, route(CLUSTER, source_ranges=["192.0.2.0/24"]))
        assert await greeting(peers, address) == b""
        proxy.listeners.apply_sources(SourceAddresses((), frozenset({backend("192.0.2.1:0").address})))
        assert await greeting(peers, address) == b"cluster"


class SteeredSocket(socket.socket):
    """A listening socket to which all packets from one address were led."""

    def _accept(self) -> tuple[int, tuple[str, int]]:
        fd, (_, port) = super()._accept()  # type: ignore[misc]
        return fd, ("198.18.0.1", port)


@pytest.mark.parametrize("dialled", ["198.18.0.1", "198.18.0.2"])
async def test_d_6_node_that_dials_its_own_load_balancer_address_is_told_by_the_frontend(dialled: str) -> None:
    """Where packets were led elsewhere the socket does not have the address that was dialled: the Frontend has."""
    own = frontend(f"{dialled}:80", kind=FrontendKind.LOAD_BALANCER)
    async with open_proxy() as proxy, open_peers() as peers:
        greeting_pools(proxy, peers)
        proxy.listeners.apply_sources(SourceAddresses((), frozenset({backend("192.0.2.1:0").address})))
        sock = SteeredSocket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        listener = TcpListener(
            engine=proxy.engine,
            spec=ListenerSpec(listener_key(policy=PolicyClass.EXTERNAL, frontend=own), backend().address, 0),
            pools=proxy.served.live_pools,
            route=route(CLUSTER, source_ranges=["192.0.2.0/24"]),
            limits=RelayLimits(),
            counters=proxy.counters(),
            relays=proxy.served._relays,
            on_stopped=proxy.listeners.listen_again,
        )
        with sock:
            listener.open(sock, is_shared=False)
            assert await greeting(peers, sock.getsockname()) == (b"cluster" if dialled == "198.18.0.1" else b"")
            listener.stop()


@pytest.mark.parametrize("driven_before", [True, False], ids=["open", "queued"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(ALL_CLUSTER, EXTERNAL_LOCAL, id="cluster to local"),
        pytest.param(EXTERNAL_LOCAL, ALL_CLUSTER, id="local to cluster"),
        pytest.param(ALL_CLUSTER, route(LOCAL), id="all to local"),
    ],
)
async def test_change_of_the_route_touches_no_client(before: Route, after: Route, driven_before: bool) -> None:  # noqa: FBT001
    """A switch of the traffic policy moves neither connections nor clients in the queue; the socket stays."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen(echo)
        set_pool(proxy, CLUSTER, server.backend)
        set_pool(proxy, LOCAL, server.backend)
        address = proxy.listen(EXTERNAL, before)
        client = await peers.connect(address)
        async with proxy.driving():
            if driven_before:
                await assert_answers(client)
        proxy.listeners.apply_route(EXTERNAL, after)
        proxy.open_all()
        assert proxy.address(EXTERNAL) == address
        async with proxy.driving():
            await assert_answers(client)


@pytest.mark.parametrize("route_first", [True, False])
async def test_route_and_pools_may_come_in_any_order(route_first: bool) -> None:  # noqa: FBT001
    """A listener that is served before and after a change is never closed in between, whatever came first."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen(echo)
        set_pool(proxy, CLUSTER, server.backend)
        address = proxy.listen(EXTERNAL, ALL_CLUSTER)
        client = await peers.connect(address)
        if route_first:
            proxy.listeners.apply_route(EXTERNAL, route(LOCAL))
        proxy.listeners.remove_pool(CLUSTER)
        set_pool(proxy, LOCAL, server.backend)
        if not route_first:
            proxy.listeners.apply_route(EXTERNAL, route(LOCAL))
        proxy.open_all()
        async with proxy.driving():
            await assert_answers(client)
        assert proxy.address(EXTERNAL) == address


async def test_listener_is_open_while_any_class_of_clients_is_served() -> None:
    """A Pool without Backends closes nothing where another one has some; with the last one the socket goes."""
    async with open_proxy() as proxy, open_peers() as peers:
        server = peers.listen(greet(b"hello"))
        set_pool(proxy, CLUSTER, server.backend)
        set_pool(proxy, LOCAL)
        address = proxy.listen(EXTERNAL, EXTERNAL_LOCAL)
        set_pool(proxy, LOCAL, server.backend)
        set_pool(proxy, CLUSTER)
        proxy.open_all()
        assert proxy.listeners.open_listeners == 1
        assert await greeting(peers, address) == b""
        proxy.listeners.apply_route(EXTERNAL, route(Verdict.REJECT))
        proxy.open_all()
        assert proxy.listeners.open_listeners == 0
        with pytest.raises(ConnectionRefusedError):
            await peers.connect(address)
        proxy.listeners.apply_route(EXTERNAL, route(LOCAL))
        proxy.open_all()
        assert await greeting(peers, proxy.address(EXTERNAL)) == b"hello"


async def test_relay_goes_on_with_the_pool_it_began_with() -> None:
    """A client that is being dialled for is not moved to the Pool of another Route."""
    async with open_proxy(clock=VirtualClock(), driven=False) as proxy, open_peers() as peers:
        hole = await peers.black_hole()
        set_pool(proxy, CLUSTER, hole.backend)
        set_pool(proxy, LOCAL, peers.listen(echo).backend)
        await peers.connect(proxy.listen(EXTERNAL, ALL_CLUSTER))
        await proxy.poll_until(lambda: proxy.served.open_relays)
        proxy.listeners.apply_route(EXTERNAL, route(LOCAL))
        proxy.open_all()
        proxy.advance(2.0)
        assert proxy.closed() == {CloseReason.BACKEND_DIALLING: 1}


async def test_counters_of_a_service_made_again_know_its_open_connections() -> None:
    """A Service that is deleted and made again counts the connections that outlived it as open, and their bytes."""
    host = own_host(2)
    async with open_proxy() as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend, host=host)
        client = await peers.connect(address)
        await assert_answers(client)
        key = listener_key()
        for outlives in (True, False):
            proxy.listeners.remove_listener(key)
            assert not proxy.engine.counters.services
            if not outlives:
                client.close()
                await proxy.until_idle()
            proxy.listeners.apply_listener(ListenerSpec(key, backend(f"{host}:0").address, 0), route())
            proxy.open_all()
            assert (proxy.counters().active, proxy.counters().connections) == ((1, 1) if outlives else (0, 0))


async def test_d_3_ipv6_client_is_led_by_its_class() -> None:
    """The class of an IPv6 client is told in the same way."""
    keys = [pool_key(scope=scope, family=Family.IPV6) for scope in EndpointScope]
    async with open_proxy() as proxy, open_peers() as peers:
        for key, name in zip(keys, (b"cluster", b"local.."), strict=True):
            proxy.listeners.apply_pool(Pool(key, (peers.listen(greet(name)).backend,), pool().balance))
        listener = listener_key(policy=PolicyClass.EXTERNAL, family=Family.IPV6)
        address = proxy.listen(listener, Route(keys[0], keys[0], keys[1]), host="::1")
        assert await greeting(peers, address, "::1") == b"cluster"
        proxy.listeners.apply_route(listener, Route(keys[0], Verdict.DROP, keys[1]))
        assert await greeting(peers, address, "::1") == b""

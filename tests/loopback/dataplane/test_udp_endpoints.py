"""Endpoints that come, go and move under open flows: no datagram is lost, and answers in flight are delivered."""

import socket
from ipaddress import ip_address

import pytest
from attrs import evolve
from builders import pool_key, route, udp_settings
from engine_driver import DNS, Proxy, stepped_proxy, udp_listener_key
from peers import is_taken, nothing_left_open, own_host
from udp_peers import UdpPeer, UdpPeers, UdpServer, flush_loopback, open_udp_peers, own_port

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.model.names import Protocol, family_of
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import EndpointScope, ListenerSpec, Pool, UdpSettings

LINGER_S = 5.0
"""For so long late answers are delivered."""

HOST = own_host(3)
PORT, OTHER_PORT = own_port(1), own_port(2)
SOON_S = 1 / 1024
PLACES = [HOST, "0.0.0.0", "::1", "::"]
in_every_place = pytest.mark.parametrize("host", PLACES)


def loopback_of(host: str) -> str:
    """Return the loopback address of the family of a host."""
    return "::1" if ":" in host else "127.0.0.1"


def assert_lost(proxy: Proxy, **lost: int) -> None:
    """Fail unless exactly these datagrams were dropped, by reason."""
    assert {str(reason): count for reason, count in proxy.flow_counters().dropped.items() if count} == lost


def ask(proxy: Proxy, client: UdpPeer, *datagrams: bytes) -> None:
    """Have datagrams of a client passed on."""
    client.send(*(datagrams or (b"ping",)))
    proxy.pass_on()


def answer(proxy: Proxy, server: UdpServer, *answers: bytes) -> None:
    """Have answers to the first who has sent to a Backend passed on."""
    server.take()
    server.answer(*answers, to=server.senders[0])
    proxy.pass_on()


@in_every_place
def test_flow_whose_endpoint_leaves_goes_elsewhere_with_the_next_datagram(host: str) -> None:
    """No datagram is lost; answers that are late are delivered for 5 s, from the right address, and no longer."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        old, new = (peers.server(loopback_of(host)) for _ in range(2))
        address = proxy.serve_udp(old.backend, host=host)
        client = peers.client(address)
        ask(proxy, client, b"1", b"2")
        assert old.take() == [b"1", b"2"]
        proxy.set_udp_pool(new.backend, family=proxy.udp_listeners()[0].spec.key.family)
        ask(proxy, client, b"3", b"4")
        assert (old.take(), new.take()) == ([], [b"3", b"4"])
        answer(proxy, old, b"to 1")
        answer(proxy, new, b"to 3")
        assert client.take() == [b"to 1", b"to 3"]
        proxy.advance(LINGER_S - SOON_S)
        answer(proxy, old, b"to 2")
        assert client.take() == [b"to 2"]
        proxy.advance(2 * SOON_S)
        answer(proxy, old, b"too late")
        answer(proxy, new, b"to 4")
        assert client.take() == [b"to 4"]
        assert_lost(proxy)
        assert proxy.flow_counters().ended == {FlowEnd.ENDPOINT_GONE: 1}
        assert proxy.flow_counters().active == 1


def test_flow_whose_endpoint_leaves_lingers_from_then_on_and_not_from_the_last_event() -> None:
    """The engine may have been idle for seconds when the change comes: late answers still have their 5 s."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        old, new = peers.server(), peers.server()
        client = peers.client(proxy.serve_udp(old.backend, udp=udp_settings(idle_timeout_s=3600.0)))
        ask(proxy, client)
        proxy.advance(LINGER_S - SOON_S)
        proxy.set_udp_pool(new.backend)
        proxy.advance(LINGER_S - SOON_S)
        answer(proxy, old, b"pong")
        assert client.take() == [b"pong"]
        proxy.advance(2 * SOON_S)
        proxy.assert_nothing_left()


def test_flow_that_lingers_ends_also_where_the_clock_is_rounded() -> None:
    """A time and 5 s added to it are not always 5 s apart: at 1024 floats become twice as coarse."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client = peers.client(proxy.serve_udp(peers.server().backend))
        before_s = 1019.004
        assert before_s + LINGER_S - before_s < LINGER_S
        proxy.clock.now_s = before_s  # type: ignore[attr-defined]
        ask(proxy, client)
        proxy.set_udp_pool(peers.server().backend)
        proxy.advance(LINGER_S)
        proxy.assert_nothing_left()


def test_flow_whose_endpoint_serves_still_keeps_it() -> None:
    """Terminating but serving, or taken out of the Pool by a policy only: the flow stays; new flows go elsewhere."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        old, new = peers.server(), peers.server()
        address = proxy.serve_udp(old.backend)
        client = peers.client(address)
        ask(proxy, client)
        serving = UdpSettings(serving=frozenset({old.backend}))
        proxy.set_udp_pool(new.backend, udp=serving)
        proxy.advance(LINGER_S + 1.0)
        ask(proxy, client)
        ask(proxy, peers.client(address), b"other")
        assert (old.take(), new.take()) == ([b"ping"] * 2, [b"other"])
        answer(proxy, old, b"pong")
        assert client.take() == [b"pong"]
        proxy.set_udp_pool(new.backend)
        ask(proxy, client, b"more")
        assert (old.take(), new.take()) == ([], [b"more"])
        assert_lost(proxy)


def test_flow_whose_endpoint_leaves_the_pool_and_stops_to_serve_later_goes_then() -> None:
    """Also where the Pool changes several times in between."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        old, new, third = (peers.server() for _ in range(3))
        client = peers.client(proxy.serve_udp(old.backend))
        ask(proxy, client)
        serving = UdpSettings(serving=frozenset({old.backend}))
        proxy.set_udp_pool(new.backend, udp=serving)
        proxy.set_udp_pool(new.backend, third.backend, udp=serving)
        ask(proxy, client)
        assert old.take() == [b"ping"] * 2
        proxy.set_udp_pool(new.backend, third.backend)
        ask(proxy, client)
        assert (old.take(), new.take() + third.take()) == ([], [b"ping"])
        proxy.set_udp_pool(old.backend)
        ask(proxy, client)
        assert old.take() == [b"ping"]
        proxy.advance(LINGER_S)
        assert proxy.flow_counters().ended == {FlowEnd.ENDPOINT_GONE: 2}


def test_flow_goes_on_when_its_pool_gives_way_to_that_of_another_scope() -> None:
    """A change of traffic policy: the Endpoint serves as before, so the flow stays, until the Endpoint does not."""
    local = pool_key(DNS, EndpointScope.LOCAL, protocol=Protocol.UDP)
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        old, new = peers.server(), peers.server()
        address = proxy.serve_udp(old.backend)
        client = peers.client(address)
        ask(proxy, client)
        serving = UdpSettings(serving=frozenset({old.backend}))
        proxy.listeners.apply_pool(Pool(local, (new.backend,), Balance.ROUND_ROBIN, None, serving))
        proxy.listeners.apply_route(udp_listener_key(), route(local))
        proxy.listeners.remove_pool(evolve(local, scope=EndpointScope.CLUSTER))
        proxy.open_all()
        ask(proxy, client)
        ask(proxy, peers.client(address), b"other")
        assert (old.take(), new.take()) == ([b"ping"] * 2, [b"other"])
        proxy.listeners.apply_pool(Pool(local, (new.backend,), Balance.ROUND_ROBIN, None, UdpSettings()))
        proxy.open_all()
        ask(proxy, client)
        assert (old.take(), new.take()) == ([], [b"ping"])
        assert_lost(proxy)


def test_flow_taken_over_by_the_pool_of_another_scope_follows_its_settings() -> None:
    """An idle time-out that is edited after a change of policy holds for flows from before it too."""
    local = pool_key(DNS, EndpointScope.LOCAL, protocol=Protocol.UDP)
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        backend = peers.server().backend
        client = peers.client(proxy.serve_udp(backend, udp=udp_settings(idle_timeout_s=3600.0)))
        ask(proxy, client)
        proxy.listeners.apply_pool(Pool(local, (backend,), Balance.ROUND_ROBIN, None, udp_settings(idle_timeout_s=10)))
        proxy.listeners.apply_route(udp_listener_key(), route(local))
        proxy.listeners.remove_pool(evolve(local, scope=EndpointScope.CLUSTER))
        proxy.open_all()
        proxy.advance(20.0)
        proxy.assert_nothing_left()


def test_flow_whose_endpoint_changes_its_port_follows_it() -> None:
    """The same address with another port is another Backend; 0 lost."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        old, new = peers.server(HOST), peers.server(HOST)
        client = peers.client(proxy.serve_udp(old.backend))
        for server in (old, new, old, new):
            proxy.set_udp_pool(server.backend)
            ask(proxy, client)
            assert server.take() == [b"ping"]
        assert (old.take(), new.take()) == ([], [])
        assert_lost(proxy)
        proxy.advance(LINGER_S)
        assert proxy.flow_counters().ended == {FlowEnd.ENDPOINT_GONE: 3}


def one_way_sender(proxy: Proxy, peers: UdpPeers, host: str) -> tuple[UdpPeer, UdpServer, tuple[str, int]]:
    """Return a client that sends to a Backend, through a listener at a known port."""
    server = peers.server(loopback_of(host))
    address = proxy.serve_udp(server.backend, host=host, port=PORT)
    client = peers.client(address)
    ask(proxy, client)
    assert server.take() == [b"ping"]
    return client, server, address


def set_backends(proxy: Proxy, host: str, *servers: UdpServer) -> None:
    """Put a Pool in force for the family of a host."""
    (listener,) = proxy.udp_listeners()
    proxy.set_udp_pool(*(server.backend for server in servers), family=listener.spec.key.family)
    assert ":" in host or listener.spec.key.family.value != "IPv6"


@in_every_place
def test_listener_without_backends_refuses_and_recovers_with_the_first_datagram(host: str) -> None:
    """1 -> 0 -> 1 under one-way traffic: refused while 0, nothing stuck to what is gone, nothing lost after."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client, _, address = one_way_sender(proxy, peers, host)
        for waits in (0.0, LINGER_S - SOON_S, LINGER_S + SOON_S):
            set_backends(proxy, host)
            assert proxy.listeners.open_listeners == 0
            proxy.advance(waits)
            assert client.is_refused()
            assert peers.client(address).is_refused()
            new = peers.server(loopback_of(host))
            set_backends(proxy, host, new)
            ask(proxy, client, b"1", b"2")
            assert new.take() == [b"1", b"2"]
        proxy.advance(LINGER_S)
        assert_lost(proxy)
        assert proxy.flow_counters().ended == {FlowEnd.ENDPOINT_GONE: 3}
        assert proxy.flow_counters().active == 1


@in_every_place
def test_listener_without_backends_delivers_late_answers_for_5_s(host: str) -> None:
    """The kernel refuses what comes, while what the last Backend still says leaves from the right address."""
    flush_loopback()
    with nothing_left_open(), stepped_proxy() as proxy, open_udp_peers() as peers:
        client, server, _ = one_way_sender(proxy, peers, host)
        set_backends(proxy, host)
        assert client.is_refused()
        answer(proxy, server, b"late")
        assert client.take() == [b"late"]
        proxy.advance(LINGER_S - SOON_S)
        answer(proxy, server, b"", bytes(60000))
        assert client.take() == [b"", bytes(60000)]
        assert client.is_refused()
        proxy.advance(2 * SOON_S)
        answer(proxy, server, b"too late")
        assert client.take() == []
        assert client.is_refused()
        assert not proxy.engine.handlers
        assert proxy.served.open_flows == 0


@in_every_place
def test_listener_that_comes_back_within_5_s_delivers_answers_from_before(host: str) -> None:
    """1 -> 0 -> 1 -> 0 -> 1: each Backend's late answers have 5 s, by whatever socket the listener has now."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client, first, _ = one_way_sender(proxy, peers, host)
        set_backends(proxy, host)
        proxy.advance(1.0)
        second, third = (peers.server(loopback_of(host)) for _ in range(2))
        set_backends(proxy, host, second)
        ask(proxy, client, b"to second")
        answer(proxy, first, b"from first")
        answer(proxy, second, b"from second")
        assert client.take() == [b"from first", b"from second"]
        proxy.advance(1.0)
        set_backends(proxy, host)
        assert client.is_refused()
        answer(proxy, first, b"from first")
        answer(proxy, second, b"from second")
        assert client.take() == [b"from first", b"from second"]
        proxy.advance(3.0)
        answer(proxy, first, b"too late")
        answer(proxy, second, b"in time")
        assert client.take() == [b"in time"]
        set_backends(proxy, host, third)
        ask(proxy, client, b"to third")
        answer(proxy, third, b"from third")
        answer(proxy, second, b"in time")
        assert client.take() == [b"from third", b"in time"]
        proxy.advance(2.0)
        answer(proxy, second, b"too late")
        answer(proxy, third, b"from third")
        assert client.take() == [b"from third"]
        assert second.take() == first.take() == []
        assert_lost(proxy)


def test_datagrams_that_wait_when_the_last_backend_goes_are_counted() -> None:
    """They were received, and there is nobody for them."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client, server, _ = one_way_sender(proxy, peers, HOST)
        client.send(*[b"wait"] * 100)
        set_backends(proxy, HOST)
        proxy.pass_on()
        assert server.take() == []
        assert proxy.engine.counters.udp_services[DNS].dropped[DropReason.NO_ENDPOINT] == 100


@in_every_place
def test_listener_without_backends_keeps_its_port(host: str) -> None:
    """However long it has none, nobody else gets the place; the moment the listener is removed, everybody may."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        one_way_sender(proxy, peers, host)
        set_backends(proxy, host)
        proxy.advance(LINGER_S + SOON_S)
        assert is_taken(host, PORT, socket.SOCK_DGRAM)
        proxy.listeners.remove_listener(udp_listener_key(family=family_of(ip_address(host))))
        assert not is_taken(host, PORT, socket.SOCK_DGRAM)


def test_listener_that_comes_back_where_an_address_is_taken_meanwhile_fails_and_is_tried_again() -> None:
    """A port at the wildcard address cannot be held at each single one: who has taken one is named, nothing is lost."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client, server, _ = one_way_sender(proxy, peers, "0.0.0.0")
        set_backends(proxy, "0.0.0.0")
        thief = peers.server(HOST, PORT)
        pool = Pool(pool_key(DNS, protocol=Protocol.UDP), (server.backend,), Balance.ROUND_ROBIN, None, UdpSettings())
        proxy.listeners.apply_pool(pool)
        (error,) = proxy.listeners.open_missing(retry=False).values()
        assert f"cannot listen on 0.0.0.0:{PORT} for {DNS}: in use by pid " in str(error)
        assert client.is_refused()
        answer(proxy, server, b"late")
        assert client.take() == [b"late"]
        thief.sock.close()
        assert proxy.listeners.open_missing(retry=True) == {udp_listener_key(): None}
        ask(proxy, client)
        assert server.take() == [b"ping"]


@pytest.mark.parametrize("is_retired", [False, True], ids=["open", "retired"])
def test_service_that_is_removed_passes_nothing_on_from_then_on(is_retired: bool) -> None:  # noqa: FBT001
    """No datagram leaves in either direction, not even one that has been received; nothing lingers."""
    flush_loopback()
    with nothing_left_open(), stepped_proxy() as proxy, open_udp_peers() as peers:
        client, server, _ = one_way_sender(proxy, peers, HOST)
        if is_retired:
            set_backends(proxy, HOST)
        else:
            client.send(b"waits in the listener")
        server.answer(b"waits in the flow")
        counters = proxy.flow_counters()
        proxy.listeners.remove_listener(udp_listener_key())
        assert proxy.served.open_flows == 0
        assert not proxy.engine.handlers
        assert client.is_refused()
        server.answer(b"too late")
        proxy.pass_on()
        assert (client.take(), server.take()) == ([], [])
        assert counters.ended == {FlowEnd.SERVICE_GONE: 1}
        assert (counters.active, counters.datagrams_to_client) == (0, 0)
        proxy.advance(LINGER_S)


def test_service_that_is_removed_closes_the_sockets_of_its_flows_at_once() -> None:
    """Not at the next event, which on a quiet node may be long in coming."""
    flush_loopback()
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        clients = [peers.client(address) for _ in range(10)]
        with nothing_left_open():
            for client in clients:
                ask(proxy, client)
            proxy.listeners.remove_listener(udp_listener_key())
            peers.client(address).sock.close()
            proxy.serve_udp(server.backend)


def test_service_that_moves_ends_its_flows_at_the_old_place() -> None:
    """Another port of the proxy: what is sent to the old one is refused, the first datagram to the new one arrives."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client, server, _ = one_way_sender(proxy, peers, HOST)
        proxy.listeners.apply_listener(
            ListenerSpec(udp_listener_key(), proxy.udp_listeners()[0].spec.address, OTHER_PORT),
            route(pool_key(DNS, protocol=Protocol.UDP)),
        )
        proxy.open_all()
        assert client.is_refused()
        ask(proxy, peers.client((HOST, OTHER_PORT)), b"moved")
        assert server.take() == [b"moved"]
        assert proxy.flow_counters().ended == {FlowEnd.SERVICE_GONE: 1}


def test_listeners_closed_at_the_end_deliver_late_answers_until_flows_are_closed() -> None:
    """A proxy that stops takes no more datagrams, and lets answers come while connections drain."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        client, server, _ = one_way_sender(proxy, peers, HOST)
        counters = proxy.flow_counters()
        proxy.listeners.close_listeners()
        assert client.is_refused()
        answer(proxy, server, b"late")
        assert client.take() == [b"late"]
        proxy.served.abort()
        answer(proxy, server, b"too late")
        assert client.take() == []
        assert counters.ended == {FlowEnd.STOPPED: 1}
        assert not proxy.engine.handlers


def test_flows_that_were_silent_for_long_end_when_the_listeners_are_closed() -> None:
    """Nobody waits for answers to what was asked long ago; to what was asked just now there may be some."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        address = proxy.serve_udp(server.backend)
        silent, busy = (peers.client(address) for _ in range(2))
        ask(proxy, silent)
        proxy.advance(LINGER_S + 1.0)
        ask(proxy, busy)
        proxy.listeners.close_listeners()
        assert [flow.client for flow in proxy.flows()] == [busy.address]
        proxy.advance(LINGER_S)
        proxy.assert_nothing_left()


def test_change_of_other_backends_leaves_flows_where_they_are() -> None:
    """A Pool that grows and shrinks around a Backend does not touch its flows."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server, *others = (peers.server() for _ in range(5))
        client = peers.client(proxy.serve_udp(server.backend))
        for number in range(20):
            proxy.set_udp_pool(server.backend, *(other.backend for other in others[number % 4 :]))
            ask(proxy, client)
        assert server.take() == [b"ping"] * 20
        assert proxy.flow_counters().flows == 1

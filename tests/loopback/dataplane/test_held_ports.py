"""Ports of listeners without Backends: clients are refused at once, nobody else gets the port, and nothing leaks."""

import os
import socket
from ipaddress import ip_address

import pytest
from attrs import evolve
from builders import listener_key, pool_key, route
from engine_driver import DNS, WEB, Proxy, fill_epoll, open_proxy, stepped_proxy
from peers import (
    End,
    Peers,
    count_descriptors,
    descriptors_left,
    destroy,
    echo,
    greet,
    is_taken,
    nothing_left_open,
    open_peers,
    own_host,
    unprivileged,
)
from udp_peers import flush_loopback, open_udp_peers, own_port

from userspace_proxy.errors import ListenError
from userspace_proxy.model.names import Protocol, family_of
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import Backend, ListenerSpec, Pool, UdpSettings

HOST = own_host(9)
PORT, OTHER_PORT = own_port(3), own_port(4)
PLACES = [HOST, "0.0.0.0", "::1", "::"]
ELSEWHERE = "192.0.2.1"
"""An address of no machine (RFC 5737)."""
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
in_every_place = pytest.mark.parametrize("host", PLACES)
KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
NAMES = {Protocol.TCP: WEB, Protocol.UDP: DNS}
of_every_protocol = pytest.mark.parametrize("protocol", NAMES)


def spec_of(protocol: Protocol, host: str = HOST, port: int = PORT, name: str = "") -> ListenerSpec:
    """Return the place of the one listener of a ServicePort."""
    address = ip_address(host)
    key = listener_key(name or NAMES[protocol], family=family_of(address), protocol=protocol)
    return ListenerSpec(key, address, port)


def want(proxy: Proxy, spec: ListenerSpec, *backends: Backend) -> None:
    """Ask for a listener with a Pool of these Backends; nothing is opened yet."""
    name = spec.key.service_port
    key = pool_key(str(name), family=spec.key.family, protocol=name.protocol)
    udp = UdpSettings() if name.protocol is Protocol.UDP else None
    proxy.listeners.apply_pool(Pool(key, backends, Balance.ROUND_ROBIN, None, udp))
    proxy.listeners.apply_listener(spec, route(key))


def failure(proxy: Proxy, *, retry: bool = False) -> str:
    """Open what is missing; return why the one listener that fails does."""
    (error,) = proxy.listeners.open_missing(retry=retry).values()
    assert isinstance(error, ListenError)
    return str(error)


def refuses(host: str = HOST, port: int = PORT) -> bool:
    """Return whether TCP clients are refused."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        try:
            sock.connect((LOOPBACK.get(host, host), port))
        except ConnectionRefusedError:
            return True
        return False


async def assert_echoes(peers: Peers, host: str = HOST, port: int = PORT) -> None:
    """Fail unless a new connection gets an echo."""
    client = await peers.connect((LOOPBACK.get(host, host), port))
    await client.send(b"ping")
    assert await client.receive(4) == b"ping"


@in_every_place
async def test_tcp_listener_without_backends_holds_its_port_until_it_has_some(host: str) -> None:
    """At first, and each time again: refused, nobody else can listen, and the same socket listens afterwards."""
    async with open_proxy() as proxy, open_peers() as peers:
        spec = spec_of(Protocol.TCP, host)
        backend = peers.listen(echo).backend
        numbers = set()
        for _ in range(3):
            want(proxy, spec)
            proxy.open_all()
            assert refuses(host)
            assert is_taken(host, PORT)
            assert proxy.listeners.open_listeners == 0
            want(proxy, spec, backend)
            proxy.open_all()
            await assert_echoes(peers, host)
            assert is_taken(host, PORT)
            assert proxy.listeners.open_listeners == 1
            sock = proxy.tcp_listener().sock
            assert sock is not None
            numbers.add(os.fstat(sock.fileno()).st_ino)
        assert len(numbers) == 1


async def test_tcp_listener_that_loses_its_backends_resets_who_waits_in_its_queue() -> None:
    """Nobody waits for an answer that cannot come."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        spec = spec_of(Protocol.TCP)
        want(proxy, spec, peers.listen(echo).backend)
        proxy.open_all()
        client = await peers.connect((HOST, PORT))
        want(proxy, spec)
        proxy.open_all()
        assert await client.receive_to_end() == (b"", End.RST)


async def test_tcp_listener_opens_again_without_a_free_descriptor() -> None:
    """It has its socket already."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        spec = spec_of(Protocol.TCP)
        want(proxy, spec)
        proxy.open_all()
        want(proxy, spec, peers.listen(echo).backend)
        with descriptors_left(0):
            proxy.open_all()
        assert not refuses()


async def test_tcp_listener_that_was_made_to_stop_by_others_is_removed_like_any_other() -> None:
    """An administrator may have destroyed the socket (ss -K)."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        with nothing_left_open():
            spec = spec_of(Protocol.TCP)
            want(proxy, spec, Backend(ip_address(HOST), OTHER_PORT))
            proxy.open_all()
            sock = proxy.tcp_listener().sock
            assert sock is not None
            destroy(sock)
            proxy.listeners.remove_listener(spec.key)
        assert not is_taken(HOST, PORT)
        want(proxy, spec, peers.listen(greet(b"hello")).backend)
        proxy.open_all()
        async with proxy.driving():
            client = await peers.connect((HOST, PORT))
            assert await client.receive(5) == b"hello"


async def test_tcp_listener_that_was_made_to_stop_by_others_and_loses_its_backends_serves_the_next_ones() -> None:
    """What the kernel has left of the socket does not show in the connections that it accepts later."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        spec = spec_of(Protocol.TCP)
        want(proxy, spec, peers.listen(echo).backend)
        proxy.open_all()
        sock = proxy.tcp_listener().sock
        assert sock is not None
        destroy(sock)
        want(proxy, spec)
        proxy.open_all()
        want(proxy, spec, peers.listen(echo).backend)
        proxy.open_all()
        async with proxy.driving():
            await assert_echoes(peers)


async def test_tcp_listener_that_was_made_to_stop_by_others_listens_again(caplog: pytest.LogCaptureFixture) -> None:
    """One line says so; to take it for a bug would log one for each rest, and serve nobody, for ever."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        want(proxy, spec_of(Protocol.TCP), peers.listen(greet(b"hello")).backend)
        proxy.open_all()
        sock = proxy.tcp_listener().sock
        assert sock is not None
        destroy(sock)
        assert refuses()
        proxy.settle()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        async with proxy.driving():
            client = await peers.connect((HOST, PORT))
            assert await client.receive(5) == b"hello"


@in_every_place
def test_udp_listener_without_backends_from_the_start_refuses_until_it_has_some(host: str) -> None:
    """Refused at once, nobody else gets the place; the first datagram after the first Backend has come arrives."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        spec = spec_of(Protocol.UDP, host)
        want(proxy, spec)
        proxy.open_all()
        client = peers.client((LOOPBACK.get(host, host), PORT))
        assert client.is_refused()
        assert is_taken(host, PORT, socket.SOCK_DGRAM)
        assert proxy.listeners.open_listeners == 0
        server = peers.server(LOOPBACK.get(host, host))
        want(proxy, spec, server.backend)
        proxy.open_all()
        client.send(b"1", b"2")
        proxy.pass_on()
        assert server.take() == [b"1", b"2"]
        server.echo()
        server.answer(b"pong")
        proxy.pass_on()
        assert client.take() == [b"pong"]


def test_udp_listener_without_a_descriptor_for_its_new_socket_goes_on_refusing() -> None:
    """It holds its port by the socket it has, and delivers late answers; a retry opens it."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        spec = spec_of(Protocol.UDP)
        server = peers.server()
        want(proxy, spec, server.backend)
        proxy.open_all()
        client = peers.client((HOST, PORT))
        client.send(b"ping")
        proxy.pass_on()
        want(proxy, spec)
        proxy.open_all()
        want(proxy, spec, server.backend)
        with descriptors_left(0):
            assert "no file descriptor is left" in failure(proxy)
        assert client.is_refused()
        server.take()
        server.answer(b"late", to=server.senders[0])
        proxy.pass_on()
        assert client.take() == [b"late"]
        assert proxy.listeners.open_missing(retry=True) == {spec.key: None}
        client.send(b"pong")
        proxy.pass_on()
        assert server.take() == [b"pong"]


@of_every_protocol
def test_held_port_takes_one_descriptor_and_is_not_watched(protocol: Protocol) -> None:
    """Thousands of them cost nothing."""
    flush_loopback()
    with nothing_left_open(), stepped_proxy() as proxy:
        before = count_descriptors()
        names = [f"shop/empty{number}:p" for number in range(50)]
        for number, name in enumerate(names):
            want(proxy, spec_of(protocol, f"127.0.77.{number + 1}", name=name))
        proxy.open_all()
        assert count_descriptors() == before + len(names)
        assert not proxy.engine.handlers


@of_every_protocol
@pytest.mark.parametrize("change", ["removed", "moved", "stopped"])
def test_held_port_is_free_at_once_when_the_listener_goes(protocol: Protocol, change: str) -> None:
    """Whether it was open before or not."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        for backends in ([], [peers.server().backend]):
            spec = spec_of(protocol)
            want(proxy, spec, *backends)
            proxy.open_all()
            want(proxy, spec)
            proxy.open_all()
            assert is_taken(HOST, PORT, KINDS[protocol])
            if change == "removed":
                proxy.listeners.remove_listener(spec.key)
            elif change == "moved":
                want(proxy, spec_of(protocol, port=OTHER_PORT))
            else:
                proxy.listeners.close_listeners()
                proxy.listeners.close()
            assert not is_taken(HOST, PORT, KINDS[protocol])
            proxy.open_all()
            assert is_taken(HOST, OTHER_PORT, KINDS[protocol]) == (change == "moved")
            proxy.listeners.remove_listener(spec.key)


def test_held_port_of_udp_delivers_late_answers_when_the_proxy_stops_and_is_free_when_it_has() -> None:
    """Also where the listener had lost its Backends before."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        spec = spec_of(Protocol.UDP)
        server = peers.server()
        want(proxy, spec, server.backend)
        proxy.open_all()
        client = peers.client((HOST, PORT))
        client.send(b"ping")
        proxy.pass_on()
        want(proxy, spec)
        proxy.open_all()
        proxy.advance(1.0)
        proxy.listeners.close_listeners()
        assert client.is_refused()
        server.take()
        server.answer(b"late", to=server.senders[0])
        proxy.pass_on()
        assert client.take() == [b"late"]
        proxy.advance(5.0)
        assert not proxy.served.open_flows
        assert is_taken(HOST, PORT, socket.SOCK_DGRAM)
        assert client.is_refused()
        proxy.listeners.close()
        assert not is_taken(HOST, PORT, socket.SOCK_DGRAM)


@of_every_protocol
def test_held_port_that_somebody_else_has_is_an_error_that_names_them_and_is_retried(protocol: Protocol) -> None:
    """As for a listener that is to be open: only a retry tries again, and says when it is all right."""
    with stepped_proxy() as proxy, socket.socket(type=KINDS[protocol]) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, protocol is Protocol.TCP)
        thief.bind((HOST, PORT))
        if protocol is Protocol.TCP:
            thief.listen()
        spec = spec_of(protocol)
        want(proxy, spec)
        text = failure(proxy)
        assert text.startswith(f"cannot listen on {HOST}:{PORT} for {NAMES[protocol]}: in use by pid {os.getpid()} (")
        assert list(proxy.listeners.failed) == [spec.key]
        want(proxy, spec)
        proxy.open_all()
        assert "in use by another process" in failure(proxy, retry=True)
        thief.close()
        assert proxy.listeners.open_missing(retry=True) == {spec.key: None}
        assert not proxy.listeners.failed
        assert is_taken(HOST, PORT, KINDS[protocol])


@of_every_protocol
def test_listener_that_could_not_be_opened_and_loses_its_backends_has_not_failed_any_more(protocol: Protocol) -> None:
    """Its port it has; there is nothing to be retried, and nothing to be told."""
    with stepped_proxy() as proxy:
        spec = spec_of(protocol)
        want(proxy, spec)
        proxy.open_all()
        epoll = fill_epoll(proxy, room=0)
        want(proxy, spec, Backend(ip_address(HOST), OTHER_PORT))
        assert "fs.epoll.max_user_watches" in failure(proxy)
        assert is_taken(HOST, PORT, KINDS[protocol])
        want(proxy, spec)
        proxy.open_all()
        assert not proxy.listeners.failed
        epoll.room = 1
        assert proxy.listeners.open_missing(retry=True) == {}
        assert proxy.listeners.open_listeners == 0


def test_listener_with_a_bug_does_not_keep_others_from_being_opened_later() -> None:
    """The next attempt begins with the others."""
    with stepped_proxy() as proxy:
        want(proxy, spec_of(Protocol.TCP, port=1 << 16, name="shop/bug:p"))
        want(proxy, spec_of(Protocol.TCP))
        for _ in range(2):
            with pytest.raises(OverflowError):
                proxy.listeners.open_missing(retry=False)
        assert is_taken(HOST, PORT)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it does without the rights of root")
def test_udp_listener_that_cannot_refuse_holds_nothing_and_is_retried() -> None:
    """Better no socket than one that swallows what nobody reads: an address that is not there, without any rights."""
    flush_loopback()
    with nothing_left_open(), stepped_proxy() as proxy:
        spec = evolve(spec_of(Protocol.UDP, ELSEWHERE), is_virtual=True)
        with unprivileged():
            want(proxy, spec)
            assert failure(proxy).startswith(f"cannot listen on {ELSEWHERE}:{PORT} for {DNS}: ")
            assert list(proxy.listeners.failed) == [spec.key]
            want(proxy, spec, Backend(ip_address(HOST), OTHER_PORT))
            assert proxy.listeners.open_missing(retry=True) == {spec.key: None}
            want(proxy, spec)
            failure(proxy)
            assert proxy.listeners.open_listeners == 0
            assert not proxy.engine.handlers
        assert proxy.listeners.open_missing(retry=True) == {spec.key: None}

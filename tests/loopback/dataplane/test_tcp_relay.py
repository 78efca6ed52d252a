"""The life of a connection with peers that behave: bytes in both directions, and each direction ended on its own."""

import socket

import pytest
from engine_driver import WEB, VirtualClock, open_proxy
from peers import End, answer_after_end, connect_through, echo, greet, nothing_left_open, open_peers

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.tcp_relay import CLIENT_ENDED, DIALLING, OPEN

pytestmark = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])


async def test_relay_client_ends_first_and_gets_the_answer_long_after(host: str) -> None:
    """FIN of the client reaches the Backend, and what the Backend then sends still reaches the client."""
    async with open_proxy() as proxy, open_peers() as peers:
        server = peers.listen(host=host)
        client, backend = await connect_through(peers, proxy.serve(server.backend, host=host), server)
        await client.send(b"question")
        client.fin()
        assert await backend.receive_to_end() == (b"question", End.FIN)
        for part in (b"the ", b"long ", b"answer"):
            await backend.send(part)
            assert await client.receive(len(part)) == part
        backend.close()
        assert await client.receive_to_end() == (b"", End.FIN)
        await proxy.until_idle()
        assert proxy.closed() == {CloseReason.NORMAL: 1}
        assert (proxy.counters().bytes_to_backend, proxy.counters().bytes_to_client) == (8, 15)
        proxy.assert_nothing_left()


async def test_relay_backend_ends_first_and_still_gets_what_the_client_sends(host: str) -> None:
    """FIN of the Backend reaches the client, and what the client then sends still reaches the Backend."""
    async with open_proxy() as proxy, open_peers() as peers:
        server = peers.listen(host=host)
        client, backend = await connect_through(peers, proxy.serve(server.backend, host=host), server)
        await backend.send(b"last words")
        backend.fin()
        assert await client.receive_to_end() == (b"last words", End.FIN)
        for part in (b"and ", b"yet", b"more"):
            await client.send(part)
            assert await backend.receive(len(part)) == part
        client.close()
        assert await backend.receive_to_end() == (b"", End.FIN)
        await proxy.until_idle()
        assert proxy.closed() == {CloseReason.NORMAL: 1}
        proxy.assert_nothing_left()


async def test_relay_client_says_all_and_ends_before_anybody_is_dialled(host: str) -> None:
    """Data and FIN that came with the connection wait for the Backend and are passed on whole."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen(host=host)
        client = await peers.connect(proxy.serve(server.backend, host=host))
        await client.send(b"everything")
        client.fin()
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [CLIENT_ENDED])
        backend = await server.accept()
        assert await backend.receive_to_end() == (b"everything", End.FIN)
        backend.close()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert await client.receive_to_end() == (b"", End.FIN)
        assert proxy.closed() == {CloseReason.NORMAL: 1}


async def test_relay_client_is_quiet_while_the_backend_speaks_first(host: str) -> None:
    """A greeting reaches a client that has sent nothing."""
    async with open_proxy() as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(greet(b"220 ready\r\n"), host=host).backend, host=host)
        client = await peers.connect(address)
        assert await client.receive(11) == b"220 ready\r\n"
        await client.send(b"EHLO")
        assert await client.receive(4) == b"EHLO"


async def test_relay_passes_on_a_greeting_that_comes_with_the_connection(host: str) -> None:
    """Bytes of the Backend that the event of its connecting tells of already are told of by no other event."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = await peers.black_hole(host)
        client = await peers.connect(proxy.serve(server.backend, host=host))
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [DIALLING])
        await server.accept()
        backend = await server.accept()
        await backend.send(b"220 ready")
        backend.fin()
        await backend.wait_sent()
        async with proxy.driving():
            assert await client.receive_to_end() == (b"220 ready", End.FIN)


async def test_relay_without_a_byte_ends_as_it_should(host: str) -> None:
    """A client that connects and closes is passed on to the Backend as that."""
    with nothing_left_open():
        async with open_proxy() as proxy, open_peers() as peers:
            server = peers.listen(host=host)
            client, backend = await connect_through(peers, proxy.serve(server.backend, host=host), server)
            client.close()
            assert await backend.receive_to_end() == (b"", End.FIN)
            backend.close()
            await proxy.until_idle()
            assert proxy.closed() == {CloseReason.NORMAL: 1}
            proxy.assert_nothing_left()


async def test_relay_both_ends_at_once(host: str) -> None:
    """Two FINs in the same batch of events end the connection once."""
    async with open_proxy(driven=False) as proxy, open_peers() as peers:
        server = peers.listen(host=host)
        client = await peers.connect(proxy.serve(server.backend, host=host))
        await proxy.poll_until(lambda: [relay.state for relay in proxy.served.relays()] == [OPEN])
        backend = await server.accept()
        client.fin()
        backend.fin()
        await proxy.poll_until(lambda: not proxy.served.open_relays)
        assert await client.receive_to_end() == (b"", End.FIN)
        assert await backend.receive_to_end() == (b"", End.FIN)
        assert proxy.closed() == {CloseReason.NORMAL: 1}


@pytest.mark.slow
@pytest.mark.parametrize("splices", [True, False], ids=["splice", "copy"])
async def test_relay_answer_of_many_megabytes_after_the_end_arrives_whole(host: str, splices: bool) -> None:  # noqa: FBT001
    """A client that has long ended its direction becomes writable many times and gets every byte."""
    answer = bytes(range(256)) * 32768
    async with open_proxy() as proxy, open_peers() as peers:
        if not splices:
            proxy.engine.pipes.disable()
        client = await peers.connect(
            proxy.serve(peers.listen(answer_after_end(answer), host=host).backend, host=host), buffer_bytes=16384
        )
        client.fin()
        assert await client.receive_to_end() == (answer, End.FIN)
        await proxy.until_idle()
        assert proxy.closed() == {CloseReason.NORMAL: 1}
        proxy.assert_nothing_left()


async def test_relay_sockets_send_at_once_and_are_probed(host: str) -> None:
    """Both sockets of a connection that lives have no delay of small writes and keepalive as the settings say."""
    clock = VirtualClock()
    async with open_proxy(RelayLimits(keepalive_idle_s=77), clock=clock) as proxy, open_peers() as peers:
        server = peers.listen(host=host)
        await connect_through(peers, proxy.serve(server.backend, host=host), server)
        (relay,) = proxy.served.relays()
        await proxy.until(lambda: relay.backend is not None)
        proxy.advance(0.25)
        assert relay.backend is not None
        for sock in (relay.client.sock, relay.backend.sock):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77


async def test_relay_many_at_once_do_not_mix(host: str) -> None:
    """Each of 100 clients of one listener gets its own bytes back."""
    async with open_proxy() as proxy, open_peers() as peers:
        address = proxy.serve(*(peers.listen(echo, host=host).backend for _ in range(3)), host=host)
        clients = [await peers.connect(address) for _ in range(100)]
        for number, client in enumerate(clients):
            await client.send(b"%d" % number * 10)
            client.fin()
        for number, client in enumerate(clients):
            assert await client.receive_to_end() == (b"%d" % number * 10, End.FIN)
        await proxy.until_idle()
        assert proxy.closed(WEB) == {CloseReason.NORMAL: 100}
        proxy.assert_nothing_left()

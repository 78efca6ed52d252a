"""Good and bad TCP peers: the clients and Backends that tests put on both ends of a proxy.

A Peer is one end of a connection and does at once what it is told, right or wrong: send, receive, FIN, RST, nothing at
all. A Server listens and hands out the Peers it accepts, or has each of them behave in some way by itself. Peers makes
all of them and closes them at its end. Everything runs under trio, with real sockets. Entry point: ``open_peers``.
"""

import errno
import fcntl
import os
import resource
import select
import socket
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from enum import Enum
from functools import partial
from ipaddress import ip_address

import trio

from userspace_proxy.plan.state import Backend

CHUNK_BYTES = 65536
NOBODY = 65534
ABORTIVE = struct.pack("ii", 1, 0)


def own_host(number: int) -> str:
    """Return a loopback address for a number from 1 that no other test process uses: all its ports are free."""
    return f"127.{100 + os.getpid() % 100}.{os.getpid() // 100 % 256}.{number}"


def is_taken(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Return whether another program could not serve at a place, opened as most servers open it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as sock:
        try:
            if kind is socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            if kind is socket.SOCK_STREAM:
                sock.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return True
        return False


def destroy(sock: socket.socket) -> None:
    """Do to a listening socket what an administrator can (ss -K): tcp_abort() and tcp_done() in Linux, net/ipv4/tcp.c.

    The second time it is shut down as one that does not listen, which shows in what it accepts if it listens again.
    """
    sock.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):  # ENOTCONN, which it is done in spite of
        sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Do without the rights of root, if there are any."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class End(Enum):
    """How the far end of a connection has ended it."""

    FIN = "FIN"
    RST = "RST"


class Peer:
    """One end of a connection. It reads nothing but what a method is asked to."""

    def __init__(self, sock: socket.socket) -> None:
        """Take ownership of a connected socket."""
        self.sock = sock
        self._async = trio.socket.from_stdlib_socket(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, data: bytes) -> None:
        """Send all of ``data``; OSError if the connection is reset meanwhile."""
        rest = memoryview(data)
        while rest:
            rest = rest[await self._async.send(rest) :]

    def send_nowait(self, data: bytes) -> int:
        """Send what the kernel takes at once; return how many bytes that was."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    def send_urgent(self, byte: bytes) -> None:
        """Send a byte as urgent ("out of band") data."""
        self.sock.send(byte, socket.MSG_OOB)

    async def receive(self, count: int) -> bytes:
        """Return exactly ``count`` bytes; fail if the stream ends before."""
        data = bytearray()
        while len(data) < count:
            chunk = await self.receive_some(count - len(data))
            assert chunk, f"end of stream after {len(data)} of {count} bytes"
            data += chunk
        return bytes(data)

    async def receive_some(self, count: int = CHUNK_BYTES) -> bytes:
        """Return what is there, at most ``count`` bytes, waiting for the first; nothing at the end of the stream."""
        return await self._async.recv(min(count, CHUNK_BYTES))

    async def receive_to_end(self) -> tuple[bytes, End]:
        """Return all that comes until the far end ends the stream, and how it did."""
        data = bytearray()
        try:
            while chunk := await self.receive_some():
                data += chunk
        except ConnectionError:
            return bytes(data), End.RST
        return bytes(data), End.FIN

    async def wait_sent(self) -> None:
        """Wait until the kernel at the far end has all that was sent, so that an RST would overtake nothing."""
        while any(fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4))):
            await trio.lowlevel.checkpoint()

    async def wait_reset(self) -> None:
        """Wait for an RST without reading; also for one that follows a FIN, which no read would show."""
        with select.epoll() as epoll:
            epoll.register(self.sock, 0)  # errors only
            await trio.lowlevel.wait_readable(epoll.fileno())
        assert self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def fin(self) -> None:
        """Send FIN: this end has no more to say, but listens."""
        self.sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Send RST at once and be gone."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORTIVE)
        self.close()

    def close(self) -> None:
        """Close as a program does: FIN, or RST where something received was never read."""
        self._async.close()

    def stream(self) -> trio.SocketStream:
        """Return the connection as trio's stream."""
        return trio.SocketStream(self._async)


Behaviour = Callable[[Peer], Awaitable[None]]
"""What a Server does with each connection; closed when it returns."""


async def echo(peer: Peer) -> None:
    """Send everything back as it comes, until the end."""
    while chunk := await peer.receive_some():
        await peer.send(chunk)


async def sink(peer: Peer) -> None:
    """Read to the end and say nothing."""
    await peer.receive_to_end()


async def stall(peer: Peer) -> None:
    """Read nothing and say nothing."""
    await trio.sleep_forever()


async def reset(peer: Peer) -> None:
    """Send RST right after accept."""
    peer.rst()


async def _greet(greeting: bytes, peer: Peer) -> None:
    await peer.send(greeting)
    await echo(peer)


def greet(greeting: bytes) -> Behaviour:
    """Return a behaviour that speaks first, then echoes."""
    return partial(_greet, greeting)


async def _answer_after_end(answer: bytes, peer: Peer) -> None:
    await peer.receive_to_end()
    await peer.send(answer)


def answer_after_end(answer: bytes) -> Behaviour:
    """Return a behaviour that answers only after the client has sent FIN."""
    return partial(_answer_after_end, answer)


class Server:
    """A listening socket, as a Backend has it."""

    def __init__(self, sock: socket.socket, peers: "Peers") -> None:
        """Take a listening socket, which stays owned by ``peers``."""
        self.sock = sock
        self._peers = peers
        host, port = sock.getsockname()[:2]
        self.backend = Backend(ip_address(host), port)
        """Where it listens."""
        self.accepted = 0

    async def accept(self) -> Peer:
        """Return the next connection."""
        while True:
            peer = self.accept_nowait()
            if peer is not None:
                return peer
            await trio.lowlevel.wait_readable(self.sock)

    def accept_nowait(self) -> Peer | None:
        """Return the next connection that is there; None: there is none."""
        try:
            sock, _ = self.sock.accept()
        except BlockingIOError:
            return None
        self.accepted += 1
        return self._peers.own(sock)

    async def run(self, behave: Behaviour) -> None:
        """Accept, and have each connection behave, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(_run_one, behave, await self.accept())

    def close(self) -> None:
        """Listen no more: refuse from now on."""
        self.sock.close()


async def _run_one(behave: Behaviour, peer: Peer) -> None:
    try:
        await behave(peer)
    except ConnectionError:  # the client may be a bad peer too
        pass
    finally:
        peer.close()


class Peers:
    """Makes Peers and Servers, and closes them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        """Run the behaviour of Servers in ``nursery``."""
        self._nursery = nursery
        self._sockets: list[socket.socket] = []

    def own(self, sock: socket.socket) -> Peer:
        """Take ownership of a connected socket."""
        self._sockets.append(sock)
        return Peer(sock)

    async def connect(
        self, address: tuple[str, int], *, buffer_bytes: int | None = None, source: tuple[str, int] | None = None
    ) -> Peer:
        """Return a client connected to an address; buffers and local address are as the kernel likes unless given."""
        peer = self.own(_new_socket(address[0], buffer_bytes))
        if source is not None:
            peer.sock.bind(source)
        await trio.socket.from_stdlib_socket(peer.sock).connect(address)
        return peer

    def connect_nowait(self, address: tuple[str, int]) -> Peer:
        """Return a client that has sent its SYN."""
        peer = self.own(_new_socket(address[0]))
        peer.sock.connect_ex(address)
        return peer

    def listen(
        self, behave: Behaviour | None = None, *, host: str = "127.0.0.1", buffer_bytes: int | None = None
    ) -> Server:
        """Return a Server on a free port; without a behaviour its connections wait to be accepted."""
        server = self._listen(host, 1024, buffer_bytes)
        if behave is not None:
            self._nursery.start_soon(server.run, behave)
        return server

    def refuse(self, host: str = "127.0.0.1") -> Backend:
        """Return an address that refuses connections and is not given to anybody else meanwhile."""
        sock = _new_socket(host)
        self._sockets.append(sock)
        sock.bind((host, 0))
        return Backend(ip_address(host), sock.getsockname()[1])

    async def black_hole(self, host: str = "127.0.0.1") -> Server:
        """Return a Server that does not answer: its queue is full.

        Once the one connection in the queue has been accepted, it answers the next SYN; a SYN is sent again after 1 s.
        """
        server = self._listen(host, 0)
        await self.connect((str(server.backend.address), server.backend.port))
        return server

    def _listen(self, host: str, backlog: int, buffer_bytes: int | None = None) -> Server:
        sock = _new_socket(host, buffer_bytes)
        self._sockets.append(sock)
        sock.bind((host, 0))
        sock.listen(backlog)
        return Server(sock, self)

    def close(self) -> None:
        """Close all sockets."""
        for sock in self._sockets:
            sock.close()


def _new_socket(host: str, buffer_bytes: int | None = None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    if buffer_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    return sock


async def connect_through(peers: Peers, address: tuple[str, int], server: Server) -> tuple[Peer, Peer]:
    """Return a client connected to ``address`` and the connection that ``server`` gets for it."""
    client = await peers.connect(address)
    return client, await server.accept()


@asynccontextmanager
async def open_peers() -> AsyncIterator[Peers]:
    """Yield Peers; at the end all behaviour is cancelled and all sockets are closed."""
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            peers = Peers(nursery)
            stack.callback(peers.close)
            yield peers
            nursery.cancel_scope.cancel()


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Fail if the block leaves more or fewer file descriptors open than there were."""
    before = count_descriptors()
    yield
    assert count_descriptors() == before


def count_descriptors() -> int:
    """Return the number of open file descriptors of this process (and the one that counts them)."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Leave this process that many free file descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)

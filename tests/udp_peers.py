"""UDP peers: the clients and Backends that tests put on both ends of a proxy, with exact counts.

Nothing here waits for the proxy: a peer sends, or takes what has come. Before it takes, ``flush_loopback`` sees to it
that what was sent has arrived, so that what is not there then was not sent. Entry point: ``open_udp_peers``.
"""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address

from userspace_proxy.plan.state import Backend

LARGEST_DATAGRAM = 65507
"""Bytes that fit in a datagram of IPv4 (RFC 768, RFC 791)."""
RECEIVE_BUFFER_BYTES = 1 << 21
DEADLINE_S = 10.0

Address = tuple[str, int]


def own_port(number: int) -> int:
    """Return a port for a number below 8 that hardly another test process uses, nor the kernel chooses for a socket."""
    return 2000 + 8 * (os.getpid() % 1000) + number


class UdpPeer:
    """A socket that is connected: it gets only what comes from the address and port that it sends to."""

    def __init__(self, sock: socket.socket) -> None:
        """Take a socket, which stays owned by UdpPeers."""
        self.sock = sock

    @property
    def address(self) -> Address:
        """From where it sends."""
        host, port = self.sock.getsockname()[:2]
        return host, port

    def send(self, *datagrams: bytes) -> None:
        """Send datagrams, and have them arrive."""
        for datagram in datagrams:
            assert self.sock.send(datagram) == len(datagram)
        flush_loopback()

    def take(self) -> list[bytes]:
        """Return the datagrams that have come."""
        return [datagram for datagram, _ in _take(self.sock)]

    def is_refused(self) -> bool:
        """Send a datagram; return whether the kernel says that nothing takes it."""
        try:
            self.send(b"is anybody there?")
            flush_loopback()
            self.sock.send(b"")
        except ConnectionRefusedError:
            return True
        return False


class UdpServer:
    """A socket as a Backend has it: it remembers who has sent to it."""

    def __init__(self, host: str, port: int = 0) -> None:
        """Bind to a host, on a free port unless it is given."""
        self.sock = _bound(host, port)
        self.backend = Backend(ip_address(host), self.sock.getsockname()[1])
        self.senders: list[Address] = []
        """Where the datagrams came from that were taken, in order: the sockets of the proxy."""

    def take(self) -> list[bytes]:
        """Return the datagrams that have come."""
        taken = _take(self.sock)
        self.senders += [sender for _, sender in taken]
        return [datagram for datagram, _ in taken]

    def answer(self, *datagrams: bytes, to: Address | None = None) -> None:
        """Send datagrams to who has sent the last one, or to somebody else, and have them arrive."""
        for datagram in datagrams:
            self.sock.sendto(datagram, to or self.senders[-1])
        flush_loopback()

    def echo(self) -> int:
        """Send back what has come; return how many datagrams that was."""
        taken = _take(self.sock)
        for datagram, sender in taken:
            self.senders.append(sender)
            self.sock.sendto(datagram, sender)
        flush_loopback()
        return len(taken)

    def die(self) -> None:
        """Have the kernel refuse what is sent here from now on; nobody else gets the port, and answers are possible."""
        self.sock.connect(self.sock.getsockname())

    def revive(self) -> None:
        """Take datagrams again at the same place."""
        self.sock.close()
        self.sock = _bound(str(self.backend.address), self.backend.port)


class UdpPeers:
    """Makes peers, and closes them."""

    def __init__(self) -> None:
        """Start without any."""
        self._peers: list[UdpPeer | UdpServer] = []

    def client(self, address: Address, source: Address | None = None) -> UdpPeer:
        """Return a client of an address; from any port of any host unless a source is given."""
        sock = _new_socket(address[0])
        client = UdpPeer(sock)
        self._peers.append(client)
        if source is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one port may send to several addresses
            sock.bind(_socket_address(source))
        sock.connect(_socket_address(address))
        return client

    def server(self, host: str = "127.0.0.1", port: int = 0) -> UdpServer:
        """Return a Backend."""
        server = UdpServer(host, port)
        self._peers.append(server)
        return server

    def dead(self, host: str = "127.0.0.1") -> UdpServer:
        """Return a Backend that refuses."""
        server = self.server(host)
        server.die()
        return server

    def close(self) -> None:
        """Close all sockets."""
        for peer in self._peers:
            peer.sock.close()


@contextmanager
def open_udp_peers() -> Iterator[UdpPeers]:
    """Yield UdpPeers; all sockets are closed at the end."""
    peers = UdpPeers()
    try:
        yield peers
    finally:
        peers.close()


def flush_loopback() -> None:
    """Wait until what this process has sent on loopback has arrived, and the ICMP messages it led to.

    The kernel queues what is sent on loopback for the same CPU, in order (netif_rx(), net/core/dev.c): so what is sent
    now comes after all of it. An ICMP message is queued when the datagram arrives that it is about: hence twice.
    """
    sender, receiver = _probes()
    for _ in range(2):
        sender.send(b"")
        readable, _, _ = select.select([receiver], [], [], DEADLINE_S)
        assert readable, "loopback does not deliver"
        receiver.recv(1)


@cache
def _probes() -> tuple[socket.socket, socket.socket]:
    """Return a socket connected to another one, the same for the whole run."""
    sender, receiver = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    sender.connect(receiver.getsockname())
    return sender, receiver


def _take(sock: socket.socket) -> list[tuple[bytes, Address]]:
    flush_loopback()
    taken: list[tuple[bytes, Address]] = []
    while True:
        try:
            datagram, sender = sock.recvfrom(1 << 16)
        except BlockingIOError:
            return taken
        taken.append((datagram, sender))


def _new_socket(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return sock


def _socket_address(address: Address) -> tuple[str | int, ...]:
    """Return an address as ``socket`` wants it: with the number of the interface, where the host names one."""
    host, port = address
    _, _, interface = host.partition("%")
    return (host, port, 0, socket.if_nametoindex(interface)) if interface else (host, port)


def _bound(host: str, port: int) -> socket.socket:
    sock = _new_socket(host)
    sock.bind((host, port))
    return sock

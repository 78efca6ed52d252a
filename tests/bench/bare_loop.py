"""The floor: what relaying in Python costs with next to nothing but the system calls. Not a proxy to be used.

It takes it for granted that backends connect at once and that everything sent finds room; it limits, counts, times and
logs nothing, and knows no state but who has ended. What a proxy in Python costs beyond this
is the price of being one. Run by ``compare.py``: bare_loop.py HOST PORT:BACKEND_PORT... ADDRESS...
"""

import gc
import select
import socket
import sys
from itertools import cycle
from typing import Protocol

EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
ACCEPTS = 8
EVENTS_PER_POLL = 256

epoll = select.epoll()
handlers: dict[int, "Handler"] = {}
ended: list[socket.SocketType] = []
"""To be closed behind a batch of events, so that no number is taken again within it."""
buffer = memoryview(bytearray(65536))


class Handler(Protocol):
    """Who is called for the events of a descriptor."""

    def on_event(self, mask: int) -> None:
        """Do what there is to do."""

    def give_up(self) -> None:
        """Let go of what was reset."""


class Side:
    """One socket of a connection, and the bytes that come from it."""

    __slots__ = ("has_ended", "hung_up", "peer", "sock")

    peer: "Side"

    def __init__(self, sock: socket.SocketType) -> None:
        self.sock = sock
        self.hung_up = False
        self.has_ended = False

    def on_event(self, mask: int) -> None:
        """Pass on what has come."""
        if self.has_ended:
            return
        if mask & select.EPOLLRDHUP:
            self.hung_up = True
        try:
            count = self.sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        peer = self.peer
        if count:
            peer.sock.send(buffer[:count], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if not self.hung_up:
                return
        self.has_ended = True
        if peer.has_ended:
            self.give_up()
        else:
            peer.sock.shutdown(socket.SHUT_WR)

    def give_up(self) -> None:
        """Close both sides."""
        for side in (self, self.peer):
            side.has_ended = True
            del handlers[side.sock.fileno()], side.peer
            ended.append(side.sock)


class Listener:
    """Accepts, and connects to one backend after another."""

    def __init__(self, host: str, port: int, backend_port: int, addresses: list[str]) -> None:
        self.sock = socket.create_server((host, port), backlog=4096)
        self.sock.setblocking(False)  # noqa: FBT003
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.backends = cycle([(address, backend_port) for address in addresses])

    def on_event(self, mask: int) -> None:  # noqa: ARG002
        """Accept some of those that wait."""
        for _ in range(ACCEPTS):
            try:
                fd, _ = self.sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            client = Side(socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, fd))
            stream = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            backend = Side(socket.SocketType(socket.AF_INET, stream))
            backend.sock.connect_ex(next(self.backends))
            client.peer, backend.peer = backend, client
            for side in (client, backend):
                number = side.sock.fileno()
                handlers[number] = side
                epoll.register(number, EVENTS)

    def give_up(self) -> None:
        """Go on: that was a client who did not wait."""


def main() -> None:
    """Serve until killed."""
    host, *words = sys.argv[1:]
    ports = [word.split(":") for word in words if ":" in word]
    addresses = [word for word in words if ":" not in word]
    for port, backend_port in ports:
        listener = Listener(host, int(port), int(backend_port), addresses)
        handlers[listener.sock.fileno()] = listener
        epoll.register(listener.sock.fileno(), select.EPOLLIN)
    gc.freeze()
    while True:
        for fd, mask in epoll.poll(-1, EVENTS_PER_POLL):
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.on_event(mask)
                except ConnectionError:
                    handler.give_up()
        for sock in ended:
            sock.close()
        ended.clear()


if __name__ == "__main__":
    main()

"""What stands behind every proxy under measurement: an echo, sources and a sink of bytes, each a process of its own.

They use as little CPU as Python allows, so that the proxy is what there is to measure: one epoll each, the echo without
socket objects, and a sink that does not even copy what it receives (MSG_TRUNC of tcp(7)). Sources are of two kinds, as
it makes a difference to proxies that copy: an application that sends what is in its memory, and a file server.
Each listens on several addresses, so that proxies balance and no pair of addresses runs out of ports.
Entry points: ``backends_running``, ``forked``.
"""

import gc
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from attrs import frozen

ADDRESSES = tuple(f"127.0.1.{number}" for number in range(1, 9))
"""Of all backends."""
BACKLOG = 4096
EVENTS_AT_ONCE = 256
MESSAGE_BYTES = 4096
"""An echo answers up to so much at a time."""
BULK_BYTES = 1 << 20
"""Sent or received with one system call; more does not fit into a socket's buffers anyway."""
FILE_BYTES = 16 << 20  # arbitrary
DEFER_S = 10


@frozen
class Ports:
    """Where the backends listen, on each of ``ADDRESSES``."""

    echo: int
    memory: int
    """Source of bytes that are sent from memory."""
    file: int
    """Source of bytes that are sent from a file."""
    sink: int


@contextmanager
def forked(target: Callable[[], None]) -> Iterator[int]:
    """Run a function in a child process, which is killed at the end."""
    pid = os.fork()
    if pid == 0:
        gc.disable()
        try:
            target()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def backends_running() -> Iterator[Ports]:
    """Run all backends until the end of the block; yields their ports."""
    with ExitStack() as stack:
        ports = []
        for serve in (serve_echo, serve_memory, serve_file, serve_sink):
            listening = _listen()
            ports.append(listening[0].getsockname()[1])
            stack.enter_context(forked(partial(serve, listening)))
            for each in listening:
                each.close()
        yield Ports(*ports)


def _listen() -> list[socket.socket]:
    """Open a listening socket on the same port of each address."""
    first = socket.create_server((ADDRESSES[0], 0), backlog=BACKLOG)
    port = first.getsockname()[1]
    return [first, *(socket.create_server((address, port), backlog=BACKLOG) for address in ADDRESSES[1:])]


def serve_echo(listening: list[socket.socket]) -> None:
    """Send back what comes, until the client closes; does not return."""
    accepting = {}
    epoll = select.epoll()
    for each in listening:
        each.setblocking(False)  # noqa: FBT003
        # A client speaks first: when it is accepted, its message is there, and one look less is needed (tcp(7)).
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_S)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted inherits it
        accepting[each.fileno()] = each._accept  # type: ignore[attr-defined]  # without a socket object
        epoll.register(each, select.EPOLLIN)
    read, write, close = os.read, os.write, os.close
    while True:
        for number, events in epoll.poll(-1, EVENTS_AT_ONCE):
            fd = number
            if number in accepting:
                try:
                    fd, _ = accepting[number]()
                except BlockingIOError:
                    continue
                epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
            elif events != select.EPOLLIN:
                close(fd)
                continue
            try:
                write(fd, read(fd, MESSAGE_BYTES))
            except OSError:
                close(fd)


def serve_memory(listening: list[socket.socket]) -> None:
    """Send each client bytes of this process without end; does not return."""
    _serve_bulk(listening, send_some, select.EPOLLOUT)


def serve_file(listening: list[socket.socket]) -> None:
    """Send each client bytes of a file without end; does not return."""
    _serve_bulk(listening, FileSource().send_some, select.EPOLLOUT)


def serve_sink(listening: list[socket.socket]) -> None:
    """Receive what clients send and forget it; does not return."""
    _serve_bulk(listening, forget_some, select.EPOLLIN)


def _serve_bulk(listening: list[socket.socket], move: Callable[[socket.socket], int], events: int) -> None:
    """Accept clients and call ``move`` for each that is ready, until it moves nothing or fails."""
    accepting = {each.fileno(): each for each in listening}
    clients: dict[int, socket.socket] = {}
    epoll = select.epoll()
    for each in listening:
        epoll.register(each, select.EPOLLIN)
    while True:
        for number, _ in epoll.poll(-1, EVENTS_AT_ONCE):
            if number in accepting:
                client, _ = accepting[number].accept()
                client.setblocking(False)  # noqa: FBT003
                clients[client.fileno()] = client
                epoll.register(client, events)
                continue
            try:
                if move(clients[number]):
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            clients.pop(number).close()


_SENT = bytes(BULK_BYTES)


def send_some(to: socket.socket) -> int:
    """Send what a socket takes, from memory; return how many bytes."""
    return to.send(_SENT)


class FileSource:
    """A file in memory that is sent again and again without being copied (sendfile(2))."""

    def __init__(self) -> None:
        """Fill the file."""
        self._fd = os.memfd_create("bench-source")
        self._offset = 0
        os.truncate(self._fd, FILE_BYTES)
        os.pwrite(self._fd, os.urandom(BULK_BYTES) * (FILE_BYTES // BULK_BYTES), 0)

    def send_some(self, to: socket.socket) -> int:
        """Send what a socket takes; return how many bytes."""
        sent = os.sendfile(to.fileno(), self._fd, self._offset, BULK_BYTES)
        self._offset = (self._offset + sent) % (FILE_BYTES - BULK_BYTES)
        return sent


_FORGOTTEN = bytearray(BULK_BYTES)


def forget_some(of: socket.socket) -> int:
    """Receive what a socket has; return how many bytes. They are not even copied (tcp(7), MSG_TRUNC)."""
    return of.recv_into(_FORGOTTEN, BULK_BYTES, socket.MSG_TRUNC)

"""Wire: the connection of one client to the API server, which another thread can cut at any moment.

It opens sockets for urllib3 and knows nothing of what goes over them. Entry points: ``Wire``, ``connection_class``.
"""

import socket
import threading
from contextlib import suppress

from attrs import define, field
from urllib3.connection import HTTPConnection, HTTPSConnection

from userspace_proxy.errors import ApiError

CONNECT_TIMEOUT_S = 10.0
"""For a TCP connection and for the TLS handshake, each; arbitrary."""
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
"""A peer that is gone without a word is noticed after a minute, also by what was sent to it (tcp(7))."""


class _PlainConnection(HTTPConnection):
    """A connection whose socket can be cut by another thread."""

    wire: "Wire"

    def _new_conn(self) -> socket.socket:
        return self.wire.connect(self._dns_host, self.port or 80)


class _TLSConnection(HTTPSConnection):
    """The same under TLS."""

    wire: "Wire"

    def _new_conn(self) -> socket.socket:
        return self.wire.connect(self._dns_host, self.port or 443)


@define(eq=False)
class Wire:
    """The one socket that a client has at a time, as something another thread can cut at any moment of its life.

    That goes by a duplicate of the descriptor: urllib3 hands the socket through several owners, and none has it
    both while it connects and while an answer is read.
    """

    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _duplicate: socket.socket | None = field(default=None, init=False)
    _is_cut: bool = field(default=False, init=False)

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a new connection.

        Raises:
            ApiError: there is none to be had.
        """
        at = f"{host} port {port}"
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError):
            raise ApiError(f"no address is known for the host '{host}'", "unreachable") from None
        failure = "it has no address"
        for family, kind, protocol, _, address in found:
            new = socket.socket(family, kind, protocol)
            try:
                for option in _KEEPALIVE:
                    new.setsockopt(*option)
                new.settimeout(CONNECT_TIMEOUT_S)
                self._adopt(new)
                new.connect(address)
            except OSError as error:
                new.close()
                failure = error.strerror or f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
            else:
                return new
        raise ApiError(f"cannot connect to {at}: {failure}", "unreachable")

    def drop(self) -> None:
        """End the connection there is, whoever waits for it; a new one may be made."""
        with self._lock:
            self._shut_down()

    def cut(self) -> None:
        """End the connection there is, and let none be made any more."""
        with self._lock:
            self._is_cut = True
            self._shut_down()

    def _adopt(self, new: socket.socket) -> None:
        with self._lock:
            self._shut_down()
            self._duplicate = new.dup()
            if self._is_cut:
                self._shut_down()
                raise ConnectionAbortedError(0, "it was interrupted")

    def _shut_down(self) -> None:
        if self._duplicate is not None:
            with suppress(OSError):  # it may not be connected yet, or any more
                self._duplicate.shutdown(socket.SHUT_RDWR)
            self._duplicate.close()
            self._duplicate = None


def connection_class(scheme: str, wire: Wire) -> type[HTTPConnection]:
    """Return the class of the connections that urllib3 is to make for ``http`` or ``https``."""
    base = _TLSConnection if scheme == "https" else _PlainConnection
    return type("Connection", (base,), {"wire": wire})

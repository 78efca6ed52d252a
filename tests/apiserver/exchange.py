"""One request and its answer on an HTTP/1.1 connection of the server; connections that are cut on purpose.

It knows HTTP and nothing of Kubernetes.

Source: RFC 9112. Entry points: ``Exchange``, ``serve_connection``.
"""

import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import h11
import trio
from attrs import define, field, frozen

READ_BYTES = 65_536
HANDSHAKE_TIMEOUT_S = 10.0

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
_PEER_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError)


class ConnectionEndedError(Exception):
    """The connection is to be closed, or the peer has done so; there is nothing more to send."""


@frozen
class Request:
    """A request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    peer_name: str | None = None
    """Common name of the client's certificate."""
    peer_groups: tuple[str, ...] = ()
    """Organisations of the client's certificate."""


def transport(stream: Stream) -> trio.SocketStream:
    """Return what is below TLS."""
    return stream.transport_stream if isinstance(stream, trio.SSLStream) else stream


def reset_on_close(stream: Stream) -> None:
    """Make closing send RST; source: socket(7), SO_LINGER."""
    with suppress(OSError):
        transport(stream).socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@define(eq=False)
class Exchange:
    """A request, and what sends the answer to it; sending raises ``ConnectionEndedError`` if the peer is gone."""

    request: Request
    _stream: Stream
    _parser: h11.Connection
    cut_after_pieces: int | None = None
    """Break off in the middle of the piece of the body after so many; None is not at all."""
    is_cut_clean: bool = False
    _pieces: int = field(default=0, init=False)

    async def respond(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer."""
        await self.begin(status, {"content-length": str(len(body)), **(headers or {})})
        await self.send(body)
        await self.end()

    async def begin(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """Send the headers; without a length the body is sent in chunks."""
        all_headers = {"content-type": "application/json", "cache-control": "no-cache, private", **(headers or {})}
        await self._send(h11.Response(status_code=status, headers=list(all_headers.items())))

    async def send(self, piece: bytes) -> None:
        """Send a piece of the body as a chunk of its own."""
        if self.cut_after_pieces is not None and self._pieces >= self.cut_after_pieces:
            await self._send(h11.Data(data=piece[: len(piece) // 2]))
            if self.is_cut_clean:
                await self.end()
            raise ConnectionEndedError
        self._pieces += 1
        await self._send(h11.Data(data=piece))

    async def end(self) -> None:
        """Say that the body is whole."""
        await self._send(h11.EndOfMessage())

    def reset(self) -> ConnectionEndedError:
        """Return what to raise for the connection to be closed with RST."""
        reset_on_close(self._stream)
        return ConnectionEndedError()

    async def wait_client_gone(self) -> None:
        """Read until the client closes the connection.

        Cancellation: what has been read meanwhile is the begin of the next request, and kept.
        """
        with suppress(*_PEER_GONE):
            while data := await self._stream.receive_some(READ_BYTES):
                self._parser.receive_data(bytes(data))

    async def _send(self, event: Any) -> None:
        data = self._parser.send(event)
        if data:
            try:
                await self._stream.send_all(data)
            except _PEER_GONE:
                raise ConnectionEndedError from None


async def serve_connection(stream: Stream, handle: Callable[[Exchange], Awaitable[None]]) -> None:
    """Serve the requests of a connection one after another until it ends.

    Owns: the stream, which it closes.
    """
    try:
        if isinstance(stream, trio.SSLStream):
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                await stream.do_handshake()
        parser = h11.Connection(h11.SERVER)
        while (request := await _next_request(stream, parser)) is not None:
            await handle(Exchange(request, stream, parser))
            if parser.our_state is not h11.DONE or parser.their_state is not h11.DONE:
                return
            parser.start_next_cycle()
    except (*_PEER_GONE, ConnectionEndedError, h11.RemoteProtocolError, trio.TooSlowError):
        pass  # a client that does not trust us, or has gone
    finally:
        await trio.aclose_forcefully(stream)


async def _next_request(stream: Stream, parser: h11.Connection) -> Request | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            if parser.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await stream.send_all(parser.send(go_on) or b"")
            parser.receive_data(bytes(await stream.receive_some(READ_BYTES)))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return _request(head, bytes(body), stream)
        else:
            return None


def _request(head: h11.Request, body: bytes, stream: Stream) -> Request:
    target = urlsplit(head.target.decode("ascii"))
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
    name, groups = _peer(stream)
    return Request(
        head.method.decode("ascii"),
        unquote(target.path),
        dict(parse_qsl(target.query, keep_blank_values=True)),
        headers,
        body,
        name,
        groups,
    )


def _peer(stream: Stream) -> tuple[str | None, tuple[str, ...]]:
    if not isinstance(stream, trio.SSLStream):
        return None, ()
    certificate = stream.getpeercert()
    if not certificate:
        return None, ()
    subject = [part for parts in certificate["subject"] for part in parts]
    name = next((value for kind, value in subject if kind == "commonName"), None)
    return name, tuple(value for kind, value in subject if kind == "organizationName")

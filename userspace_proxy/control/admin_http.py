"""A small HTTP/1.1 server for admin pages (metrics, health): GET and HEAD on a fixed set of paths, or one page for all.

It knows nothing of what the pages say, and it must not do more than it is asked: no bodies, no files, no TLS. A client
can be slow, silent or hostile and holds one of a few connections for a bounded time, no more. Pages are built between
the turns of the data path: in a millisecond, or in steps. Entry point: ``serve_admin``.
"""

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from ipaddress import ip_address
from typing import NoReturn
from urllib.parse import urlsplit

import h11
import trio
from attrs import frozen

from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.dataplane.socket_holders import describe_holder
from userspace_proxy.dataplane.sockets import AF, errno_name
from userspace_proxy.errors import ConfigError
from userspace_proxy.model.names import IPAddress, Protocol, family_of

LOG = logging.getLogger(__name__)

SocketAddress = tuple[IPAddress, int]
"""IP address and port."""

_BACKLOG = 128
_RECEIVE_BYTES = 16 * 1024
_BODY_LIMIT_BYTES = 64 * 1024
"""A request body means nothing here; a larger one (arbitrary) is not read to its end."""
_ACCEPT_PAUSE_S = 0.1
"""Descriptors or memory have run out: as long as trio's own listeners wait then."""
_RETRY_BIND_S = 5.0
"""As often as kube-proxy tries its health and metrics addresses."""


@frozen
class Response:
    """One page."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    """Further ones."""


def text_response(status: int, text: str) -> Response:
    """Return a page of plain text, with a line end added."""
    return Response(status, "text/plain; charset=utf-8", f"{text}\n".encode())


Page = Callable[[], Response | Awaitable[Response]]
"""Builds a page."""

Routes = Mapping[str, Page]
"""Path, with its leading slash, to page."""

ANY_PATH = "*"
"""Stands in Routes for all paths that have no page of their own; its page answers all methods."""


@frozen
class AdminLimits:
    """What bounds the clients of an admin server."""

    request_timeout_s: float = 30.0
    """Seconds that a client has to send a whole request, counted from the connection or from the answer before, and
    again to take the whole answer."""
    linger_timeout_s: float = 2.0
    """Seconds that a client has to close its side after ours; arbitrary: a few round trips."""
    max_connections: int = 64
    """Connections open at a time; further ones are closed at once. Arbitrary: a scraper needs one."""


async def serve_admin(
    routes: Routes,
    address: SocketAddress,
    *,
    setting: str,
    hard_fail: bool,
    counters: ControlCounters,
    limits: AdminLimits = AdminLimits(),
    task_status: trio.TaskStatus[SocketAddress | None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve pages on an address until cancelled.

    An address that cannot be bound (in use, most of all: kube-proxy may sit there) is a warning and tried again every
    5 s. ``task_status`` gets the address with its real port after the first attempt, or None if that failed.

    Args:
        routes: What is served; a page that raises is answered with 500, logged and counted.
        address: Where; port 0 takes any free one.
        setting: The command line option behind the address, for the sentences.
        hard_fail: True: an address that cannot be bound ends the run.
        counters: Gets the unexpected errors.
        limits: What bounds the clients.
        task_status: See above.

    Raises:
        ConfigError: the first attempt to bind failed, and ``hard_fail`` is set.

    Cancellation: closes the listening socket and all connections, in the middle of an answer too.
    """
    try:
        listening = _open_listening_socket(address)
    except OSError as error:
        reason = _bind_failure(error, address)
        if hard_fail:
            raise ConfigError(f"cannot listen on {_text(address)}: {reason}; give another {setting}") from error
        LOG.warning(
            "cannot listen for admin requests; trying again every 5 s (change the address with %s)",
            setting,
            extra={"address": _text(address), "reason": reason},
        )
        task_status.started(None)
        listening = await _open_when_free(address)
        LOG.info("admin address bound after all", extra={"address": _text(address)})
    else:
        task_status.started(_bound_address(listening))
    with listening:
        await _AdminServer(routes, counters, limits, _text(_bound_address(listening))).run(listening)


def _open_listening_socket(address: SocketAddress) -> trio.socket.SocketType:
    """Return a socket that listens; it is the caller's to close."""
    ip, port = address
    listening = socket.socket(AF[family_of(ip)], socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ip.version == 6:  # noqa: PLR2004
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((str(ip), port))
        listening.listen(_BACKLOG)
        return trio.socket.from_stdlib_socket(listening)
    except BaseException:
        listening.close()
        raise


async def _open_when_free(address: SocketAddress) -> trio.socket.SocketType:
    """Return a listening socket once there can be one. Silent: the first failure has been told."""
    while True:
        await trio.sleep(_RETRY_BIND_S)
        try:
            return _open_listening_socket(address)
        except OSError as error:
            LOG.debug("still cannot listen", extra={"address": _text(address), "errno": errno_name(error.errno or 0)})


def _bind_failure(error: OSError, address: SocketAddress) -> str:
    """Return why an address cannot be bound, in words; looks for the process that holds it, which takes a while."""
    if error.errno == errno.EADDRINUSE:
        return f"in use by {describe_holder(*address, Protocol.TCP) or 'a process that is not visible from here'}"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have the address"
    return os.strerror(error.errno or 0)


def _bound_address(listening: trio.socket.SocketType) -> SocketAddress:
    host, port = listening.getsockname()[:2]
    return ip_address(host), port


def _text(address: SocketAddress) -> str:
    ip, port = address
    return f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}"  # noqa: PLR2004


@frozen
class _AdminServer:
    routes: Routes
    counters: ControlCounters
    limits: AdminLimits
    address: str

    async def run(self, listening: trio.socket.SocketType) -> NoReturn:
        """Accept and serve connections until cancelled."""
        async with trio.open_nursery() as connections:
            while True:
                try:
                    client, _ = await listening.accept()
                except OSError as error:
                    LOG.warning(
                        "cannot accept admin connections for the moment",
                        extra={"address": self.address, "errno": errno_name(error.errno or 0)},
                    )
                    await trio.sleep(_ACCEPT_PAUSE_S)
                    continue
                if len(connections.child_tasks) >= self.limits.max_connections:
                    LOG.warning("too many admin connections; one was closed", extra={"address": self.address})
                    client.close()
                    continue
                connections.start_soon(self._serve_connection, trio.SocketStream(client))

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection, and close it. Never raises: one client cannot end the server."""
        async with stream:
            try:
                connection = h11.Connection(h11.SERVER)
                while await self._serve_request(connection, stream):
                    connection.start_next_cycle()
                await self._linger(stream)
            except (trio.BrokenResourceError, trio.TooSlowError) as error:
                LOG.debug("admin connection broken", extra={"address": self.address, "reason": repr(error)})
            except Exception:
                LOG.exception("bug in the admin server; the connection is closed", extra={"address": self.address})
                self.counters.unexpected_errors += 1

    async def _serve_request(self, connection: h11.Connection, stream: trio.SocketStream) -> bool:
        """Receive one request and answer it; return whether another one may follow."""
        request = None
        try:
            with trio.fail_after(self.limits.request_timeout_s):
                request = await _receive_request(connection, stream)
            if request is None:
                return False
            response = await self._respond(request)
        except h11.RemoteProtocolError as error:
            # without a body, as it may have been a HEAD
            response = Response(error.error_status_hint, "text/plain", b"")
        with trio.fail_after(self.limits.request_timeout_s):
            await _send_response(connection, stream, request, response)
        return connection.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

    async def _respond(self, request: h11.Request) -> Response:
        path = _path(request)
        page = self.routes.get(path)
        if page is None and ANY_PATH not in self.routes:
            return text_response(404, f"not found; there is: {' '.join(sorted(self.routes))}")
        if page is None:
            page = self.routes[ANY_PATH]
        elif request.method not in (b"GET", b"HEAD"):
            return text_response(405, "only GET and HEAD")
        try:
            built = page()
            return built if isinstance(built, Response) else await built
        except Exception:
            LOG.exception("an admin page failed", extra={"address": self.address, "resource": path})
            self.counters.unexpected_errors += 1
            return text_response(500, "internal error; the log has details")

    async def _linger(self, stream: trio.SocketStream) -> None:
        """Wait for the client to close: a close with unread input would reset it before it has read the answer.

        Source: RFC 9112, section 9.6.
        """
        await stream.send_eof()
        with trio.move_on_after(self.limits.linger_timeout_s):
            while await stream.receive_some(_RECEIVE_BYTES):
                pass


async def _receive_request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """Return the next request, its body skipped; None at the end of the connection.

    The rest of a body that is too large, or that the client holds back until told to go on (RFC 9110, section 10.1.1),
    is left: the connection cannot be used again then.

    Raises:
        h11.RemoteProtocolError: not HTTP, or a header of more than h11's limit of 16 KiB.
    """
    request = None
    body_bytes = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                return request
            connection.receive_data(await stream.receive_some(_RECEIVE_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body_bytes += len(event.data)
            if body_bytes > _BODY_LIMIT_BYTES:
                return request
        else:  # the request or the connection is complete
            return request


async def _send_response(
    connection: h11.Connection, stream: trio.SocketStream, request: h11.Request | None, response: Response
) -> None:
    """Send an answer; None is a request that could not be understood."""
    is_head = request is not None and request.method == b"HEAD"
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        *response.headers,
    ]
    if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("Allow", "GET, HEAD"))
    if connection.their_state is not h11.DONE:
        headers.append(("Connection", "close"))
    reason = HTTPStatus(response.status).phrase.encode()
    events = (
        h11.Response(status_code=response.status, headers=headers, reason=reason),
        h11.Data(data=b"" if is_head else response.body),
        h11.EndOfMessage(),
    )
    await stream.send_all(b"".join(filter(None, map(connection.send, events))))


def _path(request: h11.Request) -> str:
    """Return the path of the target, in origin or absolute form (RFC 9112, section 3.2); ``""`` if it has none."""
    try:
        return urlsplit(request.target.decode("ascii")).path
    except ValueError:
        return ""

"""Running an admin server in a test, and talking to it."""

import re
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

import trio
import trio.testing

from userspace_proxy.control.admin_http import (
    AdminLimits,
    Response,
    Routes,
    SocketAddress,
    serve_admin,
    text_response,
)
from userspace_proxy.control.counters import ControlCounters

LOCALHOST = ip_address("127.0.0.1")
BIG_PAGE = bytes(16 * 1024 * 1024)
DEFAULT_LIMITS = AdminLimits()
SETTING = "--metrics-bind-address"


def broken_page() -> Response:
    """Fail as a page with a bug does."""
    raise LookupError("a bug")


async def slow_page() -> Response:
    """Let others run before there is an answer."""
    await trio.lowlevel.checkpoint()
    return text_response(200, "in the end")


async def broken_slow_page() -> Response:
    """Fail after others have run."""
    await trio.lowlevel.checkpoint()
    raise LookupError("a bug")


ROUTES: Routes = {
    "/livez": lambda: text_response(200, "ok"),
    "/readyz": lambda: text_response(503, "not synced"),
    "/broken": broken_page,
    "/slow": slow_page,
    "/broken-slow": broken_slow_page,
    "/invalid": lambda: Response(200, "text/plain\nbroken", b""),
    "/big": lambda: Response(200, "application/octet-stream", BIG_PAGE),
}


class Admin:
    """A running admin server and what it counts."""

    def __init__(self, address: SocketAddress, counters: ControlCounters) -> None:
        self.port = address[1]
        self.counters = counters

    async def connect(self) -> trio.SocketStream:
        """Return a new connection to the server."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def talk(self, data: bytes) -> bytes:
        """Send bytes on a new connection, end our side, and return everything that comes back."""
        async with await self.connect() as client:
            await client.send_all(data)
            await client.send_eof()
            return await read_all(client)


async def read_all(client: trio.SocketStream) -> bytes:
    """Return everything until the server closes; it has to do so properly."""
    received = bytearray()
    with trio.fail_after(20):
        while data := await client.receive_some():
            received += data
    return bytes(received)


async def read_until(client: trio.SocketStream, end: bytes) -> bytes:
    """Return what comes, up to and including ``end``."""
    received = b""
    while not received.endswith(end):
        data = await client.receive_some()
        assert data, received
        received += data
    return received


async def start(
    nursery: trio.Nursery,
    address: SocketAddress,
    *,
    hard_fail: bool = True,
    counters: ControlCounters | None = None,
    limits: AdminLimits = DEFAULT_LIMITS,
) -> SocketAddress | None:
    """Start a server in the nursery; return what it says about its address."""

    async def serve(*, task_status: trio.TaskStatus[SocketAddress | None]) -> None:
        await serve_admin(
            ROUTES,
            address,
            setting=SETTING,
            hard_fail=hard_fail,
            counters=counters or ControlCounters(),
            limits=limits,
            task_status=task_status,
        )

    bound: SocketAddress | None = await nursery.start(serve)
    return bound


def with_admin(
    test: Callable[[Admin], Awaitable[None]],
    *,
    limits: AdminLimits = DEFAULT_LIMITS,
    clock: trio.abc.Clock | None = None,
) -> None:
    """Run an async test against a server on any free port of 127.0.0.1."""

    async def main() -> None:
        counters = ControlCounters()
        async with trio.open_nursery() as nursery:
            address = await start(nursery, (LOCALHOST, 0), counters=counters, limits=limits)
            assert address is not None
            await test(Admin(address, counters))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)


def statuses(received: bytes) -> list[int]:
    """Return the status codes of the answers, in order."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


async def read_all_or_reset(client: trio.SocketStream) -> bytes:
    """Return everything until the connection ends in any way."""
    received = bytearray()
    try:
        while data := await client.receive_some():
            received += data
    except trio.BrokenResourceError:
        pass
    return bytes(received)


async def advance(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let everything happen that can happen now, then move the time, and again."""
    await trio.testing.wait_all_tasks_blocked(0.01)
    clock.jump(seconds)
    await trio.testing.wait_all_tasks_blocked(0.01)

"""How long, and how many, clients can hold the admin server.

Time stands still and is moved by hand: what a client is given is checked to the second.
"""

import os
import resource
import select
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from admin_driver import (
    BIG_PAGE,
    DEFAULT_LIMITS,
    Admin,
    advance,
    read_all,
    read_all_or_reset,
    read_until,
    statuses,
    with_admin,
)

from userspace_proxy.control.admin_http import AdminLimits


def is_closed(client: trio.SocketStream) -> bool:
    """Return whether the end of the connection has come; to be asked when no answer is due."""
    readable, _, _ = select.select([client.socket.fileno()], [], [], 0)
    return bool(readable)


def test_serve_admin_silent_client_is_closed_after_30_s() -> None:
    """A connection without a request is kept for 30 s, counted anew from each answer."""
    clock = trio.testing.MockClock()

    async def test(admin: Admin) -> None:
        async with await admin.connect() as client:
            await advance(clock, 29.9)
            assert not is_closed(client)
            await client.send_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            await read_until(client, b"ok\n")
            await advance(clock, 29.9)
            assert not is_closed(client)
            await advance(clock, 0.2)
            assert is_closed(client)
        assert admin.counters.unexpected_errors == 0

    with_admin(test, clock=clock)


def test_serve_admin_client_that_drips_is_closed_after_30_s() -> None:
    """Sending a byte now and then does not buy more time."""
    clock = trio.testing.MockClock()

    async def test(admin: Admin) -> None:
        async with await admin.connect() as client:
            for letter in b"GET":
                await client.send_all(bytes([letter]))
                assert not is_closed(client)
                await advance(clock, 10.01)
            assert is_closed(client)
        assert admin.counters.unexpected_errors == 0

    with_admin(test, clock=clock)


def test_serve_admin_client_that_does_not_read_is_closed_after_30_s() -> None:
    """An answer that is not taken is given up."""
    clock = trio.testing.MockClock()

    async def test(admin: Admin) -> None:
        async with await admin.connect() as client:
            await client.send_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            await advance(clock, 30.1)
            assert len(await read_all_or_reset(client)) < len(BIG_PAGE)
        assert admin.counters.unexpected_errors == 0

    with_admin(test, clock=clock)


def test_serve_admin_client_that_does_not_close_is_left_after_2_s() -> None:
    """After the last answer a client that keeps its side open is waited for a little, then left."""
    clock = trio.testing.MockClock()

    async def test(admin: Admin) -> None:
        async with await admin.connect() as client:
            await client.send_all(b"nonsense\r\n\r\n")
            assert statuses(await read_all(client)) == [400]
            await advance(clock, 1.9)
            await client.send_all(b"more")
            await advance(clock, 0.2)
            await client.send_all(b"one more, which is answered by a reset")
            with pytest.raises(trio.BrokenResourceError):
                await client.send_all(b"more")

    with_admin(test, clock=clock)


def test_serve_admin_at_the_cap_closes_further_clients_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    """Silent clients can use up the connections, not more; when one goes the next is served."""
    limits = AdminLimits(max_connections=3)

    async def test(admin: Admin) -> None:
        held = [await admin.connect() for _ in range(3)]
        async with await admin.connect() as further:
            assert await read_all_or_reset(further) == b""
        await held.pop().aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert statuses(await admin.talk(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")) == [200]
        for client in held:
            await client.send_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            await read_until(client, b"ok\n")
            await client.aclose()

    with_admin(test, limits=limits)
    assert [each.message for each in caplog.records] == ["too many admin connections; one was closed"]


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Use up all descriptors of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    used: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            used.extend(os.dup(0) for _ in iter(int, 1))
        yield
    finally:
        for descriptor in used:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_serve_admin_without_descriptors_pauses_and_recovers(caplog: pytest.LogCaptureFixture) -> None:
    """When descriptors run out a client waits, is told of ten times a second at most, and is served later."""
    clock = trio.testing.MockClock()

    async def test(admin: Admin) -> None:
        client = trio.SocketStream(trio.socket.socket())
        with no_descriptor_left():
            await client.socket.connect(("127.0.0.1", admin.port))
            await advance(clock, 0.09)
            assert [each.__dict__["errno"] for each in caplog.records] == ["EMFILE"]
            await advance(clock, 0.02)
            assert [each.__dict__["errno"] for each in caplog.records] == ["EMFILE"] * 2
        await client.send_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        await advance(clock, 0.1)
        assert statuses(await read_until(client, b"ok\n")) == [200]
        await client.aclose()

    with_admin(test, clock=clock)


def test_admin_limits_allow_64_connections_by_default() -> None:
    """The documented cap is the one in force."""
    assert DEFAULT_LIMITS.max_connections == 64

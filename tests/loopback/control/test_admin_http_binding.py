"""Where the admin server listens, and what it does while it cannot."""

import logging
import re
import socket
from ipaddress import IPv6Address, ip_address

import pytest
import trio
import trio.testing
from admin_driver import LOCALHOST, SETTING, advance, read_all_or_reset, read_until, start, statuses

from userspace_proxy.errors import ConfigError


def test_serve_admin_address_in_use_warns_once_and_binds_when_free(caplog: pytest.LogCaptureFixture) -> None:
    """An address in use is one warning that names its holder; 5 s after it is free pages are served there."""
    clock = trio.testing.MockClock()
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            with socket.create_server(("127.0.0.1", 0)) as holder:
                port = holder.getsockname()[1]
                assert await start(nursery, (LOCALHOST, port), hard_fail=False) is None
                for _ in range(3):
                    await advance(clock, 5.0)
            await advance(clock, 4.9)
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream("127.0.0.1", port)
            await advance(clock, 0.1)
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
                assert statuses(await read_until(client, b"ok\n")) == [200]
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
    warned, bound = caplog.records
    assert (warned.levelname, bound.levelname) == ("WARNING", "INFO")
    assert SETTING in warned.message
    assert re.fullmatch(r"in use by pid \d+ \(.+\)", warned.__dict__["reason"])
    assert bound.__dict__["address"] == warned.__dict__["address"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        pytest.param("127.0.0.1", r"in use by pid \d+ \(.+\)", id="in use"),
        pytest.param("192.0.2.1", "this machine does not have the address", id="not ours"),
        pytest.param("fe80::1", "Invalid argument", id="link-local without a zone"),
    ],
)
def test_serve_admin_with_hard_fail_raises_one_sentence(address: str, reason: str) -> None:
    """With hard_fail an address that cannot be bound is a ConfigError that says what, why and what to do."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
            async with trio.open_nursery() as nursery:
                with pytest.raises(ConfigError) as caught:
                    await start(nursery, (ip_address(address), port), hard_fail=True)
        shown = f"[{address}]" if ":" in address else address
        sentence = rf"cannot listen on {re.escape(shown)}:{port}: {reason}; give another {SETTING}"
        assert re.fullmatch(sentence, str(caught.value))

    trio.run(main)


def test_serve_admin_on_ipv6_wildcard_leaves_ipv4_alone() -> None:
    """An IPv6 socket is V6ONLY, and the bound address is told."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            bound = await start(nursery, (IPv6Address("::"), 0), hard_fail=True)
            assert bound is not None
            assert bound[0] == IPv6Address("::")
            async with await trio.open_tcp_stream("::1", bound[1]) as client:
                await client.send_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
                await read_until(client, b"ok\n")
            with socket.create_server(("127.0.0.1", bound[1])):
                pass
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_serve_admin_cancelled_frees_the_port() -> None:
    """Nothing of a cancelled server stays, open connections included."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            bound = await start(nursery, (LOCALHOST, 0), hard_fail=True)
            assert bound is not None
            client = await trio.open_tcp_stream("127.0.0.1", bound[1])
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        assert await read_all_or_reset(client) == b""
        await client.aclose()
        with socket.create_server(("127.0.0.1", bound[1])):
            pass

    trio.run(main)

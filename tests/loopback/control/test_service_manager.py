"""What a service manager is told, received on a real socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from userspace_proxy.control.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Return the socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock


def test_tell_with_a_manager_sends_the_state(manager: socket.socket) -> None:
    """One state is one datagram."""
    told = ServiceManager({"NOTIFY_SOCKET": manager.getsockname()})
    told.tell("READY=1")
    told.tell("STOPPING=1")
    assert [manager.recv(100), manager.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_tell_with_an_abstract_address_sends_there() -> None:
    """``@`` stands for the byte 0."""
    name = f"userspace-proxy-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(20)
        ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).tell("READY=1")
        assert sock.recv(100) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}], ids=["none", "gone"])
def test_tell_without_a_manager_does_nothing(environ: dict[str, str]) -> None:
    """Nobody to tell is no failure."""
    ServiceManager(environ).tell("READY=1")


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
        ({}, None),
    ],
)
def test_ping_interval_is_half_the_period_meant_for_this_process(
    environ: dict[str, str], interval_s: float | None
) -> None:
    """A variable that a parent process left, or that is no number, means nothing."""
    assert ServiceManager(environ).ping_interval_s == interval_s


async def test_ping_while_it_runs_sends_again_and_again(
    manager: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    """The period is kept."""
    started_s = autojump_clock.current_time()
    told = ServiceManager({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "10000000"})
    with trio.move_on_at(started_s + 12):
        await told.ping()
    assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    manager.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


async def test_ping_without_watchdog_returns_at_once(manager: socket.socket) -> None:
    """Nothing is sent that nobody waits for."""
    await ServiceManager({"NOTIFY_SOCKET": manager.getsockname()}).ping()
    manager.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.recv(100)

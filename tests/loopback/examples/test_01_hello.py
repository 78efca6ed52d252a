"""The example 01-hello, run as its README says: its commands, in their order, by a shell.

What differs from what a user does: port and loopback addresses of the test's own, so that it can run beside others.
"""

import re
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from deadline import DEADLINE_S, wait_until
from loopback.examples.shell import Shell, copy_example, read_commands

_ADDRESS_IN_README = "127.99.54.59"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the README uses curl")
def test_example_follows_its_readme(home: Path, open_shell: Callable[[str], Shell], port: int) -> None:
    """Every command of the README does what the text beside it says."""
    own = {"8080": str(port), "/tmp/hello": str(home / "hello")}  # noqa: S108 - what users may have
    readme = copy_example("01-hello", home, own)
    start_backends, run, send_requests, remove, kill, stop, check = read_commands(readme)
    first, second = open_shell("first"), open_shell("second")

    first.run(start_backends)
    wait_until(lambda: all(_listens(f"127.90.0.1{number}", port) for number in (1, 2, 3)))

    second.type(f"export USERSPACE_PROXY_LOOPBACK_RANGE=127.{112 + port % 100}.0.0/16")
    second.type(f"exec {run}")
    wait_until(lambda: "ready: " in second.output)
    dial = re.search(r"SERVICE +FRONTEND +DIAL\ndefault/hello:http  10\.96\.0\.80:80/TCP  (\S+)\n", second.output)
    assert dial
    assert re.search(r"^ready: 1 service, 3 endpoints, 1 listener, steering loopback, ", second.output, re.MULTILINE)

    send = send_requests.replace(f"{_ADDRESS_IN_README}:10080", dial[1])
    assert first.run(send) == "hello from backend-1\nhello from backend-2\nhello from backend-3\n" * 2

    assert first.run(remove) == ""
    wait_until(lambda: "backend-3" not in first.run(send))
    assert sorted(first.run(send).splitlines()) == ["hello from backend-1"] * 3 + ["hello from backend-2"] * 3

    first.run(kill)
    wait_until(lambda: not _listens("127.90.0.11", port))
    assert first.run(send).splitlines() == ["hello from backend-2"] * 6

    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(DEADLINE_S) == 0
    first.run(stop)
    wait_until(lambda: not _listens("127.90.0.13", port))
    first.run("wait")
    assert _ADDRESS_IN_README in first.run(check)
    assert re.search(r"^1 service, 3 endpoints, 0 errors, 0 warnings$", first.output, re.MULTILINE)


def _listens(address: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((address, port)) == 0

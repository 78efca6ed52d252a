"""The example 01-hello, run as its README says: its commands, in their order, by a shell.

What differs from what a user does: port and loopback addresses of the test's own, so that it can run beside others.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "01-hello"
DEADLINE_S = 60.0
_LOOK = threading.Event()
"""Never set: to wait between two looks."""
_ADDRESS_IN_README = "127.99.54.59"


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until a condition on real processes holds."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < give_up_at, f"it did not come true within {DEADLINE_S} s"
        _LOOK.wait(0.02)


class Shell:
    """A shell that a user types into, with what it prints."""

    def __init__(self, directory: Path, name: str, environment: dict[str, str]) -> None:
        """Start it in a directory, where a file ``name`` takes what it prints on stdout."""
        self._output = directory / name
        self._numbers = count()
        with self._output.open("wb") as output, (directory / f"{name}.errors").open("wb") as errors:
            self.process = subprocess.Popen(
                ["bash"],
                cwd=directory,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=errors,
                process_group=0,
            )

    @property
    def output(self) -> str:
        """All of stdout so far."""
        return self._output.read_text()

    def type(self, commands: str) -> None:
        """Type commands and a line end."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{commands}\n".encode())
        self.process.stdin.flush()

    def run(self, commands: str) -> str:
        """Type commands, wait for their end, and return what they print."""
        before = len(self.output)
        end = f"end of command {next(self._numbers)}\n"
        self.type(f"{commands}\necho {end}")
        wait_until(lambda: self.output.endswith(end))
        return self.output[before:].removesuffix(end)

    def close(self) -> None:
        """Kill it and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def port() -> int:
    """Return a port that is free on all addresses."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        free: int = sock.getsockname()[1]
        return free


@pytest.fixture
def readme(tmp_path: Path, port: int) -> str:
    """Copy the example to where the test works, with ports and paths of its own, and return its README."""
    copy = tmp_path / "examples" / "01-hello"
    shutil.copytree(EXAMPLE, copy)
    changes = {"8080": str(port), "/tmp/hello": str(tmp_path / "hello")}  # noqa: S108 - what users may have
    for file in copy.iterdir():
        text = file.read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        file.write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "examples"], cwd=tmp_path, check=True)
    return (copy / "README.md").read_text()


@pytest.fixture
def open_shell(tmp_path: Path, port: int) -> Iterator[Callable[[str], Shell]]:
    """Return a function that opens a shell in which the programs under test are the first that are found."""
    shells: list[Shell] = []
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "USERSPACE_PROXY_STATE_DIR": str(tmp_path / "state"),
        "USERSPACE_PROXY_RUNTIME_DIR": str(tmp_path / "run"),
        "USERSPACE_PROXY_METRICS_BIND_ADDRESS": "127.0.0.1:0",
    }

    def open_one(name: str) -> Shell:
        shells.append(Shell(tmp_path, name, {**os.environ, **own}))
        return shells[-1]

    yield open_one
    for shell in shells:
        shell.close()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the README uses curl")
def test_example_follows_its_readme(readme: str, open_shell: Callable[[str], Shell], port: int) -> None:
    """Every command of the README does what the text beside it says."""
    start_backends, run, send_requests, remove, kill, stop, check = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
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

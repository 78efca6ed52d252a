"""Fixtures of the tests of examples: a directory, a port, and shells of a user without any right."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cli_driver import UNPRIVILEGED
from loopback.examples.shell import Shell


@pytest.fixture
def home() -> Iterator[Path]:
    """Return a directory that such a user can get at, as he cannot at ``tmp_path``."""
    with TemporaryDirectory(prefix="usp-example-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def port() -> int:
    """Return a port that is free on all addresses, for TCP and UDP."""
    while True:
        with socket.socket() as sock, socket.socket(type=socket.SOCK_DGRAM) as other:
            sock.bind(("", 0))
            free: int = sock.getsockname()[1]
            try:
                other.bind(("", free))
            except OSError:
                continue
            return free


@pytest.fixture
def open_shell(home: Path) -> Iterator[Callable[[str], Shell]]:
    """Return a function that opens a shell in which the programs under test are the first that are found.

    The user owns everything in the directory by then.
    """
    shells: list[Shell] = []
    own = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "USERSPACE_PROXY_STATE_DIR": str(home / "state"),
        "USERSPACE_PROXY_RUNTIME_DIR": str(home / "run"),
        "USERSPACE_PROXY_METRICS_BIND_ADDRESS": "127.0.0.1:0",
    }

    def open_one(name: str) -> Shell:
        if UNPRIVILEGED:
            subprocess.run(["chown", "-R", "65534:65534", home], check=True)
        shells.append(Shell(home, name, {**os.environ, **own}, UNPRIVILEGED))
        return shells[-1]

    yield open_one
    for shell in shells:
        shell.close()

"""The backends as processes: that they start, serve, and always end."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from userspace_proxy.demo.backend_process import BackendProcess, start_backends
from userspace_proxy.demo.instance import Instance, open_instance
from userspace_proxy.errors import DemoError


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """Return an instance with sockets that listen."""
    with open_instance(tmp_path) as opened:
        yield opened


def ask(backend: BackendProcess) -> bytes:
    """Return the whole answer of a backend to a GET."""
    with socket.create_connection((str(backend.backend.address), backend.backend.port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        with client.makefile("rb") as answer:
            return answer.read()


def exists(pid: int) -> bool:
    """Return whether there is such a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


@pytest.mark.slow
async def test_start_backends_serves_until_the_context_ends(instance: Instance) -> None:
    """Each answers with its own name; afterwards no process is left, and no socket here."""
    with start_backends(instance.backends, instance.listening) as backends:
        for backend in backends:
            await backend.wait_ready()
            assert ask(backend).endswith(f"\r\n\r\nhello from {backend.name}\n".encode())
        assert [backend.state for backend in backends] == ["running"] * 3
    assert [backend.state for backend in backends] == ["dead (exit status 0)"] * 3
    assert not any(exists(backend.pid) for backend in backends)
    assert all(sock.fileno() == -1 for sock in instance.listening)


@pytest.mark.slow
async def test_backend_killed_refuses_connections_at_once(instance: Instance) -> None:
    """No copy of its socket is left anywhere: a client is refused, not queued."""
    with start_backends(instance.backends, instance.listening) as backends:
        await backends[1].wait_ready()
        backends[1].kill()
        assert backends[1].state == "dead (SIGKILL)"
        assert not backends[1].is_alive
        with pytest.raises(ConnectionRefusedError):
            ask(backends[1])
        assert backends[0].is_alive


@pytest.mark.slow
def test_start_backends_kills_one_that_does_not_end(instance: Instance) -> None:
    """A process that is stuck is killed after a while."""
    with start_backends(instance.backends, instance.listening) as backends:
        os.kill(backends[0].pid, signal.SIGSTOP)
    assert backends[0].state == "dead (SIGKILL)"
    assert not any(exists(backend.pid) for backend in backends)


def test_start_backends_without_an_interpreter_says_so(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that cannot be executed is one sentence with its path and the reason."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    expected = r"backend-1 of the demo cannot be started: /nowhere/python3: No such file or directory"
    with pytest.raises(DemoError, match=expected), start_backends(instance.backends, instance.listening):
        pass


async def test_wait_ready_of_one_that_ends_at_its_start_says_so(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that does not come to serve is not waited for."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        start_backends(instance.backends, instance.listening) as backends,
        pytest.raises(DemoError, match="backend-1 of the demo ended at its start"),
    ):
        await backends[0].wait_ready()

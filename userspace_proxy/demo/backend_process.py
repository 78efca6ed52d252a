"""The backends of the demonstration as seen from it: processes that are started, watched, killed and always stopped.

Entry point: ``start_backends``.
"""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

import userspace_proxy
from userspace_proxy.errors import DemoError
from userspace_proxy.plan.state import Backend

_PROGRAM = "userspace_proxy.demo.backend"
_PACKAGE_ROOT = Path(userspace_proxy.__file__).parents[1]
"""Where the package is found: the backends run the same one as we, whatever the working directory holds."""
_START_TIMEOUT_S = 20.0
"""Arbitrary: a hundred times what it takes on an idle machine."""
_STOP_TIMEOUT_S = 2.0
"""Arbitrary: a backend ends at once."""


class BackendProcess:
    """One backend: a process of its own that listens at an address of the EndpointSlice."""

    def __init__(self, name: str, backend: Backend, listening: socket.socket) -> None:
        """Start the process and hand it the listening socket; ours is closed.

        Raises:
            DemoError: it cannot be started.
        """
        self.name = name
        self.backend = backend
        arguments = [sys.executable, "-m", _PROGRAM, str(listening.fileno()), name]
        self._line, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own program
                    arguments,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    pass_fds=(listening.fileno(),),
                    cwd=_PACKAGE_ROOT,
                    process_group=0,  # Ctrl-C is for the demo alone
                )
            except OSError as error:
                self._line.close()
                raise DemoError(f"{name} of the demo cannot be started: {sys.executable}: {error.strerror}") from error
        # The process alone may hold it, or clients would queue here for ever once it is dead.
        listening.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def state(self) -> str:
        """``running``, or how it ended, as ``dead (SIGKILL)``."""
        status = self._process.poll()
        if status is None:
            return "running"
        return f"dead ({signal.Signals(-status).name})" if status < 0 else f"dead (exit status {status})"

    async def wait_ready(self) -> None:
        """Return when it serves.

        Raises:
            DemoError: it has ended, or says nothing in time.
        """
        with trio.move_on_after(_START_TIMEOUT_S):
            await trio.lowlevel.wait_readable(self._line)
            if self._line.recv(16) == b"ready\n":
                return
            raise DemoError(f"{self.name} of the demo ended at its start; it should have said why, above")
        raise DemoError(f"{self.name} of the demo did not start within {_START_TIMEOUT_S:g} s; is the machine busy?")

    def kill(self) -> None:
        """Send SIGKILL and wait for the death: afterwards its sockets are closed (milliseconds)."""
        self._process.kill()
        self._process.wait()

    def let_end(self) -> None:
        """Tell it to end, without waiting."""
        self._line.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        """Wait for its end after ``let_end``; it is killed if that does not come."""
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._line.close()


@contextmanager
def start_backends(backends: Sequence[Backend], listening: Sequence[socket.socket]) -> Iterator[list[BackendProcess]]:
    """Start a process for each Backend, named ``backend-1`` and so on; all have ended when the context has.

    Args:
        backends: Their addresses.
        listening: A socket for each, which is closed here.

    Raises:
        DemoError: one cannot be started.
    """
    processes: list[BackendProcess] = []
    try:
        for number, (backend, sock) in enumerate(zip(backends, listening, strict=True), start=1):
            processes.append(BackendProcess(f"backend-{number}", backend, sock))
        yield processes
    finally:
        for process in processes:
            process.let_end()
        for process in processes:
            process.stop()

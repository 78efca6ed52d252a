"""WorkerProcess: one worker process, and control's end of the line to it.

A frame that is partly sent is kept here: whoever sends may be cancelled at any await and go on later. Nothing here
knows what frames mean, and descriptors that a worker sends are refused. Entry points: ``start_worker_process``,
``end_processes``.
"""

import array
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import trio

import userspace_proxy
from userspace_proxy.errors import WorkerError
from userspace_proxy.ipc.frames import FrameReader, encode_frame

RECEIVE_BYTES = 1 << 18
"""Received at a time; arbitrary."""
END_PATIENCE_S = 1.0
"""Seconds a worker gets to reset its connections and end, once the line is cut; arbitrary."""
_LOOK_S = 0.005
_CHECKOUT = Path(userspace_proxy.__file__).parents[1]


class WorkerChannel:
    """Control's end of the line."""

    def __init__(self, sock: socket.socket) -> None:
        """Take ownership of a connected stream socket of AF_UNIX."""
        self._stdlib_sock = sock
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._reader = FrameReader()
        self._outgoing = memoryview(b"")

    async def receive(self) -> list[bytes] | None:
        """Wait for a piece and return the payloads of the frames that end in it; None: no more come.

        Raises:
            WorkerError: what came are no frames.
        """
        try:
            data = await self._sock.recv(RECEIVE_BYTES)
        except ConnectionError:  # it has ended without reading what was sent to it
            return None
        try:
            return [frame.payload for frame in self._reader.feed(data, ())] if data else None
        except ValueError as error:
            raise WorkerError(f"it sends {error}") from error

    async def wait_sendable(self) -> bool:
        """Wait until a frame can be sent; return False once nobody receives it any more."""
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[await self._sock.send(self._outgoing) :]
            await trio.lowlevel.wait_writable(self._stdlib_sock)
        except ConnectionError:
            return False
        return True

    def send(self, payload: bytes, fds: Sequence[int]) -> None:
        """Send a frame, right after ``wait_sendable``; what the kernel does not take goes with the next of these.

        Descriptors that the kernel does not take are missing at the other end, which says so; nothing else is.
        """
        self._outgoing = memoryview(encode_frame(payload, len(fds)))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self._stdlib_sock.sendmsg([self._outgoing], ancillary)
        except OSError:  # ETOOMANYREFS, ENOBUFS: too many are under way; EPIPE is found again by wait_sendable
            return
        self._outgoing = self._outgoing[sent:]

    def close(self) -> None:
        """Cut the line."""
        self._sock.close()


class Process(Protocol):
    """A process with its channel."""

    @property
    def channel(self) -> WorkerChannel:
        """The line to it."""

    @property
    def pid(self) -> int:
        """Number of the process."""

    def kill(self) -> None:
        """Send SIGKILL, if it has not ended."""

    def has_ended(self) -> bool:
        """Return whether it has ended; it is reaped then."""

    async def wait(self) -> int:
        """Wait for its end, and return its exit status, or the negative number of the signal that ended it."""


class WorkerProcess:
    """See ``Process``."""

    def __init__(self, process: trio.Process, channel: WorkerChannel) -> None:
        """Own both."""
        self._process = process
        self.channel = channel

    @property
    def pid(self) -> int:
        """See ``Process``."""
        return self._process.pid

    def kill(self) -> None:
        """See ``Process``."""
        self._process.kill()

    def has_ended(self) -> bool:
        """See ``Process``."""
        return self._process.poll() is not None

    async def wait(self) -> int:
        """See ``Process``."""
        return await self._process.wait()


async def start_worker_process() -> WorkerProcess:
    """Start a worker that waits for its first command.

    Cancellation: takes effect before it, or after it at the caller's next await.

    Raises:
        OSError: no process or no descriptor is to be had.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with its:
            process = await trio.lowlevel.open_process(
                [*_python(), "-m", "userspace_proxy.worker", str(its.fileno())],
                pass_fds=(its.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # out of the terminal's: until it ignores Ctrl-C, that would end it with a traceback
            )
    except BaseException:
        ours.close()
        raise
    return WorkerProcess(process, WorkerChannel(ours))


def end_processes(processes: Iterable[Process]) -> None:
    """End processes and reap them: cut their lines, so that they reset what is open, and kill what is left of them.

    Blocks the caller, for ``END_PATIENCE_S`` at most; nobody may be using the channels.
    """
    left = list(processes)
    for one in left:
        one.channel.close()
    give_up_at = time.monotonic() + END_PATIENCE_S
    while left and time.monotonic() < give_up_at:
        left = [one for one in left if not one.has_ended()]
        select.select([], [], [], _LOOK_S if left else 0)
    for one in left:
        one.kill()
    for one in left:
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        one.has_ended()


def _python() -> tuple[str, ...]:
    """Return the interpreter as this process has it, for ``-m``.

    Without ``-P`` it would look for the package in the working directory, where anybody may have put one, before all
    else; unless this very process has its package from there, nobody wants that.
    """
    return (sys.executable,) if Path(sys.path[0]) == _CHECKOUT else (sys.executable, "-P")

"""A real worker process, and the control process's end of the line to it in the hands of a test.

Entry point: ``open_worker``.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import TypeVar

from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.ipc.commands import Ask, Batch, Command, Start, encode_batch
from userspace_proxy.ipc.frames import FrameReader, encode_frame
from userspace_proxy.ipc.reports import Applied, Report, Stopped, WorkerMessage, decode_message

DEADLINE_S = 30.0
START = Start(
    name="0",
    limits=RelayLimits(),
    flow_limits=FlowLimits(max_total_flows=1000),
    log_level="info",
    log_format="text",
)
_PIECE_BYTES = 65536

Message = TypeVar("Message", Applied, Stopped, Report)


class WorkerProcess:
    """A worker and what it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket, log: Callable[[], str]) -> None:
        """Take over a process that was started, and the socket that it is connected to."""
        self.process = process
        self.sock = sock
        self._read_log = log
        self._reader = FrameReader()
        self._messages: deque[WorkerMessage] = deque()
        self._generation = 0
        self._question = 0
        sock.settimeout(DEADLINE_S)

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return self._read_log()

    def send(self, *commands: Command, sockets: Sequence[socket.socket] = ()) -> int:
        """Send a batch with the sockets for its ``Serve`` commands; return its generation."""
        self._generation += 1
        frame = encode_frame(encode_batch(Batch(self._generation, commands)), len(sockets))
        fds = [sock.fileno() for sock in sockets]
        sent = socket.send_fds(self.sock, [frame], fds) if fds else 0
        self.sock.sendall(frame[sent:])
        return self._generation

    def apply(self, *commands: Command, sockets: Sequence[socket.socket] = ()) -> tuple[int, ...]:
        """Send a batch and wait until it is in force; return the numbers of the listeners that were lost."""
        generation = self.send(*commands, sockets=sockets)
        while True:
            applied = self.receive(Applied)
            if applied.generation == generation:
                return applied.lost

    def report(self) -> Report:
        """Ask for a report and return it."""
        self._question += 1
        self.send(Ask(self._question))
        while True:
            report = self.receive(Report)
            if report.number == self._question:
                return report

    def receive(self, kind: type[Message]) -> Message:
        """Return the next message of a kind, and forget those before it; fail at the end of the stream."""
        while True:
            while self._messages:
                message = self._messages.popleft()
                if isinstance(message, kind):
                    return message
            try:
                data = self.sock.recv(_PIECE_BYTES)
            except ConnectionResetError:  # it has ended without reading all
                data = b""
            assert data, f"the worker is gone:\n{self.log}"
            self._messages += [decode_message(frame.payload) for frame in self._reader.feed(data, ())]

    def status(self, key: str) -> str:
        """Return a line of /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        return dict(line.split(":", 1) for line in lines)[key].strip()

    def open_files(self) -> list[str]:
        """Return what the worker has open; what it closes meanwhile may be missing."""
        folder = Path(f"/proc/{self.pid}/fd")
        found = []
        for name in os.listdir(folder):  # noqa: PTH208
            with suppress(FileNotFoundError):
                found.append(os.readlink(folder / name))  # noqa: PTH115
        return found

    def cpu_s(self) -> float:
        """Return how much CPU time it has used."""
        nanoseconds = Path(f"/proc/{self.pid}/schedstat").read_text(encoding="utf-8").split()[0]
        return int(nanoseconds) / 1e9

    def leave_room(self, files: int) -> None:
        """Allow it so many open files more, and none beyond that."""
        taken = {int(name) for name in os.listdir(f"/proc/{self.pid}/fd")}  # noqa: PTH208
        free = (number for number in count() if number not in taken)
        limit = next(islice(free, files, None))
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (limit, limit))

    def close(self) -> None:
        """Hang up, and wait for the worker to end by that."""
        self.sock.close()
        try:
            self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()


@contextmanager
def open_worker(
    start: Command = START, *, through: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Iterator[WorkerProcess]:
    """Yield a worker that has started.

    Args:
        start: Its first command.
        through: A command that runs it.
        env: Its environment; None: that of the test.
    """
    ours, its = socket.socketpair()
    with TemporaryFile("w+b") as log, ours:
        with its:
            process = subprocess.Popen(
                [*through, sys.executable, "-m", "userspace_proxy.worker", str(its.fileno())],
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[its.fileno()],
                env=env,
            )

        def read_log() -> str:
            return os.pread(log.fileno(), 1 << 20, 0).decode()

        worker = WorkerProcess(process, ours, read_log)
        try:
            worker.apply(start)
            yield worker
            if process.poll() is None:
                worker.close()
            assert "Traceback" not in worker.log, worker.log
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()

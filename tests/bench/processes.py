"""Programs under measurement: started, seen to be ready, weighed by /proc, and ended whatever happens.

For the scripts of this folder. Entry points: ``running``, ``cpu_s``, ``memory_bytes``,
``free_port``, ``end_cleanly_at_sigterm``.
"""

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0
BETWEEN_LOOKS_S = 0.05


def free_port() -> int:
    """Return a port that no TCP or UDP socket has right now, at any address."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        ):
            stream.bind(("", 0))
            port: int = stream.getsockname()[1]
            with suppress(OSError):
                datagram.bind(("", port))
                return port


@contextmanager
def running(command: list[str], is_ready: Callable[[], bool]) -> Iterator[int]:
    """Run a program until the end of the block; yields its pid once it is ready.

    It is in a process group of its own, so that Ctrl-C reaches this script alone and the program is ended from here.

    Raises:
        SystemExit: it ended, or was not ready in time; the sentence has the end of what it wrote.
    """
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True) as process,
    ):
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not is_ready():
                if time.monotonic() > deadline or process.poll() is not None:
                    said.seek(0)
                    raise SystemExit(f"{command[0]} does not serve. It said: {said.read().decode().strip()[-500:]}")
                threading.Event().wait(BETWEEN_LOOKS_S)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def end_cleanly_at_sigterm() -> None:
    """Have SIGTERM end this script as an exception does, so that what it has started is ended too."""
    signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def family_of_processes(pid: int) -> list[int]:
    """Return the pid of a process and those of all its descendants (proc(5), task/TID/children).

    Some may have ended meanwhile.
    """
    pids = [pid]
    for each in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            for children in Path(f"/proc/{each}/task").glob("*/children"):
                pids.extend(int(child) for child in children.read_text().split())
    return pids


def cpu_s(pid: int) -> tuple[float, float]:
    """Return seconds of user and of system time of a process and its descendants that live."""
    user = system = 0
    for each in family_of_processes(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        user += int(fields[11])
        system += int(fields[12])
    return user / CLOCK_TICKS, system / CLOCK_TICKS


def memory_bytes(pid: int) -> int:
    """Return what a process and its descendants have in memory; what they share counts once (proc(5), Pss)."""
    total = 0
    for each in family_of_processes(pid):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total

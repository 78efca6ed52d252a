"""DemoRun: the demonstration as a user starts it, with all that it prints and leaves behind."""

import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from deadline import DEADLINE_S, wait_until


class DemoRun:
    """A demonstration in a process of its own, whose processes and temporary files can be told from all others."""

    def __init__(self, directory: Path, arguments: Sequence[str], through: Sequence[str], terminal: int | None) -> None:
        """Start it.

        Args:
            directory: For what it prints, and for its temporary files.
            arguments: Follow ``demo``.
            through: Program and arguments that start it.
            terminal: For stdin, stdout and stderr; None: files.
        """
        self._temporary = directory / "tmp"
        self._temporary.mkdir(parents=True)
        self._output = directory / "output"
        self._errors = directory / "errors"
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*through, sys.executable, "-m", "userspace_proxy", "demo", *arguments],
                cwd=directory,
                env={**os.environ, "TMPDIR": str(self._temporary), "TERM": "xterm"},
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=output if terminal is None else terminal,
                stderr=errors if terminal is None else terminal,
            )

    @property
    def output(self) -> str:
        """All of stdout so far."""
        return self._output.read_text()

    @property
    def errors(self) -> str:
        """All of stderr so far."""
        return self._errors.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first match in stdout, as soon as it is there."""
        wait_until(lambda: re.search(pattern, self.output) is not None or self.process.poll() is not None)
        found = re.search(pattern, self.output)
        assert found, f"no {pattern!r} in {self.output!r}; stderr: {self.errors!r}"
        return found

    def pids(self) -> list[int]:
        """Return the processes of this run that live."""
        mark = f"TMPDIR={self._temporary}\0".encode()
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _has(entry, mark)]

    def leftovers(self) -> list[object]:
        """Return its processes and temporary files."""
        return [*self.pids(), *self._temporary.iterdir()]

    def close(self) -> None:
        """Kill what is left."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)


def _has(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes()
    except OSError:  # it has ended
        return False


class Terminal:
    """A terminal of 100 columns, seen from the side of the user; a context manager."""

    def __init__(self) -> None:
        """Open it."""
        self._ours, self.theirs = os.openpty()
        termios.tcsetwinsize(self.theirs, (40, 100))
        os.set_blocking(self._ours, False)
        self.written = ""
        """All that was written to it."""

    @property
    def screen(self) -> str:
        """All that was written to it, without colours and movements of the cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self.hang_up()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first match in what was written, as soon as it is there."""
        wait_until(lambda: re.search(pattern, self._read()) is not None)
        found = re.search(pattern, self.screen)
        assert found
        return found

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._ours, keys)

    def hang_up(self) -> None:
        """Close it, as a window that is closed."""
        for fd in (self._ours, self.theirs):
            if fd >= 0:
                os.close(fd)
        self._ours = self.theirs = -1

    def _read(self) -> str:
        with suppress(BlockingIOError):
            self.written += os.read(self._ours, 65536).decode(errors="replace")
        return self.screen

"""A shell into which a test types the commands of an example's README, in their order.

Entry points: ``Shell``, ``copy_example``, ``read_commands``.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from deadline import wait_until

EXAMPLES = Path(__file__).parents[3] / "examples"


class Shell:
    """A shell that a user types into, with what it prints."""

    def __init__(self, directory: Path, name: str, environment: Mapping[str, str], through: Sequence[str]) -> None:
        """Start it in a directory, where a file ``name`` takes what it prints on stdout; ``through`` runs it."""
        self._output = directory / name
        self._numbers = count()
        with self._output.open("wb") as output, (directory / f"{name}.errors").open("wb") as errors:
            self.process = subprocess.Popen(
                [*through, "bash"],
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


def copy_example(name: str, directory: Path, changes: Mapping[str, str]) -> str:
    """Copy an example into a git repository of the test's own, with other texts in it, and return its README."""
    copy = directory / "examples" / name
    shutil.copytree(EXAMPLES / name, copy)
    for file in copy.iterdir():
        text = file.read_text()
        for old, new in changes.items():
            text = text.replace(old, new)
        file.write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=directory, check=True)
    subprocess.run(["git", "add", "examples"], cwd=directory, check=True)
    return (copy / "README.md").read_text()


def read_commands(readme: str) -> list[str]:
    """Return the blocks of a README that a user types."""
    return re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)

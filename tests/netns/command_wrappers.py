"""Commands on a PATH of a test's own that stand before the real ones."""

import os
import shutil
from pathlib import Path

_RESTORES = tuple(
    f"{command}-{variant}-restore" for command in ("iptables", "ip6tables") for variant in ("nft", "legacy")
)
_SAVES = tuple(name.replace("restore", "save") for name in _RESTORES)


class CommandWrappers:
    """The iptables commands, each run by a script that notes it, and refuses some inputs as if it did not know them.

    Args:
        directory: It is made.
        refuses: An extended regular expression; inputs of restore with a rule that matches fail.
    """

    def __init__(self, directory: Path, refuses: str = "") -> None:
        directory.mkdir()
        self._directory = directory
        for name in (*_SAVES, *_RESTORES):
            real = shutil.which(name)
            script = directory / name
            if name in _SAVES:
                script.write_text(f'#!/bin/sh\necho "$@" >>"$0.calls"\nexec {real} "$@"\n')
            else:
                lines = [f'read="$(mktemp -p {directory})"', 'cat >"$read"', 'cat "$read" >>"$0.calls"']
                if refuses:
                    lines.append(f"! grep -E -q -e '{refuses}' \"$read\" || {{ echo 'unknown option' >&2; exit 2; }}")
                script.write_text("\n".join(["#!/bin/sh", *lines, f'exec {real} "$@" <"$read"', ""]))
            script.chmod(0o755)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What puts them in front of the others on PATH."""
        return ("env", f"PATH={self._directory}:{os.environ['PATH']}")

    def written(self, command: str) -> list[str]:
        """Return the lines that the restore of ``iptables-nft`` and the like was given since ``forget``."""
        return self._lines(f"{command}-restore")

    def looks(self, command: str) -> int:
        """Return how often the save of ``iptables-nft`` and the like was run since ``forget``."""
        return len(self._lines(f"{command}-save"))

    def forget(self) -> None:
        """Forget what was run so far."""
        for file in self._directory.glob("*.calls"):
            file.unlink()

    def _lines(self, name: str) -> list[str]:
        calls = self._directory / f"{name}.calls"
        return calls.read_text().splitlines() if calls.exists() else []

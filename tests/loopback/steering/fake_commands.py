"""Commands that a test puts onto a PATH of its own."""

from collections.abc import Mapping
from pathlib import Path


class FakeCommands:
    """A PATH of the test's own, with commands that say what they are told to say and note that they were run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.legacy_tables = path / "ip_tables_names"
        """Stands for the file in /proc that names the tables of the legacy variant; a kernel without it has none."""
        path.mkdir()

    def add(
        self,
        *names: str,
        stdout: str = "",
        stderr: str = "",
        status: int = 0,
        takes_s: int = 0,
        refuses: str = "",
        only_with: str = "",
    ) -> None:
        """Put commands onto PATH, or replace what they do.

        Args:
            names: As ``iptables-nft-save``.
            stdout: What they print.
            stderr: What they complain of.
            status: Their exit status.
            takes_s: How long they take.
            refuses: They complain only of an input with this text in it.
            only_with: They do all this only if their arguments begin with this text, and else nothing.
        """
        for name in names:
            for stream, text in {"out": stdout, "err": stderr}.items():
                (self.path / f"{name}.{stream}").write_text(text)
            script = self.path / name
            script.write_text(
                "#!/bin/sh\n"
                f'echo "$@" >>"$0.calls"\n'
                f'case "$*" in "{only_with}"*) ;; *) exit 0;; esac\n'
                f'if [ "$1" = --noflush ]; then\n'
                f'/bin/cat >"$0.read"; /bin/cat "$0.read" >>"$0.input"\n'
                f'/bin/grep -q -e "{refuses}" "$0.read" || exit 0\n'
                f"fi\n"
                f'/bin/cat "$0.err" >&2; /bin/cat "$0.out"\n'
                f"{f'exec /bin/sleep {takes_s}' if takes_s else f'exit {status}'}\n"
            )
            script.chmod(0o755)

    def calls(self) -> Mapping[str, list[str]]:
        """Return the arguments of each run, by command; those that never ran are left out."""
        return {file.stem: file.read_text().splitlines() for file in sorted(self.path.glob("*.calls"))}

    def forget(self) -> None:
        """Forget all runs and what was read."""
        for file in (*self.path.glob("*.calls"), *self.path.glob("*.input")):
            file.unlink()

    def input(self, name: str) -> str:
        """Return all that a command was given to read."""
        return (self.path / f"{name}.input").read_text()

"""The other processes of this machine, as far as /proc shows them to us: what they are called, what they have open.

Slow where there are many processes and open files. Source: proc_pid_fd(5), proc_pid_comm(5).
"""

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def process_ids() -> list[int]:
    """Return the pids of all processes, the lowest first; none where there is no /proc."""
    try:
        return sorted(int(name) for name in os.listdir(_PROC) if name.isdecimal())  # noqa: PTH208
    except OSError:
        return []


def open_files(pid: int) -> Iterator[str]:
    """Yield where the descriptors of a process lead; nothing more once it is gone, nothing if it is not ours to see."""
    try:
        with os.scandir(f"{_PROC}/{pid}/fd") as entries:
            for entry in entries:
                yield os.readlink(entry.path)  # noqa: PTH115
    except OSError:
        return


def command_name(pid: int) -> str:
    """Return what a process is called, without what cannot be printed; ``gone`` if it is."""
    try:
        name = (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return "gone"
    return "".join(character if character.isprintable() else "?" for character in name)

"""What a process has started, and whether a process has ended (proc(5)).

Entry points: ``children``, ``has_ended``.
"""

import os
from contextlib import suppress
from pathlib import Path


def children(pid: int | None = None) -> set[int]:
    """Return the child processes of a process, or of this one, dead ones that were not waited for included."""
    found: set[int] = set()
    for listed in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread ended meanwhile
            found.update(map(int, listed.read_text().split()))
    return found


def has_ended(pid: int) -> bool:
    """Return whether a process has closed what it had open; it may not have been waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in {"Z", "X"}  # the name in parentheses may hold anything

"""Gives processes less CPU than there is, by control groups; needs root. Entry points: ``each_limited``, ``why_not``.

Two processes that are to run side by side need cores for themselves and for whoever loads them. Where there are too few
cores for that, each is given a part of one: what two of them do then tells what two of them do on cores of their own.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PERIOD_US = 4000
"""Short, so that a process that has used up its part waits no longer than this."""
LEAST_QUOTA_US = 1000
"""The kernel accepts none below; source: sched-bwc in the kernel's documentation."""


def why_not() -> str | None:
    """Return why processes cannot be limited here; None: they can."""
    if os.geteuid() != 0:
        return "it needs root"
    hierarchy = _hierarchy()
    if hierarchy is None:
        return "there is no control group hierarchy with the cpu controller"
    if not os.access(hierarchy, os.W_OK):
        return f"{hierarchy} may not be written to"
    return None


@contextmanager
def each_limited(pids: Sequence[int], share: float) -> Iterator[None]:
    """Give each of some processes no more than a share of one core until the end of the block."""
    hierarchy = _hierarchy()
    assert hierarchy is not None, why_not()
    with ExitStack() as stack:
        for pid in pids:
            stack.enter_context(_limited(hierarchy, pid, max(int(PERIOD_US * share), LEAST_QUOTA_US)))
        yield


@contextmanager
def _limited(hierarchy: Path, pid: int, quota_us: int) -> Iterator[None]:
    before = hierarchy / _group_of(pid) / "cgroup.procs"
    group = hierarchy / f"userspace-proxy-bench-{pid}"
    group.mkdir()
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}", encoding="ascii")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US), encoding="ascii")
            (group / "cpu.cfs_quota_us").write_text(str(quota_us), encoding="ascii")
        (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                before.write_text(str(pid), encoding="ascii")
    finally:
        group.rmdir()


def _hierarchy() -> Path | None:
    """Return where the hierarchy with the cpu controller is mounted; sources: cgroups(7), proc(5)."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(where)
        control = Path(where) / "cgroup.subtree_control"
        if kind == "cgroup2" and "cpu" in control.read_text(encoding="ascii").split():
            return Path(where)
    return None


def _group_of(pid: int) -> str:
    """Return the group of a process in that hierarchy, without a leading slash."""
    unified = ""
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return group.lstrip("/")
        if not controllers:
            unified = group
    return unified.lstrip("/")

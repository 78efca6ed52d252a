"""What a proxy has used: CPU time and memory of all its processes, and how much of the machine was left.

It only reads /proc, so that whoever drives the load can read a meter at the very start and end of what counts. Entry
points: ``CpuMeter``, ``CpuUse``.
"""

from contextlib import suppress
from pathlib import Path

from attrs import frozen
from bench.processes import CLOCK_TICKS, family_of_processes

NS_PER_S = 1e9


@frozen
class CpuUse:
    """CPU time between two readings of a meter, in seconds."""

    total_s: float
    """Of all processes and threads of a proxy."""
    user_s: float
    """The part of it in user mode; the kernel finds it by a look at each clock tick, so it is rough for short times."""
    descendants_s: float
    """The part of it that processes below the first one have used."""
    idle_share: float
    """How much of all cores of the machine nobody used, from 0 to 1."""


@frozen
class Reading:
    """One look at a meter; means something only next to another one."""

    threads_ns: dict[int, int]
    """CPU time by thread."""
    first_threads: frozenset[int]
    """Those of the first processes, not of their descendants."""
    ended_ticks: int
    """CPU time of children that have ended and were waited for."""
    user_ticks: int
    all_ticks: int
    idle_ticks: int
    """Of all cores of the machine, since it was started."""
    machine_ticks: int
    """The same with the time in use."""


@frozen
class CpuMeter:
    """Reads what some processes, their threads and all their descendants use."""

    pids: tuple[int, ...]

    def read(self) -> Reading:
        """Return a reading; what ends while it is read is left out. Source: proc(5), stat and schedstat."""
        threads: dict[int, int] = {}
        first: set[int] = set()
        ended = user = both = 0
        for root in self.pids:
            for pid in family_of_processes(root):
                with suppress(FileNotFoundError, ProcessLookupError):
                    fields = _stat_fields(pid)
                    user += fields[0]
                    both += fields[0] + fields[1]
                    ended += fields[2] + fields[3]
                    ours = _thread_times(pid)
                    threads.update(ours)
                    if pid == root:
                        first.update(ours)
        idle, machine = _machine_ticks()
        return Reading(threads, frozenset(first), ended, user, both, idle, machine)


def used_between(before: Reading, after: Reading) -> CpuUse:
    """Return what was used from one reading to a later one."""
    ended_s = (after.ended_ticks - before.ended_ticks) / CLOCK_TICKS
    used = {thread: ns - before.threads_ns.get(thread, 0) for thread, ns in after.threads_ns.items()}
    total_s = sum(used.values()) / NS_PER_S + ended_s
    first_s = sum(used[thread] for thread in after.first_threads) / NS_PER_S
    ticks = after.all_ticks - before.all_ticks
    user_share = (after.user_ticks - before.user_ticks) / ticks if ticks else 0.0
    machine = after.machine_ticks - before.machine_ticks
    return CpuUse(
        total_s=total_s,
        user_s=total_s * user_share,
        descendants_s=total_s - first_s,
        idle_share=(after.idle_ticks - before.idle_ticks) / machine if machine else 0.0,
    )


def _stat_fields(pid: int) -> list[int]:
    """Return user and system ticks of a process, and both of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return [int(each) for each in fields[11:15]]


def _thread_times(pid: int) -> dict[int, int]:
    times = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            times[int(thread.name)] = int((thread / "schedstat").read_text(encoding="ascii").split()[0])
    return times


def _machine_ticks() -> tuple[int, int]:
    """Return idle ticks and all ticks of the machine; waiting for a disk is idle too. Source: proc(5), stat."""
    with Path("/proc/stat").open(encoding="ascii") as file:
        ticks = [int(each) for each in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)

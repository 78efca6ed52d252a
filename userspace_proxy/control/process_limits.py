"""Limits of this process: as many descriptors as it may have, and as many flows as it can have beside all else."""

import os
import resource
from math import ceil
from pathlib import Path

from attrs import evolve, frozen

from userspace_proxy.config import MOST_WORKERS, FlowLimits

UNLIMITED = 1 << 20
"""What stands for no limit at all, where something says so: Linux' default of fs.nr_open, proc_sys_fs(5)."""

_LOCAL_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOCAL_PORTS = 28232
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@frozen
class OpenFilesLimit:
    """How many descriptors this process may have open."""

    before: int
    """The soft limit found."""
    after: int
    """The soft limit now in force."""


def raise_open_files_limit() -> OpenFilesLimit:
    """Raise the soft limit of open files to the hard one, which needs no privilege and is never lowered.

    A sandbox may forbid it: then ``after`` equals ``before``, and it is for the caller to say so.

    Source: getrlimit(2), RLIMIT_NOFILE.
    """
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return OpenFilesLimit(before, before)
    return OpenFilesLimit(before, hard)


def count_local_ports(path: Path = _LOCAL_PORT_RANGE) -> int:
    """Return how many ports this node has for sockets that are not bound to one; all of them have to share these.

    Source: ip(7), ip_local_port_range.
    """
    try:
        first, last = map(int, path.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no /proc: what Linux has by default
        return _LOCAL_PORTS
    return last - first + 1


def count_usable_cpus(path: Path = _CPU_MAX) -> int:
    """Return how many CPUs this process may use, as its affinity and the quota of its container say; at least 1.

    Source: sched_getaffinity(2); the kernel's documentation of cgroup v2, cpu.max.
    """
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = path.read_text(encoding="ascii").split()
        return min(count, ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return count


def count_default_workers(path: Path = _CPU_MAX) -> int:
    """Return how many workers there are unless a number is asked for: one for each usable CPU, within reason."""
    return min(count_usable_cpus(path), MOST_WORKERS)


def flow_limits_within(limits: FlowLimits, files: OpenFilesLimit, local_ports: int) -> FlowLimits:
    """Return limits with a number of flows in all: by default half of what there is, as each has a file and a port."""
    if limits.max_total_flows is not None:
        return limits
    available = UNLIMITED if files.after == resource.RLIM_INFINITY else files.after
    return evolve(limits, max_total_flows=max(min(available, local_ports) // 2, 1))

"""The limit of open files, in processes of its own."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from userspace_proxy.config import MOST_WORKERS, FlowLimits
from userspace_proxy.control.process_limits import (
    UNLIMITED,
    OpenFilesLimit,
    count_default_workers,
    count_local_ports,
    count_usable_cpus,
    flow_limits_within,
)

FORBID = """
import ctypes, struct
# seccomp(2): prlimit64 with a new limit is EPERM, everything else is allowed
filters = b"".join(struct.pack("=HBBI", *each) for each in (
    (0x20, 0, 0, 0),            # the system call's number
    (0x15, 0, 3, int(sys.argv[3])),
    (0x20, 0, 0, 32),           # the low half of its third argument
    (0x15, 1, 0, 0),
    (0x06, 0, 0, 0x00050001),   # SECCOMP_RET_ERRNO | EPERM
    (0x06, 0, 0, 0x7fff0000),   # SECCOMP_RET_ALLOW
))
buffer = ctypes.create_string_buffer(filters)
program = struct.pack("@HP", 6, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0          # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
"""

SCRIPT = """
import resource, sys
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
{forbid}
from userspace_proxy.control.process_limits import raise_open_files_limit
limit = raise_open_files_limit()
print(limit.before, limit.after, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard"),
    [pytest.param(100, 333, id="below the hard limit"), pytest.param(333, 333, id="at the hard limit")],
)
def test_raise_open_files_limit_ends_at_the_hard_limit(soft: int, hard: int) -> None:
    """The soft limit becomes the hard one, which stays; both soft limits are told."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(forbid=""), str(soft), str(hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [int(word) for word in done.stdout.split()] == [soft, hard, hard, hard]


@pytest.mark.parametrize(
    ("files", "ports", "asked", "flows"),
    [
        pytest.param(1024, 2000, None, 512, id="half of the descriptors"),
        pytest.param(4096, 2000, None, 1000, id="half of the local ports"),
        pytest.param(1024, 2000, 7, 7, id="as asked"),
        pytest.param(1024, 2000, 5000, 5000, id="as asked, whatever there is"),
        pytest.param(1, 2000, None, 1, id="never none"),
        pytest.param(resource.RLIM_INFINITY, UNLIMITED + 2, None, UNLIMITED // 2, id="no limit of files"),
    ],
)
def test_flow_limits_leave_half_of_what_there_is_to_the_rest(
    files: int, ports: int, asked: int | None, flows: int
) -> None:
    """Unless a number was asked for; what is no number of flows stays."""
    limits = FlowLimits(idle_timeout_s=5.0, max_flows=6, max_total_flows=asked)
    found = flow_limits_within(limits, OpenFilesLimit(before=files, after=files), ports)
    assert found == FlowLimits(idle_timeout_s=5.0, max_flows=6, max_total_flows=flows)


@pytest.mark.parametrize(
    ("text", "count"), [("32768\t60999\n", 28232), ("1000\t1000\n", 1), ("", 28232), (None, 28232)]
)
def test_local_ports_are_counted_as_the_kernel_says(tmp_path: Path, text: str | None, count: int) -> None:
    """Both ends belong to the range; where it cannot be read it is that of Linux."""
    path = tmp_path / "ip_local_port_range"
    if text is not None:
        path.write_text(text)
    assert count_local_ports(path) == count


def quota_file(directory: Path, text: str | None) -> Path:
    """Return where the quota of CPU time is written down, if there is a text."""
    path = directory / "cpu.max"
    if text is not None:
        path.write_text(text)
    return path


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process run on four CPUs, whatever machine this is."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize(
    ("text", "count"),
    [
        pytest.param("200000 100000\n", 2, id="two"),
        pytest.param("150000 100000\n", 2, id="part of one counts"),
        pytest.param("1000 100000\n", 1, id="never none"),
        pytest.param("6400000 100000\n", 4, id="more than there are"),
        pytest.param("max 100000\n", 4, id="no quota"),
        pytest.param("", 4, id="nothing written down"),
        pytest.param(None, 4, id="no cgroup v2"),
    ],
)
def test_usable_cpus_are_within_the_quota_of_the_container(tmp_path: Path, text: str | None, count: int) -> None:
    """As cpu.max has it: microseconds of CPU time in each period of so many."""
    assert count_usable_cpus(quota_file(tmp_path, text)) == count


def test_usable_cpus_are_those_that_the_process_may_run_on(tmp_path: Path) -> None:
    """Not all that the machine has: taskset(1) and a cpuset are obeyed."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert count_usable_cpus(quota_file(tmp_path, None)) == 1
    finally:
        os.sched_setaffinity(0, before)
    assert count_usable_cpus(quota_file(tmp_path, None)) == len(before)


@pytest.mark.parametrize("cpus", [1, 3, MOST_WORKERS, MOST_WORKERS + 1, 128])
def test_default_workers_are_one_for_each_cpu_within_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int
) -> None:
    """A big machine gets no more than it needs unless somebody asks; the quota counts here, too."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    assert count_default_workers(quota_file(tmp_path, None)) == min(cpus, MOST_WORKERS)
    assert count_default_workers(quota_file(tmp_path, "100000 100000")) == 1


PRLIMIT64 = {"x86_64": 302, "aarch64": 261}
"""Number of the system call behind setrlimit."""


@pytest.mark.skipif(platform.machine() not in PRLIMIT64, reason="the number of prlimit64 on this machine is not known")
def test_raise_open_files_limit_where_forbidden_keeps_the_limit() -> None:
    """A sandbox that forbids it costs descriptors, not the start."""
    number = str(PRLIMIT64[platform.machine()])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(forbid=FORBID), "100", "333", number],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [int(word) for word in done.stdout.split()] == [100, 100, 100, 333]

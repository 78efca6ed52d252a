"""The limit of open files, in processes of its own."""

import platform
import subprocess
import sys

import pytest

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

"""Tests of worker_user: whom workers run as, and why not."""

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from peers import NOBODY, unprivileged

from userspace_proxy.config import Config
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.worker_user import find_worker_user
from userspace_proxy.control.workers import Workers
from userspace_proxy.errors import ConfigError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may have workers run as somebody else")


def test_worker_user_unless_asked_for_is_the_one_there_is() -> None:
    """Then nothing has to be changed; neither when it is asked for by name."""
    assert find_worker_user("") is None
    assert find_worker_user(str(os.geteuid())) is None
    assert find_worker_user(pwd.getpwuid(os.geteuid()).pw_name) is None


@needs_root
def test_worker_user_is_found_by_name_and_by_number() -> None:
    """With the group it has; a number of nobody stands for a group, too, as container images use them."""
    nobody = pwd.getpwuid(NOBODY)
    assert find_worker_user(nobody.pw_name) == find_worker_user(str(NOBODY)) == (NOBODY, nobody.pw_gid)
    assert find_worker_user("54321") == (54321, 54321)


def test_worker_user_that_does_not_exist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """In a sentence that says what to do."""
    config = Config(state_dir=tmp_path, runtime_dir=tmp_path, workers=2, worker_user="no-such-user")
    with pytest.raises(ConfigError, match="no-such-user: there is no such user here; name one"):
        Workers(config, ControlCounters(), lambda _: None)


@pytest.mark.parametrize("user", ["54321", "12345"])
def test_worker_user_without_the_right_to_become_it_is_refused(user: str) -> None:
    """All that is missing is named at once: to become it, and to end one that hangs."""
    with unprivileged(), pytest.raises(ConfigError, match="lacks CAP_KILL, CAP_SETGID, CAP_SETUID: give it these"):
        find_worker_user(user)


@needs_root
def test_worker_user_that_is_not_mapped_in_a_user_namespace_is_refused() -> None:
    """All capabilities there are of no use for it."""
    program = "from userspace_proxy.control.worker_user import find_worker_user; find_worker_user('54321')"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespace is to be had: {done.stderr}")
    assert "group 54321 is not mapped into the user namespace of this process" in done.stderr

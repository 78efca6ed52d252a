"""One instance for each runtime directory, with real processes."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from userspace_proxy.control.instance_lock import instance_lock
from userspace_proxy.errors import ConfigError

HOLD = """
import sys
from pathlib import Path
from userspace_proxy.control.instance_lock import instance_lock
with instance_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_lock_in_new_directory_is_private_and_holds_the_pid(tmp_path: Path) -> None:
    """Directory 0700, file 0600, our pid inside; whatever the umask."""
    runtime_dir = tmp_path / "run" / "userspace-proxy"
    umask = os.umask(0)
    try:
        with instance_lock(runtime_dir):
            assert stat.S_IMODE(runtime_dir.stat().st_mode) == 0o700
            assert stat.S_IMODE((runtime_dir / "lock").stat().st_mode) == 0o600
            assert (runtime_dir / "lock").read_text() == f"{os.getpid()}\n"
    finally:
        os.umask(umask)


def test_lock_held_by_another_names_its_pid_and_leaves_it_alone(tmp_path: Path) -> None:
    """The second instance says who the first is and what to do, and does not disturb it."""
    with instance_lock(tmp_path):
        for _ in range(2):
            with pytest.raises(ConfigError) as caught, instance_lock(tmp_path):
                pass
            assert str(caught.value) == (
                f"another userspace-proxy (pid {os.getpid()}) uses {tmp_path}; stop it or give another --runtime-dir"
            )


def test_lock_after_release_can_be_taken_again(tmp_path: Path) -> None:
    """The lock ends with the block, also when an error leaves it."""
    with pytest.raises(ZeroDivisionError), instance_lock(tmp_path):
        raise ZeroDivisionError
    with instance_lock(tmp_path):
        pass


def test_lock_of_a_killed_process_is_free_and_its_longer_pid_overwritten(tmp_path: Path) -> None:
    """A process that dies by SIGKILL leaves nothing that keeps the next one out or confuses it."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=rf"\(pid {holder.pid}\)"), instance_lock(tmp_path):
            pass
        holder.kill()
    (tmp_path / "lock").write_text("99999999999\n")
    with instance_lock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_lock_is_not_inherited_by_a_program_that_was_started(tmp_path: Path) -> None:
    """A helper process that outlives us does not keep the next instance out."""
    with instance_lock(tmp_path):
        helper = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with instance_lock(tmp_path):
            pass
    finally:
        helper.kill()
        helper.wait()


def test_lock_whose_holder_has_not_written_yet_is_told_without_pid(tmp_path: Path) -> None:
    """Between its lock and its pid the other instance is nameless."""
    with instance_lock(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(ConfigError, match=r"^another userspace-proxy uses "), instance_lock(tmp_path):
            pass


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        pytest.param("a-file", "File exists", id="is a file"),
        pytest.param("a-file/below", "Not a directory", id="below a file"),
        pytest.param("linked", "Too many levels of symbolic links", id="lock is a symbolic link"),
    ],
)
def test_lock_in_unusable_directory_says_why(tmp_path: Path, place: str, reason: str) -> None:
    """What is wrong with the directory is one sentence, and no link is followed to write somewhere else."""
    (tmp_path / "a-file").write_text("kept")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "lock").symlink_to(tmp_path / "a-file")
    with pytest.raises(ConfigError) as caught, instance_lock(tmp_path / place):
        pass
    assert str(caught.value) == (
        f"the runtime directory {tmp_path / place} cannot be used: {reason}; give another --runtime-dir"
    )
    assert (tmp_path / "a-file").read_text() == "kept"


def test_lock_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    """A full disk (here: a limit of file size) is one sentence too, and the lock is not kept."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(ConfigError, match=r"cannot be used: File too large"), instance_lock(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with instance_lock(tmp_path):
        pass

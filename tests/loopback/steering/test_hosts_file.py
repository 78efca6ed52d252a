"""The hosts file on disk: what changes about it, and what does not."""

import errno
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from builders import named

from userspace_proxy.errors import SteeringError
from userspace_proxy.steering.hosts_file import remove_hosts_block, write_hosts_block
from userspace_proxy.steering.hosts_text import HostsLine

WEB = HostsLine(named("shop/web"), ip_address("10.96.0.10"))
MANY = [HostsLine(named(f"shop/s{number}"), ip_address("10.96.1.0") + number) for number in range(500)]
BLOCK = (
    b"# BEGIN userspace-proxy\n10.96.0.10 web web.shop web.shop.svc web.shop.svc.cluster.local\n# END userspace-proxy\n"
)
LOCALHOST = b"127.0.0.1 localhost\n"


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """Return a file with a line, a mode and an owner of its own."""
    path = tmp_path / "hosts"
    path.write_bytes(LOCALHOST)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    return path


def identity(path: Path) -> tuple[int, int, int]:
    """Return what says who may do what with a file."""
    status = path.stat()
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid


def test_block_is_written_and_removed_and_all_else_stays(hosts: Path) -> None:
    """Content, mode and owner; nothing is left beside the file."""
    before = identity(hosts)
    write_hosts_block(hosts, [WEB])
    assert hosts.read_bytes() == LOCALHOST + BLOCK
    assert identity(hosts) == before
    assert remove_hosts_block(hosts)
    assert not remove_hosts_block(hosts)
    assert (hosts.read_bytes(), identity(hosts)) == (LOCALHOST, before)
    assert list(hosts.parent.iterdir()) == [hosts]


def test_file_that_says_so_already_is_not_written(hosts: Path) -> None:
    """It stays the same file."""
    write_hosts_block(hosts, [WEB])
    before = hosts.stat()
    write_hosts_block(hosts, [WEB])
    assert (hosts.stat().st_ino, hosts.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_removal_as_dry_run_only_looks(hosts: Path) -> None:
    """It says what it would do."""
    assert not remove_hosts_block(hosts, dry_run=True)
    write_hosts_block(hosts, [WEB])
    assert remove_hosts_block(hosts, dry_run=True)
    assert hosts.read_bytes() == LOCALHOST + BLOCK


def test_missing_file_is_made_for_all_to_read_and_goes_again(tmp_path: Path) -> None:
    """Whatever the umask; to remove a block from no file is nothing."""
    path = tmp_path / "hosts"
    assert not remove_hosts_block(path)
    umask = os.umask(0o077)
    try:
        write_hosts_block(path, [WEB])
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert remove_hosts_block(path)
    assert list(tmp_path.iterdir()) == []


def test_link_stays_a_link(hosts: Path) -> None:
    """What it leads to is changed."""
    link = hosts.with_name("link")
    link.symlink_to("hosts")
    write_hosts_block(link, [WEB])
    assert link.is_symlink()
    assert hosts.read_bytes() == LOCALHOST + BLOCK
    assert remove_hosts_block(link)
    assert link.is_symlink()
    assert hosts.read_bytes() == LOCALHOST


def test_extended_attributes_stay(hosts: Path) -> None:
    """An SELinux label is one."""
    try:
        os.setxattr(hosts, "user.label", b"net_conf_t")
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        pytest.skip("the file system has no extended attributes")
    write_hosts_block(hosts, [WEB])
    assert os.getxattr(hosts, "user.label") == b"net_conf_t"


def run_with_mount(what: str, target: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that has ``path``, a file on which something is mounted, in a mount namespace of its own.

    Args:
        what: A shell command that mounts it.
        target: The file.
        script: Python.
    """
    tests = str(Path(__file__).parents[2])
    names = (
        f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {tests!r})\npath = Path({str(target)!r})\n"
        "from loopback.steering.test_hosts_file import MANY, WEB\n"
        "from userspace_proxy.errors import SteeringError\n"
        "from userspace_proxy.steering.hosts_file import remove_hosts_block, write_hosts_block\n"
    )
    argv = ["unshare", "--mount", "sh", "-c", f'{what} && exec "$@"', "sh", sys.executable, "-c", names + script]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_file_that_cannot_be_replaced_is_written_in_place(hosts: Path) -> None:
    """As in a container, where /etc/hosts is a mount of its own; a shorter text leaves nothing of a longer one."""
    target = hosts.with_name("mounted")
    target.touch()
    inode = hosts.stat().st_ino
    script = (
        "write_hosts_block(path, MANY)\nprint(path.read_text().count('.cluster.local'))\n"
        "write_hosts_block(path, [WEB])\nprint(path.read_text(), end='')\n"
        "assert remove_hosts_block(path)\n"
    )
    done = run_with_mount(f"mount --bind {hosts} {target}", target, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.encode() == b"500\n" + LOCALHOST + BLOCK
    assert hosts.read_bytes() == LOCALHOST
    assert hosts.stat().st_ino == inode
    assert sorted(path.name for path in hosts.parent.iterdir()) == ["hosts", "mounted"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_file_that_cannot_be_written_in_place_is_written_back(tmp_path: Path) -> None:
    """A mount that is full in the middle of it: what was there is there again."""
    target, full = tmp_path / "hosts", tmp_path / "full"
    target.touch()
    full.mkdir()
    script = (
        "write_hosts_block(path, [WEB])\nbefore = path.read_bytes()\n"
        "try:\n    write_hosts_block(path, MANY)\nexcept SteeringError as error:\n    print(error)\n"
        "assert path.read_bytes() == before\n"
    )
    mount = f"mount -t tmpfs -o size=8k tmpfs {full} && touch {full}/hosts && mount --bind {full}/hosts {target}"
    done = run_with_mount(mount, target, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"the hosts file {target} cannot be changed: No space left on device\n"


@pytest.mark.parametrize("content", [LOCALHOST + BLOCK, LOCALHOST + b"# BEGIN userspace-proxy\n1.2.3.4 old\n"])
def test_file_that_cannot_be_written_is_left_as_it_is(hosts: Path, content: bytes) -> None:
    """For want of room, or because of markers that make no sense: one sentence names the file."""
    hosts.write_bytes(content)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 10, hard))
    try:
        with pytest.raises(
            SteeringError, match=rf"^the hosts file {hosts} (cannot be .*: File too large|is left alone)"
        ):
            write_hosts_block(hosts, MANY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert hosts.read_bytes() == content
    assert list(hosts.parent.iterdir()) == [hosts]


@pytest.mark.parametrize("name", ["", "missing/hosts", "loop"])
def test_path_that_cannot_be_a_hosts_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    """A directory, one below nothing, a link to itself."""
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SteeringError, match=rf"^the hosts file {tmp_path / name} (cannot be changed|is left alone): "):
        write_hosts_block(tmp_path / name, [WEB])


def make_null(path: Path) -> None:
    """Make a device like ``/dev/null``: that of the machine must not be put at risk by a test."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a device")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


@pytest.mark.parametrize("make", [make_null, os.mkfifo])
def test_what_is_no_regular_file_is_neither_read_nor_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """To read a pipe could take for ever, and a file in the place of ``/dev/null`` would harm the whole node."""
    path = tmp_path / "hosts"
    make(path)
    before = path.lstat()
    with pytest.raises(SteeringError, match=rf"^the hosts file {path} is left alone: it is no regular file$"):
        write_hosts_block(path, [WEB])
    with pytest.raises(SteeringError, match="it is no regular file"):
        remove_hosts_block(path)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.parametrize("is_removal", [False, True])
def test_line_that_somebody_else_adds_meanwhile_stays(
    hosts: Path, monkeypatch: pytest.MonkeyPatch, *, is_removal: bool
) -> None:
    """Between our look at the file and our replacing it: a disk may take its time to write."""
    if is_removal:
        write_hosts_block(hosts, [WEB])
    added = b"192.0.2.1 added\n"

    def add_line(descriptor: int) -> None:
        monkeypatch.undo()
        hosts.write_bytes(hosts.read_bytes() + added)
        os.fsync(descriptor)

    monkeypatch.setattr(os, "fsync", add_line)
    if is_removal:
        assert remove_hosts_block(hosts)
    else:
        write_hosts_block(hosts, [WEB])
    assert hosts.read_bytes() == LOCALHOST + added + (b"" if is_removal else BLOCK)
    assert list(hosts.parent.iterdir()) == [hosts]

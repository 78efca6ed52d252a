"""A hosts file on disk: our block is put into it and taken out, and nothing else about the file changes.

The file is replaced as a whole, or where that cannot be (a container's /etc/hosts is a mount of its own) written in
place, and written back if that fails. Blocking. Entry points: ``write_hosts_block``, ``remove_hosts_block``.
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from userspace_proxy.errors import SteeringError
from userspace_proxy.steering.hosts_text import HostsLine, with_block, without_block

_NEW_FILE_MODE = 0o644
"""All programs look names up."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Where there is no room for a second file the first one must not be put at risk."""
_ATTEMPTS = 5
"""How often we look again at a file that others change at the same time; arbitrary."""


class _ChangedMeanwhileError(Exception):
    """Somebody else has changed the file since we looked at it; it is as they left it."""


def write_hosts_block(path: Path, lines: Iterable[HostsLine]) -> None:
    """Have these lines in a block of ours, in a file that is made if there is none; nothing if they are there already.

    Raises:
        SteeringError: they are not; the file is as it was.
    """
    lines = tuple(lines)
    with _explained(path):
        _change(_target(path), lambda content: with_block(content, lines), dry_run=False)


def remove_hosts_block(path: Path, *, dry_run: bool = False) -> bool:
    """Take our block out of a file, and remove the file if it was made for the block; return whether there was one.

    Args:
        path: There may be no such file.
        dry_run: Only look.

    Raises:
        SteeringError: the file is as it was.
    """
    with _explained(path):
        return _change(_target(path), lambda content: content and without_block(content), dry_run=dry_run)


def _change(path: Path, edit: Callable[[bytes | None], bytes | None], *, dry_run: bool) -> bool:
    """Make a file what an edit makes of it, None being no file; return whether that is something else.

    Others may change the file too, and nothing says when: what they write while we do must not be lost.
    """
    for _ in range(_ATTEMPTS):
        content = _read(path)
        new = edit(content)
        if new == content or dry_run:
            return new != content
        try:
            _write(path, content, new)
        except _ChangedMeanwhileError:
            continue
        return True
    raise SteeringError("others change it all the time")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise a sentence for what goes wrong with a file."""
    try:
        yield
    except OSError as error:
        raise SteeringError(f"the hosts file {path} cannot be changed: {error.strerror}") from error
    except SteeringError as error:
        raise SteeringError(f"the hosts file {path} is left alone: {error}") from error


def _target(path: Path) -> Path:
    """Return where a link leads: it is to stay a link."""
    return Path(os.path.realpath(path))


def _read(path: Path) -> bytes | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to read a pipe could take for ever, and to open a device do harm
            raise SteeringError("it is no regular file")
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _require(path: Path, content: bytes | None) -> None:
    """Return if a file is as it was when we looked.

    Raises:
        _ChangedMeanwhileError: it is not.
    """
    if _read(path) != content:
        raise _ChangedMeanwhileError


def _write(path: Path, content: bytes | None, new: bytes | None) -> None:
    """Make a file what it is to be, so that nobody ever reads a part of it if that can be had.

    Args:
        path: No link.
        content: What it is; None: there is none.
        new: What it is to be; None: there is to be none.

    Raises:
        OSError: it is as it was.
        _ChangedMeanwhileError: see there.
    """
    if new is None:
        _require(path, content)
        path.unlink()
        return
    try:
        _replace(path, content, new)
    except OSError as error:
        if content is None or error.errno in _NO_ROOM:
            raise
        _require(path, content)
        _overwrite(path, content, new)


def _replace(path: Path, content: bytes | None, new: bytes) -> None:
    """Put a new file in the place of another one, with its owner, mode and extended attributes (as an SELinux label).

    Raises:
        OSError: nothing has changed.
        _ChangedMeanwhileError: see there.
    """
    descriptor, written = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if content is None:
                os.fchmod(descriptor, _NEW_FILE_MODE)
            else:
                _make_like(descriptor, path)
            file.write(new)
            file.flush()
            os.fsync(descriptor)  # else a power failure may leave an empty file in the place of the old one
        _require(path, content)  # only now: the disk may have taken its time
        os.replace(written, path)  # noqa: PTH105 - the atomic one, by the name POSIX gives it
    except BaseException:
        os.unlink(written)  # noqa: PTH108 - as above
        raise


def _make_like(descriptor: int, like: Path) -> None:
    status = like.stat()
    os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, status.st_mode & 0o7777)
    for name in os.listxattr(like):
        os.setxattr(descriptor, name, os.getxattr(like, name))


def _overwrite(path: Path, content: bytes, new: bytes) -> None:
    """Write a file in place; written back if it fails.

    Raises:
        OSError: it is as it was, unless even that could not be written.
    """
    with path.open("r+b", buffering=0) as file:
        try:
            _write_all(file.fileno(), new)
        except OSError:
            with contextlib.suppress(OSError):
                _write_all(file.fileno(), content)
            raise


def _write_all(descriptor: int, content: bytes) -> None:
    at = 0
    while at < len(content):  # once, as a rule: few readers see a part of it
        at += os.pwrite(descriptor, content[at:], at)
    os.ftruncate(descriptor, len(content))

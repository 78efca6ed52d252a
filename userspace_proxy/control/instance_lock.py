"""One instance for each runtime directory, and one that steers for each node; both locks end with the process.

Rules and routes belong to a network namespace, so two instances with different directories could still take them from
each other: whoever has some holds an abstract Unix socket, whose name belongs to the network namespace too. The file
in the runtime directory stays: removing it would let a third instance lock a new file of the same name while a second
one still waits at the old. Entry points: ``instance_lock``, ``node_lock``,
``require_free_node``.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from userspace_proxy.errors import ConfigError

_NODE_LOCK = "\0userspace-proxy.node"
_QUEUE = 1024
"""Those who ask for the holder stay in its queue, as nobody accepts them; once it is full the holder has no name."""
_CREDENTIALS = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""


@contextmanager
def instance_lock(runtime_dir: Path) -> Iterator[None]:
    """Hold ``lock`` in the runtime directory, with our pid in it.

    The directory is created with mode 0700 and the file with 0600. The kernel releases the lock when the process ends,
    however it ends; programs that it starts do not inherit it (a fork without exec does).

    Args:
        runtime_dir: One for each instance; missing parents are created too.

    Raises:
        ConfigError: another instance holds the lock, or the directory cannot be used.

    Source: flock(2).
    """
    descriptor = _open_lock_file(runtime_dir)
    try:
        _lock(descriptor, runtime_dir)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def node_lock() -> Iterator[None]:
    """Hold the right to change rules and routes of this node.

    Raises:
        ConfigError: another instance holds it; the sentence says which.

    Source: unix(7), abstract sockets.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(_NODE_LOCK)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"the lock of this node cannot be used: {error.strerror}") from error
            raise _held_by(_find_holder()) from error
        lock.listen(_QUEUE)
        yield


def require_free_node() -> None:
    """Return if nobody holds the right to change rules and routes of this node.

    Raises:
        ConfigError: another instance holds it; the sentence says which.
    """
    pid = _find_holder()
    if pid is not None:
        raise _held_by(pid)


def _find_holder() -> int | None:
    """Return the process that holds the lock of this node, None if nobody does.

    Returns:
        0 where it cannot be told, as its PID namespace is hidden from us.

    Source: unix(7), SO_PEERCRED.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(0)
        try:
            client.connect(_NODE_LOCK)
        except BlockingIOError:  # too many have asked before
            return 0
        except OSError:
            return None
        pid: int = _CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        return pid


def _held_by(pid: int | None) -> ConfigError:
    holder = f" (pid {pid})" if pid else ""
    return ConfigError(f"another userspace-proxy{holder} steers this node; stop it first")


def _open_lock_file(runtime_dir: Path) -> int:
    try:
        runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # not through a symbolic link: the directory may be one that others can write to
        return os.open(runtime_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(runtime_dir, error) from error


def _lock(descriptor: int, runtime_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        pid = os.pread(descriptor, 32, 0).strip()
        # between its lock and its first write the other one has not said who it is
        holder = f" (pid {pid.decode()})" if pid.isdigit() else ""
        raise ConfigError(
            f"another userspace-proxy{holder} uses {runtime_dir}; stop it or give another --runtime-dir"
        ) from error
    except OSError as error:
        raise _unusable(runtime_dir, error) from error


def _unusable(runtime_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the runtime directory {runtime_dir} cannot be used: {error.strerror}; give another --runtime-dir"
    )

"""One instance for each runtime directory, by a lock that ends with the process that holds it.

Entry point: ``instance_lock``. The file itself stays: removing it would let a third instance lock a new file of the
same name while a second one still waits at the old.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from userspace_proxy.errors import ConfigError


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

"""The user that workers run as (``--worker-user``), looked up before any is started.

Entry point: ``find_worker_user``.
"""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from userspace_proxy.errors import ConfigError

_CAPABILITIES = {"CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
"""To become another user, and to end a worker that hangs; linux/capability.h."""
_STATUS = Path("/proc/self/status")
_ID_MAPS = (Path("/proc/self/uid_map"), Path("/proc/self/gid_map"))


def find_worker_user(text: str) -> tuple[int, int] | None:
    """Return user and group for workers; None: the ones of this process.

    Args:
        text: See ``Config.worker_user``.

    Raises:
        ConfigError: there is no such user, or this process may not have workers that run as that one.
    """
    if not text:
        return None
    user = _look_up(text)
    if user == (os.geteuid(), os.getegid()):
        return None
    missing = list(_missing_capabilities())
    if missing:
        raise ConfigError(
            f"workers cannot run as --worker-user {text}, as this process lacks {', '.join(missing)}: give it these, "
            "or leave the setting out"
        )
    if not all(map(_is_mapped, user, _ID_MAPS)):
        raise ConfigError(
            f"workers cannot run as --worker-user {text}, as user {user[0]} or group {user[1]} is not mapped into the "
            "user namespace of this process: choose one that is (see /proc/self/uid_map and gid_map)"
        )
    return user


def _look_up(text: str) -> tuple[int, int]:
    """Return user and group; a number that belongs to no user stands for the group of the same number."""
    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except KeyError:
        if text.isdecimal():
            return int(text), int(text)
        raise ConfigError(
            f"--worker-user {text}: there is no such user here; name one of /etc/passwd, or give a number"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _missing_capabilities() -> Iterator[str]:
    """Yield those that this process lacks. Source: proc_pid_status(5), CapEff."""
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    for name, number in _CAPABILITIES.items():
        if not effective & 1 << number:
            yield name


def _is_mapped(number: int, id_map: Path) -> bool:
    """Return whether a user or group exists in this user namespace. Source: user_namespaces(7)."""
    for line in id_map.read_text(encoding="ascii").splitlines():
        first, _, length = map(int, line.split())
        if first <= number < first + length:
            return True
    return False

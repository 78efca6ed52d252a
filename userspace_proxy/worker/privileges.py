"""Privileges: gives up all that a worker could do to this machine beyond what any program may.

It must not be called before everything is imported: what runs as another user may not read it any more. Entry point:
``drop_privileges``. Source: capabilities(7), capset(2), prctl(2); numbers from linux/capability.h and linux/prctl.h.
"""

import ctypes
import os
import struct

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_HEADER = struct.Struct("=Ii")
"""struct __user_cap_header_struct: the version, and 0 for this process."""
_SETS = struct.Struct("=6I")
"""Two of struct __user_cap_data_struct: effective, permitted and inheritable, the lower words first."""
_CAP_SETPCAP = 8
_CAPBSET_READ = 23
_CAPBSET_DROP = 24
_NO_NEW_PRIVS = 38
_CAP_AMBIENT = 47
_CLEAR_ALL = 4

_LIBC = ctypes.CDLL(None, use_errno=True)


def drop_privileges(user: tuple[int, int] | None) -> None:
    """Run as another user and without any capability from now on, for good.

    Args:
        user: Number of the user and of its group; None: as before.

    Raises:
        OSError: this process may not become that user, or the kernel refuses to take something away.
    """
    if _effective_capabilities() & 1 << _CAP_SETPCAP:
        _drop_bounding_set()
    if user is not None and user != (os.getuid(), os.getgid()):
        uid, gid = user
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    _prctl(_CAP_AMBIENT, _CLEAR_ALL)
    header, nothing = (ctypes.create_string_buffer(one) for one in (_HEADER.pack(_VERSION, 0), bytes(_SETS.size)))
    _check(_LIBC.capset(header, nothing))
    _prctl(_NO_NEW_PRIVS, 1)


def _effective_capabilities() -> int:
    header = ctypes.create_string_buffer(_HEADER.pack(_VERSION, 0))
    sets = ctypes.create_string_buffer(_SETS.size)
    _check(_LIBC.capget(header, sets))
    lower: int = _SETS.unpack(sets.raw)[0]
    return lower


def _drop_bounding_set() -> None:
    """Have no program that this process might ever start get a capability."""
    capability = 0
    while _LIBC.prctl(_CAPBSET_READ, capability, 0, 0, 0) >= 0:  # EINVAL: the kernel knows no such capability
        _prctl(_CAPBSET_DROP, capability)
        capability += 1


def _prctl(option: int, argument: int) -> None:
    _check(_LIBC.prctl(option, argument, 0, 0, 0))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

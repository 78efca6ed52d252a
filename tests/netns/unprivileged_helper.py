"""Runs a command as a user without rights but the capabilities named: ``CAPABILITIES PATH... -- COMMAND...``.

``CAPABILITIES`` are as ``net_admin,net_raw``, perhaps none. The paths, of directories, are made reachable for that user
where a directory above is closed to others, as ``/root`` often is: in its place there is one that has nothing but them.
That is seen only in the mount namespace of this process, which must not be that of the machine: ``ip netns exec`` makes
one.
"""

import ctypes
import os
import stat
import sys
from pathlib import Path

USER = 65534
_MS_BIND, _MS_REC = 4096, 16384
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Do what the arguments say."""
    capabilities, *rest = sys.argv[1:]
    end = rest.index("--")
    open_up([Path(path) for path in rest[:end]])
    these = ",".join(["-all", *(f"+{name}" for name in filter(None, capabilities.split(",")))])
    user = (f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs")
    rights = (f"--bounding-set={these}", f"--inh-caps={these}", f"--ambient-caps={these}")
    # What measures coverage in subprocesses writes where this user may not.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    os.chdir("/")  # as what is above the working directory may be closed, or have been replaced
    os.execve(find_setpriv(), ["setpriv", *user, *rights, *rest[end + 1 :]], env)  # noqa: S606 - no shell


def find_setpriv() -> str:
    """Return where it is, whatever PATH the command is to have."""
    (path, *_) = (path for path in (Path("/usr/bin/setpriv"), Path("/bin/setpriv")) if path.exists())
    return str(path)


def open_up(paths: list[Path]) -> None:
    """Make directories reachable for everybody."""
    places: dict[Path, dict[Path, int]] = {}
    for path in sorted(paths):
        closed = [above for above in reversed(path.parents) if not stat.S_IMODE(above.stat().st_mode) & stat.S_IXOTH]
        if closed:
            inside = places.setdefault(closed[0], {})
            if not any(other in path.parents or other == path for other in inside):
                inside[path] = os.open(path, os.O_PATH)
    for closed_place, inside in places.items():
        mount("tmpfs", closed_place, "tmpfs", 0, "mode=755")
        for path, descriptor in inside.items():
            path.mkdir(parents=True)
            mount(f"/proc/self/fd/{descriptor}", path, "", _MS_BIND | _MS_REC, "")


def mount(source: str, target: Path, kind: str, flags: int, options: str) -> None:
    """Do what the system call does; the command would look for where a descriptor leads."""
    if _LIBC.mount(source.encode(), bytes(target), kind.encode(), flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"{source} on {target}")


if __name__ == "__main__":
    main()

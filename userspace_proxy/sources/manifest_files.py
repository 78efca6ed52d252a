"""Which manifest files there are, and which of them have changed since they were read. It opens none of them.

A change is seen by ``stat``, so it works on every file system and through the symbolic links of a mounted ConfigMap.
Entry points: ``require_paths``, ``list_files``, ``FileWatch``.
"""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from attrs import define, field, frozen

from userspace_proxy.errors import ConfigError
from userspace_proxy.model.problem import Problem, Severity

SUFFIXES = (".yaml", ".yml", ".json")
"""Of the files that count in a directory, as for ``kubectl apply --filename``."""


class ManifestFile(NamedTuple):
    """A file to read; ordered as the user named the paths, then by name.

    It and its signature are tuples, as they are compared by the thousand at each look.
    """

    position: int
    """Of the path that led to it, among those given."""
    path: str


class Signature(NamedTuple):
    """What of a file changes when its content does."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


_UNKNOWN = Signature(0, 0, 0, 0, 0)
"""Of a file that cannot be looked at; whoever tries to read it will say why."""
_STALE = Signature(-1, 0, 0, 0, 0)
"""Of no file."""


@frozen
class Listing:
    """The files there are at one moment."""

    files: Mapping[ManifestFile, Signature]
    unknown: frozenset[int]
    """Positions of paths that could not be looked at: nothing is known of their files."""
    problems: Mapping[str, tuple[Problem, ...]]
    """What is wrong with a path as a whole, by path."""


def shown_path(path: str) -> str:
    """Return a path as text that can be printed, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def require_paths(paths: Iterable[Path]) -> None:
    """Check that each path leads to a file or a directory.

    Raises:
        ConfigError: one does not.
    """
    for path in paths:
        shown = shown_path(str(path))
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise ConfigError(
                f"cannot read manifests from {shown}: {error.strerror}; name a file or directory"
            ) from None
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ConfigError(f"cannot read manifests from {shown}: it is neither a file nor a directory")


def list_files(paths: Sequence[Path]) -> Listing:
    """Return the files that the paths lead to now. Blocks for as long as the file systems do."""
    files: dict[ManifestFile, Signature] = {}
    known: set[str] = set()
    unknown: set[int] = set()
    problems: dict[str, tuple[Problem, ...]] = {}
    for position, path in enumerate(map(str, paths)):
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116
            names = _manifests_in(path) if is_directory else [path]
        except (FileNotFoundError, NotADirectoryError):
            problems[path] = _problem(Severity.WARNING, path, "is gone, and all that was read there with it")
            continue
        except OSError as error:
            unknown.add(position)
            reason = f"cannot be looked at: {error.strerror}; until it can, all that was read there stays in force"
            problems[path] = _problem(Severity.ERROR, path, reason)
            continue
        if not names:
            reason = f"has no {', '.join(SUFFIXES)} file directly in it, so nothing is served from there"
            problems[path] = _problem(Severity.WARNING, path, reason)
        for name in names:
            absolute = os.path.abspath(name)  # noqa: PTH100
            signature = None if absolute in known else _signature(name)
            if signature:
                known.add(absolute)
                files[ManifestFile(position, name)] = signature
    return Listing(files, frozenset(unknown), problems)


def _manifests_in(directory: str) -> list[str]:
    names = sorted(os.listdir(directory))  # noqa: PTH208
    return [os.path.join(directory, name) for name in names if name.endswith(SUFFIXES) and name[0] != "."]  # noqa: PTH118


def _signature(path: str) -> Signature | None:
    """Return the signature of a regular file; None if there is none at this path."""
    try:
        info = os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return _UNKNOWN
    if not stat.S_ISREG(info.st_mode):
        return None
    return Signature(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _problem(severity: Severity, path: str, text: str) -> tuple[Problem, ...]:
    return (Problem(severity, "", "", text, shown_path(path)),)


@frozen
class FileChanges:
    """What has to be done for the files to be as read."""

    changed: tuple[ManifestFile, ...]
    """To be read, in order."""
    gone: tuple[ManifestFile, ...]
    settling: bool
    """Some other file has changed since the last look, and may still be half-written."""


@define
class FileWatch:
    """Remembers what was read, and tells what is different now.

    A file counts as changed, or as gone, when two looks in a row see it the same: editors and copies write in steps.
    """

    _last: Mapping[ManifestFile, Signature] = field(factory=dict, init=False)
    _read: dict[ManifestFile, Signature] = field(factory=dict, init=False)
    _settled: bool = field(default=False, init=False)
    """All of ``_last`` is in ``_read``, and nothing else."""

    def look(self, listing: Listing, *, force: bool) -> FileChanges:
        """Return what to read; it counts as read from now on.

        Args:
            listing: What is there now.
            force: Take all files as changed, and those missing as gone.
        """
        if self._settled and not force and listing.files == self._last:
            return FileChanges((), (), settling=False)
        changed: list[ManifestFile] = []
        gone: list[ManifestFile] = []
        settling = False
        for file in sorted({*listing.files, *self._read}):
            now = listing.files.get(file)
            if (now is None and file.position in listing.unknown) or (now == self._read.get(file) and not force):
                continue
            if now != self._last.get(file) and not force:
                settling = True
            elif now is None:
                gone.append(file)
                del self._read[file]
            else:
                changed.append(file)
                self._read[file] = now
        self._last = listing.files
        self._settled = self._read == listing.files
        return FileChanges(tuple(changed), tuple(gone), settling)

    def forget(self, files: Iterable[ManifestFile]) -> None:
        """Take files as changed since they were read, though they may look the same."""
        for file in files:
            self._read[file] = _STALE
            self._settled = False

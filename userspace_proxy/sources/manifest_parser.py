"""The program that reads manifests: file names on standard input, messages on standard output, then it ends.

A process of its own, because parsing in a thread would keep the data path from the interpreter lock, and because a
hostile or broken file can then take no more than the life of this process: it limits its own memory and CPU time. It
must not import trio, click or kubernetes. Entry point: ``python -m userspace_proxy.sources.manifest_parser``.
"""

import gc
import os
import resource
import signal
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import process_time

from userspace_proxy.errors import ManifestError
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.sources.manifest_json import read_json
from userspace_proxy.sources.manifest_messages import NAME_SEPARATOR, FileEnd, Message, NamelessFound, Started, encode
from userspace_proxy.sources.manifest_objects import DocumentReader, Element, Place
from userspace_proxy.sources.manifest_yaml import read_yaml

MAX_FILE_BYTES = 32 * 2**20
"""Arbitrary: 10,000 Services with their EndpointSlices as kubectl prints them are 28 MB."""
_MAX_MEMORY_BYTES = 2 * 2**30
"""Of address space. A file of the size above needs nearly half of it if it is one document: nodes are large."""
_MAX_CPU_S_PER_FILE = 60
"""Ten times what a file of the size above takes on an ordinary machine."""
_NICENESS = 5
"""Arbitrary: connections come first, though changes still take effect on a busy node."""


def main() -> None:
    """Read the files named on standard input, in that order."""
    _yield_to_others()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the control process is gone: end without a word
    gc.disable()  # nodes hold no cycles, and there are many of them
    names = sys.stdin.buffer.read().split(NAME_SEPARATOR)
    # not sys.stdout: with PYTHONUNBUFFERED each message would be a system call
    with os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as output:
        output.write(encode(Started()))
        output.flush()
        for name in names:
            _limit(resource.RLIMIT_CPU, int(process_time()) + _MAX_CPU_S_PER_FILE)
            for message in _read_file(name):
                output.write(encode(message))
            output.flush()


def _yield_to_others() -> None:
    """Limit the memory of this process and make it the first to lose when CPU time or memory is short."""
    _limit(resource.RLIMIT_AS, _MAX_MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    os.nice(_NICENESS)
    with suppress(OSError):  # /proc may be hidden
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _limit(what: int, value: int) -> None:
    """Set a soft limit, no higher than the hard one."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _read_file(name: bytes) -> Iterator[Message]:
    """Yield the messages about one file, ``FileEnd`` last."""
    shown = name.decode("utf-8", "backslashreplace")
    reader = DocumentReader()
    number = 0
    try:
        for number, document in enumerate(_documents(name, _text_of(name)), start=1):
            place = Place(shown, number)
            if isinstance(document, ManifestError):
                yield NamelessFound(_problem(place.at(document.line), document))
            else:
                yield from reader.read(document, place)
    except ManifestError as error:
        where = Place(shown, number + 1).at(error.line, error.column) if error.line else shown
        yield FileEnd({}, _problem(where, error), try_again=False)
    except OSError as error:
        advice = f"; let uid {os.geteuid()} read it" if isinstance(error, PermissionError) else ""
        yield FileEnd({}, _problem(shown, f"cannot be read: {error.strerror}{advice}"), try_again=True)
    except (MemoryError, RecursionError) as error:
        what = (
            f"needs more than {_MAX_MEMORY_BYTES >> 20} MiB" if isinstance(error, MemoryError) else "nests too deeply"
        )
        yield FileEnd({}, _problem(Place(shown, number + 1).at(), f"{what}; split it"), try_again=False)
    else:
        yield FileEnd(reader.other_kinds, None, try_again=False)


def _text_of(name: bytes) -> str:
    """Return what a file holds.

    Raises:
        OSError: it cannot be read.
        ManifestError: it cannot be a manifest.
    """
    # without O_NONBLOCK, a FIFO put in place of the file would hold us for ever
    with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ManifestError("is no regular file any more")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ManifestError(f"is larger than {MAX_FILE_BYTES >> 20} MiB; split it")
    if b"\0" in data:
        raise ManifestError("is a binary file; a manifest is YAML or JSON text in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"is not UTF-8 from line {line} on; a manifest is YAML or JSON text in UTF-8") from None


def _documents(name: bytes, text: str) -> Iterable[Element | ManifestError]:
    """Return the documents of a text, or for each of them why it is refused.

    JSON is read as such, for its tabs and surrogate pairs, though most of it is YAML too.

    Raises:
        ManifestError: (on the way) it is neither.
    """
    if not name.endswith(b".json"):
        if text.lstrip()[:1] not in ("{", "["):
            return read_yaml(text)
        for read in (read_json, read_yaml):
            with suppress(ManifestError):
                return list(read(text))
    return read_json(text)


def _problem(origin: str, text: object) -> Problem:
    return Problem(Severity.ERROR, "", "", str(text), origin)


if __name__ == "__main__":
    main()

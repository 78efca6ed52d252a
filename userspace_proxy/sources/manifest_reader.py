"""Reads manifest files by the parser process: starts it, takes its messages, blames a file for its death.

The control process only turns small messages into objects, one between two checkpoints. Entry point: ``read_files``.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import attrs
import trio
from attrs import define, field

from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.parse import parse_endpoint_slice, parse_service
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Service
from userspace_proxy.sources.manifest_files import shown_path
from userspace_proxy.sources.manifest_messages import (
    NAME_SEPARATOR,
    EndpointSliceFound,
    FileEnd,
    Message,
    MessageReader,
    MoreEndpoints,
    NamelessFound,
    ServiceFound,
    Started,
)
from userspace_proxy.sources.manifest_store import Definition, FileContent, ObjectKey

_COMMAND = (sys.executable, "-P", "-m", "userspace_proxy.sources.manifest_parser")
"""``-P``: a file yaml.py in the working directory is not ours."""
_MAX_SILENCE_S = 120.0
"""Between two messages, arbitrary: beyond the CPU time that a file may take, on a busy node. A file system that does
not answer is silent."""

_DEATHS = {
    -signal.SIGXCPU: ("takes too much CPU time to parse; split it", False),
    -signal.SIGSEGV: ("crashes the parser (SIGSEGV), probably by nesting too deeply", False),
    -signal.SIGKILL: ("the parser was killed while it read this, perhaps for want of memory", True),
}
"""What an exit status says about the file that was being read, and whether a later attempt may succeed."""


async def read_files(paths: Sequence[str]) -> list[FileContent]:
    """Return what files say, in the order asked for; a file that cannot be read has a ``failure``.

    Cancellation:
        The parser process is killed and reaped.
    """
    contents: list[FileContent] = []
    while len(contents) < len(paths):
        assembly = _Assembly(contents)
        text, try_again = await _run_parser(paths[len(contents) :], assembly)
        unread = paths[len(contents) :]
        # a parser that did not even start says nothing about a file, and would not start for the next one either
        for path in unread[:1] if assembly.started else unread:
            problem = Problem(Severity.ERROR, "", "", text, shown_path(path))
            contents.append(FileContent(failure=problem, try_again=try_again))
    return contents


async def _run_parser(paths: Sequence[str], assembly: "_Assembly") -> tuple[str, bool]:
    """Run the parser until it ends, or until it is silent for too long.

    Returns:
        If a file is left, what to say about that, and whether a later attempt may succeed.
    """
    async with trio.open_nursery() as nursery:
        try:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    _COMMAND,
                    stdin=NAME_SEPARATOR.join(map(os.fsencode, paths)),
                    stdout=subprocess.PIPE,
                    check=False,
                    deliver_cancel=_kill,
                    close_fds=False,  # none is inheritable, and with many connections closing them takes long
                    start_new_session=True,  # Ctrl-C is for the control process
                )
            )
        except OSError as error:
            return f"the parser did not start: {error.strerror}", True
        if not await _take_messages(process, assembly):
            process.kill()
            return f"the parser got nowhere with this for {_MAX_SILENCE_S:.0f} s", True
    if not assembly.started:
        return f"the parser did not start: it ended with status {process.returncode}", True
    unknown = (f"the parser ended with status {process.returncode}; its reason, if any, is on standard error", False)
    return _DEATHS.get(process.returncode or 0, unknown)


async def _take_messages(process: trio.Process, assembly: "_Assembly") -> bool:
    """Take the messages of the parser until it ends; return False if it is silent for too long."""
    reader = MessageReader()
    assert process.stdout is not None  # noqa: S101  asked for above
    async with process.stdout as stdout:
        with trio.CancelScope() as silence:
            while True:
                silence.deadline = trio.current_time() + _MAX_SILENCE_S
                data = await stdout.receive_some()
                if not data:
                    return True
                for message in reader.feed(data):
                    assembly.take(message)
                    await trio.lowlevel.checkpoint()
    return False


async def _kill(process: trio.Process) -> None:
    process.kill()


@define
class _Assembly:
    """Makes file contents of messages."""

    _contents: list[FileContent]
    """Where they go when complete."""
    started: bool = field(default=False, init=False)
    """The parser has said so."""
    _file: FileContent = field(factory=FileContent, init=False)
    _object: tuple[ObjectKey, Definition] | None = field(default=None, init=False)
    """The last one, to which more endpoints may come."""

    def take(self, message: Message) -> None:
        """Take in the next message."""
        if isinstance(message, MoreEndpoints) and self._object is not None:
            self._object = _with_more(*self._object, message)
            return
        if self._object is not None:
            self._file.add(*self._object)
            self._object = None
        match message:
            case Started():
                self.started = True
            case ServiceFound() | EndpointSliceFound():
                self._object = _definition(message)
            case NamelessFound():
                self._file.problems.append(message.problem)
                self._file.nameless = True
            case FileEnd():
                self._file.other_kinds = message.other_kinds
                self._file.failure = message.failure
                self._file.try_again = message.try_again
                self._contents.append(self._file)
                self._file = FileContent()


def _definition(message: ServiceFound | EndpointSliceFound) -> tuple[ObjectKey, Definition]:
    """Return what a message is about; its Problems were found by the parser, with the lines of their fields."""
    found: Service | EndpointSlice | None = None
    if isinstance(message, ServiceFound):
        if message.service is not None:
            found, _ = parse_service(message.service, message.origin)
    elif message.endpoint_slice is not None:
        found, _ = parse_endpoint_slice(message.endpoint_slice, message.origin)
    type_ = Service if isinstance(message, ServiceFound) else EndpointSlice
    is_good = all(problem.severity is not Severity.ERROR for problem in message.problems)
    key = ObjectKey(type_, NamespacedName(message.namespace, message.name))
    return key, Definition(found, is_good, message.origin, message.problems)


def _with_more(key: ObjectKey, definition: Definition, message: MoreEndpoints) -> tuple[ObjectKey, Definition]:
    """Return the definition of an EndpointSlice with more endpoints."""
    whole = definition.object
    more, _ = parse_endpoint_slice(message.endpoint_slice, definition.origin)
    if isinstance(whole, EndpointSlice) and more is not None:
        whole = attrs.evolve(whole, endpoints=whole.endpoints + more.endpoints)
    return key, attrs.evolve(definition, object=whole)

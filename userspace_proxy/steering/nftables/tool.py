"""The command nft: how it is run, what its complaints mean. Knows no rule of ours. Entry point: ``find_tool``."""

import re
import shutil
from collections.abc import Callable, Sequence
from subprocess import CompletedProcess
from typing import TypeVar

import msgspec
import trio
from attrs import frozen

from userspace_proxy.errors import SteeringError
from userspace_proxy.steering.command import NOT_PERMITTED, decode_output, run_command
from userspace_proxy.steering.nftables.listing import Listed, parse_drop_policies, parse_table, parse_tables

_NOT_PERMITTED_TEXT = re.compile(r"Operation not permitted|must be root")
_ABSENT_KERNEL = re.compile(r"cache initialization failed: (Invalid argument|Protocol not supported|Not supported)")
_ABSENT = "No such file or directory"
_TOO_LONG = "Message too long"
_COMPLAINT = re.compile(r"^(?:\S+?:(?P<line>\d+):\S+: |netlink: )?Error: (?P<said>.*)$", re.MULTILINE)
_QUOTED_CHARACTERS = 200
"""Arbitrary: of a rule that names many networks."""

_T = TypeVar("_T")


@frozen
class NftTool:
    """The command, for the tables of all families."""

    path: str

    async def change(self, statements: Sequence[str]) -> int:
        """Change tables, by one transaction if the kernel takes it: all of it or nothing.

        Where the buffer of a socket is limited, as in user namespaces, it may have to be one for each statement.

        Returns:
            How many transactions it was.

        Raises:
            SteeringError: nothing was changed, or what some first statements say; one clause says why, with the
                offending line.

        Cancellation: what is in force is unknown.
        """
        result = await self._run("-f", "-", text="".join(statements))
        if result.returncode == 0:
            return 1
        if len(statements) == 1 or _TOO_LONG not in decode_output(result.stderr):
            raise _failure(result, "".join(statements))
        for statement in statements:
            await self.change([statement])
        return len(statements)

    async def list_table(self, path: str) -> Listed | None:
        """Return what a table holds; None if there is none.

        Args:
            path: Family and name, as ``ip filter``.

        Raises:
            SteeringError: it cannot be read; one clause says why.
        """
        result = await self._run("-j", "-n", "list", "table", *path.split())
        if result.returncode != 0 and _ABSENT in decode_output(result.stderr):
            return None
        return await trio.to_thread.run_sync(_parse, result, parse_table)  # it takes 0.1 s for 10,000 elements

    async def list_tables(self) -> tuple[tuple[str, str], ...]:
        """Return family and name of all tables; none on a kernel without nf_tables.

        Raises:
            SteeringError: they cannot be read; one clause says why.
        """
        result = await self._run("-j", "-n", "list", "tables")
        return () if _ABSENT_KERNEL.search(decode_output(result.stderr)) else _parse(result, parse_tables)

    async def list_drop_policies(self) -> tuple[tuple[str, str], ...]:
        """Return family and name of the tables that drop what no rule of theirs accepts, of what comes to this node.

        Raises:
            SteeringError: they cannot be read; one clause says why.
        """
        return _parse(await self._run("-j", "-n", "list", "chains"), parse_drop_policies)

    async def _run(self, *arguments: str, text: str = "") -> CompletedProcess[bytes]:
        return await run_command([self.path, *arguments], text)


def find_tool() -> NftTool:
    """Return nft as found on PATH.

    Raises:
        SteeringError: it is not there.
    """
    path = shutil.which("nft")
    if path is None:
        raise SteeringError("nft is not on PATH")
    return NftTool(path)


def _parse(result: CompletedProcess[bytes], parse: Callable[[bytes], _T]) -> _T:
    if result.returncode != 0:
        raise _failure(result)
    try:
        return parse(result.stdout)
    except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:  # whatever another release may make of it
        raise SteeringError(f"nft: what it lists cannot be read: {error}") from error


def _failure(result: CompletedProcess[bytes], text: str = "") -> SteeringError:
    """Return what nft said, as one clause.

    Args:
        result: The command's end.
        text: Its input, to be quoted from.
    """
    stderr = decode_output(result.stderr)
    if _NOT_PERMITTED_TEXT.search(stderr):
        return SteeringError(NOT_PERMITTED)
    if _ABSENT_KERNEL.search(stderr):
        return SteeringError("the kernel has no nf_tables")
    complaint = _COMPLAINT.search(stderr)
    if complaint is None:
        return SteeringError(f"nft: {' '.join(stderr.split()) or f'exit status {result.returncode}'}")
    lines = text.splitlines()
    if complaint["line"] is None or int(complaint["line"]) > len(lines):
        return SteeringError(f"nft: {complaint['said']}")
    quoted = lines[int(complaint["line"]) - 1]
    if len(quoted) > _QUOTED_CHARACTERS:
        quoted = f"{quoted[:_QUOTED_CHARACTERS]}..."
    return SteeringError(f"nft: {complaint['said']}: {quoted}")

"""The iptables binaries: which there are, how they are run, what their complaints mean. Knows no rule of ours.

Entry points: ``find_tools``, ``choose_tool``, ``try_filter``.
"""

import os
import re
import shutil
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from subprocess import CompletedProcess

import trio
from attrs import frozen

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.iptables_filter import build_filter_probe
from userspace_proxy.steering.iptables_rules import build_probe, is_in_use

LOCK_WAIT_S = 5
"""How long a command waits for the lock that all iptables-legacy commands share; arbitrary, kube-proxy's number."""
COMMAND_TIMEOUT_S = 20.0
"""After this long a command is killed. Arbitrary: 10,000 rules take 0.3 s, the lock LOCK_WAIT_S."""

BASE_NAME: Mapping[Family, str] = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_LEGACY_TABLES = {Family.IPV4: Path("/proc/net/ip_tables_names"), Family.IPV6: Path("/proc/net/ip6_tables_names")}

_NOISE = re.compile(r"^(# Warning: .*|Try `.*|Error occurred at line: \d+)$", re.MULTILINE)
_SPEAKER = re.compile(r"^(\S*tables\S* v\S+ \((nf_tables|legacy)\): *)?(\S*tables\S*: )?")
_LINE = re.compile(r"\bline:? (\d+)\b")
_NOT_PERMITTED = "not permitted (needs NET_ADMIN)"
_NOT_PERMITTED_TEXT = re.compile(r"you must be root|Operation not permitted|proc/net/\S+: Permission denied")
_ABSENT = re.compile(r"not supported|Table does not exist|rule set generation id: Invalid argument")
"""What the commands say of a kernel without nf_tables, ip_tables or IPv6."""


class Variant(StrEnum):
    """The back ends of iptables; each has tables of its own, and packets pass through those of both."""

    NFT = "nft"
    LEGACY = "legacy"
    PLAIN = "plain"
    """Whatever the unsuffixed command is, where there is no suffixed one."""


@frozen
class Tool:
    """The commands for the tables of one family and variant."""

    family: Family
    variant: Variant
    save_path: str
    restore_path: str

    @property
    def name(self) -> str:
        """The command without its ending, as ``ip6tables-nft``."""
        return _command(self.family, self.variant)

    async def save(self, table: str | None = None) -> str:
        """Return the rules of one table, or of all that exist, in the format of iptables-save.

        Returns:
            ``""`` where nobody has used iptables yet, or the kernel has none of this variant.

        Raises:
            SteeringError: they cannot be read; one clause says why.
        """
        result = await _run([self.save_path] if table is None else [self.save_path, "-t", table])
        if result.returncode != 0 and not _ABSENT.search(_text(result.stderr)):
            raise _failure(result)
        return _text(result.stdout)

    async def restore(self, text: str) -> None:
        """Change the rules as ``text`` says, all of one table or nothing; chains not named in it stay as they are.

        Raises:
            SteeringError: nothing was changed; one clause says why, with the offending rule.

        Cancellation: what is in force is unknown.
        """
        result = await _run([self.restore_path, "--noflush", "-w", str(LOCK_WAIT_S)], text)
        if result.returncode != 0:
            raise _failure(result, text)


def find_tools(family: Family) -> tuple[Tool, ...]:
    """Return the tools on PATH: nft and legacy where there is a command of that name, else the plain one, or none."""
    found: list[Tool] = []
    for variant in Variant:
        command = _command(family, variant)
        save_path, restore_path = shutil.which(f"{command}-save"), shutil.which(f"{command}-restore")
        if save_path and restore_path and not (found and variant is Variant.PLAIN):
            found.append(Tool(family, variant, save_path, restore_path))
    return tuple(found)


def may_have_legacy_tables(family: Family) -> bool:
    """Tell whether this network namespace has tables of the legacy variant; looking at others would create them."""
    try:
        return bool(_LEGACY_TABLES[family].read_text())
    except FileNotFoundError:
        return False
    except PermissionError:  # who may not look may not change anything either: the command will say so
        return True


async def choose_tool(family: Family) -> Tool:
    """Return the tool whose tables are in use and can be written to, the nft variant if none or both are in use.

    The legacy variant is touched only if its tables exist or the nft variant fails: whatever runs it once makes
    every later iptables-nft warn of leftovers.

    Raises:
        SteeringError: none works; one clause says why.
    """
    tools = find_tools(family)
    if not tools:
        raise SteeringError(f"{BASE_NAME[family]} is not on PATH")
    reasons = []
    for tool in await _by_preference(tools):
        try:
            await _probe(tool, build_probe(tool.family, os.getpid()))
        except SteeringError as error:
            reasons.append(str(error))
            if str(error) == _NOT_PERMITTED:  # all variants need the same right
                break
        else:
            return tool
    raise SteeringError("; ".join(reasons))


async def try_filter(tool: Tool) -> None:
    """Install and remove the rules that keeping clients away would need.

    Raises:
        SteeringError: it does not work here, for want of table filter or of the conntrack match; one clause says why.
    """
    await _probe(tool, build_filter_probe(tool.family, os.getpid()))


async def _by_preference(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """Return the tools in the order in which they are to be tried: as they are, or legacy first."""
    if len(tools) > 1 and may_have_legacy_tables(tools[0].family):
        in_use = {tool.variant for tool in tools if await _has_rules(tool)}
        if in_use == {Variant.LEGACY}:
            return tools[::-1]
    return tools


async def _has_rules(tool: Tool) -> bool:
    try:
        return is_in_use(await tool.save())
    except SteeringError:  # the probe will say why
        return False


async def _probe(tool: Tool, texts: tuple[str, str]) -> None:
    """Install something and remove it.

    Args:
        tool: What with.
        texts: What to install, and its removal.

    Raises:
        SteeringError: it does not work here; one clause says why.
    """
    install, remove = texts
    with trio.CancelScope(shield=True):  # bounded by the commands' own time-outs; a probe leaves nothing
        await tool.restore(install)
        await tool.restore(remove)


async def _run(argv: list[str], text: str = "") -> CompletedProcess[bytes]:
    """Run a command to its end.

    Raises:
        SteeringError: it could not be run, or took too long.

    Cancellation: the command is ended.
    """
    command = Path(argv[0]).name
    try:
        with trio.fail_after(COMMAND_TIMEOUT_S):
            return await trio.run_process(
                argv, stdin=text.encode(), capture_stdout=True, capture_stderr=True, check=False
            )
    except trio.TooSlowError:
        raise SteeringError(f"{command} did not finish within {COMMAND_TIMEOUT_S:g} s and was ended") from None
    except OSError as error:
        raise SteeringError(f"{command} cannot be run: {error}") from error


def _failure(result: CompletedProcess[bytes], text: str = "") -> SteeringError:
    """Return what a failed command said, as one clause.

    Args:
        result: The command's end.
        text: Its input, to be quoted from.
    """
    stderr = _text(result.stderr)
    if _NOT_PERMITTED_TEXT.search(stderr):
        return SteeringError(_NOT_PERMITTED)
    lines = (_SPEAKER.sub("", line.strip()).strip() for line in _NOISE.sub("", stderr).splitlines())
    said = "; ".join(line for line in lines if line) or f"exit status {result.returncode}"
    line = _LINE.search(stderr)
    rules = text.splitlines()
    if line is not None and 1 < int(line[1]) <= len(rules):  # the first one names the table
        said = f"{said}: {rules[int(line[1]) - 1]}"
    return SteeringError(f"{Path(result.args[0]).name}: {said}")


def _text(output: bytes) -> str:
    return output.decode(errors="replace")


def _command(family: Family, variant: Variant) -> str:
    return BASE_NAME[family] if variant is Variant.PLAIN else f"{BASE_NAME[family]}-{variant}"

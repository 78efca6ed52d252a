"""The iptables binaries: which there are, how they are run, what their complaints mean. Knows no rule of ours.

Entry points: ``find_tools``, ``choose_tool``, ``try_filter``.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from subprocess import CompletedProcess

import trio
from attrs import evolve, frozen

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.command import NOT_PERMITTED, decode_output, run_command
from userspace_proxy.steering.iptables.filter import build_filter_probe
from userspace_proxy.steering.iptables.nat import build_nat_probe
from userspace_proxy.steering.iptables.rules import OwnRules, is_in_use, parse_saved, remove_text
from userspace_proxy.steering.ruleset_state import read_generation, read_legacy_table

LOCK_WAIT_S = 5
"""How long a command waits for the lock that all iptables-legacy commands share; arbitrary, kube-proxy's number."""

BASE_NAME: Mapping[Family, str] = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_LOCK_PATH = Path("/run/xtables.lock")
"""What the legacy variant locks unless told otherwise."""
_LEGACY_TABLES = {Family.IPV4: Path("/proc/net/ip_tables_names"), Family.IPV6: Path("/proc/net/ip6_tables_names")}

_NOISE = re.compile(r"^(# Warning: .*|Try `.*|Error occurred at line: \d+)$", re.MULTILINE)
_SPEAKER = re.compile(r"^(\S*tables\S* v\S+ \((nf_tables|legacy)\): *)?(\S*tables\S*: )?")
_LINE = re.compile(r"\bline:? (\d+)\b")
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
class RulesState:
    """Two of them differ if anybody has changed a rule in between."""

    generation: int | None
    """That of nf_tables; None where it is of no meaning."""
    tables: tuple[bytes, ...]
    """Those of the legacy variant."""

    def after(self, changes: int) -> "RulesState | None":
        """Return what it is after a command has changed some tables and nobody else any; None: that cannot be told."""
        if not changes:
            return self
        if self.generation is None or self.tables:
            return None
        return RulesState(self.generation + changes, ())


@frozen
class Tool:
    """The commands for the tables of one family and variant."""

    family: Family
    variant: Variant
    save_path: str
    restore_path: str
    lock_path: Path | None = None
    """What to lock instead of the file that all commands of the legacy variant share; None: that one."""

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
        arguments = [] if table is None else ["-t", table]
        result = await _run([self.save_path, *arguments], lock_path=self.lock_path)
        if result.returncode != 0 and not _ABSENT.search(decode_output(result.stderr)):
            raise _failure(result)
        return decode_output(result.stdout)

    async def restore(self, text: str) -> None:
        """Change the rules as ``text`` says, all of one table or nothing; chains not named in it stay as they are.

        Raises:
            SteeringError: nothing was changed; one clause says why, with the offending rule.

        Cancellation: what is in force is unknown.
        """
        arguments = ["--noflush", "-w", str(LOCK_WAIT_S)]
        result = await _run([self.restore_path, *arguments], text, lock_path=self.lock_path)
        if result.returncode != 0:
            raise _failure(result, text)

    def read_state(self, tables: Iterable[str]) -> RulesState | None:
        """Return what differs after anybody has changed a rule in some tables, at the price of a system call or two.

        Args:
            tables: Which ones; they exist.

        Returns:
            None: nobody can tell, for want of the right.
        """
        generation = None if self.variant is Variant.LEGACY else _read_generation()
        if self.variant is Variant.PLAIN:  # it may be either
            there = _read_legacy_names(self.family) or ()
            tables = [table for table in tables if table in there]
        states = [] if self.variant is Variant.NFT else [_read_legacy(self.family, table) for table in tables]
        known = tuple(state for state in states if state is not None)
        return None if generation is None and not known else RulesState(generation, known)

    def with_own_lock(self, directory: Path) -> "Tool":
        """Return the same, with a lock in a directory of ours if the one that all programs share cannot be used.

        Args:
            directory: It is made if it is missing, for us alone.
        """
        if self.variant is Variant.NFT or _can_lock():
            return self
        with contextlib.suppress(OSError):  # the command will say that there is no lock
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return evolve(self, lock_path=directory / _LOCK_PATH.name)


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
    names = _read_legacy_names(family)
    return names is None or bool(names)  # who may not look may not change anything either: the command will say so


async def choose_tool(family: Family, runtime_dir: Path) -> Tool:
    """Return the tool whose tables are in use and can be written to, the nft variant if none or both are in use.

    The legacy variant is touched only if its tables exist or the nft variant fails: whatever runs it once makes
    every later iptables-nft warn of leftovers.

    Args:
        family: Which one.
        runtime_dir: Where a lock of our own may be.

    Raises:
        SteeringError: none works; one clause says why.
    """
    tools = tuple(tool.with_own_lock(runtime_dir) for tool in find_tools(family))
    if not tools:
        raise SteeringError(f"{BASE_NAME[family]} is not on PATH")
    reasons = []
    for tool in await _by_preference(tools):
        try:
            await _probe(tool, "nat", build_nat_probe(tool.family, os.getpid()))
        except SteeringError as error:
            reasons.append(str(error))
            if str(error) == NOT_PERMITTED:  # all variants need the same right
                break
        else:
            return tool
    raise SteeringError("; ".join(reasons))


async def try_filter(tool: Tool) -> None:
    """Install and remove the rules that keeping clients away would need.

    Raises:
        SteeringError: it does not work here, for want of table filter or of the conntrack match; one clause says why.
    """
    await _probe(tool, "filter", build_filter_probe(tool.family, os.getpid()))


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


async def _probe(tool: Tool, table: str, texts: tuple[str, str]) -> None:
    """Install something and remove it.

    Args:
        tool: What with.
        table: Where.
        texts: What to install, and its removal.

    Raises:
        SteeringError: it does not work here; one clause says why.
    """
    install, remove = texts
    with trio.CancelScope(shield=True):  # bounded by the commands' own time-outs; a probe leaves nothing
        await tool.restore(install)
        try:
            await tool.restore(remove)
        except SteeringError:  # one that was killed has left its own: in a container all have the same process id
            found = parse_saved(await tool.save(table)).get(table, OwnRules()).probe_of(os.getpid())
            if not found.rules:
                raise
            await tool.restore(remove_text(table, found))


async def _run(argv: list[str], text: str = "", *, lock_path: Path | None) -> CompletedProcess[bytes]:
    """Run a command as ``run_command`` does, with the lock of ``Tool.lock_path``."""
    env = None if lock_path is None else {**os.environ, "XTABLES_LOCKFILE": str(lock_path)}
    return await run_command(argv, text, env)


def _can_lock() -> bool:
    """Tell whether the commands can open, or else create, the lock that all programs share."""
    if _LOCK_PATH.exists():
        return os.access(_LOCK_PATH, os.R_OK, effective_ids=True)
    return os.access(_LOCK_PATH.parent, os.W_OK | os.X_OK, effective_ids=True)


def _read_legacy_names(family: Family) -> Sequence[str] | None:
    """Return the tables of the legacy variant that exist; None: that may not be looked at."""
    try:
        return _LEGACY_TABLES[family].read_text().split()
    except FileNotFoundError:
        return ()
    except PermissionError:
        return None


def _read_generation() -> int | None:
    try:
        return read_generation()
    except OSError:
        return None


def _read_legacy(family: Family, table: str) -> bytes | None:
    try:
        return read_legacy_table(family, table)
    except OSError:
        return None


def _failure(result: CompletedProcess[bytes], text: str = "") -> SteeringError:
    """Return what a failed command said, as one clause.

    Args:
        result: The command's end.
        text: Its input, to be quoted from.
    """
    stderr = decode_output(result.stderr)
    if _NOT_PERMITTED_TEXT.search(stderr):
        return SteeringError(NOT_PERMITTED)
    lines = (_SPEAKER.sub("", line.strip()).strip() for line in _NOISE.sub("", stderr).splitlines())
    said = "; ".join(line for line in lines if line) or f"exit status {result.returncode}"
    line = _LINE.search(stderr)
    rules = text.splitlines()
    if line is not None and 1 < int(line[1]) <= len(rules):  # the first one names the table
        said = f"{said}: {rules[int(line[1]) - 1]}"
    return SteeringError(f"{Path(result.args[0]).name}: {said}")


def _command(family: Family, variant: Variant) -> str:
    return BASE_NAME[family] if variant is Variant.PLAIN else f"{BASE_NAME[family]}-{variant}"

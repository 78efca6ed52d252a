"""Steering by nftables: one table of our own in each family leads the addresses of Services to proxy ports.

Sets and maps have all that concerns Services (see ``rules``), so a change is one transaction with the elements that
differ. Other tables are never touched. Entry points: ``open_nftables``; for cleaning up ``list_own_tables`` and
``delete_own_tables``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from userspace_proxy.config import SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, NamespacedName
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.nftables.content import Content
from userspace_proxy.steering.nftables.listing import Listed, parse_proxy_ports
from userspace_proxy.steering.nftables.probe import PROBE_PREFIX, try_tables
from userspace_proxy.steering.nftables.rules import FAMILY_NAME, Difference, Table
from userspace_proxy.steering.nftables.text import write_all, write_difference, write_removal
from userspace_proxy.steering.nftables.tool import NftTool, find_tool
from userspace_proxy.steering.nftables.watch import Watch
from userspace_proxy.steering.rule_steering import (
    Conditions,
    FamilyRules,
    ProxyPorts,
    RuleSteering,
    ServiceRules,
)

TABLE_NAME = "userspace-proxy"
_PROBE = re.compile(rf"{PROBE_PREFIX}(\d+)")


class NftablesSteering(RuleSteering):
    """Tables of one run, in both families; built by ``open_nftables``."""

    kind: ClassVar[SteeringKind] = SteeringKind.NFTABLES


class NftablesRules(FamilyRules):
    """One table of ours: what it should hold, and what the kernel has.

    Args:
        tool: What with.
        family: The table's.
        unfiltered_reason: Why it cannot keep anybody away here; empty where it can.
        watch: The same for the tables of all families.
    """

    def __init__(self, tool: NftTool, family: Family, unfiltered_reason: str, watch: Watch) -> None:
        self.family = family
        self.unfiltered_reason = unfiltered_reason
        self._tool = tool
        self._watch = watch
        self._table = Table(family, TABLE_NAME, is_filtered=not unfiltered_reason)
        self._content = Content(self._table)
        self._was_written = False
        """Whether there may be something to remove."""
        self._is_in_force = False
        """Whether the last command has succeeded, so that the next one may build on it."""
        self._checked = 0
        """The count of changes by others when the table was as it should be; they had not come to it by then."""

    async def read_proxy_ports(self) -> ProxyPorts:
        """Return where the table leads that is there (see ``FamilyRules``)."""
        try:
            listed = await self._tool.list_table(self._table.path)
            return {} if listed is None else parse_proxy_ports(listed)
        except (SteeringError, ValueError):  # a table of another release
            return {}

    async def update(self, changed: Mapping[NamespacedName, ServiceRules], conditions: Conditions) -> None:
        """Write the elements and chains that differ, or all if that fails (see ``FamilyRules``)."""
        difference = self._content.replace(changed, conditions)
        await self._write(difference if self._is_in_force else None)

    async def repair(self) -> tuple[str, ...]:
        """Put back elements, or the whole table if more than that is missing (see ``FamilyRules``)."""
        changes = self._watch.changes()
        if not self._is_in_force or changes == self._checked:
            return ()
        difference = self._content.compare(await self._list())
        if difference is None or difference:
            await self._write(difference)
            return ("nftables table",)
        self._checked = changes
        return ()

    async def remove(self) -> None:
        """Remove the table (see ``FamilyRules``)."""
        if self._was_written:
            self._is_in_force = False
            await self._tool.change([write_removal(self._table)])
            self._was_written = False

    async def _list(self) -> Listed | None:
        try:
            return await self._tool.list_table(self._table.path)
        except SteeringError as error:
            raise SteeringError(f"{self.family} rules cannot be read: {error}") from error

    async def _write(self, difference: Difference | None) -> None:
        """Make a difference, or write the whole table: also if the difference cannot be made.

        Args:
            difference: From what the table is taken to hold; None: what it holds does not matter.

        Raises:
            SteeringError: it is not in force; the text says so, and why.
        """
        if difference is not None:
            statements = write_difference(self._table, difference)
            try:
                if statements:
                    await self._change(statements)
            except SteeringError:
                pass  # somebody may have removed the table, or part of it
            else:
                return
        statements = write_all(self._table, self._content.elements, self._content.chains)
        self._checked = self._watch.changes()
        try:
            await self._change(statements)
        except SteeringError as error:
            raise SteeringError(
                f"{self.family} addresses of Services are not steered as they should be: {error}"
            ) from error

    async def _change(self, statements: Sequence[str]) -> None:
        self._was_written = True
        self._is_in_force = False
        self._watch.changes()
        self._watch.add_own(await self._tool.change(statements))
        self._is_in_force = True


async def open_nftables(assignments: Assignments) -> NftablesSteering:
    """Return steering by nft, tried by writing and removing a table in each family.

    Raises:
        SteeringError: it works for neither family; one clause says why.
    """
    tool, watch = find_tool(), Watch()
    rules: dict[Family, FamilyRules] = {}
    refused: dict[Family, str] = {}
    for family in Family:
        try:
            rules[family] = NftablesRules(tool, family, await try_tables(tool, family), watch)
        except SteeringError as error:
            refused[family] = str(error)
    if not rules:
        raise SteeringError("; ".join(dict.fromkeys(refused.values())))
    steering = NftablesSteering(rules, refused, assignments)
    steering.remarks = await _explain_drop_policies(tool, assignments.proxy_port_range)
    await steering.take_over()
    return steering


async def list_own_tables(tool: NftTool) -> tuple[Family, ...]:
    """Return the families that have a table of ours, or one that was left by a probe whose process is gone.

    To be used by cleaning up: ``find_tool`` returns the tool, or raises where nft is not on PATH.

    Raises:
        SteeringError: it cannot be told; one clause says why, as "not permitted (needs NET_ADMIN)".
    """
    names = await _own_names(tool)
    return tuple(family for family in Family if names[family])


async def delete_own_tables(tool: NftTool, family: Family) -> None:
    """Delete what ``list_own_tables`` has found in a family; it is no error if it is gone. All others stay.

    Raises:
        SteeringError: at least one is left; one clause says why.
    """
    names = await _own_names(tool)
    for name in names[family]:
        await tool.change([write_removal(Table(family, name))])


async def _own_names(tool: NftTool) -> Mapping[Family, list[str]]:
    tables = await tool.list_tables()
    return {
        family: [name for its_family, name in tables if its_family == FAMILY_NAME[family] and _is_own(name)]
        for family in Family
    }


def _is_own(table: str) -> bool:
    probe = _PROBE.fullmatch(table)
    return table == TABLE_NAME or (probe is not None and not Path("/proc", probe[1]).exists())


async def _explain_drop_policies(tool: NftTool, proxy_ports: range) -> tuple[str, ...]:
    """Return a sentence for each table of others that may drop what our rules have led to this node."""
    try:
        tables = await tool.list_drop_policies()
    except SteeringError:  # a table that nft cannot list says nothing about ours
        return ()
    return tuple(
        f"the table {family} {name} drops by policy what no rule of it accepts: connections to Services are cut off "
        f"unless it accepts those to ports {proxy_ports[0]}-{proxy_ports[-1]} and to NodePorts"
        for family, name in tables
    )

"""Steering by iptables: rules in chains of our own lead the addresses of Services to proxy ports, and drop packets.

Each family has its own tool. A change is one ``iptables-restore`` with the chains that differ; no change is none. What
is in force is looked at only where it is not known: at first, after a failure, and when somebody has changed rules.
Entry point: ``open_iptables``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from itertools import islice
from pathlib import Path
from typing import ClassVar

import trio
from attrs import define, field

from userspace_proxy.config import SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, IPNetwork, NamespacedName
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.iptables.chain_set import ChainSet
from userspace_proxy.steering.iptables.filter import build_filter_rules, build_health_check_rules
from userspace_proxy.steering.iptables.nat import build_entry_rules, build_nat_rules, parse_proxy_ports
from userspace_proxy.steering.iptables.rules import (
    REDIRECT,
    OwnRules,
    change_text,
    is_like,
    parse_saved,
    replace_text,
)
from userspace_proxy.steering.iptables.tool import RulesState, Tool, choose_tool, try_filter
from userspace_proxy.steering.rule_steering import Conditions, FamilyRules, ProxyPorts, RuleSteering, ServiceRules

_NOTHING = ServiceRules()
_PORTION = 20
"""Services whose rules are built before other tasks have their turn: some 2 ms. Arbitrary."""


class IptablesSteering(RuleSteering):
    """Rules of one run, in both families; built by ``open_iptables``."""

    kind: ClassVar[SteeringKind] = SteeringKind.IPTABLES
    tools: frozenset[str] = frozenset()
    """The names of the tools whose tables the rules are in."""


async def open_iptables(assignments: Assignments, runtime_dir: Path) -> IptablesSteering:
    """Return steering with the tools that work here, each tried by installing and removing rules.

    Args:
        assignments: Who has which proxy port.
        runtime_dir: Where a lock of our own may be, if that of all programs cannot be used.

    Raises:
        SteeringError: there is none for either family; one clause says why.
    """
    rules: dict[Family, FamilyRules] = {}
    tools: set[str] = set()
    refused: dict[Family, str] = {}
    for family in Family:
        try:
            tool = await choose_tool(family, runtime_dir)
        except SteeringError as error:
            refused[family] = str(error)
            continue
        unfiltered_reason = ""
        try:
            await try_filter(tool)
        except SteeringError as error:
            unfiltered_reason = str(error)
        rules[family] = IptablesRules(tool, unfiltered_reason)
        tools.add(tool.name)
    if not rules:
        raise SteeringError("; ".join(dict.fromkeys(refused.values())))
    steering = IptablesSteering(rules, refused, assignments)
    steering.tools = frozenset(tools)
    await steering.take_over()
    return steering


@define(eq=False)
class _Table:
    """One table: what it should have of ours, and what is known of what it has."""

    name: str
    failure: str
    """What is to be said if it could not be written."""
    chains: ChainSet[NamespacedName | None] = field(factory=ChainSet)
    """By Service; None contributes what depends on the node."""
    is_known: bool = False
    """Whether what is there is what ``chains`` was when it was last settled, if nobody else has changed it."""
    had_chains: bool = False
    """Whether there was any chain at that time."""
    is_read_as_written: bool = True
    """Whether the tool prints rules in the words they were written in."""

    def note_written(self) -> None:
        """Note that what is there is what should be."""
        self.chains.settle()
        self.had_chains = bool(self.chains)
        self.is_known = True

    def is_like(self, found: OwnRules) -> bool:
        """Tell whether what was found is what should be, as far as the tool's words can tell."""
        return is_like(found, self.name, self.chains.chains(), to_the_letter=self.is_read_as_written)

    def is_like_but_for_words(self, found: OwnRules) -> bool:
        """Tell whether what was found may be what should be in other words."""
        return is_like(found, self.name, self.chains.chains(), to_the_letter=False)


class IptablesRules(FamilyRules):
    """The rules of one family.

    Args:
        tool: What they are written with.
        unfiltered_reason: Why table filter cannot be used; empty if it can.
    """

    def __init__(self, tool: Tool, unfiltered_reason: str) -> None:
        self.family = tool.family
        self.unfiltered_reason = unfiltered_reason
        self._tool = tool
        self._services: dict[NamespacedName, ServiceRules] = {}
        self._node_address: IPv4Address | None = None
        self._pod_networks: tuple[IPNetwork, ...] = ()
        self._nat = _Table("nat", f"{self.family} addresses of Services are not steered as they should be")
        self._filter = _Table("filter", f"{self.family} clients are not kept away as they should be")
        self._tables = (self._filter, self._nat)
        """In the order in which they are written: nobody is led to a port that is not guarded yet."""
        self._has_begun = False
        self._in_force: RulesState | None = None
        """How the kernel's rules stood when ours were seen to be what is known of them; None: it has to be looked."""

    async def read_proxy_ports(self) -> ProxyPorts:
        """Return where the rules lead that an earlier run has left (see ``FamilyRules``)."""
        try:
            return parse_proxy_ports(await self._tool.save(self._nat.name))
        except SteeringError:  # the first write will say so
            return {}

    async def update(self, changed: Mapping[NamespacedName, ServiceRules], conditions: Conditions) -> None:
        """Write the chains that differ (see ``FamilyRules``)."""
        self._has_begun = True
        await self._note(changed, conditions)
        await self._write([table for table in self._tables if not table.is_known or table.chains.is_changed])

    async def repair(self) -> tuple[str, ...]:
        """Look whether all is there if anybody has changed rules, and put back what is not (see ``FamilyRules``)."""
        tables = [table for table in self._tables if table.is_known and table.chains]
        state = self._read_state()
        if not tables or (state is not None and state == self._in_force):
            return ()
        try:
            found = {table.name: await self._look(table) for table in tables}
        except SteeringError as error:
            raise SteeringError(f"{self.family} rules cannot be read: {error}") from error
        broken = [table for table in tables if not table.is_like(found[table.name])]
        if not broken:
            self._in_force = state  # as it was before: what has changed since will be looked at next time
            return ()
        for table in broken:
            table.is_known = False
        await self._write(broken)
        for table in broken:
            if table.is_like_but_for_words(found[table.name]):
                again = await self._look(table)
                if table.is_like_but_for_words(again):  # else somebody is at it just now
                    table.is_read_as_written = table.is_like(again)
        return tuple(table.name for table in broken)

    async def remove(self) -> None:
        """Remove our chains and the jumps to them (see ``FamilyRules``)."""
        failures = []
        self._in_force = None
        for table in reversed(self._tables):
            if not self._has_begun or (table.is_known and not table.had_chains):
                continue
            table.is_known = False
            table.chains = ChainSet()
            try:
                await self._write_at_once([table])
            except SteeringError as error:
                failures.append(str(error))
        self._services.clear()
        if failures:
            raise SteeringError("; ".join(dict.fromkeys(failures)))

    async def _note(self, changed: Mapping[NamespacedName, ServiceRules], conditions: Conditions) -> None:
        """Build the chains that should be, those anew that depend on what has changed.

        Cancellation: what should be is half noted.
        """
        for name, rules in changed.items():
            if rules == _NOTHING:
                self._services.pop(name, None)
            else:
                self._services[name] = rules
        every = {**changed, **self._services}
        node_address = conditions.node_address if self.family is Family.IPV4 else None
        names = changed if node_address == self._node_address else every
        self._node_address = node_address
        nat = self._nat.chains
        for some in _portions(names):
            nat.replace({name: build_nat_rules(self._rules(name).steered, node_address) for name in some})
            await trio.lowlevel.checkpoint()
        nat.replace({None: build_entry_rules(self.family, conditions) if REDIRECT in nat else ()})
        if self.unfiltered_reason:
            return
        surroundings = conditions.surroundings
        names = changed if surroundings.pod_networks == self._pod_networks else every
        self._pod_networks = pods = surroundings.pod_networks
        filtered = self._filter.chains
        for some in _portions(names):
            filtered.replace({name: build_filter_rules(self.family, self._rules(name).ports, pods) for name in some})
            await trio.lowlevel.checkpoint()
        filtered.replace({None: build_health_check_rules(surroundings.health_check_ports)})

    def _rules(self, name: NamespacedName) -> ServiceRules:
        return self._services.get(name, _NOTHING)

    async def _write(self, due: Sequence[_Table]) -> None:
        """Write some tables, by one command if it works; one that fails does not stop the other.

        Raises:
            SteeringError: see ``update``.
        """
        was_known = any(table.is_known for table in due)
        try:
            await self._write_at_once(due)
        except SteeringError as error:
            if len(due) == 1 and not was_known:
                raise SteeringError(f"{due[0].failure}: {error}") from error
        else:
            return
        failures = []
        for table in due:  # which one is to blame, or that somebody has removed chains, shows if each is looked at
            table.is_known = False
            try:
                await self._write_at_once([table])
            except SteeringError as error:
                failures.append(f"{table.failure}: {error}")
        if failures:
            raise SteeringError("; ".join(failures))

    async def _write_at_once(self, tables: Sequence[_Table]) -> None:
        """Make the chains of some tables what they should be, without a command that changes nothing.

        Raises:
            SteeringError: at least one table is as it was; if it is not known which, all count as unknown.
        """
        if not tables:
            return
        state = self._read_state()
        relies_on = [table for table in self._tables if table.is_known and table.had_chains]
        was_seen = state is not None and (state == self._in_force or not relies_on)
        self._in_force = None
        texts = [text for table in tables if (text := await self._find_text(table))]
        for table in tables:
            table.is_known = False
        if texts:
            await self._tool.restore("".join(texts))
        for table in tables:
            table.note_written()
        if was_seen and state is not None:
            expected = state.after(len(texts))
            self._in_force = expected if expected == self._read_state() else None

    async def _find_text(self, table: _Table) -> str:
        chains = table.chains
        if table.is_known:
            return change_text(table.name, chains.changed(), had_chains=table.had_chains, has_chains=bool(chains))
        return replace_text(table.name, await self._look(table), chains.chains())

    async def _look(self, table: _Table) -> OwnRules:
        """Return what a table has of ours, without probes."""
        try:
            saved = await self._tool.save(table.name)
        except SteeringError:
            if table is self._filter and self.unfiltered_reason:
                return OwnRules()  # a run before could not use it either
            raise
        tables = await trio.to_thread.run_sync(parse_saved, saved)  # it takes 0.04 s for 10,000 rules
        return tables.get(table.name, OwnRules()).without_probes()

    def _read_state(self) -> RulesState | None:
        return self._tool.read_state(table.name for table in self._tables if table.chains)


def _portions(names: Iterable[NamespacedName]) -> Iterator[tuple[NamespacedName, ...]]:
    left = iter(names)
    while portion := tuple(islice(left, _PORTION)):
        yield portion

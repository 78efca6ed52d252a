"""Steering by iptables: REDIRECT and DNAT rules in chains of our own lead cluster addresses to proxy ports.

Each family has its own tool and goes on without the other. A change is one ``iptables-restore`` per family; no change
is none. Entry point: ``open_iptables``.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import ClassVar

import trio

from userspace_proxy.config import SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.plan.state import Frontend, ListenerKey, ListenerSpec, SteeringRule
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.base import WILDCARD, Placement, Steering, node_port_placement, pool_key
from userspace_proxy.steering.iptables_rules import (
    Chains,
    OwnRules,
    build_nat_chains,
    parse_saved,
    remove_text,
    replace_text,
)
from userspace_proxy.steering.iptables_tool import Tool, choose_tool
from userspace_proxy.steering.node_state import NodeAddresses, read_node_addresses

_TABLE = "nat"


async def open_iptables(assignments: Assignments) -> "IptablesSteering":
    """Return steering with the tools that work here, each tried by installing and removing a rule.

    Raises:
        SteeringError: there is none for either family; one clause says why.
    """
    tools: dict[Family, Tool] = {}
    refused: dict[Family, str] = {}
    for family in Family:
        try:
            tools[family] = await choose_tool(family)
        except SteeringError as error:
            refused[family] = str(error)
    if not tools:
        raise SteeringError("; ".join(dict.fromkeys(refused.values())))
    return IptablesSteering(tools, refused, assignments)


class IptablesSteering(Steering):
    """Rules of one run, in both families; built by ``open_iptables``."""

    kind: ClassVar[SteeringKind] = SteeringKind.IPTABLES

    def __init__(self, tools: Mapping[Family, Tool], refused: Mapping[Family, str], assignments: Assignments) -> None:
        self.refused_families = refused
        self._tools = tools
        self._assignments = assignments
        self._lock = trio.Lock()
        self._node: NodeAddresses | None = None
        """What the rules in force are for; None while not all of them are in force."""
        self._node_address: IPv4Address | None = None
        self._rules: dict[Family, list[SteeringRule]] | None = None
        """What should be in force; None before the first ``apply``."""
        self._in_force: dict[Family, Chains | None] = {}
        """What is; None while that is unknown. Families that were never written to are missing."""

    def place(self, frontends: Iterable[Frontend]) -> tuple[Placement, ...]:
        """Return one Listener for all cluster addresses of a Pool, and one for each NodePort (see ``Steering``)."""
        placements = (node_port_placement(frontend) or self._place(frontend) for frontend in frontends)
        return tuple(placement for placement in placements if placement is not None)

    async def apply(self, placements: Iterable[Placement]) -> None:
        """Write the rules that are not there yet, and remove those that are too many (see ``Steering``)."""
        asked = self._assignments.asked
        rules: dict[Family, list[SteeringRule]] = {family: [] for family in self._tools}
        names = []
        for placement in placements:
            if placement.listener.key.frontend is None:  # not bound directly
                rules[placement.frontend.family].append(SteeringRule(placement.frontend, placement.listener.port))
                names.append(str(placement.listener.key))
        async with self._lock:
            self._assignments.save()
            await self._write(rules, read_node_addresses())
            self._assignments.keep(names, asked)  # not before: until then what has gone has its Listener still

    async def refresh(self) -> None:
        """Follow the addresses of the node, and write again what failed (see ``Steering``)."""
        async with self._lock:
            node = read_node_addresses()
            if self._rules is not None and node != self._node:
                await self._write(self._rules, node)

    async def aclose(self) -> None:
        """Remove our chains and the jumps to them (see ``Steering``)."""
        left = []
        with trio.CancelScope(shield=True):  # bounded by the commands' own time-outs
            async with self._lock:
                self._rules = None
                for family in list(self._in_force):
                    tool = self._tools[family]
                    try:
                        if found := await _find_own(tool):
                            await tool.restore(remove_text(_TABLE, found))
                    except SteeringError as error:
                        left.append(f"{family} rules could not be removed: {error}")
                    else:
                        del self._in_force[family]
        if left:
            raise SteeringError(f"{'; '.join(left)}; run userspace-proxy cleanup")

    def _place(self, frontend: Frontend) -> Placement | None:
        if frontend.family not in self._tools:
            return None
        key = ListenerKey(pool_key(frontend), None)
        return Placement(frontend, ListenerSpec(key, WILDCARD[frontend.family], self._assignments.proxy_port(str(key))))

    async def _write(self, rules: dict[Family, list[SteeringRule]], node: NodeAddresses) -> None:
        """Bring the rules into force in every family that needs it; one that fails does not stop the other."""
        self._rules, self._node = rules, None
        self._node_address = node.best(self._node_address)
        failures = []
        for family, tool in self._tools.items():
            chains = build_nat_chains(family, rules[family], node.interfaces, self._node_address)
            if self._in_force.get(family) == chains:
                continue
            try:
                found = await _find_own(tool) or OwnRules()
                self._in_force[family] = None
                await tool.restore(replace_text(found, chains))
            except SteeringError as error:
                failures.append(f"{family} cluster addresses are not steered as they should be: {error}")
            else:
                self._in_force[family] = chains
        if failures:
            raise SteeringError("; ".join(failures))
        self._node = node


async def _find_own(tool: Tool) -> OwnRules | None:
    """Return what table nat has of ours, without probes; None: nothing."""
    found = parse_saved(await tool.save(_TABLE)).get(_TABLE)
    own = found.without_probes() if found else OwnRules()
    return own if own.chains or own.jumps else None

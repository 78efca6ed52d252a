"""Steering by iptables: rules in chains of our own lead the addresses of Services to proxy ports, and drop packets.

Each family has its own tool and goes on without the other, and without the rules that drop where it has to. A change
is one ``iptables-restore`` per family; no change is none. Afterwards no UDP client may stay where old rules led it: see
``conntrack``. Entry point: ``open_iptables``.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import ClassVar

import trio
from attrs import frozen

from userspace_proxy.config import SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import Frontend, FrontendKind, ListenerSpec, Restrictions, SteeringRule
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.base import WILDCARD, Placement, Steering, listener_key, node_port_placement
from userspace_proxy.steering.conntrack import Conntrack
from userspace_proxy.steering.conntrack_messages import Place
from userspace_proxy.steering.iptables_filter import build_filter_chains
from userspace_proxy.steering.iptables_rules import (
    Chains,
    OwnRules,
    build_nat_chains,
    parse_saved,
    replace_text,
)
from userspace_proxy.steering.iptables_tool import Tool, choose_tool, try_filter
from userspace_proxy.steering.node_state import NodeAddresses, read_node_addresses
from userspace_proxy.steering.stale_entries import ANY_LOCAL

_MEANING = {
    "nat": "addresses of Services are not steered as they should be",
    "filter": "clients are not kept away as they should be",
}
"""What is to be said of a table that could not be written."""


async def open_iptables(assignments: Assignments) -> "IptablesSteering":
    """Return steering with the tools that work here, each tried by installing and removing rules.

    Raises:
        SteeringError: there is none for either family; one clause says why.
    """
    tools: dict[Family, Tool] = {}
    refused: dict[Family, str] = {}
    unfiltered: dict[Family, str] = {}
    for family in Family:
        try:
            tools[family] = await choose_tool(family)
        except SteeringError as error:
            refused[family] = str(error)
            continue
        try:
            await try_filter(tools[family])
        except SteeringError as error:
            unfiltered[family] = str(error)
    if not tools:
        raise SteeringError("; ".join(dict.fromkeys(refused.values())))
    return IptablesSteering(tools, refused, unfiltered, assignments)


@frozen
class _Wanted:
    """What should be in force."""

    steered: Mapping[Family, list[Placement]]
    """What table nat has to lead somewhere."""
    udp_ports: Mapping[Family, Mapping[Place, int]]
    """The UDP Frontends, with the ports of their Listeners."""
    filters: Mapping[Family, Chains]
    """None in families in which table filter cannot be used."""


class IptablesSteering(Steering):
    """Rules of one run, in both families; built by ``open_iptables``."""

    kind: ClassVar[SteeringKind] = SteeringKind.IPTABLES

    def __init__(
        self,
        tools: Mapping[Family, Tool],
        refused: Mapping[Family, str],
        unfiltered: Mapping[Family, str],
        assignments: Assignments,
    ) -> None:
        self.refused_families = refused
        self.unfiltered_families = unfiltered
        self._tools = tools
        self._assignments = assignments
        self._conntrack = Conntrack(assignments.proxy_port_range)
        self._lock = trio.Lock()
        self._node: NodeAddresses | None = None
        """What the rules in force are for; None while not all of them are in force."""
        self._node_address: IPv4Address | None = None
        self._wanted: _Wanted | None = None
        """None before the first ``apply``."""
        self._in_force: dict[tuple[Family, str], Chains | None] = {}
        """Our chains in each table; None while that is unknown. Tables that were never looked at are missing."""

    def place(self, frontends: Iterable[Frontend]) -> tuple[Placement, ...]:
        """Return one Listener for all cluster addresses of a ServicePort, and one for all its external IPs.

        Load balancer addresses, with source ranges that are for them alone, have one each, and so have NodePorts.
        """
        placements = (node_port_placement(frontend) or self._place(frontend) for frontend in frontends)
        return tuple(placement for placement in placements if placement is not None)

    async def apply(self, placements: Iterable[Placement], restrictions: Restrictions) -> None:
        """Write the rules that are not there yet, and remove those that are too many (see ``Steering``)."""
        asked = self._assignments.asked
        steered: dict[Family, list[Placement]] = {family: [] for family in self._tools}
        udp_ports: dict[Family, dict[Place, int]] = {family: {} for family in self._tools}
        placed: set[Frontend] = set()
        names = []
        for placement in placements:
            frontend = placement.frontend
            placed.add(frontend)
            if frontend.kind is not FrontendKind.NODE_PORT:
                steered[frontend.family].append(placement)
                names.append(str(placement.listener.key))
            if frontend.protocol is Protocol.UDP and frontend.family in udp_ports:
                address = ANY_LOCAL if frontend.address is None else frontend.address.packed
                udp_ports[frontend.family][address, frontend.port] = placement.listener.port
        filters = {
            family: {} if family in self.unfiltered_families else build_filter_chains(family, restrictions, placed)
            for family in self._tools
        }
        async with self._lock:
            self._assignments.save()
            await self._write(_Wanted(steered, udp_ports, filters), _read_node())
            self._assignments.keep(names, asked)  # not before: until then what has gone has its Listener still

    async def refresh(self) -> None:
        """Follow the addresses of the node, and write again what failed (see ``Steering``)."""
        async with self._lock:
            wanted, node = self._wanted, _read_node()
            if wanted is None:
                return
            if node != self._node:
                await self._write(wanted, node)
                return
            for family, ports in wanted.udp_ports.items():
                await self._conntrack.follow(family, ports)

    async def aclose(self) -> None:
        """Remove our chains and the jumps to them (see ``Steering``)."""
        left = []
        with trio.CancelScope(shield=True):  # bounded by the commands' own time-outs
            async with self._lock:
                self._wanted = None
                for (family, table), chains in list(self._in_force.items()):
                    try:
                        if chains != {}:  # else nothing of ours is there
                            await self._replace(family, {table: {}})
                    except SteeringError as error:
                        left.append(f"{family} rules could not be removed: {error}")
                    else:
                        del self._in_force[family, table]
                        if table == "nat":
                            await self._conntrack.end(family)
        if left:
            raise SteeringError(f"{'; '.join(left)}; run userspace-proxy cleanup")

    def _place(self, frontend: Frontend) -> Placement | None:
        if frontend.family not in self._tools:
            return None
        key = listener_key(frontend, is_shared=frontend.kind is not FrontendKind.LOAD_BALANCER)
        port = self._assignments.proxy_port(str(key), frontend.protocol)
        return Placement(frontend, ListenerSpec(key, WILDCARD[frontend.family], port))

    async def _write(self, wanted: _Wanted, node: NodeAddresses) -> None:
        """Bring it into force in every family and table that needs it; one that fails does not stop the others."""
        before = self._wanted if node == self._node else None
        self._wanted, self._node = wanted, None
        self._node_address = node.best(self._node_address)
        failures = []
        for family in self._tools:
            tables: dict[str, Chains] = {}
            steered = wanted.steered[family]
            if before is None or steered != before.steered[family]:  # else a policy that changes would cost as much
                rules = [SteeringRule(one.frontend, one.listener.port) for one in steered]
                tables["nat"] = build_nat_chains(family, rules, node.interfaces, self._node_address)
            tables["filter"] = wanted.filters[family]
            changed = {name: chains for name, chains in tables.items() if self._in_force.get((family, name)) != chains}
            failures += await self._write_tables(family, changed)
            if "nat" not in tables or self._in_force[family, "nat"] == tables["nat"]:
                await self._conntrack.follow(family, wanted.udp_ports[family])
            else:
                self._conntrack.forget(family)  # a command that was stopped for its time-out may have worked
        if failures:
            raise SteeringError("; ".join(failures))
        self._node = node

    async def _write_tables(self, family: Family, changed: Mapping[str, Chains]) -> list[str]:
        """Replace our chains in some tables, by one command if it works; return what has failed."""
        if len(changed) > 1:
            try:
                await self._replace(family, changed)
            except SteeringError:
                pass  # which table is to blame shows below
            else:
                return []
        failures = []
        for table, chains in changed.items():
            try:
                await self._replace(family, {table: chains})
            except SteeringError as error:
                failures.append(f"{family} {_MEANING[table]}: {error}")
        return failures

    async def _replace(self, family: Family, tables: Mapping[str, Chains]) -> None:
        """Make chains all that each table has of ours, without a command that changes nothing.

        Raises:
            SteeringError: at least one table is as it was; if it is not known which, all count as unknown.
        """
        tool = self._tools[family]
        texts = []
        for table, chains in tables.items():
            found = await self._find_own(family, table)
            if chains or found.chains or found.jumps:
                texts.append(replace_text(table, found, chains))
        self._in_force |= dict.fromkeys(((family, table) for table in tables), None)
        if texts:
            await tool.restore("".join(texts))
        self._in_force |= {(family, table): chains for table, chains in tables.items()}

    async def _find_own(self, family: Family, table: str) -> OwnRules:
        """Return what a table has of ours, without probes."""
        try:
            saved = await self._tools[family].save(table)
        except SteeringError:
            if table == "filter" and family in self.unfiltered_families:
                return OwnRules()  # a run before could not use it either
            raise
        return parse_saved(saved).get(table, OwnRules()).without_probes()


def _read_node() -> NodeAddresses:
    try:
        return read_node_addresses()
    except OSError as error:  # no file descriptor is left
        raise SteeringError(f"the addresses of this node cannot be read: {error.strerror}") from error

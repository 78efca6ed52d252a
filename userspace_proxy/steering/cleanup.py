"""Removes what runs of ours have left in the kernel, whatever kind of steering they had. Needs no cluster, no state.

Entry points: ``cleanup`` for all of it, ``remove_other_kinds`` for all that a run does not need itself.
"""

import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path

import trio
from attrs import frozen

from userspace_proxy.config import SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.steering import kube_proxy_leftovers
from userspace_proxy.steering.base import Steering
from userspace_proxy.steering.conntrack.conntrack import remove_led_to
from userspace_proxy.steering.iptables.nat import parse_proxy_ports
from userspace_proxy.steering.iptables.rules import PROBE_PREFIX, OwnRules, parse_saved, remove_text
from userspace_proxy.steering.iptables.steering import IptablesSteering
from userspace_proxy.steering.iptables.tool import Tool, Variant, find_tools, may_have_legacy_tables
from userspace_proxy.steering.kube_proxy_leftovers import Leftovers
from userspace_proxy.steering.local_route.route_table import remove_own_routes
from userspace_proxy.steering.local_route.steering import find_own_routes
from userspace_proxy.steering.nftables.listing import parse_proxy_ports as parse_nft_proxy_ports
from userspace_proxy.steering.nftables.rules import Table
from userspace_proxy.steering.nftables.steering import TABLE_NAME, delete_own_tables, list_own_tables
from userspace_proxy.steering.nftables.tool import NftTool, find_tool
from userspace_proxy.steering.rule_steering import ProxyPorts

_PROBE = re.compile(rf"(?:.* )?{PROBE_PREFIX}(\d+)")
"""The chain of a probe, or a rule that leads to one."""


@frozen
class CleanupReport:
    """What was found."""

    removed: tuple[str, ...]
    """What was removed, or would be, a phrase each. Empty: there was nothing."""
    failed: tuple[str, ...]
    """What could not be removed or looked at, each with the reason."""


async def cleanup(*, dry_run: bool, runtime_dir: Path, kube_proxy: bool = False) -> CleanupReport:
    """Remove all rules and routes of ours, with the probes of processes that have ended.

    Not for while a run is alive: it would lose what it needs.

    Args:
        dry_run: Only look.
        runtime_dir: See ``choose_tool``.
        kube_proxy: Remove what kube-proxy's userspace mode has left, too.

    Returns:
        A phrase for each rule that leads to chains of ours, each chain, each table and each route.
    """
    cleaner = _Cleaner(dry_run=dry_run, is_asked_for=True)
    for family in Family:
        for tool in find_tools(family):
            await cleaner.clean_iptables(tool.with_own_lock(runtime_dir), kube_proxy=kube_proxy)
    await cleaner.clean_nftables()
    await cleaner.clean_routes()
    await cleaner.clean_conntrack()
    return cleaner.report()


async def remove_other_kinds(steering: Steering, *, runtime_dir: Path, proxy_ports: Collection[int]) -> CleanupReport:
    """Remove the rules and routes of ours that do not belong to a steering that is in force.

    Args:
        steering: It changes the node, so nobody else may have rules or routes that are in use.
        runtime_dir: See ``choose_tool``.
        proxy_ports: Those that its rules lead to.

    Returns:
        A phrase for each table of iptables, each table of nftables, and all routes together. What may not be looked at
        is passed over.
    """
    cleaner = _Cleaner(dry_run=False, is_asked_for=False)
    in_use = steering.tools if isinstance(steering, IptablesSteering) else frozenset()
    for family in Family:
        for tool in find_tools(family):
            if tool.name not in in_use:
                await cleaner.clean_iptables(tool.with_own_lock(runtime_dir))
    if steering.kind is not SteeringKind.NFTABLES:
        await cleaner.clean_nftables()
    if steering.kind is not SteeringKind.LOCAL_ROUTE:
        await cleaner.clean_routes()
    await cleaner.clean_conntrack(kept=proxy_ports)
    return cleaner.report()


@frozen
class _Leftover:
    """Something that is removed as a whole."""

    summary: str
    """What it is, in one phrase."""
    failure: str
    """What is to be said if it cannot be removed."""
    phrases: tuple[str, ...] = ()
    """What it is in detail; none: there is nothing more to say."""
    family: Family | None = None
    """Whose UDP clients it leads somewhere; None: nobody's."""
    udp_ports: frozenset[int] = frozenset()
    """Where to."""


class _Cleaner:
    """Looks and removes, one kind after the other; what fails does not stop the rest.

    Args:
        dry_run: Only look.
        is_asked_for: A user is to be told all in detail, and what cannot be looked at, too.
    """

    def __init__(self, *, dry_run: bool, is_asked_for: bool) -> None:
        self._dry_run = dry_run
        self._is_asked_for = is_asked_for
        self._removed: list[str] = []
        self._failed: list[str] = []
        self._udp_ports: defaultdict[Family, set[int]] = defaultdict(set)
        """Where rules led that are removed now."""

    def report(self) -> CleanupReport:
        """Return what was done until now."""
        return CleanupReport(tuple(self._removed), tuple(self._failed))

    async def clean_iptables(self, tool: Tool, *, kube_proxy: bool = False) -> None:
        """Remove our chains from all tables that one command knows, and every rule that leads to them."""
        if tool.variant is Variant.LEGACY and not may_have_legacy_tables(tool.family):
            return
        try:
            saved = await tool.save()
        except SteeringError as error:
            self._note_unseen(f"{tool.name}: rules cannot be looked at: {error}")
            return
        for table, own in parse_saved(saved).items():
            found = _without_live_probes(own)
            if found.rules or found.jumps:
                udp_ports = _udp_ports(parse_proxy_ports(saved)) if table == "nat" else frozenset()
                leftover = _describe_table(tool, table, found, udp_ports)
                await self._clean(leftover, partial(tool.restore, remove_text(table, found)))
        for table, left in kube_proxy_leftovers.find_leftovers(saved).items() if kube_proxy else ():
            text = kube_proxy_leftovers.remove_text(table, left)
            await self._clean(_describe_table(tool, table, left), partial(tool.restore, text))

    async def clean_nftables(self) -> None:
        """Remove our tables."""
        try:
            tool = find_tool()
        except SteeringError:  # nor is there anybody who could have written them
            return
        try:
            families = await list_own_tables(tool)
        except SteeringError as error:
            self._note_unseen(f"nftables: tables cannot be looked at: {error}")
            return
        for family in families:
            path = Table(family, TABLE_NAME).path
            udp_ports = _udp_ports(await _read_proxy_ports(tool, path))
            leftover = _Leftover(f"nftables: table {path}", f"nftables: table {path} stays", (), family, udp_ports)
            await self._clean(leftover, partial(delete_own_tables, tool, family))

    async def clean_routes(self) -> None:
        """Remove our routes."""
        try:
            routes = await trio.to_thread.run_sync(find_own_routes)
        except SteeringError as error:
            self._note_unseen(str(error))
            return
        if routes:
            phrases = tuple(f"route {route}" for route in routes)
            leftover = _Leftover(f"local routes: {len(routes)}", "local routes stay", phrases)
            await self._clean(leftover, partial(trio.to_thread.run_sync, remove_own_routes))

    async def clean_conntrack(self, *, kept: Collection[int] = ()) -> None:
        """Remove what leads UDP clients to where rules led that are gone now.

        Args:
            kept: Ports to which rules lead that are in force.
        """
        for family, ports in self._udp_ports.items():
            what = f"conntrack: what leads {family} clients of UDP to proxy ports still"
            await self._clean(_Leftover(what, f"{what} stays"), partial(remove_led_to, family, ports.difference(kept)))

    async def _clean(self, leftover: _Leftover, remove: Callable[[], Awaitable[None]]) -> None:
        """Remove something, unless we are only to look."""
        try:
            if not self._dry_run:
                await remove()
        except SteeringError as error:
            self._failed.append(f"{leftover.failure}: {error}")
            return
        self._removed += (leftover.phrases if self._is_asked_for else ()) or (leftover.summary,)
        if leftover.family is not None and leftover.udp_ports:
            self._udp_ports[leftover.family] |= leftover.udp_ports

    def _note_unseen(self, sentence: str) -> None:
        if self._is_asked_for:
            self._failed.append(sentence)


def _describe_table(
    tool: Tool, table: str, found: OwnRules | Leftovers, udp_ports: frozenset[int] = frozenset()
) -> _Leftover:
    """Return what is to be removed from a table of iptables."""
    jumps = (f"{tool.name}: table {table}: rule {jump}" for jump in found.jumps)
    chains = (f"{tool.name}: table {table}: chain {name} (rules: {count})" for name, count in found.chains.items())
    return _Leftover(
        f"{tool.name}: table {table}: chains: {len(found.chains)}, rules that led to them: {len(found.jumps)}",
        f"{tool.name}: rules stay in table {table}",
        (*jumps, *chains),
        tool.family,
        udp_ports,
    )


def _udp_ports(proxy_ports: ProxyPorts) -> frozenset[int]:
    return frozenset(port for (_, _, protocol), port in proxy_ports.items() if protocol is Protocol.UDP)


def _without_live_probes(own: OwnRules) -> OwnRules:
    """Return the same without the probes of processes that are at it."""
    return OwnRules(
        {name: rules for name, rules in own.rules.items() if not _is_live_probe(name)},
        [jump for jump in own.jumps if not _is_live_probe(jump)],
    )


def _is_live_probe(text: str) -> bool:
    probe = _PROBE.fullmatch(text)
    return probe is not None and Path("/proc", probe[1]).exists()


async def _read_proxy_ports(tool: NftTool, path: str) -> ProxyPorts:
    try:
        listed = await tool.list_table(path)
        return {} if listed is None else parse_nft_proxy_ports(listed)
    except (SteeringError, ValueError):  # a table of another release
        return {}

"""Whether nftables works here: a table of the shape of ours is written, read back and removed.

Entry point: ``try_tables``.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_network

import trio

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, IPAddress, NamespacedName, Protocol, ServicePortName
from userspace_proxy.plan.state import Frontend, FrontendKind, Route, SteeringRule, Verdict
from userspace_proxy.steering.base import Surroundings
from userspace_proxy.steering.command import NOT_PERMITTED
from userspace_proxy.steering.nftables.content import Content
from userspace_proxy.steering.nftables.rules import Table
from userspace_proxy.steering.nftables.text import write_all, write_removal
from userspace_proxy.steering.nftables.tool import NftTool
from userspace_proxy.steering.rule_steering import Conditions, PortRule, ServiceRules

PROBE_PREFIX = "userspace-proxy-probe-"
"""Tables that exist for milliseconds, each owned by the process whose id follows."""

_PROBED_ADDRESS: Mapping[Family, IPAddress] = {Family.IPV4: IPv4Address("192.0.2.0"), Family.IPV6: IPv6Address("100::")}
"""Nobody dials these: RFC 5737 (documentation; the network's own address) and RFC 6666 (discard prefix)."""
_PROBED_PORT = 0
"""Nobody has it, so the probe keeps nobody away."""
_PROBED = ServicePortName(NamespacedName("userspace-proxy", "probe"), "", Protocol.TCP)
_PROBED_CONDITIONS = Conditions(
    Surroundings(tuple(ip_network(address) for address in _PROBED_ADDRESS.values())), ("lo",), IPv4Address("192.0.2.0")
)


async def try_tables(tool: NftTool, family: Family) -> str:
    """Write a table of the shape of ours with an element of each kind, read it back and remove it.

    Returns:
        Why it works only without keeping clients away; empty: it works with that, too.

    Raises:
        SteeringError: it does not work at all; one clause says why.
    """
    try:
        await _try_table(tool, Table(family, f"{PROBE_PREFIX}{os.getpid()}"))
    except SteeringError as error:
        if str(error) == NOT_PERMITTED:
            raise
        reason = str(error)
    else:
        return ""
    await _try_table(tool, Table(family, f"{PROBE_PREFIX}{os.getpid()}", is_filtered=False))
    return reason


async def _try_table(tool: NftTool, table: Table) -> None:
    content = Content(table)
    content.replace({_PROBED.service: _probed_rules(table.family)}, _PROBED_CONDITIONS)
    with trio.CancelScope(shield=True):  # bounded by the commands' own time-outs; a probe leaves nothing
        try:
            await tool.change(write_all(table, content.elements, content.chains))
            difference = content.compare(await tool.list_table(table.path))
        except SteeringError:
            with suppress(SteeringError):  # the first reason is the one to be told
                await tool.change([write_removal(table)])
            raise
        await tool.change([write_removal(table)])
    if difference is None or difference:
        raise SteeringError("nft lists other rules than it was told to write")


def _probed_rules(family: Family) -> ServiceRules:
    """Return what leads to an element in each set and map."""
    address = _PROBED_ADDRESS[family]
    frontend = Frontend(FrontendKind.CLUSTER_IP, _PROBED, family, address, _PROBED_PORT)
    everybody = (ip_network(address),)
    routes: tuple[tuple[Route, IPAddress | None, bool], ...] = (
        (Route(Verdict.REJECT, Verdict.REJECT, Verdict.DROP, everybody), None, True),
        (Route(Verdict.REJECT, Verdict.REJECT, Verdict.DROP), None, False),
        (Route(Verdict.DROP, Verdict.DROP, Verdict.DROP), address, False),
    )
    return ServiceRules(
        (SteeringRule(frontend, _PROBED_PORT),),
        tuple(
            PortRule(Protocol.TCP, at, _PROBED_PORT, is_proxy_port=is_proxy_port, route=route)
            for route, at, is_proxy_port in routes
        ),
    )

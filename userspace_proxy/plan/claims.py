"""Which Service has which Frontend, and which Backends are Frontends themselves: what ties Services together.

Keeps the index by which a build finds the Services that a change of another one concerns. Knows no Problems: the
sentences are ``plan.build``'s. Entry points: ``wanted_frontends``, ``update_claims``, ``update_neighbours``,
``find_loop``.
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter

from userspace_proxy.model.names import Family, IPAddress, NamespacedName, Protocol, family_of
from userspace_proxy.model.service_port import Service
from userspace_proxy.plan.state import (
    Backend,
    Claim,
    Frontend,
    FrontendKind,
    PlanIndex,
    ServicePlan,
)

SERVED_PROTOCOLS = frozenset({Protocol.TCP})
"""Ports of other protocols get no Frontend."""

by_name = attrgetter("namespace", "name")
"""Sorts NamespacedNames as they sort by themselves, several times as fast."""

_THIS_NODE = b""
"""Stands in ``PlanIndex.neighbours`` for all local and loopback addresses, at which NodePorts answer."""


def wanted_frontends(service: Service) -> tuple[Frontend, ...]:
    """Return the Frontends a Service asks for: by port, then family, the cluster address before the NodePort."""
    wanted: list[Frontend] = []
    for port in service.ports:
        if port.name.protocol not in SERVED_PROTOCOLS:
            continue
        for address in service.cluster_ips:
            family = family_of(address)
            wanted.append(Frontend(FrontendKind.CLUSTER_IP, port.name, family, address, port.port))
            if port.node_port is not None:
                wanted.append(Frontend(FrontendKind.NODE_PORT, port.name, family, None, port.node_port))
    return tuple(wanted)


def claim_of(frontend: Frontend) -> Claim:
    """Return what a Frontend takes from all other Services."""
    return (frontend.family if frontend.address is None else frontend.address, frontend.port, frontend.protocol)


def find_loop(
    backend: Backend,
    protocol: Protocol,
    claims: Mapping[Claim, tuple[NamespacedName, ...]],
    local_addresses: frozenset[IPAddress],
) -> NamespacedName | None:
    """Return the Service at whose Frontend a Backend is, None if there is none and it can be dialled."""
    holders = claims.get((backend.address, backend.port, protocol))
    if holders is None and _is_this_node(backend.address, local_addresses):
        holders = claims.get((family_of(backend.address), backend.port, protocol))
    return None if holders is None else holders[0]


def update_claims(
    index: PlanIndex,
    plans: Mapping[NamespacedName, ServicePlan],
    wanted: Mapping[NamespacedName, Iterable[Frontend]],
) -> tuple[Mapping[Claim, tuple[NamespacedName, ...]], frozenset[NamespacedName]]:
    """Return the Claims after some Services have changed, and the Services whose plan depends on a Claim that moved.

    Args:
        index: That of the build before; left as it is.
        plans: Those of the build before.
        wanted: What each changed Service asks for now; nothing where it is gone.
    """
    moved: dict[Claim, set[NamespacedName]] = {}
    for name, frontends in wanted.items():
        plan = plans.get(name)
        before = {claim_of(one) for one in (*plan.frontends, *plan.denied)} if plan else set()
        for claim in before.symmetric_difference(claim_of(one) for one in frontends):
            moved.setdefault(claim, set()).add(name)
    if not moved:
        return index.claims, frozenset()
    claims = dict(index.claims)
    concerned: set[NamespacedName] = set()
    for claim, names in moved.items():
        holders = claims.pop(claim, ())
        left = tuple(sorted(names.symmetric_difference(holders), key=by_name))
        if left:
            claims[claim] = left
        if left[:1] != holders[:1]:
            place = claim[0]
            network = _THIS_NODE if isinstance(place, Family) else _network_of(place)
            concerned.update(holders, left, index.neighbours.get(network, ()))
    return claims, frozenset(concerned)


def update_neighbours(
    index: PlanIndex,
    before: Mapping[NamespacedName, ServicePlan],
    after: Mapping[NamespacedName, ServicePlan],
    replanned: Iterable[NamespacedName],
    local_addresses: frozenset[IPAddress],
) -> Mapping[bytes, frozenset[NamespacedName]]:
    """Return the neighbours after some plans have been made anew; the index itself is left as it is."""
    moved: dict[bytes, set[NamespacedName]] = {}
    for name in replanned:
        left = _networks_of(before.get(name), local_addresses)
        for network in left.symmetric_difference(_networks_of(after.get(name), local_addresses)):
            moved.setdefault(network, set()).add(name)
    if not moved:
        return index.neighbours
    neighbours = dict(index.neighbours)
    for network, names in moved.items():
        members = neighbours.pop(network, frozenset()).symmetric_difference(names)
        if members:
            neighbours[network] = members
    return neighbours


def _networks_of(plan: ServicePlan | None, local_addresses: frozenset[IPAddress]) -> set[bytes]:
    """Return the networks of all usable Endpoints of a Service."""
    found: set[bytes] = set()
    if plan is None:
        return found
    for backends in (plan.refused, *(pool.backends for pool in plan.pools.values())):
        for backend in backends:
            found.add(_network_of(backend.address))
            if _is_this_node(backend.address, local_addresses):
                found.add(_THIS_NODE)
    return found


def _network_of(address: IPAddress) -> bytes:
    # /24 and /120: narrower than any range Services or pods are given, so the two share no network where it matters
    return address.packed[:-1]


def _is_this_node(address: IPAddress, local_addresses: frozenset[IPAddress]) -> bool:
    return address.is_loopback or address in local_addresses

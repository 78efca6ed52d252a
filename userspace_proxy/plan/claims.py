"""Which Service has which Frontend, and which Backends are Frontends themselves: what ties Services together.

Keeps the index by which a build finds the Services that a change of another one concerns. Knows no Problems: the
sentences are those of ``plan.problems``. Entry points: ``wanted_frontends``, ``update_claims``, ``update_neighbours``,
``find_loop``.
"""

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter

from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import Family, IPAddress, NamespacedName, Protocol, family_of
from userspace_proxy.model.service_port import Service, ServicePort
from userspace_proxy.plan.state import (
    Backend,
    Claim,
    Frontend,
    FrontendKind,
    Holder,
    PlanIndex,
    PlanSettings,
    ServicePlan,
)

SERVED_PROTOCOLS = frozenset({Protocol.TCP, Protocol.UDP})
"""Ports of other protocols get no Frontend."""

by_name = attrgetter("namespace", "name")
"""Sorts NamespacedNames as they sort by themselves, several times as fast."""

_RANKS = {
    FrontendKind.CLUSTER_IP: 0,
    FrontendKind.EXTERNAL_IP: 1,
    FrontendKind.LOAD_BALANCER: 2,
    FrontendKind.NODE_PORT: 3,
}
"""As which kind a place is given away that is asked for more than once; the order of kube-proxy's rules.

Between Services it keeps everybody who may write ``spec.externalIPs`` from taking the cluster address of another one.
"""

_GIVING_WAY = frozenset({FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER})

_THIS_NODE = b""
"""Stands in ``PlanIndex.neighbours`` for all local and loopback addresses, at which NodePorts answer."""


def wanted_frontends(service: Service, slices: Iterable[EndpointSlice], settings: PlanSettings) -> tuple[Frontend, ...]:
    """Return the Frontends a Service asks for: by port, then family, then kind; none is at the place of another one.

    The families are those of its cluster addresses. An external or load balancer address gives way to an Endpoint of
    the Service itself at that place, ready or not (programs in the host's network behind the addresses of their nodes):
    packets get there by themselves, and if they were led here, no dial could reach that Endpoint.

    Args:
        service: The Service.
        slices: All EndpointSlices that name it.
        settings: What else it depends on.
    """
    wanted: list[Frontend] = []
    for port in service.ports:
        if port.name.protocol in SERVED_PROTOCOLS:
            for address in service.cluster_ips:
                wanted.append(Frontend(FrontendKind.CLUSTER_IP, port.name, family_of(address), address, port.port))
                wanted.extend(_wanted_outside(service, port, family_of(address), settings))
    if len(wanted) == 1:
        return tuple(wanted)
    if service.external_ips or service.load_balancer_ips:
        own = {
            (endpoint.address, port.port, port.protocol)
            for one in slices
            for port in one.ports
            for endpoint in one.endpoints
        }
        wanted = [one for one in wanted if one.kind not in _GIVING_WAY or claim_of(one) not in own]
    first: dict[Claim, Frontend] = {}
    for one in sorted(wanted, key=_rank):
        first.setdefault(claim_of(one), one)
    return tuple(one for one in wanted if first[claim_of(one)] is one)


def _wanted_outside(service: Service, port: ServicePort, family: Family, settings: PlanSettings) -> Iterator[Frontend]:
    """Yield the Frontends of one port and family to which externalTrafficPolicy applies."""
    if settings.serves_external_ips:
        for address in service.external_ips:
            if family_of(address) is family:
                yield Frontend(FrontendKind.EXTERNAL_IP, port.name, family, address, port.port)
    for address in service.load_balancer_ips:
        if family_of(address) is family:
            yield Frontend(FrontendKind.LOAD_BALANCER, port.name, family, address, port.port)
    if port.node_port is not None:
        for at in settings.node_port_addresses.get(family, (None,)):
            yield Frontend(FrontendKind.NODE_PORT, port.name, family, at, port.node_port)


def _rank(frontend: Frontend) -> int:
    return _RANKS[frontend.kind]


def claim_of(frontend: Frontend) -> Claim:
    """Return what a Frontend takes from all other Services."""
    return (frontend.family if frontend.address is None else frontend.address, frontend.port, frontend.protocol)


def owner_of(frontend: Frontend, claims: Mapping[Claim, tuple[Holder, ...]]) -> NamespacedName:
    """Return the Service that has the place of a Frontend for which at least one asks."""
    return claims[claim_of(frontend)][0][1]


def find_loop(
    backend: Backend,
    protocol: Protocol,
    claims: Mapping[Claim, tuple[Holder, ...]],
    local_addresses: frozenset[IPAddress],
) -> NamespacedName | None:
    """Return the Service at whose Frontend a Backend is, None if there is none and it can be dialled."""
    holders = claims.get((backend.address, backend.port, protocol))
    if holders is None and _is_this_node(backend.address, local_addresses):
        holders = claims.get((family_of(backend.address), backend.port, protocol))
    return None if holders is None else holders[0][1]


def update_claims(
    index: PlanIndex,
    plans: Mapping[NamespacedName, ServicePlan],
    wanted: Mapping[NamespacedName, Iterable[Frontend]],
) -> tuple[Mapping[Claim, tuple[Holder, ...]], frozenset[NamespacedName]]:
    """Return the Claims after some Services have changed, and the Services whose plan depends on a Claim that moved.

    Args:
        index: That of the build before; left as it is.
        plans: Those of the build before.
        wanted: What each changed Service asks for now; nothing where it is gone.
    """
    moved: dict[Claim, set[Holder]] = {}
    for name, frontends in wanted.items():
        plan = plans.get(name)
        before = {(claim_of(one), _rank(one)) for one in (*plan.routes, *plan.denied)} if plan else set()
        for claim, rank in before.symmetric_difference((claim_of(one), _rank(one)) for one in frontends):
            moved.setdefault(claim, set()).add((rank, name))
    if not moved:
        return index.claims, frozenset()
    claims = dict(index.claims)
    concerned: set[NamespacedName] = set()
    for claim, toggled in moved.items():
        holders = claims.pop(claim, ())
        left = tuple(sorted(toggled.symmetric_difference(holders)))
        if left:
            claims[claim] = left
        if left[:1] != holders[:1]:
            place = claim[0]
            network = _THIS_NODE if isinstance(place, Family) else _network_of(place)
            concerned.update(name for _, name in (*holders, *left))
            concerned.update(index.neighbours.get(network, ()))
    return claims, frozenset(concerned)


def neighbours_of(index: PlanIndex, addresses: Iterable[IPAddress]) -> frozenset[NamespacedName]:
    """Return the Services with usable Endpoints near some addresses, those at one of them among them."""
    return frozenset().union(*(index.neighbours.get(_network_of(address), ()) for address in addresses))


def update_neighbours(
    index: PlanIndex,
    before: Mapping[NamespacedName, ServicePlan],
    after: Mapping[NamespacedName, ServicePlan],
    replanned: Iterable[NamespacedName],
    local_addresses: frozenset[IPAddress],
) -> Mapping[bytes, frozenset[NamespacedName]]:
    """Return the neighbours after some plans have been made anew; the index itself is left as it is.

    Args:
        index: That of the build before.
        before: The plans of that build.
        after: The plans as they are now.
        replanned: The Services whose plans may differ between the two, or who have Endpoints at an address that this
            node has or had in one of them only.
        local_addresses: Those of this node now.
    """
    had = index.settings.sources.local_addresses if index.settings else frozenset()
    moved: dict[bytes, set[NamespacedName]] = {}
    for name in replanned:
        left = _networks_of(before.get(name), had)
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
    """Return the networks of all Endpoints that a Service uses, or would without a loop."""
    found: set[bytes] = set()
    if plan is None:
        return found
    pools = plan.pools.values()
    serving = (pool.udp.serving for pool in pools if pool.udp is not None)
    for backends in (plan.refused, *(pool.backends for pool in pools), *serving):
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

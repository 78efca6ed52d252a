"""From the objects to the DesiredState: what each Service asks of this node, and what is wrong with it.

A build plans only the Services that changed and those a change of another one concerns, and gives the same plans as
one that starts from nothing. Pure: no clock, no log. Entry points: ``build_steps``, ``orphan_problems``; one Service
alone: ``build_service_plan``.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from attrs import evolve

from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.endpoint_slices import merge_endpoints
from userspace_proxy.model.names import NamespacedName, family_of
from userspace_proxy.model.parse import SERVICE_NAME_LABEL
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Service
from userspace_proxy.model.topology import is_local
from userspace_proxy.plan.claims import (
    SERVED_PROTOCOLS,
    by_name,
    neighbours_of,
    owner_of,
    update_claims,
    update_neighbours,
    wanted_frontends,
)
from userspace_proxy.plan.problems import find_problems
from userspace_proxy.plan.routes import RouteBuilder
from userspace_proxy.plan.state import (
    Claim,
    DesiredState,
    Frontend,
    HealthCheck,
    Holder,
    PlanIndex,
    PlanSettings,
    ServicePlan,
)

_port_and_family = attrgetter("service_port", "family")


def build_steps(
    previous: DesiredState, changes: Changes, dirty: Iterable[NamespacedName], settings: PlanSettings
) -> Generator[None, None, DesiredState]:
    """Plan one Service at each step, and return what this node should do for the objects as they are now.

    The work is in proportion to the Services planned anew (see ``DesiredState.replanned``), but for a copy of the
    dict of plans. Other settings than those of ``previous`` plan everything anew, unless they differ in
    ``SourceAddresses.local_addresses`` only: a node gets one more with each pod that starts.

    Args:
        previous: What the last build returned, an empty DesiredState before the first.
        changes: The objects; none may be applied before the last step.
        dirty: What ``changes.checkout()`` has returned since the last build.
        settings: What else the plans depend on.
    """
    replanned = set(dirty)
    plans_before = previous.services
    moved = _moved_settings(previous.index, settings)
    if moved is None:
        replanned.update(previous.services, changes.services)
        previous = DesiredState()
    else:
        replanned |= moved
    services = changes.services
    wanted: dict[NamespacedName, tuple[Frontend, ...]] = {}
    for name in replanned:
        wanted[name] = ()
        if name in services:
            wanted[name] = wanted_frontends(services[name], changes.slices_of(name), settings)
        yield
    claims, concerned = update_claims(previous.index, previous.services, wanted)
    replanned |= concerned
    plans = dict(previous.services)
    failed: dict[NamespacedName, Exception] = {}
    for name in sorted(replanned, key=by_name):
        service = services.get(name)
        if service is None:
            plans.pop(name, None)
        else:
            try:
                plans[name] = build_service_plan(service, changes.slices_of(name), claims, settings)
            except Exception as error:  # noqa: BLE001 - a bug, and told as one; it must not stop other Services
                failed[name] = error
                if name in plans_before:
                    plans[name] = plans_before[name]
        yield
    neighbours = update_neighbours(
        previous.index, previous.services, plans, replanned, settings.sources.local_addresses
    )
    return DesiredState(plans, frozenset(replanned), failed, PlanIndex(settings, claims, neighbours))


def _moved_settings(index: PlanIndex, settings: PlanSettings) -> frozenset[NamespacedName] | None:
    """Return the Services that other settings than those of the last build concern; None: all of them."""
    before = index.settings
    if before is None:
        return None
    if before == settings:
        return frozenset()
    had, has = before.sources.local_addresses, settings.sources.local_addresses
    if evolve(before, sources=evolve(before.sources, local_addresses=has)) != settings:
        return None
    return neighbours_of(index, had.symmetric_difference(has))


def build_service_plan(
    service: Service,
    slices: Sequence[EndpointSlice],
    claims: Mapping[Claim, tuple[Holder, ...]],
    settings: PlanSettings,
) -> ServicePlan:
    """Return the plan of one Service.

    Args:
        service: The Service.
        slices: All EndpointSlices that name it, sorted by their names.
        claims: Those of all Services, this one's included.
        settings: What else the plan depends on.
    """
    frontends: list[Frontend] = []
    denied: list[Frontend] = []
    for frontend in wanted_frontends(service, slices, settings):
        (frontends if owner_of(frontend, claims) == service.name else denied).append(frontend)
    found = RouteBuilder(service, claims, settings)
    for (service_port, family), members in groupby(frontends, _port_and_family):
        found.add(tuple(members), merge_endpoints(slices, service_port, family))
    return ServicePlan(
        routes=found.routes,
        pools=found.pools,
        problems=find_problems(service, slices, settings, claims=claims, denied=denied, loops=found.loops),
        denied=tuple(denied),
        refused=tuple({backend: None for backend, _ in found.loops}),
        unserved=tuple(port.name for port in service.ports if port.name.protocol not in SERVED_PROTOCOLS),
        health_check=_health_check(service, slices, settings.node_name),
    )


def _health_check(service: Service, slices: Sequence[EndpointSlice], node_name: str) -> HealthCheck | None:
    """Return what load balancers are told; Endpoints that only serve while they terminate do not count for them.

    Source: kube-proxy's ``pkg/proxy/endpointschangetracker.go`` (``LocalReadyEndpoints``); each family has a proxier.
    """
    if service.health_check_node_port is None:
        return None
    local = {
        family: {
            one.endpoint.address
            for port in service.ports
            for one in merge_endpoints(slices, port.name, family)
            if one.endpoint.ready and is_local(one.endpoint, node_name)
        }
        for family in map(family_of, service.cluster_ips)
    }
    counts = {family: len(addresses) for family, addresses in local.items()}
    return HealthCheck(service.health_check_node_port, counts)


def orphan_problems(changes: Changes) -> tuple[Problem, ...]:
    """Return a Problem for each EndpointSlice written by hand that names a Service which is not there."""
    return tuple(
        Problem(
            Severity.WARNING,
            f"EndpointSlice {one.name}",
            f"metadata.labels[{SERVICE_NAME_LABEL}]",
            f"names Service {one.service}, which is not served: it is missing, headless, of type ExternalName or "
            f"refused; the EndpointSlice does nothing",
            one.origin,
        )
        for one in changes.unowned_slices()
    )

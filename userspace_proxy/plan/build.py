"""From the objects to the DesiredState: what each Service asks of this node, and what is wrong with it.

A build plans only the Services that changed and those a change of another one concerns, and gives the same plans as
one that starts from nothing. Pure: no clock, no log. Entry points: ``build_steps``, ``orphan_problems``; one Service
alone: ``build_service_plan``.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.endpoint_slices import merge_endpoints, select_usable
from userspace_proxy.model.names import Family, NamespacedName, Protocol, ServicePortName, family_of
from userspace_proxy.model.parse import SERVICE_NAME_LABEL
from userspace_proxy.model.problem import Problem, Severity, fold_problems
from userspace_proxy.model.service_port import Service, ServicePort
from userspace_proxy.plan.claims import (
    SERVED_PROTOCOLS,
    by_name,
    claim_of,
    find_loop,
    update_claims,
    update_neighbours,
    wanted_frontends,
)
from userspace_proxy.plan.state import (
    Backend,
    Claim,
    DesiredState,
    Frontend,
    FrontendKind,
    PlanIndex,
    PlanSettings,
    Pool,
    PoolKey,
    ServicePlan,
)

_MAX_NAMES_SHOWN = 10


def build_steps(
    previous: DesiredState, changes: Changes, dirty: Iterable[NamespacedName], settings: PlanSettings
) -> Generator[None, None, DesiredState]:
    """Plan one Service at each step, and return what this node should do for the objects as they are now.

    The work is in proportion to the Services planned anew (see ``DesiredState.replanned``), but for a copy of the
    dict of plans. Other settings than those of ``previous`` plan everything anew.

    Args:
        previous: What the last build returned, an empty DesiredState before the first.
        changes: The objects; none may be applied before the last step.
        dirty: What ``changes.checkout()`` has returned since the last build.
        settings: What else the plans depend on.
    """
    replanned = set(dirty)
    if settings != previous.index.settings:
        replanned.update(previous.services, changes.services)
        previous = DesiredState()
    services = changes.services
    wanted = {}
    for name in replanned:
        wanted[name] = wanted_frontends(services[name]) if name in services else ()
        yield
    claims, concerned = update_claims(previous.index, previous.services, wanted)
    replanned |= concerned
    plans = dict(previous.services)
    for name in sorted(replanned, key=by_name):
        service = services.get(name)
        if service is None:
            plans.pop(name, None)
        else:
            plans[name] = build_service_plan(service, changes.slices_of(name), claims, settings)
        yield
    neighbours = update_neighbours(previous.index, previous.services, plans, replanned, settings.local_addresses)
    return DesiredState(plans, frozenset(replanned), PlanIndex(settings, claims, neighbours))


def build_state(
    previous: DesiredState, changes: Changes, dirty: Iterable[NamespacedName], settings: PlanSettings
) -> DesiredState:
    """Return the result of ``build_steps``, all at once."""
    steps = build_steps(previous, changes, dirty, settings)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            desired: DesiredState = stop.value
            return desired


def build_service_plan(
    service: Service,
    slices: Sequence[EndpointSlice],
    claims: Mapping[Claim, tuple[NamespacedName, ...]],
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
    for frontend in wanted_frontends(service):
        (frontends if claims[claim_of(frontend)][0] == service.name else denied).append(frontend)
    balance = service.balance or settings.default_balance
    pools: dict[PoolKey, Pool] = {}
    loops: dict[Backend, NamespacedName] = {}
    backends: dict[tuple[ServicePortName, Family], tuple[Backend, ...]] = {}
    for frontend in frontends:
        wanted = (frontend.service_port, frontend.family)
        if wanted not in backends:
            usable = select_usable(merge_endpoints(slices, *wanted))
            candidates = tuple(Backend(one.endpoint.address, one.port) for one in usable)
            backends[wanted] = _without_loops(candidates, frontend.protocol, claims, settings, loops)
        key = PoolKey(frontend.service_port, frontend.policy, frontend.family)
        pools[key] = Pool(key, backends[wanted], balance)
    problems = fold_problems(
        [
            *(_denied_problem(service, frontend, claims) for frontend in denied),
            *(_loop_problem(service, backend, holder) for backend, holder in loops.items()),
            *_unserved_ports(service),
            *_missing_endpoints(service, slices),
        ]
    )
    return ServicePlan(tuple(frontends), pools, problems, tuple(denied), tuple(loops))


def _without_loops(
    candidates: tuple[Backend, ...],
    protocol: Protocol,
    claims: Mapping[Claim, tuple[NamespacedName, ...]],
    settings: PlanSettings,
    loops: dict[Backend, NamespacedName],
) -> tuple[Backend, ...]:
    """Return the Backends that are no Frontend of this proxy; add the others to ``loops`` with the Service there."""
    kept: list[Backend] = []
    for backend in candidates:
        holder = find_loop(backend, protocol, claims, settings.local_addresses)
        if holder is None:
            kept.append(backend)
        else:
            loops[backend] = holder
    return tuple(kept)


def _denied_problem(
    service: Service, frontend: Frontend, claims: Mapping[Claim, tuple[NamespacedName, ...]]
) -> Problem:
    owner = claims[claim_of(frontend)][0]
    if frontend.kind is FrontendKind.NODE_PORT:
        path = "spec.ports"
        text = f"nodePort {frontend} belongs to Service {owner}, so this Service does not get it; choose another"
    else:
        path = "spec.clusterIP" if frontend.address == service.cluster_ips[0] else "spec.clusterIPs"
        text = f"{frontend} belongs to Service {owner}, so this Service does not get it; choose another address"
    return Problem(Severity.ERROR, _subject(service), path, text, service.origin)


def _loop_problem(service: Service, backend: Backend, holder: NamespacedName) -> Problem:
    text = (
        f"the endpoint {backend} is where this proxy serves Service {holder}, so a connection to it would come back "
        f"here; it is not used; name the address and port of the program that answers"
    )
    return Problem(Severity.ERROR, _subject(service), "", text, service.origin)


def _unserved_ports(service: Service) -> Iterator[Problem]:
    """Yield a Problem for each port whose protocol this release does not serve."""
    served = " and ".join(sorted(SERVED_PROTOCOLS))
    for port in service.ports:
        if port.name.protocol not in SERVED_PROTOCOLS:
            text = f"port {_port_text(port)} is not served, as this release serves {served} only"
            yield Problem(Severity.WARNING, _subject(service), "spec.ports", text, service.origin)


def _missing_endpoints(service: Service, slices: Sequence[EndpointSlice]) -> Iterator[Problem]:
    """Yield a Problem for all that nothing can answer for, as far as that looks like a mistake of an author.

    EndpointSlices without endpoints are none: a cluster keeps them for Services whose pods are not there.
    """
    if not slices:
        text = (
            f"no EndpointSlice belongs to it, so nothing answers; an EndpointSlice in namespace "
            f"{service.name.namespace} does if it has the label {SERVICE_NAME_LABEL}: {service.name.name}"
        )
        yield Problem(Severity.WARNING, _subject(service), "", text, service.origin)
        return
    families = {one.family for one in slices}
    for address in service.cluster_ips:
        family = family_of(address)
        if family not in families:
            text = f"no EndpointSlice of it has addressType {family}, so nothing answers at {address}"
            yield Problem(Severity.WARNING, _subject(service), "", text, service.origin)
    filled = [one for one in slices if one.endpoints]
    seen = {(port.name, port.protocol): None for one in filled for port in one.ports}
    for port in service.ports:
        if not filled or port.name.protocol not in SERVED_PROTOCOLS or (port.name.port, port.name.protocol) in seen:
            continue
        shown = ", ".join(f"'{name}' ({protocol})" for name, protocol in list(seen)[:_MAX_NAMES_SHOWN])
        text = (
            f"no EndpointSlice of it has a port with the name '{port.name.port}' and protocol {port.name.protocol}, so "
            f"nothing answers at port {port.port}; the ports they have are: {shown or 'none'}"
        )
        yield Problem(Severity.WARNING, _subject(service), "spec.ports", text, service.origin)


def _subject(service: Service) -> str:
    return f"Service {service.name}"


def _port_text(port: ServicePort) -> str:
    number = f"{port.port}/{port.name.protocol}"
    return f"{port.name.port} ({number})" if port.name.port else number


def orphan_problems(changes: Changes) -> tuple[Problem, ...]:
    """Return a Problem for each EndpointSlice that names a Service which is not there."""
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

"""What is wrong with one Service, in sentences. Decides nothing. Entry point: ``find_problems``.

A Service that was written by hand (it has an origin) is also told what looks like a mistake of its author. In a cluster
the same is everyday life: Services wait for their pods.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName, Protocol, family_of
from userspace_proxy.model.parse import SERVICE_NAME_LABEL
from userspace_proxy.model.problem import Problem, Severity, fold_problems
from userspace_proxy.model.service_port import Service, ServicePort, TrafficPolicy
from userspace_proxy.plan.claims import SERVED_PROTOCOLS, owner_of
from userspace_proxy.plan.state import Backend, Claim, Frontend, FrontendKind, Holder, PlanSettings

_MAX_NAMES_SHOWN = 10
_ASKED_FOR = {
    FrontendKind.CLUSTER_IP: ("spec.clusterIP", "", " address"),
    FrontendKind.EXTERNAL_IP: ("spec.externalIPs", "", " address or port"),
    FrontendKind.LOAD_BALANCER: ("status.loadBalancer", "", " address or port"),
    FrontendKind.NODE_PORT: ("spec.ports", "nodePort ", ""),
}
"""By which field a Service asks for a Frontend of a kind, what it is called, and what else there is to choose."""


def find_problems(
    service: Service,
    slices: Sequence[EndpointSlice],
    settings: PlanSettings,
    *,
    claims: Mapping[Claim, tuple[Holder, ...]],
    denied: Iterable[Frontend],
    loops: Mapping[tuple[Backend, Protocol], NamespacedName],
) -> tuple[Problem, ...]:
    """Return what is wrong with a Service, what is not served first, and no more than can be read.

    Args:
        service: The Service.
        slices: All EndpointSlices that name it.
        settings: What else its plan depends on.
        claims: Those of all Services.
        denied: The Frontends it asks for and does not get.
        loops: The Endpoints that are not used, each with the Service whose Frontend it is.
    """
    found = [_denied(service, frontend, owner_of(frontend, claims)) for frontend in denied]
    found.extend(_loop(service, f"{backend}/{protocol}", holder) for (backend, protocol), holder in loops.items())
    found.extend(_unserved_ports(service))
    if service.origin:
        found.extend(_missing_node_name(service, settings))
        found.extend(_missing_endpoints(service, slices))
    return fold_problems(found)


def _denied(service: Service, frontend: Frontend, owner: NamespacedName) -> Problem:
    path, what, other = _ASKED_FOR[frontend.kind]
    if frontend.kind is FrontendKind.CLUSTER_IP and frontend.address != service.cluster_ips[0]:
        path = "spec.clusterIPs"
    text = f"{what}{frontend} belongs to Service {owner}, so this Service does not get it; choose another{other}"
    return Problem(Severity.ERROR, _subject(service), path, text, service.origin, "AddressConflict")


def _loop(service: Service, place: str, holder: NamespacedName) -> Problem:
    text = (
        f"the endpoint {place} is where this proxy serves Service {holder}, so a connection to it would come back "
        f"here; it is not used; name the address and port of the program that answers"
    )
    return Problem(Severity.ERROR, _subject(service), "", text, service.origin, "EndpointLoop")


def _unserved_ports(service: Service) -> Iterator[Problem]:
    """Yield a Problem for each port whose protocol this release does not serve."""
    served = " and ".join(sorted(SERVED_PROTOCOLS))
    for port in service.ports:
        if port.name.protocol not in SERVED_PROTOCOLS:
            text = f"port {_port_text(port)} is not served, as this release serves {served} only"
            yield Problem(Severity.WARNING, _subject(service), "spec.ports", text, service.origin, "ProtocolNotServed")


def _missing_node_name(service: Service, settings: PlanSettings) -> Iterator[Problem]:
    """Yield a Problem for each traffic policy that asks which Endpoints are on this node where nothing can tell."""
    policies = {
        "spec.internalTrafficPolicy": service.internal_policy,
        "spec.externalTrafficPolicy": service.external_policy,
    }
    for path, policy in policies.items():
        if policy is TrafficPolicy.LOCAL and not settings.node_name:
            text = (
                "Local asks for endpoints on this node, and none counts as such, as the proxy does not know the name "
                "of the node; run it with --hostname-override NAME, the nodeName of the endpoints here"
            )
            yield Problem(Severity.WARNING, _subject(service), path, text, service.origin)


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

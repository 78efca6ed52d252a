"""From the JSON shape of an EndpointSlice to an ``EndpointSlice``. Entry point: ``parse_endpoint_slice``.

The rules are those of ``model.parse``. A cluster has a hundred thousand endpoints and more, so names that many of them
share (nodes, zones) are kept once.
"""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from sys import intern

from userspace_proxy.model import api_types
from userspace_proxy.model.endpoint import Endpoint, EndpointPort, EndpointSlice
from userspace_proxy.model.findings import Findings, is_label, quote
from userspace_proxy.model.names import Family, NamespacedName, family_of
from userspace_proxy.model.problem import Problem

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""On an EndpointSlice: the Service it belongs to."""
HEADLESS_LABEL = "service.kubernetes.io/headless"
"""On an EndpointSlice: it belongs to a headless Service; the value means nothing (kube-proxy asks for none with it)."""
_TRIGGER_TIME_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"

_NO_METADATA = api_types.ObjectMeta()
_NO_CONDITIONS = api_types.EndpointConditions()
_FAMILIES = " or ".join(Family)


def parse_endpoint_slice(obj: api_types.EndpointSlice, origin: str) -> tuple[EndpointSlice | None, tuple[Problem, ...]]:
    """Return an EndpointSlice and what is wrong with it; None if it is of no use to a proxy.

    Args:
        obj: The object as decoded.
        origin: Where it was read, for the Problems; ``""`` for the API server.

    Source: Kubernetes API reference, EndpointSlice v1; kube-proxy's ``pkg/proxy/endpointslicecache.go``.
    """
    findings = Findings(origin)
    metadata = obj.metadata or _NO_METADATA
    labels = metadata.labels or {}
    name = findings.object_name("EndpointSlice", metadata)
    if name is None or HEADLESS_LABEL in labels:
        return None, findings.problems()
    service = labels.get(SERVICE_NAME_LABEL) or ""
    if not findings.accepts_name(service, is_label):
        if findings.is_handwritten:
            what = f"{quote(service)} is no name of a Service" if service else "the label is missing"
            findings.warn(
                f"metadata.labels[{SERVICE_NAME_LABEL}]",
                f"{what}, so the EndpointSlice belongs to none; write the label {SERVICE_NAME_LABEL}: NAME",
            )
        return None, findings.problems()
    try:
        family = Family(obj.address_type or "")
    except ValueError:
        if findings.is_handwritten:
            what = quote(obj.address_type or "")
            findings.warn("addressType", f"{what} is not {_FAMILIES}, so the EndpointSlice is not used")
        return None, findings.problems()
    found = EndpointSlice(
        name,
        NamespacedName(name.namespace, service),
        family,
        _parse_endpoint_ports(obj, findings),
        _parse_endpoints(obj, family, findings),
        origin,
        triggered_at_s=_parse_trigger_time((metadata.annotations or {}).get(_TRIGGER_TIME_ANNOTATION)),
    )
    return found, findings.problems()


def _parse_trigger_time(text: str | None) -> float | None:
    """Return a time of RFC 3339 in seconds since the epoch, None if it is none; digits beyond microseconds are cut."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo else None


def _parse_endpoint_ports(obj: api_types.EndpointSlice, findings: Findings) -> tuple[EndpointPort, ...]:
    found: list[EndpointPort] = []
    names: set[str] = set()
    for i, port in enumerate(obj.ports or ()):
        name = findings.port_name(f"ports[{i}].name", port.name, names)
        protocol = findings.protocol(f"ports[{i}].protocol", port.protocol)
        if port.port is None:
            # the API reads it as "all ports", which no proxy ever made of it
            findings.warn(f"ports[{i}].port", "is missing, so the entry is not used; write the number")
            continue
        number = findings.port_number(f"ports[{i}].port", port.port)
        if name is not None and protocol is not None and number is not None:
            found.append(EndpointPort(name, protocol, number))
    return tuple(found)


def _parse_endpoints(obj: api_types.EndpointSlice, family: Family, findings: Findings) -> tuple[Endpoint, ...]:
    found: list[Endpoint] = []
    for i, endpoint in enumerate(obj.endpoints or ()):
        if not endpoint.addresses:
            findings.error(f"endpoints[{i}].addresses", "is empty, so the endpoint is not used; write its address")
            continue
        # the first alone counts: the API promises that the others lead to the same place
        path = f"endpoints[{i}].addresses[0]"
        address = findings.address(path, endpoint.addresses[0])
        if address is None:
            continue
        if family_of(address) is not family:
            findings.error(path, f"{address} is not an {family} address, as addressType says")
            continue
        conditions = endpoint.conditions or _NO_CONDITIONS
        hints = endpoint.hints
        found.append(
            Endpoint(
                address=address,
                ready=conditions.ready is not False,
                serving=conditions.serving is not False,
                terminating=conditions.terminating is True,
                node_name=intern(endpoint.node_name) if endpoint.node_name else None,
                hinted_zones=_parse_hints(hints.for_zones) if hints else (),
                hinted_nodes=_parse_hints(hints.for_nodes) if hints else (),
            )
        )
    return tuple(found)


def _parse_hints(hints: Iterable[api_types.Hint] | None) -> tuple[str, ...]:
    return _share(tuple(hint.name for hint in hints if hint.name)) if hints else ()


@lru_cache(maxsize=8192)  # arbitrary: more than the nodes of most clusters
def _share(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the one tuple that stands for all equal ones."""
    return tuple(intern(name) for name in names)

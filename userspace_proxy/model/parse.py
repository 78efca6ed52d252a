"""From the JSON shapes of the API to Services and EndpointSlices, with a Problem for each bad value.

Never raises: a bad value costs the item it stands in, and a bad object costs itself alone. What is left out on purpose
(headless and ExternalName Services) is no Problem. Knows nothing of where objects come from beyond the text
``origin``. Entry points: ``parse_service``, ``parse_endpoint_slice``.
"""

from userspace_proxy.model import api_types
from userspace_proxy.model.endpoint import Endpoint, EndpointPort, EndpointSlice
from userspace_proxy.model.findings import Findings, is_label, quote
from userspace_proxy.model.names import Family, IPAddress, NamespacedName, Protocol, ServicePortName, family_of
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Balance, Service, ServicePort

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""On an EndpointSlice: the Service it belongs to."""
HEADLESS_LABEL = "service.kubernetes.io/headless"
"""On an EndpointSlice: it belongs to a headless Service; the value means nothing (kube-proxy asks for none with it)."""
ANNOTATION_PREFIX = "userspace-proxy.io/"
BALANCE_ANNOTATION = f"{ANNOTATION_PREFIX}balance"

_NO_METADATA = api_types.ObjectMeta()
_NO_SPEC = api_types.ServiceSpec()
_NO_CONDITIONS = api_types.EndpointConditions()
_FAMILIES = " or ".join(Family)


def parse_service(obj: api_types.Service, origin: str) -> tuple[Service | None, tuple[Problem, ...]]:
    """Return a Service and what is wrong with it; None if it is not one to be proxied.

    Args:
        obj: The object as decoded.
        origin: Where it was read, for the Problems; ``""`` for the API server.

    Source: kube-proxy's ``ShouldSkipService`` and ``GetClusterIPByFamily`` (``pkg/proxy/util/utils.go``).
    """
    findings = Findings(origin)
    metadata = obj.metadata or _NO_METADATA
    spec = obj.spec or _NO_SPEC
    name = findings.object_name("Service", metadata)
    if name is None or spec.type == "ExternalName" or spec.cluster_ip == "None":
        return None, findings.problems()
    if not spec.cluster_ip:
        findings.error("spec.clusterIP", "is missing, and no API server assigns one here; write the address to serve")
        return None, findings.problems()
    cluster_ips = _parse_cluster_ips(spec, spec.cluster_ip, findings)
    if not cluster_ips:
        return None, findings.problems()
    ports = _parse_service_ports(name, spec, findings)
    balance = _parse_annotations(metadata, findings)
    return Service(name, cluster_ips, ports, balance, origin), findings.problems()


def _parse_cluster_ips(spec: api_types.ServiceSpec, cluster_ip: str, findings: Findings) -> tuple[IPAddress, ...]:
    """Return at most one address of each family, in the order of the object.

    ``ipFamilies`` says which of ``clusterIPs`` is of which family. Without it (objects older than dual stack) there is
    ``clusterIP`` alone; without ``clusterIPs`` it is made of ``clusterIP``, as an API server does.
    """
    texts = spec.cluster_ips or [cluster_ip]
    if texts[0] != cluster_ip:
        findings.warn("spec.clusterIPs[0]", f"is not {quote(cluster_ip)} as spec.clusterIP; write the same in both")
    families = spec.ip_families or []
    for i in range(len(families) or 1, len(texts)):
        findings.error(
            f"spec.clusterIPs[{i}]",
            "is not served, as spec.ipFamilies has no entry for it; list the family of each address there",
        )
    if not families:
        address = findings.address("spec.clusterIP", cluster_ip)
        return () if address is None else (address,)
    found: dict[Family, IPAddress] = {}
    for i, text in enumerate(families):
        family = _parse_family(f"spec.ipFamilies[{i}]", text, findings)
        if family is None:
            continue
        if i >= len(texts):
            findings.error(
                f"spec.ipFamilies[{i}]",
                f"{family} has no address in spec.clusterIPs, and no API server assigns one here; write one",
            )
            continue
        path = f"spec.clusterIPs[{i}]" if spec.cluster_ips else "spec.clusterIP"
        address = findings.address(path, texts[i])
        if address is None:
            continue
        if family_of(address) is not family:
            findings.error(path, f"{address} is not an {family} address, as spec.ipFamilies[{i}] says")
        elif family in found:
            findings.error(path, f"is not served, as it is the second {family} address; one of each family is allowed")
        else:
            found[family] = address
    return tuple(found.values())


def _parse_family(path: str, text: str, findings: Findings) -> Family | None:
    try:
        return Family(text)
    except ValueError:
        findings.error(path, f"{quote(text)} is not an IP family; write {_FAMILIES}")
        return None


def _parse_service_ports(
    service: NamespacedName, spec: api_types.ServiceSpec, findings: Findings
) -> tuple[ServicePort, ...]:
    """Return the ports that are whole; no two have the same name, nor the same number (or nodePort) and protocol."""
    if not spec.ports:
        findings.error("spec.ports", "is empty, so there is nothing to serve; write at least one port")
    found: list[ServicePort] = []
    names: set[str] = set()
    numbers: set[tuple[Protocol, int]] = set()
    node_ports: set[tuple[Protocol, int | None]] = set()
    for i, port in enumerate(spec.ports or ()):
        name = findings.port_name(f"spec.ports[{i}].name", port.name, names)
        protocol = findings.protocol(f"spec.ports[{i}].protocol", port.protocol)
        number = findings.port_number(f"spec.ports[{i}].port", port.port)
        if name is None or protocol is None or number is None:
            continue
        if (protocol, number) in numbers:
            findings.error(f"spec.ports[{i}].port", f"{number}/{protocol} is an earlier port already; choose another")
            continue
        node_port = _parse_node_port(f"spec.ports[{i}].nodePort", port.node_port, spec, findings)
        if node_port is not None and (protocol, node_port) in node_ports:
            findings.error(
                f"spec.ports[{i}].nodePort", f"{node_port}/{protocol} is an earlier nodePort already; choose another"
            )
            node_port = None
        numbers.add((protocol, number))
        node_ports.add((protocol, node_port))
        found.append(ServicePort(ServicePortName(service, name, protocol), number, node_port))
    return tuple(found)


def _parse_node_port(path: str, number: int | None, spec: api_types.ServiceSpec, findings: Findings) -> int | None:
    """Return a nodePort; absent and 0 mean none, whatever ``spec.type`` says (as kube-proxy reads it)."""
    if number:
        return findings.port_number(path, number)
    if spec.type == "NodePort":
        findings.error(path, "is missing, and no API server assigns one here; write one, usually 30000-32767")
    return None


def _parse_annotations(metadata: api_types.ObjectMeta, findings: Findings) -> Balance | None:
    balance: Balance | None = None
    for key, value in (metadata.annotations or {}).items():
        if key == BALANCE_ANNOTATION:
            try:
                balance = Balance(value or "")
            except ValueError:
                findings.warn(
                    f"metadata.annotations[{key}]",
                    f"{quote(value or '')} is unknown, so the default is used; write {' or '.join(Balance)}",
                )
        elif key.startswith(ANNOTATION_PREFIX):
            findings.warn(
                "metadata.annotations",
                f"{quote(key)} is an unknown annotation, so it does nothing; this release knows {BALANCE_ANNOTATION}",
            )
    return balance


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
    if not is_label(service):
        what = f"{quote(service)} is no name of a Service" if service else "the label is missing"
        findings.warn(
            f"metadata.labels[{SERVICE_NAME_LABEL}]",
            f"{what}, so the EndpointSlice belongs to none; write the label {SERVICE_NAME_LABEL}: NAME",
        )
        return None, findings.problems()
    try:
        family = Family(obj.address_type or "")
    except ValueError:
        findings.warn(
            "addressType", f"{quote(obj.address_type or '')} is not {_FAMILIES}, so the EndpointSlice is not used"
        )
        return None, findings.problems()
    ports = _parse_endpoint_ports(obj, findings)
    endpoints = _parse_endpoints(obj, family, findings)
    found = EndpointSlice(name, NamespacedName(name.namespace, service), family, ports, endpoints, origin)
    return found, findings.problems()


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
        found.append(
            Endpoint(
                address=address,
                ready=conditions.ready is not False,
                serving=conditions.serving is not False,
                terminating=conditions.terminating is True,
                node_name=endpoint.node_name,
            )
        )
    return tuple(found)

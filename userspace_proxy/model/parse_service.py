"""From the JSON shape of a Service to a ``Service``: its addresses and ports.

``parse_policies`` reads how its traffic is to be led, ``parse_annotations`` what it asks of this proxy in particular.
The rules are those of ``model.parse``. Fields that kube-proxy does not read are not read here either
(``loadBalancerIP``, ``loadBalancerClass``, ``selector``, ``targetPort``, ...). Entry point: ``parse_service``.
"""

from collections.abc import Collection

from userspace_proxy.model import api_types
from userspace_proxy.model.findings import Findings, filled, quote
from userspace_proxy.model.names import (
    Family,
    IPAddress,
    IPNetwork,
    NamespacedName,
    Protocol,
    ServicePortName,
    family_of,
)
from userspace_proxy.model.parse_annotations import parse_annotations
from userspace_proxy.model.parse_policies import (
    parse_affinity_timeout,
    parse_external_policy,
    parse_health_check_node_port,
    parse_internal_policy,
)
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Service, ServicePort

_NO_METADATA = api_types.ObjectMeta()
_NO_SPEC = api_types.ServiceSpec()
_FAMILIES = " or ".join(Family)


def parse_service(obj: api_types.Service, origin: str) -> tuple[Service | None, tuple[Problem, ...]]:
    """Return a Service and what is wrong with it; None if it is not one to be proxied.

    Args:
        obj: The object as decoded.
        origin: Where it was read, for the Problems; ``""`` for the API server.

    Source: kube-proxy's ``ShouldSkipService`` and ``GetClusterIPByFamily`` (``pkg/proxy/util/utils.go``) and
    ``newBaseServiceInfo`` (``pkg/proxy/serviceport.go``).
    """
    findings = Findings(origin)
    metadata = obj.metadata or _NO_METADATA
    spec = obj.spec or _NO_SPEC
    name = findings.object_name("Service", metadata)
    if name is None or spec.type == "ExternalName" or spec.cluster_ip == "None":
        return None, findings.problems()
    if not spec.cluster_ip:
        if findings.is_handwritten:
            text = "is missing, and no API server assigns one here; write the address to serve"
            findings.error("spec.clusterIP", text)
        return None, findings.problems()
    cluster_ips = _parse_cluster_ips(spec, spec.cluster_ip, findings)
    if not cluster_ips:
        return None, findings.problems()
    families = {family_of(one) for one in cluster_ips}
    external_policy = parse_external_policy(spec, findings)
    ports = _parse_service_ports(name, spec, findings)
    annotations = parse_annotations(metadata, spec, findings)
    service = Service(
        name,
        cluster_ips,
        ports,
        annotations.balance,
        origin,
        external_ips=_parse_external_ips(spec, families, findings),
        load_balancer_ips=_parse_load_balancer_ips(obj.status, families, findings),
        source_ranges=_parse_source_ranges(spec, findings),
        internal_policy=parse_internal_policy(spec, findings),
        external_policy=external_policy,
        affinity_timeout_s=parse_affinity_timeout(spec, findings),
        udp_balance=annotations.udp_balance,
        udp_idle_timeout_s=annotations.udp_idle_timeout_s,
        health_check_node_port=parse_health_check_node_port(spec, external_policy, findings),
    )
    return service, findings.problems()


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
                f"{family} has no address in spec.clusterIPs; write one there, or leave the family out",
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


def _parse_external_ips(
    spec: api_types.ServiceSpec, families: Collection[Family], findings: Findings
) -> tuple[IPAddress, ...]:
    found: dict[IPAddress, None] = {}
    for i, text in filled(spec.external_ips):
        path = f"spec.externalIPs[{i}]"
        address = findings.address(path, text)
        if address is None:
            continue
        if family_of(address) in families:
            found[address] = None
        else:
            family = family_of(address)
            findings.error(path, f"{address} is not served, as the Service has no {family} address in spec.clusterIPs")
    return tuple(found)


def _parse_load_balancer_ips(
    status: api_types.ServiceStatus | None, families: Collection[Family], findings: Findings
) -> tuple[IPAddress, ...]:
    """Return the addresses to capture; one of mode Proxy is to be reached through the load balancer itself.

    An address of a family that the Service does not have is no Problem: nobody asks for it, a load balancer has it.

    Source: Kubernetes API reference, LoadBalancerIngress v1.
    """
    balancer = status.load_balancer if status else None
    found: dict[IPAddress, None] = {}
    for i, ingress in enumerate((balancer.ingress if balancer else None) or ()):
        path = f"status.loadBalancer.ingress[{i}]"
        text = (ingress.ip or "").strip()
        if not text or ingress.ip_mode == "Proxy":
            continue
        if ingress.ip_mode not in {None, "VIP"}:
            findings.warn(
                f"{path}.ipMode",
                f"{quote(ingress.ip_mode)} is unknown, so the address is not captured; write VIP or Proxy",
            )
            continue
        address = findings.address(f"{path}.ip", text)
        if address is not None and family_of(address) in families:
            found[address] = None
    return tuple(found)


def _parse_source_ranges(spec: api_types.ServiceSpec, findings: Findings) -> tuple[IPNetwork, ...]:
    path = "spec.loadBalancerSourceRanges"
    found: dict[IPNetwork, None] = {}
    texts = filled(spec.load_balancer_source_ranges)
    for i, text in texts:
        network = findings.network(f"{path}[{i}]", text)
        if network is not None:
            found[network] = None
    if texts and not found:
        findings.error(path, "holds no network that can be used, so every client is let in")
    return tuple(found)


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
    if spec.type == "NodePort" and findings.is_handwritten:
        findings.error(path, "is missing, and no API server assigns one here; write one, usually 30000-32767")
    return None

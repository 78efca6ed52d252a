"""What a Service may hold.

Source: Kubernetes 1.36 ``pkg/apis/core/validation/validation.go``, ValidateServiceCreate, ValidateServiceUpdate,
ValidateServiceStatusUpdate.
Entry points: the functions; they note what is wrong in ``Findings``.
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from apiserver.checks import PROTOCOLS, SUBDOMAIN, Findings

TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
FAMILIES = ("IPv4", "IPv6")
FAMILY_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
TRAFFIC_POLICIES = ("Cluster", "Local")
TRAFFIC_DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")
MAX_AFFINITY_TIMEOUT_S = 86_400

Spec = Mapping[str, Any]


def is_external(spec: Spec) -> bool:
    """Return whether a Service is reached from outside; source: ``pkg/api/service/util.go``, ExternallyAccessible."""
    type_ = spec.get("type")
    return type_ in {"NodePort", "LoadBalancer"} or (type_ == "ClusterIP" and bool(spec.get("externalIPs")))


def needs_health_check(spec: Spec) -> bool:
    """Return whether a Service has a healthCheckNodePort."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def check_service(found: Findings, service: Mapping[str, Any]) -> None:
    """Check a Service with everything filled in."""
    spec = service["spec"]
    found.check_label("metadata.name", service["metadata"]["name"])
    found.check_supported("spec.type", spec["type"], TYPES)
    is_headless = spec.get("clusterIP") == "None"
    if not spec.get("ports") and not is_headless and spec["type"] != "ExternalName":
        found.required("spec.ports")
    if is_headless and spec["type"] in {"NodePort", "LoadBalancer"}:
        found.invalid("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {spec['type']} services")
    if spec["type"] == "ExternalName":
        _check_external_name(found, spec)
    _check_ports(found, spec)
    _check_affinity(found, spec)
    for i, text in enumerate(spec.get("externalIPs") or []):
        address = found.check_address(f"spec.externalIPs[{i}]", text)
        if address is not None:
            found.check_not_special(f"spec.externalIPs[{i}]", address)
    _check_load_balancer(found, spec)
    _check_policies(found, spec)


def check_service_change(found: Findings, spec: Spec, before: Spec) -> None:
    """Check what may not change."""

    def is_changed(name: str) -> bool:
        return bool(spec.get(name) != before.get(name))

    if needs_health_check(spec) and needs_health_check(before) and is_changed("healthCheckNodePort"):
        found.forbidden("spec.healthCheckNodePort", "field is immutable")
    if spec["type"] == before["type"] == "LoadBalancer" and is_changed("loadBalancerClass"):
        found.invalid("spec.loadBalancerClass", spec.get("loadBalancerClass"), "may not change once set")
    if "ExternalName" in {spec["type"], before["type"]}:
        return
    for name in ("clusterIPs", "ipFamilies"):
        new, old = spec.get(name) or [], before.get(name) or []
        if name == "ipFamilies" and "None" in {spec["clusterIP"], before["clusterIP"]}:
            continue
        if new[: len(old)] != old[: len(new)]:
            found.invalid(f"spec.{name}[0]", new, "may not change once set")


def check_cluster_ips(found: Findings, spec: Spec) -> None:
    """Check cluster IPs and families before any are filled in."""
    cluster_ip, cluster_ips = spec.get("clusterIP", ""), spec.get("clusterIPs", [])
    if cluster_ip and cluster_ips[0] != cluster_ip:
        found.invalid("spec.clusterIPs", cluster_ips, "first value must match `clusterIP`")
    if not cluster_ip and cluster_ips:
        found.invalid("spec.clusterIPs", cluster_ips, "must be empty when `clusterIP` is not specified")
    families = spec.get("ipFamilies") or []
    for i, family in enumerate(families):
        found.check_supported(f"spec.ipFamilies[{i}]", family, FAMILIES)
    found.check_unique("spec.ipFamilies[{}]", families)
    if spec.get("ipFamilyPolicy") is not None:
        found.check_supported("spec.ipFamilyPolicy", spec["ipFamilyPolicy"], FAMILY_POLICIES)
    if cluster_ips[:1] != ["None"]:
        _check_addresses(found, cluster_ips, families)
    elif len(cluster_ips) > 1:
        found.invalid("spec.clusterIPs", cluster_ips, "'None' must be the first and only value")


def _check_addresses(found: Findings, cluster_ips: Sequence[str], families: Sequence[str]) -> None:
    addresses = [found.check_address(f"spec.clusterIPs[{i}]", text) for i, text in enumerate(cluster_ips)]
    versions = [address.version for address in addresses if address is not None]
    if len(versions) != len(set(versions)):
        found.invalid("spec.clusterIPs", cluster_ips, "may specify no more than one IP for each IP family")
    for i, (version, family) in enumerate(zip(versions, families, strict=False)):
        if family in FAMILIES and family != f"IPv{version}":
            why = f"expected an {family} value as indicated by `ipFamilies[{i}]`"
            found.invalid(f"spec.clusterIPs[{i}]", cluster_ips[i], why)


def check_load_balancer_status(found: Findings, service: Mapping[str, Any]) -> None:
    """Check what the status subresource is given."""
    ingresses = service["status"]["loadBalancer"].get("ingress") or []
    path = "status.loadBalancer.ingress"
    if ingresses and service["spec"]["type"] != "LoadBalancer":
        found.forbidden(path, "may only be used when `spec.type` is 'LoadBalancer'")
        return
    for i, ingress in enumerate(ingresses):
        at = f"{path}[{i}]"
        ip, mode, hostname = ingress.get("ip"), ingress.get("ipMode"), ingress.get("hostname")
        if ip:
            found.check_address(f"{at}.ip", ip)
            found.check_supported(f"{at}.ipMode", mode, ("Proxy", "VIP"))
        elif mode is not None:
            found.forbidden(f"{at}.ipMode", "may not be specified when `ip` is not set")
        if hostname and _is_address(hostname):
            found.invalid(f"{at}.hostname", hostname, "must be a DNS name, not an IP address")
        elif hostname:
            found.check_subdomain(f"{at}.hostname", hostname)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _check_external_name(found: Findings, spec: Spec) -> None:
    for name in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if spec.get(name):
            found.forbidden(f"spec.{name}", "may not be set for ExternalName services")
    external_name = (spec.get("externalName") or "").removesuffix(".")
    if not external_name:
        found.required("spec.externalName")
    elif not SUBDOMAIN.fullmatch(external_name):
        found.check_subdomain("spec.externalName", external_name)


def _check_ports(found: Findings, spec: Spec) -> None:
    ports = spec.get("ports") or []
    for i, port in enumerate(ports):
        path = f"spec.ports[{i}]"
        if port.get("name"):
            found.check_label(f"{path}.name", port["name"])
        elif len(ports) > 1:
            found.required(f"{path}.name")
        found.check_port(f"{path}.port", port.get("port"))
        found.check_supported(f"{path}.protocol", port["protocol"], PROTOCOLS)
        if isinstance(port["targetPort"], int):
            found.check_port(f"{path}.targetPort", port["targetPort"])
        if port.get("nodePort") and spec["type"] == "ClusterIP":
            found.forbidden(f"{path}.nodePort", "may not be used when `type` is 'ClusterIP'")
    found.check_unique("spec.ports[{}].name", [port["name"] for port in ports if port.get("name")])
    found.check_unique("spec.ports[{}]", [{"port": port.get("port"), "protocol": port["protocol"]} for port in ports])
    node_ports = [(port["protocol"], port["nodePort"]) for port in ports if port.get("nodePort")]
    found.check_unique("spec.ports[{}].nodePort", node_ports)


def _check_affinity(found: Findings, spec: Spec) -> None:
    found.check_supported("spec.sessionAffinity", spec["sessionAffinity"], ("ClientIP", "None"))
    if spec["sessionAffinity"] == "ClientIP":
        timeout_s = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"]
        if not isinstance(timeout_s, int) or not 0 < timeout_s <= MAX_AFFINITY_TIMEOUT_S:
            why = f"must be greater than 0 and less than {MAX_AFFINITY_TIMEOUT_S}"
            found.invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds", timeout_s, why)


def _check_load_balancer(found: Findings, spec: Spec) -> None:
    ranges = spec.get("loadBalancerSourceRanges") or []
    if spec["type"] != "LoadBalancer":
        only = "may only be used when `type` is 'LoadBalancer'"
        if ranges:
            found.forbidden("spec.LoadBalancerSourceRanges", only)
        for name in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
            if spec.get(name) is not None:
                found.forbidden(f"spec.{name}", only)
    for i, text in enumerate(ranges):
        found.check_network(f"spec.LoadBalancerSourceRanges[{i}]", text)


def _check_policies(found: Findings, spec: Spec) -> None:
    external, internal = spec.get("externalTrafficPolicy"), spec.get("internalTrafficPolicy")
    if is_external(spec):
        found.check_supported("spec.externalTrafficPolicy", external, TRAFFIC_POLICIES)
    elif external:
        found.invalid("spec.externalTrafficPolicy", external, "may only be set for externally-accessible services")
    if spec.get("healthCheckNodePort") and not needs_health_check(spec):
        why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        found.invalid("spec.healthCheckNodePort", spec["healthCheckNodePort"], why)
    if internal is not None:
        found.check_supported("spec.internalTrafficPolicy", internal, TRAFFIC_POLICIES)
    if spec.get("trafficDistribution") is not None:
        found.check_supported("spec.trafficDistribution", spec["trafficDistribution"], TRAFFIC_DISTRIBUTIONS)

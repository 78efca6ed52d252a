"""What the API server fills in a Service: defaults, cluster IPs, node ports; and what it wipes when the type changes.

Source: Kubernetes 1.36 ``pkg/apis/core/v1/defaults.go``, ``pkg/registry/core/service/strategy.go``,
``pkg/registry/core/service/storage/{alloc,storage}.go``.
Entry point: ``ServiceRules``.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from apiserver.allotment import Allotment
from apiserver.checks import Findings
from apiserver.service_validation import (
    check_cluster_ips,
    check_load_balancer_status,
    check_service,
    check_service_change,
    is_external,
    needs_health_check,
)
from apiserver.statuses import invalid
from apiserver.writing import Content

AFFINITY_TIMEOUT_S = 10_800
"""Three hours, as the API documents."""

NODE_PORT_TYPES = ("NodePort", "LoadBalancer")


class ServiceRules:
    """Rules for ``writing.Writer``."""

    def __init__(self, allotment: Allotment) -> None:
        self._allotment = allotment

    def prepare(self, content: Content, old: Mapping[str, Any] | None, *, is_status: bool) -> Content:
        """Return the Service with all that the server fills in.

        Raises:
            ApiError: 422, a rule is broken.
        """
        service = deepcopy(content)
        service.setdefault("spec", {})
        service.setdefault("status", {}).setdefault("loadBalancer", {})
        found = Findings()
        if is_status:
            _default_ip_modes(service)
            check_load_balancer_status(found, service)
            self._raise(found, service)
            return service
        before: Mapping[str, Any] = {} if old is None else old["spec"]
        set_defaults(service["spec"])
        if old is not None:
            _patch_allotted(service["spec"], before)
            wipe_by_type(service["spec"], before)
            if service["spec"]["type"] != "LoadBalancer":
                service["status"] = {"loadBalancer": {}}
        _align_cluster_ips(service["spec"], before)
        if service["spec"]["type"] != "ExternalName":
            check_cluster_ips(found, service["spec"])
            self._raise(found, service)
            self._allotment.fill_families(found, service["spec"], before)
            self._raise(found, service)
        self._allotment.fill(found, service)
        self._raise(found, service)
        check_service(found, service)
        if old is not None:
            check_service_change(found, service["spec"], before)
        self._raise(found, service)
        self._allotment.hold(service)
        return service

    def forget(self, content: Mapping[str, Any]) -> None:
        """Give back cluster IPs and ports."""
        self._allotment.release(content)

    @staticmethod
    def _raise(found: Findings, service: Content) -> None:
        if found.causes:
            raise invalid("Service", service["metadata"]["name"], found.causes)


def set_defaults(spec: Content) -> None:
    """Fill in what does not depend on what else is in the cluster."""
    spec["sessionAffinity"] = spec.get("sessionAffinity") or "None"
    if spec["sessionAffinity"] == "None":
        # a configuration that has no meaning is dropped before it could be refused
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        client_ip = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
        if client_ip.get("timeoutSeconds") is None:
            spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": AFFINITY_TIMEOUT_S}}
    spec["type"] = spec.get("type") or "ClusterIP"
    for port in spec.get("ports") or []:
        port["protocol"] = port.get("protocol") or "TCP"
        port["targetPort"] = port.get("targetPort") or port.get("port")
        if not port.get("nodePort"):
            port.pop("nodePort", None)
    if is_external(spec) and not spec.get("externalTrafficPolicy"):
        spec["externalTrafficPolicy"] = "Cluster"
    if spec["type"] in {"ClusterIP", *NODE_PORT_TYPES} and spec.get("internalTrafficPolicy") is None:
        spec["internalTrafficPolicy"] = "Cluster"
    if spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is None:
        spec["allocateLoadBalancerNodePorts"] = True


def _default_ip_modes(service: Content) -> None:
    if service["spec"]["type"] == "LoadBalancer":
        for ingress in service["status"]["loadBalancer"].get("ingress") or []:
            if ingress.get("ip"):
                ingress["ipMode"] = ingress.get("ipMode") or "VIP"


def _patch_allotted(spec: Content, before: Mapping[str, Any]) -> None:
    """Keep what was allotted where the new version does not say: so a replacement by the first manifest works."""
    if "ExternalName" not in {spec["type"], before["type"]}:
        spec["clusterIP"] = spec.get("clusterIP") or before.get("clusterIP")
        spec["clusterIPs"] = spec.get("clusterIPs") or before.get("clusterIPs")
    if before["type"] in NODE_PORT_TYPES and spec["type"] in NODE_PORT_TYPES:
        kept = {port.get("name", ""): port.get("nodePort") for port in before.get("ports") or []}
        used = {port.get("nodePort") for port in spec.get("ports") or []}
        for port in spec.get("ports") or []:
            node_port = kept.get(port.get("name", ""))
            if not port.get("nodePort") and node_port is not None and node_port not in used:
                port["nodePort"] = node_port
    if needs_health_check(before) and needs_health_check(spec) and not spec.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = before.get("healthCheckNodePort")


def wipe_by_type(spec: Content, before: Mapping[str, Any]) -> None:
    """Take away what the new type does not have and the author did not change."""

    def wipe(*names: str) -> None:
        for name in names:
            if spec.get(name) == before.get(name):
                spec.pop(name, None)

    if before["type"] != "ExternalName" and spec["type"] == "ExternalName":
        wipe("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")
    has_same_node_ports = _node_ports(spec) == _node_ports(before)
    if before["type"] in NODE_PORT_TYPES and spec["type"] not in NODE_PORT_TYPES and has_same_node_ports:
        for port in spec.get("ports") or []:
            port.pop("nodePort", None)
    if needs_health_check(before) and not needs_health_check(spec):
        wipe("healthCheckNodePort")
    if before["type"] == "LoadBalancer" and spec["type"] != "LoadBalancer":
        wipe("allocateLoadBalancerNodePorts", "loadBalancerClass")
    if is_external(before) and not is_external(spec):
        wipe("externalTrafficPolicy")


def _node_ports(spec: Mapping[str, Any]) -> list[int | None]:
    return [port.get("nodePort") for port in spec.get("ports") or []]


def _align_cluster_ips(spec: Content, before: Mapping[str, Any]) -> None:
    cluster_ip, cluster_ips = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    is_changed_alone = cluster_ip != before.get("clusterIP") and cluster_ips == before.get("clusterIPs")
    if cluster_ip and (not cluster_ips or is_changed_alone):
        cluster_ips = [cluster_ip]
    for name, value in (("clusterIP", cluster_ip), ("clusterIPs", cluster_ips)):
        if value:
            spec[name] = value
        else:
            spec.pop(name, None)

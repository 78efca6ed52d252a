"""Cluster IPs and node ports, and which Service has which.

Source: Kubernetes 1.36 ``pkg/registry/core/service/storage/alloc.go``; flags of kube-apiserver
``--service-cluster-ip-range``, ``--service-node-port-range``.
Entry point: ``Allotment``.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from apiserver.checks import Findings
from apiserver.service_validation import needs_health_check
from apiserver.writing import Content
from attrs import define, field

SERVICE_NETWORKS = ("10.96.0.0/16", "fd00:10:96::/112")
NODE_PORTS = range(30_000, 32_768)
"""Default of kube-apiserver."""


def _network_by_family(networks: Sequence[str]) -> dict[str, IPv4Network | IPv6Network]:
    parsed = [ip_network(text) for text in networks]
    return {f"IPv{network.version}": network for network in parsed}


def _release_second(found: Findings, spec: Content, before: Mapping[str, Any]) -> None:
    """Cut what a Service of one family had of the other; who has left it out must have asked for one family."""
    policy = spec["ipFamilyPolicy"]
    for name in ("clusterIPs", "ipFamilies"):
        new, old = spec.get(name) or [], before.get(name) or []
        if policy == "SingleStack" and new == old:
            spec[name] = new[:1]
        elif policy != "SingleStack" and len(new) < len(old):
            found.invalid("spec.ipFamilyPolicy", policy, f"must be 'SingleStack' to release a value of {name}")


@define
class Allotment:
    """What is allotted, by the uid of the Service that has it."""

    networks: Mapping[str, IPv4Network | IPv6Network] = field(default=SERVICE_NETWORKS, converter=_network_by_family)
    """Networks of cluster IPs by family, the primary family first; with one the cluster is single-stack."""
    _addresses: dict[str, str] = field(factory=dict)
    _ports: dict[int, str] = field(factory=dict)
    _next_address: int = 10
    _next_port: int = field(factory=lambda: secrets.randbelow(len(NODE_PORTS)))
    """Begins anywhere, so that programs of tests that run side by side do not bind the same ports."""

    def fill_families(self, found: Findings, spec: Content, before: Mapping[str, Any]) -> None:
        """Fill in ``ipFamilyPolicy`` and ``ipFamilies``."""
        is_bare_headless = spec.get("clusterIP") == "None" and not spec.get("selector")
        usual = "RequireDualStack" if is_bare_headless else "SingleStack"
        policy = spec["ipFamilyPolicy"] = spec.get("ipFamilyPolicy") or before.get("ipFamilyPolicy") or usual
        _release_second(found, spec, before)
        cluster_ips = [one for one in spec.get("clusterIPs", []) if one != "None"]
        families = list(spec.get("ipFamilies") or [])
        if policy == "SingleStack" and max(len(cluster_ips), len(families)) > 1:
            why = "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"
            found.invalid("spec.ipFamilyPolicy", policy, why)
        families += [f"IPv{ip_address(one).version}" for one in cluster_ips[len(families) :]]
        if policy == "RequireDualStack" and len(self.networks) == 1 and not is_bare_headless:
            found.invalid("spec.ipFamilyPolicy", policy, "this cluster is not configured for dual-stack services")
        for i, family in enumerate(families):
            if family not in self.networks and not is_bare_headless:
                found.invalid(f"spec.ipFamilies[{i}]", family, "not configured on this cluster")
        possible = ("IPv4", "IPv6") if is_bare_headless else tuple(self.networks)
        families = families or [next(iter(self.networks))]
        if policy != "SingleStack":
            families += [family for family in possible if family not in families]
        spec["ipFamilies"] = families

    def fill(self, found: Findings, service: Content) -> None:
        """Fill in cluster IPs and ports that are not said, and check that those which are can be had."""
        spec, uid = service["spec"], service["metadata"]["uid"]
        if spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
            self._fill_addresses(found, spec, uid)
        if spec["type"] == "NodePort" or (spec["type"] == "LoadBalancer" and spec["allocateLoadBalancerNodePorts"]):
            self._fill_node_ports(spec)
        taken = {port["nodePort"] for port in spec.get("ports") or [] if port.get("nodePort")}
        if needs_health_check(spec) and not spec.get("healthCheckNodePort"):
            spec["healthCheckNodePort"] = self._free_port(taken.__contains__)
        for i, port in enumerate(spec.get("ports") or []):
            if port.get("nodePort"):
                self._check_port(found, f"spec.ports[{i}].nodePort", port["nodePort"], uid)
        if spec.get("healthCheckNodePort"):
            self._check_port(found, "spec.healthCheckNodePort", spec["healthCheckNodePort"], uid)

    def hold(self, service: Mapping[str, Any]) -> None:
        """Note what a Service has now."""
        self.release(service)
        spec, uid = service["spec"], service["metadata"]["uid"]
        self._addresses |= {str(ip_address(one)): uid for one in spec.get("clusterIPs", []) if one != "None"}
        self._ports |= {port["nodePort"]: uid for port in spec.get("ports") or [] if port.get("nodePort")}
        if spec.get("healthCheckNodePort"):
            self._ports[spec["healthCheckNodePort"]] = uid

    def release(self, service: Mapping[str, Any]) -> None:
        """Forget what a Service has."""
        uid = service["metadata"]["uid"]
        for held in (self._addresses, self._ports):
            for one in [one for one, holder in held.items() if holder == uid]:
                del held[one]  # type: ignore[arg-type]

    def _fill_addresses(self, found: Findings, spec: Content, uid: str) -> None:
        cluster_ips = list(spec.get("clusterIPs", []))
        for i, family in enumerate(spec["ipFamilies"]):
            if i >= len(cluster_ips):
                cluster_ips.append(self._free_address(self.networks[family]))
                continue
            address = ip_address(cluster_ips[i])
            if address not in self.networks[family]:
                why = f"the provided IP is not in the valid range. The range of valid IPs is {self.networks[family]}"
                found.invalid("spec.clusterIPs", cluster_ips, f"failed to allocate IP {address}: {why}")
            elif self._addresses.get(str(address), uid) != uid:
                why = f"failed to allocate IP {address}: provided IP is already allocated"
                found.invalid("spec.clusterIPs", cluster_ips, why)
        spec["clusterIPs"], spec["clusterIP"] = cluster_ips, cluster_ips[0]

    def _fill_node_ports(self, spec: Content) -> None:
        by_port: dict[int, int] = {}
        taken: set[int] = set()
        for port in spec.get("ports") or []:
            if not port.get("nodePort"):
                # the same port of another protocol shares the number
                port["nodePort"] = by_port.get(port.get("port", 0)) or self._free_port(taken.__contains__)
            by_port.setdefault(port.get("port", 0), port["nodePort"])
            taken.add(port["nodePort"])

    def _free_address(self, network: IPv4Network | IPv6Network) -> str:
        while True:
            self._next_address += 1
            address = str(network[self._next_address % (network.num_addresses - 2) + 1])
            if address not in self._addresses:
                return address

    def _free_port(self, is_taken: Callable[[int], bool]) -> int:
        for _ in NODE_PORTS:
            self._next_port += 1
            port = NODE_PORTS[self._next_port % len(NODE_PORTS)]
            if port not in self._ports and not is_taken(port):
                return port
        raise AssertionError("a test has used up all node ports")

    def _check_port(self, found: Findings, path: str, port: Any, uid: str) -> None:
        if port not in NODE_PORTS:
            valid = f"The range of valid ports is {NODE_PORTS[0]}-{NODE_PORTS[-1]}"
            found.invalid(path, port, f"provided port is not in the valid range. {valid}")
        elif self._ports.get(port, uid) != uid:
            found.invalid(path, port, "provided port is already allocated")

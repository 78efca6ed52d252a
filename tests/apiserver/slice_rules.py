"""What an EndpointSlice may hold, and what the API server fills in.

Source: Kubernetes 1.36 ``pkg/apis/discovery/validation/validation.go``, ``pkg/apis/discovery/v1/defaults.go``,
``pkg/registry/discovery/endpointslice/strategy.go``.
Entry point: ``EndpointSliceRules``.
"""

from collections.abc import Mapping
from copy import deepcopy
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from apiserver.checks import PROTOCOLS, Findings
from apiserver.statuses import invalid
from apiserver.writing import Content
from attrs import frozen

ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
MAX_ENDPOINTS = 1000
MAX_ADDRESSES = 100
MAX_PORTS = 20_000
MAX_HINTS = 8


@frozen
class EndpointSliceRules:
    """Rules for ``writing.Writer``."""

    takes_loopback: bool = False
    """See ``ApiServer.takes_loopback``."""

    def prepare(self, content: Content, old: Mapping[str, Any] | None, *, is_status: bool) -> Content:  # noqa: ARG002
        """Return the EndpointSlice with all that the server fills in.

        Raises:
            ApiError: 422, a rule is broken.
        """
        content = deepcopy(content)
        content["endpoints"] = content.get("endpoints")
        content["ports"] = content.get("ports")
        for port in content["ports"] or []:
            port["name"] = port.get("name") or ""
            port["protocol"] = port.get("protocol") or "TCP"
        found = Findings(takes_loopback=self.takes_loopback)
        found.check_subdomain("metadata.name", content["metadata"]["name"])
        _check_address_type(found, content, old)
        _check_ports(found, content["ports"] or [])
        if old is None or content["endpoints"] != old["endpoints"]:
            _check_endpoints(found, content["endpoints"] or [], content.get("addressType"))
        if found.causes:
            raise invalid("EndpointSlice.discovery.k8s.io", content["metadata"]["name"], found.causes)
        content["metadata"]["generation"] = _generation(content, old)
        return content

    def forget(self, content: Mapping[str, Any]) -> None:
        """Do nothing: an EndpointSlice is allotted nothing."""


def _generation(content: Mapping[str, Any], old: Mapping[str, Any] | None) -> int:
    if old is None:
        return 1
    generation: int = old["metadata"]["generation"]

    def counted(one: Mapping[str, Any]) -> dict[str, Any]:
        return {**one, "metadata": one["metadata"].get("labels") or {}}

    return generation + (counted(content) != counted(old))


def _check_address_type(found: Findings, content: Content, old: Mapping[str, Any] | None) -> None:
    address_type = content.get("addressType")
    if not address_type:
        found.required("addressType")
        return
    found.check_supported("addressType", address_type, ADDRESS_TYPES)
    if old is not None and address_type != old["addressType"]:
        found.invalid("addressType", address_type, "field is immutable")


def _check_ports(found: Findings, ports: list[Content]) -> None:
    if len(ports) > MAX_PORTS:
        found.too_many("ports", len(ports), MAX_PORTS)
        return
    for i, port in enumerate(ports):
        if port["name"]:
            found.check_label(f"ports[{i}].name", port["name"])
        found.check_supported(f"ports[{i}].protocol", port["protocol"], PROTOCOLS)
    found.check_unique("ports[{}].name", [port["name"] for port in ports])


def _check_endpoints(found: Findings, endpoints: list[Content], address_type: str | None) -> None:
    if len(endpoints) > MAX_ENDPOINTS:
        found.too_many("endpoints", len(endpoints), MAX_ENDPOINTS)
        return
    for i, endpoint in enumerate(endpoints):
        path = f"endpoints[{i}]"
        addresses = endpoint.get("addresses") or []
        if not addresses:
            found.required(f"{path}.addresses", "must contain at least 1 address")
        elif len(addresses) > MAX_ADDRESSES:
            found.too_many(f"{path}.addresses", len(addresses), MAX_ADDRESSES)
        for k, address in enumerate(addresses):
            _check_address(found, f"{path}.addresses[{k}]", address, address_type)
        if endpoint.get("nodeName") is not None:
            found.check_subdomain(f"{path}.nodeName", endpoint["nodeName"])
        if endpoint.get("hostname") is not None:
            found.check_label(f"{path}.hostname", endpoint["hostname"])
        _check_hints(found, f"{path}.hints", endpoint.get("hints") or {})


def _check_address(found: Findings, path: str, text: str, address_type: str | None) -> None:
    if address_type == "FQDN":
        found.check_subdomain(path, text)
        return
    if address_type not in ADDRESS_TYPES:
        return
    address = found.check_address(path, text, is_canonical=address_type == "IPv6")
    if address is None:
        return
    if not isinstance(address, IPv4Address if address_type == "IPv4" else IPv6Address):
        found.invalid(path, text, f"must be an {address_type} address")
    found.check_not_special(path, address)


def _check_hints(found: Findings, path: str, hints: Content) -> None:
    zones = [zone.get("name", "") for zone in hints.get("forZones") or []]
    nodes = [node.get("name", "") for node in hints.get("forNodes") or []]
    for name, values in (("forZones", zones), ("forNodes", nodes)):
        if len(values) > MAX_HINTS:
            found.too_many(f"{path}.{name}", len(values), MAX_HINTS)
        found.check_unique(f"{path}.{name}[{{}}].name", values)
    for i, zone in enumerate(zones):
        found.check_label_value(f"{path}.forZones[{i}].name", zone)
    for i, node in enumerate(nodes):
        found.check_subdomain(f"{path}.forNodes[{i}].name", node)

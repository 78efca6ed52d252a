"""Services with every kind of address, in both families and by both protocols, as the API has them.

Entry points: ``service_with_all_addresses``, ``dual_stack_slices``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import field, frozen

FAMILIES = ("IPv4", "IPv6")
PROTOCOLS = ("TCP", "UDP")
READY: Mapping[str, bool] = {"ready": True, "serving": True, "terminating": False}


@frozen
class At:
    """An endpoint, on port 8080."""

    node: str
    addresses: Sequence[str]
    """In the order of FAMILIES."""
    conditions: Mapping[str, bool] = field(factory=lambda: READY)


def service_with_all_addresses(
    name: str,
    *,
    cluster_ips: Sequence[str],
    external_ips: Sequence[str],
    load_balancer_ips: Sequence[str],
    node_port: int,
    spec: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a Service in namespace shop with port 80.

    Args:
        name: Its name.
        cluster_ips: In the order of FAMILIES.
        external_ips: Any number.
        load_balancer_ips: Any number.
        node_port: For both protocols.
        spec: What else its spec has.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": cluster_ips[0],
            "clusterIPs": list(cluster_ips),
            "ipFamilies": list(FAMILIES),
            "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": list(external_ips),
            "ports": [
                {"name": protocol.lower(), "protocol": protocol, "port": 80, "nodePort": node_port}
                for protocol in PROTOCOLS
            ],
            **spec,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"} for address in load_balancer_ips]}},
    }


def dual_stack_slices(name: str, endpoints: Iterable[At]) -> Iterator[dict[str, Any]]:
    """Yield the EndpointSlices of a Service in namespace shop, one for each family."""
    everywhere = list(endpoints)
    for number, family in enumerate(FAMILIES):
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{family.lower()}",
                "namespace": "shop",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family,
            "ports": [{"name": protocol.lower(), "protocol": protocol, "port": 8080} for protocol in PROTOCOLS],
            "endpoints": [
                {"addresses": [each.addresses[number]], "nodeName": each.node, "conditions": each.conditions}
                for each in everywhere
            ],
        }

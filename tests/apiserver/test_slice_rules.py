"""What the API server fills in an EndpointSlice and what it refuses: the same on the double and on a real server.

Source of the rules: Kubernetes 1.36 ``pkg/apis/discovery/validation/validation.go``.
"""

from typing import Any

import pytest
from apiserver.cluster import Cluster, Manifest, endpoint_slice_manifest
from apiserver.kube_client import RefusedError


def one(*addresses: str, **fields: Any) -> dict[str, Any]:
    """Return an endpoint."""
    return {"addresses": list(addresses), **fields}


def hinted(**hints: Any) -> Manifest:
    """Return an EndpointSlice with an endpoint that has hints."""
    return endpoint_slice_manifest("web-1", one("10.0.1.1", hints=hints))


def named(*names: str) -> list[dict[str, str]]:
    """Return hints for zones or nodes."""
    return [{"name": name} for name in names]


def test_endpoint_slice_port_without_name_and_protocol_is_filled_in(cluster: Cluster) -> None:
    """The name is empty, the protocol TCP; the number may be left out."""
    made = cluster.create(endpoint_slice_manifest("web-1", "10.0.1.1", ports=[{"port": 8080}, {"name": "all"}]))
    assert made["ports"] == [{"name": "", "port": 8080, "protocol": "TCP"}, {"name": "all", "protocol": "TCP"}]


def test_endpoint_slice_generation_counts_what_proxies_read(cluster: Cluster) -> None:
    """The generation grows with endpoints and labels, not with annotations."""
    made = cluster.create(endpoint_slice_manifest("web-1", "10.0.1.1"))
    assert made["metadata"]["generation"] == 1
    annotated = cluster.patch(made, {"metadata": {"annotations": {"example.org/a": "b"}}})
    assert annotated["metadata"]["generation"] == 1
    labelled = cluster.patch(made, {"metadata": {"labels": {"example.org/a": "b"}}})
    assert labelled["metadata"]["generation"] == 2
    changed = cluster.patch(made, {"endpoints": [one("10.0.1.2")]})
    assert changed["metadata"]["generation"] == 3


ALLOWED: dict[str, Manifest] = {
    "no endpoints": endpoint_slice_manifest(),
    "1000 endpoints": endpoint_slice_manifest("web-1", *[f"10.0.{i // 250}.{i % 250 + 1}" for i in range(1000)]),
    "the same endpoint twice": endpoint_slice_manifest("web-1", "10.0.1.1", "10.0.1.1"),
    "a node that is not there": endpoint_slice_manifest("web-1", one("10.0.1.1", nodeName="nowhere")),
    "multicast": endpoint_slice_manifest("web-1", "239.1.1.1"),
    "SCTP": endpoint_slice_manifest("web-1", ports=[{"name": "a", "port": 1, "protocol": "SCTP"}]),
    "names": endpoint_slice_manifest("web-1", "web.example.org", address_type="FQDN"),
    "a label of another Service": endpoint_slice_manifest("web-1", "10.0.1.1", service="nowhere"),
}


@pytest.mark.parametrize("manifest", ALLOWED.values(), ids=ALLOWED.keys())
def test_endpoint_slice_that_is_merely_odd_is_taken(manifest: Manifest, cluster: Cluster) -> None:
    """The server takes what breaks no rule."""
    assert len(cluster.create(manifest)["endpoints"] or []) == len(manifest["endpoints"])


REFUSED: dict[str, tuple[str, Manifest]] = {
    "loopback": ("endpoints[0].addresses[0]", endpoint_slice_manifest("web-1", "127.0.0.1")),
    "link-local": ("endpoints[0].addresses[0]", endpoint_slice_manifest("web-1", "169.254.1.1")),
    "unspecified": ("endpoints[0].addresses[0]", endpoint_slice_manifest("web-1", "0.0.0.0")),
    "link-local multicast": ("endpoints[0].addresses[0]", endpoint_slice_manifest("web-1", "224.0.0.5")),
    "loopback of IPv6": ("endpoints[0].addresses[0]", endpoint_slice_manifest("web-1", "::1", address_type="IPv6")),
    "link-local of IPv6": (
        "endpoints[0].addresses[0]",
        endpoint_slice_manifest("web-1", "fe80::1", address_type="IPv6"),
    ),
    "leading zeros": ("endpoints[0].addresses[0]", endpoint_slice_manifest("web-1", "10.0.1.01")),
    "not canonical": (
        "endpoints[0].addresses[0]",
        endpoint_slice_manifest("web-1", "2001:DB8::1", address_type="IPv6"),
    ),
    "mapped into IPv6": (
        "endpoints[0].addresses[0]",
        endpoint_slice_manifest("web-1", "::ffff:10.0.1.1", address_type="IPv6"),
    ),
    "no address": ("endpoints[0].addresses[0]", endpoint_slice_manifest("web-1", "web")),
    "other family": ("endpoints[0].addresses[0]", endpoint_slice_manifest("web-1", "2001:db8::1")),
    "endpoint without addresses": ("endpoints[0].addresses", endpoint_slice_manifest("web-1", one())),
    "101 addresses": ("endpoints[0].addresses", endpoint_slice_manifest("web-1", one(*["10.0.1.1"] * 101))),
    "1001 endpoints": ("endpoints", endpoint_slice_manifest("web-1", *["10.0.1.1"] * 1001)),
    "name of a node": ("endpoints[0].nodeName", endpoint_slice_manifest("web-1", one("10.0.1.1", nodeName="Node_1"))),
    "port name twice": (
        "ports[1].name",
        endpoint_slice_manifest("web-1", ports=[{"name": "a", "port": 1}, {"name": "a", "port": 2}]),
    ),
    "port name": ("ports[0].name", endpoint_slice_manifest("web-1", ports=[{"name": "A", "port": 1}])),
    "protocol": ("ports[0].protocol", endpoint_slice_manifest("web-1", ports=[{"name": "a", "protocol": "ICMP"}])),
    "9 zones": ("endpoints[0].hints.forZones", hinted(forZones=named(*"abcdefghi"))),
    "zone twice": ("endpoints[0].hints.forZones[1].name", hinted(forZones=named("a", "a"))),
    "zone that is no label value": ("endpoints[0].hints.forZones[0].name", hinted(forZones=named("a b"))),
    "9 nodes": ("endpoints[0].hints.forNodes", hinted(forNodes=named(*"abcdefghi"))),
    "node twice": ("endpoints[0].hints.forNodes[1].name", hinted(forNodes=named("a", "a"))),
    "node of a hint": ("endpoints[0].hints.forNodes[0].name", hinted(forNodes=named("Node_1"))),
    "host name": ("endpoints[0].hostname", endpoint_slice_manifest("web-1", one("10.0.1.1", hostname="a.b"))),
    "FQDN": ("endpoints[0].addresses[0]", endpoint_slice_manifest("web-1", "Web_1", address_type="FQDN")),
    "20001 ports": ("ports", endpoint_slice_manifest("web-1", ports=[{"name": "a"}] * 20_001)),
    "no address type": ("addressType", endpoint_slice_manifest("web-1", address_type="")),
    "address type": ("addressType", endpoint_slice_manifest("web-1", address_type="IPX")),
    "name": ("metadata.name", endpoint_slice_manifest("Web_1")),
}


@pytest.mark.parametrize(("field", "manifest"), REFUSED.values(), ids=REFUSED.keys())
def test_endpoint_slice_that_breaks_a_rule_is_refused(field: str, manifest: Manifest, cluster: Cluster) -> None:
    """The server refuses an EndpointSlice with 422 and names the field, or the list that it is in."""
    with pytest.raises(RefusedError) as caught:
        cluster.create(manifest)
    assert caught.value.code == 422
    assert {field, field.removesuffix("[0]")} & caught.value.fields


def test_endpoint_slice_address_type_never_changes(cluster: Cluster) -> None:
    """A change of the address type is refused, also where the endpoints fit."""
    made = cluster.create(endpoint_slice_manifest())
    with pytest.raises(RefusedError) as caught:
        cluster.patch(made, {"addressType": "IPv6"})
    assert caught.value.fields == {"addressType"}

"""Tests of model.api_types: what JSON and YAML may hold."""

from typing import Any

import msgspec
import pytest

from userspace_proxy.model import api_types

_SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "web",
        "namespace": "shop",
        "uid": "6ad7c28c",
        "resourceVersion": "7",
        "deletionTimestamp": "2026-01-02T03:04:05Z",
        "labels": {"app": "web"},
        "annotations": {"userspace-proxy.io/balance": "round-robin"},
    },
    "spec": {
        "type": "NodePort",
        "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10", "fd00::a"],
        "ipFamilies": ["IPv4", "IPv6"],
        "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080, "protocol": "TCP"}],
        "externalIPs": ["192.0.2.1"],
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
        "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Cluster",
        "loadBalancerSourceRanges": ["203.0.113.0/24"],
        "healthCheckNodePort": 31000,
        "loadBalancerIP": "198.51.100.9",
    },
    "status": {
        "conditions": [],
        "loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP", "hostname": "x", "ports": []}]},
    },
}
_SLICE: dict[str, Any] = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-x7k2p", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": None}],
    "endpoints": [
        {
            "addresses": ["10.0.1.1"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": "node-1",
            "zone": "a",
            "targetRef": {"kind": "Pod"},
            "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node-1"}]},
        }
    ],
}
_NODE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "a"}},
    "spec": {
        "podCIDR": "10.0.1.0/24",
        "podCIDRs": ["10.0.1.0/24", "fd00::/64"],
        "providerID": "x",
        "taints": [{"key": "dedicated", "value": "db", "effect": "NoSchedule"}],
    },
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "capacity": {"cpu": "2"}},
}
_TYPES: list[tuple[type[msgspec.Struct], dict[str, Any]]] = [
    (api_types.Service, _SERVICE),
    (api_types.EndpointSlice, _SLICE),
    (api_types.Node, _NODE),
]


@pytest.mark.parametrize(("type_", "document"), _TYPES)
def test_api_types_decode_the_same_from_json_and_from_a_document(
    type_: type[msgspec.Struct], document: dict[str, Any]
) -> None:
    """An object is the same whether it came as bytes of the API or as a parsed YAML document."""
    converted = msgspec.convert(document, type=type_, strict=True)
    assert msgspec.json.decode(msgspec.json.encode(document), type=type_) == converted


def test_api_types_service_has_the_fields_that_are_read() -> None:
    """Names in the API's spelling reach the fields."""
    assert msgspec.convert(_SERVICE, type=api_types.Service, strict=True) == api_types.Service(
        metadata=api_types.ObjectMeta(
            name="web",
            namespace="shop",
            labels={"app": "web"},
            annotations={"userspace-proxy.io/balance": "round-robin"},
            deletion_timestamp="2026-01-02T03:04:05Z",
        ),
        spec=api_types.ServiceSpec(
            type="NodePort",
            cluster_ip="10.96.0.10",
            cluster_ips=["10.96.0.10", "fd00::a"],
            ip_families=["IPv4", "IPv6"],
            ports=[api_types.ServicePort(name="http", port=80, node_port=30080, protocol="TCP")],
            external_ips=["192.0.2.1"],
            session_affinity="ClientIP",
            session_affinity_config=api_types.SessionAffinityConfig(
                client_ip=api_types.ClientIPConfig(timeout_seconds=60)
            ),
            internal_traffic_policy="Local",
            external_traffic_policy="Cluster",
            load_balancer_source_ranges=["203.0.113.0/24"],
            health_check_node_port=31000,
        ),
        status=api_types.ServiceStatus(
            load_balancer=api_types.LoadBalancerStatus(
                ingress=[api_types.LoadBalancerIngress(ip="198.51.100.1", ip_mode="VIP")]
            )
        ),
    )


def test_api_types_endpoint_slice_has_the_fields_that_are_read() -> None:
    """Names in the API's spelling reach the fields."""
    assert msgspec.convert(_SLICE, type=api_types.EndpointSlice, strict=True) == api_types.EndpointSlice(
        metadata=api_types.ObjectMeta(name="web-x7k2p", labels={"kubernetes.io/service-name": "web"}),
        address_type="IPv4",
        ports=[api_types.EndpointPort(name="http", port=8080, protocol="TCP")],
        endpoints=[
            api_types.Endpoint(
                addresses=["10.0.1.1"],
                conditions=api_types.EndpointConditions(ready=True, serving=True, terminating=False),
                node_name="node-1",
                hints=api_types.EndpointHints(
                    for_zones=[api_types.Hint(name="a")], for_nodes=[api_types.Hint(name="node-1")]
                ),
            )
        ],
    )


def test_api_types_node_has_the_fields_that_are_read() -> None:
    """Names in the API's spelling reach the fields."""
    assert msgspec.convert(_NODE, type=api_types.Node, strict=True) == api_types.Node(
        metadata=api_types.ObjectMeta(name="node-1", labels={"topology.kubernetes.io/zone": "a"}),
        spec=api_types.NodeSpec(
            pod_cidr="10.0.1.0/24",
            pod_cidrs=["10.0.1.0/24", "fd00::/64"],
            taints=[api_types.Taint(key="dedicated")],
        ),
        status=api_types.NodeStatus(addresses=[api_types.NodeAddress(type="InternalIP", address="192.0.2.1")]),
    )


@pytest.mark.parametrize(
    ("type_", "document"),
    [
        (api_types.Service, {"metadata": None, "spec": None}),
        (api_types.Service, {"spec": dict.fromkeys(_SERVICE["spec"])}),
        (api_types.Service, {"spec": {"ports": [dict.fromkeys(_SERVICE["spec"]["ports"][0])]}}),
        (api_types.Service, {"metadata": dict.fromkeys(_SERVICE["metadata"])}),
        (api_types.Service, {"metadata": {"labels": {"a": None}, "annotations": {"a": None}}}),
        (api_types.Service, {"spec": {"sessionAffinityConfig": {"clientIP": None}}}),
        (api_types.Service, {"spec": {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": None}}}}),
        (api_types.Service, {"status": {"loadBalancer": None}}),
        (api_types.Service, {"status": {"loadBalancer": {"ingress": None}}}),
        (api_types.Service, {"status": {"loadBalancer": {"ingress": [{"ip": None, "ipMode": None}]}}}),
        (api_types.Node, dict.fromkeys(_NODE)),
        (api_types.Node, {"spec": dict.fromkeys(_NODE["spec"]), "status": {"addresses": None}}),
        (api_types.Node, {"spec": {"taints": [{"key": None}]}}),
        (api_types.Node, {"status": {"addresses": [{"type": None, "address": None}]}}),
        (api_types.EndpointSlice, dict.fromkeys(_SLICE)),
        (api_types.EndpointSlice, {"endpoints": [{"nodeName": None, "hints": None}]}),
        (api_types.EndpointSlice, {"endpoints": [{"hints": {"forZones": None, "forNodes": None}}]}),
        (api_types.EndpointSlice, {"endpoints": [{"hints": {"forZones": [{"name": None}]}}]}),
        (api_types.EndpointSlice, {"ports": [{"name": None, "port": None, "protocol": None}]}),
        (api_types.EndpointSlice, {"endpoints": [{"addresses": None, "conditions": None, "nodeName": None}]}),
        (
            api_types.EndpointSlice,
            {"endpoints": [{"conditions": {"ready": None, "serving": None, "terminating": None}}]},
        ),
    ],
)
def test_api_types_null_is_accepted_wherever_a_field_may_be_absent(
    type_: type[msgspec.Struct], document: dict[str, Any]
) -> None:
    """The API server writes null for empty lists, and hand-written YAML for values left out."""
    msgspec.convert(document, type=type_, strict=True)


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"spec": {"ports": [{"port": "80"}]}}, "$.spec.ports[0].port"),
        ({"spec": {"clusterIP": 10}}, "$.spec.clusterIP"),
        ({"spec": []}, "$.spec"),
        ({"metadata": {"annotations": {"a": 1}}}, "$.metadata.annotations[...]"),
    ],
)
def test_api_types_wrong_json_type_names_the_field(document: dict[str, Any], path: str) -> None:
    """A value of a wrong type refuses the object, with the path of the field."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(document, type=api_types.Service, strict=True)
    assert str(caught.value).endswith(f"at `{path}`")

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
    },
    "status": {"loadBalancer": {}},
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
        }
    ],
}
_TYPES: list[tuple[type[msgspec.Struct], dict[str, Any]]] = [
    (api_types.Service, _SERVICE),
    (api_types.EndpointSlice, _SLICE),
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
        ),
        spec=api_types.ServiceSpec(
            type="NodePort",
            cluster_ip="10.96.0.10",
            cluster_ips=["10.96.0.10", "fd00::a"],
            ip_families=["IPv4", "IPv6"],
            ports=[api_types.ServicePort(name="http", port=80, node_port=30080, protocol="TCP")],
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
            )
        ],
    )


@pytest.mark.parametrize(
    ("type_", "document"),
    [
        (api_types.Service, {"metadata": None, "spec": None}),
        (api_types.Service, {"spec": dict.fromkeys(_SERVICE["spec"])}),
        (api_types.Service, {"spec": {"ports": [dict.fromkeys(_SERVICE["spec"]["ports"][0])]}}),
        (api_types.Service, {"metadata": dict.fromkeys(_SERVICE["metadata"])}),
        (api_types.Service, {"metadata": {"labels": {"a": None}, "annotations": {"a": None}}}),
        (api_types.EndpointSlice, dict.fromkeys(_SLICE)),
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

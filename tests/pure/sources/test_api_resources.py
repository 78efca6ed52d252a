"""Which objects of the API server are served, and how they are read."""

from typing import Any

import msgspec
import pytest
from builders import named

from userspace_proxy.sources.api_resources import ApiResource, endpoint_slices, node, services

PROXY_NAME = "service.kubernetes.io/service-proxy-name"


def raw_service(labels: dict[str, str]) -> msgspec.Raw:
    """Return a Service with labels as the API server sends it."""
    return raw(
        {"namespace": "shop", "name": "web", "labels": labels},
        spec={"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
    )


def raw(metadata: dict[str, Any], **rest: Any) -> msgspec.Raw:
    """Return an object as the API server sends it."""
    return msgspec.Raw(msgspec.json.encode({"metadata": metadata, **rest}))


@pytest.mark.parametrize(
    ("proxy_name", "labels", "is_served"),
    [
        ("", {}, True),
        ("", {PROXY_NAME: "other"}, False),
        ("", {PROXY_NAME: ""}, False),
        ("", {"service.kubernetes.io/headless": ""}, True),
        ("mine", {PROXY_NAME: "mine"}, True),
        ("mine", {PROXY_NAME: "other"}, False),
        ("mine", {}, False),
    ],
)
def test_a_4_services_are_served_by_their_proxy_name(
    proxy_name: str,
    labels: dict[str, str],
    is_served: bool,  # noqa: FBT001
) -> None:
    """The label of another proxy keeps a Service away, whatever the server makes of selectors."""
    found, problems = services(proxy_name).parse(named(), raw_service(labels))
    assert (found is not None) is is_served
    assert not problems


def test_a_3_slices_of_headless_services_are_not_used() -> None:
    """The headless label keeps an EndpointSlice away, whatever the server makes of selectors."""
    labels = {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}
    parsed = endpoint_slices().parse(named(), raw({"namespace": "shop", "name": "web-1", "labels": labels}))
    assert parsed == (None, ())


def test_b_13_node_of_another_name_is_not_taken() -> None:
    """Only the Node with the own name counts."""
    resource = node("node-1")
    assert resource.parse(named("/node-2"), raw({"name": "node-2"})) == (None, ())
    found, _ = resource.parse(named("/node-1"), raw({"name": "node-1"}))
    assert found is not None
    assert found.name == "node-1"


@pytest.mark.parametrize("resource", [services(), endpoint_slices(), node("node-1")], ids=lambda one: one.name)
def test_object_of_wrong_types_is_a_problem(resource: ApiResource) -> None:
    """What cannot be decoded is told as a Problem of the object."""
    found, (problem,) = resource.parse(named(), msgspec.Raw(b'{"metadata":{"name":7}}'))
    assert found is None
    assert str(problem).startswith(f"{resource.type.__name__} shop/web: cannot be read: Expected `str")

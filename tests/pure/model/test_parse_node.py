"""Tests of model.parse_node, documents as an API server writes them."""

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model import api_types
from userspace_proxy.model.names import Family, family_of
from userspace_proxy.model.node import Node
from userspace_proxy.model.parse import parse_node
from userspace_proxy.model.problem import Problem


def _parse_node(
    *, metadata: dict[str, Any] | None = None, addresses: list[tuple[str | None, str | None]] | None = None, **spec: Any
) -> tuple[Node | None, tuple[Problem, ...]]:
    """Parse the Node node-1 with the fields given."""
    document = {
        "metadata": {"name": "node-1"} | (metadata or {}),
        "spec": spec,
        "status": {"addresses": [{"type": type_, "address": address} for type_, address in addresses or ()]},
    }
    return parse_node(msgspec.convert(document, type=api_types.Node, strict=True))


def _places(problems: tuple[Problem, ...]) -> list[str]:
    return [f"{one.severity} {one.subject} {one.field}" for one in problems]


def test_parse_node_whole_object_gives_all_that_is_read() -> None:
    """A Node as an API server writes it, of both families."""
    found = _parse_node(
        metadata={"labels": {"topology.kubernetes.io/zone": "a", "kubernetes.io/os": "linux"}, "resourceVersion": "7"},
        addresses=[("Hostname", "node-1"), ("InternalIP", "192.0.2.1"), ("InternalIP", "2001:db8::1")],
        podCIDR="10.0.1.0/24",
        podCIDRs=["10.0.1.0/24", "fd00:1::/64"],
        taints=[{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}],
    )
    expected = Node(
        "node-1",
        zone="a",
        addresses={Family.IPV4: ip_address("192.0.2.1"), Family.IPV6: ip_address("2001:db8::1")},
        pod_networks=(ip_network("10.0.1.0/24"), ip_network("fd00:1::/64")),
        is_eligible=True,
    )
    assert found == (expected, ())


def test_parse_node_least_of_a_node_has_a_name_alone() -> None:
    """As one that has just registered."""
    assert parse_node(api_types.Node(metadata=api_types.ObjectMeta(name="node-1"))) == (Node("node-1"), ())


@pytest.mark.parametrize("metadata", [None, api_types.ObjectMeta(), api_types.ObjectMeta(name="")])
def test_parse_node_without_name_is_none(metadata: api_types.ObjectMeta | None) -> None:
    """There is nothing to know it by."""
    found, problems = parse_node(api_types.Node(metadata=metadata))
    assert found is None
    assert _places(problems) == ["error  metadata.name"]


@pytest.mark.parametrize(
    "labels", [None, {}, {"topology.kubernetes.io/zone": ""}, {"topology.kubernetes.io/zone": None}]
)
def test_b_12_node_without_zone_label_has_no_zone(labels: dict[str, str | None] | None) -> None:
    """Absent and empty are alike: no hint matches."""
    assert _parse_node(metadata={"labels": labels}) == (Node("node-1"), ())


@pytest.mark.parametrize(
    ("metadata", "taints", "expected"),
    [
        ({}, None, True),
        ({"deletionTimestamp": None}, [], True),
        ({"deletionTimestamp": "2026-01-02T03:04:05Z"}, None, False),
        ({}, [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}], False),
        ({}, [{"key": "node.kubernetes.io/not-ready"}, {"key": "ToBeDeletedByClusterAutoscaler"}], False),
        ({}, [{"key": "DeletionCandidateOfClusterAutoscaler"}, {"key": None}], True),
    ],
)
def test_h_7_node_is_eligible_unless_it_is_being_deleted(
    metadata: dict[str, Any],
    taints: list[dict[str, str | None]] | None,
    expected: bool,  # noqa: FBT001
) -> None:
    """By a deletion that has begun or the autoscaler's taint; other taints mean nothing."""
    found, problems = _parse_node(metadata=metadata, taints=taints)
    assert found == Node("node-1", is_eligible=expected)
    assert problems == ()


@pytest.mark.parametrize(
    ("fields", "networks", "places"),
    [
        ({}, [], []),
        ({"podCIDRs": None, "podCIDR": None}, [], []),
        ({"podCIDR": "10.0.1.0/24"}, ["10.0.1.0/24"], []),
        ({"podCIDR": ""}, [], []),
        ({"podCIDRs": [], "podCIDR": "10.0.1.0/24"}, ["10.0.1.0/24"], []),
        ({"podCIDRs": ["fd00::/64"], "podCIDR": "10.0.1.0/24"}, ["fd00::/64"], []),
        ({"podCIDRs": ["", " 10.0.1.7/24 "]}, ["10.0.1.0/24"], []),
        ({"podCIDRs": ["x", "10.0.1.0/24"]}, ["10.0.1.0/24"], ["error Node node-1 spec.podCIDRs[0]"]),
        ({"podCIDR": "10.0.1.0"}, [], ["error Node node-1 spec.podCIDR"]),
    ],
)
def test_h_9_pod_networks_are_pod_cidrs_or_the_one_of_old(
    fields: dict[str, Any], networks: list[str], places: list[str]
) -> None:
    """``podCIDR`` counts only where there is no list."""
    found, problems = _parse_node(**fields)
    assert found == Node("node-1", pod_networks=tuple(ip_network(one) for one in networks))
    assert _places(problems) == places


@pytest.mark.parametrize(
    ("addresses", "expected", "places"),
    [
        ([("InternalIP", "192.0.2.1"), ("InternalIP", "192.0.2.2")], ["192.0.2.1"], []),
        ([("ExternalIP", "198.51.100.1"), ("InternalIP", "192.0.2.1")], ["192.0.2.1"], []),
        ([("ExternalIP", "198.51.100.1"), ("ExternalIP", "198.51.100.2")], ["198.51.100.1"], []),
        ([("InternalIP", "192.0.2.1"), ("ExternalIP", "2001:db8::1")], ["192.0.2.1", "2001:db8::1"], []),
        ([("InternalIP", "127.0.0.1"), ("InternalIP", "::1"), ("ExternalIP", "192.0.2.1")], ["192.0.2.1"], []),
        ([("Hostname", "192.0.2.9"), ("InternalDNS", "x"), (None, "192.0.2.8")], [], []),
        ([("InternalIP", ""), ("InternalIP", None), ("InternalIP", " 192.0.2.01 ")], ["192.0.2.1"], []),
        (
            [("InternalIP", "x"), ("InternalIP", "192.0.2.1")],
            ["192.0.2.1"],
            ["error Node node-1 status.addresses[0].address"],
        ),
    ],
)
def test_h_11_node_address_is_the_first_internal_else_external_one_of_each_family(
    addresses: list[tuple[str | None, str | None]], expected: list[str], places: list[str]
) -> None:
    """Loopback addresses are nobody's way to the node, and names of hosts are no addresses."""
    found, problems = _parse_node(addresses=addresses)
    assert found == Node("node-1", addresses={family_of(one): one for one in map(ip_address, expected)})
    assert _places(problems) == places


_TEXTS = st.none() | st.sampled_from(["InternalIP", "ExternalIP", "192.0.2.1"]) | st.text()


@given(
    obj=st.builds(
        api_types.Node,
        metadata=st.builds(api_types.ObjectMeta, name=_TEXTS, deletion_timestamp=_TEXTS),
        spec=st.builds(
            api_types.NodeSpec,
            pod_cidr=_TEXTS,
            pod_cidrs=st.none() | st.lists(_TEXTS.map(str)),
            taints=st.none() | st.lists(st.builds(api_types.Taint, key=_TEXTS)),
        ),
        status=st.builds(
            api_types.NodeStatus,
            addresses=st.none() | st.lists(st.builds(api_types.NodeAddress, type=_TEXTS, address=_TEXTS)),
        ),
    )
)
def test_parse_node_any_values_give_a_sound_node_or_none(obj: api_types.Node) -> None:
    """It never raises, and each address is of its family."""
    found, problems = parse_node(obj)
    assert len(problems) <= 11
    if found is not None:
        assert all(family_of(address) is family for family, address in found.addresses.items())

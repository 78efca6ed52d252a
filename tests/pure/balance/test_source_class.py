"""Where a client is: told by its address, the address it dialled, and what is known of node and pods."""

from ipaddress import ip_address, ip_network

import pytest

from userspace_proxy.balance.source_class import classify, is_within
from userspace_proxy.plan.state import SourceAddresses, SourceClass

SOURCES = SourceAddresses(
    (ip_network("10.244.0.0/16"), ip_network("fd00:244::/48")),
    frozenset(map(ip_address, ("192.0.2.10", "10.244.0.1", "2001:db8::10"))),
)
DIALLED = "192.0.2.10"
DIALLED_V6 = "2001:db8::10"


@pytest.mark.parametrize(
    ("client", "dialled", "expected"),
    [
        pytest.param("10.244.3.7", DIALLED, SourceClass.POD, id="pod"),
        pytest.param("fd00:244::7", DIALLED_V6, SourceClass.POD, id="pod, IPv6"),
        pytest.param("192.0.2.10", DIALLED, SourceClass.HOST, id="own address"),
        pytest.param("2001:db8::10", DIALLED_V6, SourceClass.HOST, id="own address, IPv6"),
        pytest.param("127.0.0.1", DIALLED, SourceClass.HOST, id="loopback"),
        pytest.param("127.45.6.7", "127.96.3.4", SourceClass.HOST, id="elsewhere in loopback"),
        pytest.param("::1", "::1", SourceClass.HOST, id="loopback, IPv6"),
        pytest.param("10.244.0.1", DIALLED, SourceClass.HOST, id="own bridge within the pod network"),
        pytest.param("203.0.113.5", "203.0.113.5", SourceClass.HOST, id="the address it dialled"),
        pytest.param("203.0.113.5", DIALLED, SourceClass.OUTSIDE, id="anywhere else"),
        pytest.param("192.0.2.11", DIALLED, SourceClass.OUTSIDE, id="another node"),
        pytest.param("2001:db8::11", DIALLED_V6, SourceClass.OUTSIDE, id="anywhere else, IPv6"),
        pytest.param("10.245.0.1", DIALLED, SourceClass.OUTSIDE, id="beside the pod network"),
    ],
)
def test_d_3_class_of_a_client(client: str, dialled: str, expected: SourceClass) -> None:
    """Pods and the node itself are told from everybody else."""
    assert classify(ip_address(client), ip_address(dialled), SOURCES) is expected


def test_d_3_without_pod_networks_nobody_is_a_pod() -> None:
    """Where it is not known which addresses are those of pods, pods are outside; the node is still the node."""
    sources = SourceAddresses((), SOURCES.local_addresses)
    assert classify(ip_address("10.244.3.7"), ip_address(DIALLED), sources) is SourceClass.OUTSIDE
    assert classify(ip_address("192.0.2.10"), ip_address(DIALLED), sources) is SourceClass.HOST


@pytest.mark.parametrize(
    ("client", "ranges", "expected"),
    [
        pytest.param("203.0.113.5", ["203.0.113.0/24"], True, id="inside"),
        pytest.param("203.0.113.5", ["198.51.100.0/24", "203.0.113.5/32"], True, id="inside the second"),
        pytest.param("203.0.113.5", ["198.51.100.0/24"], False, id="outside"),
        pytest.param("10.244.3.7", ["203.0.113.0/24"], False, id="a pod is no exception"),
        pytest.param("192.0.2.10", ["203.0.113.0/24"], False, id="nor is the node"),
        pytest.param("192.0.2.10", ["192.0.2.0/24"], True, id="the node, by its address"),
        pytest.param("198.18.0.1", ["192.0.2.0/24"], True, id="the node, by the address it dialled"),
        pytest.param("127.0.0.1", ["192.0.2.0/24"], True, id="the node, by loopback"),
        pytest.param("198.18.0.1", ["203.0.113.0/24"], False, id="the address it dialled, with no other inside"),
        pytest.param("127.0.0.1", ["203.0.113.0/24"], False, id="loopback, with no other inside"),
        pytest.param("203.0.113.5", ["192.0.2.0/24"], False, id="somebody else, where the node is inside"),
    ],
)
def test_d_6_source_ranges(client: str, ranges: list[str], expected: bool) -> None:  # noqa: FBT001
    """Only clients within are let in, pods and the node too; the node may come from the address it has dialled."""
    networks = [ip_network(one) for one in ranges]
    assert is_within(ip_address(client), ip_address("198.18.0.1"), networks, SOURCES) is expected

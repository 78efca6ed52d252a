"""Tests of model.parse_service: external and load balancer addresses, and who may dial them."""

from ipaddress import IPv4Network, ip_address
from typing import Any

import msgspec
import pytest
from builders import service

from userspace_proxy.model import api_types
from userspace_proxy.model.parse import parse_service
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Service

_DUAL_STACK = {"clusterIPs": ["10.96.0.10", "fd00::a"], "ipFamilies": ["IPv4", "IPv6"]}


def _parse_service(
    *, ingress: list[dict[str, Any]] | None = None, **spec: Any
) -> tuple[Service | None, tuple[Problem, ...]]:
    """Parse the Service shop/web of an API server, with 10.96.0.10 and port ``http``, but for the fields given."""
    document = {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]} | spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    return parse_service(msgspec.convert(document, type=api_types.Service, strict=True), "")


def _load_balancer_ips(
    ingress: list[dict[str, Any]] | None = None, **spec: Any
) -> tuple[list[str], tuple[Problem, ...]]:
    """Return the load balancer addresses of a Service of that type."""
    found, problems = _parse_service(type="LoadBalancer", ingress=ingress, **spec)
    assert found is not None
    return [str(one) for one in found.load_balancer_ips], problems


def _places(problems: tuple[Problem, ...]) -> list[str]:
    return [f"{one.severity} {one.field}" for one in problems]


@pytest.mark.parametrize(
    ("texts", "served", "places"),
    [
        (None, [], []),
        ([], [], []),
        (["192.0.2.1", "198.51.100.7"], ["192.0.2.1", "198.51.100.7"], []),
        (["2001:db8::1"], [], ["error spec.externalIPs[0]"]),
        (["192.0.2.1", "2001:db8::1"], ["192.0.2.1"], ["error spec.externalIPs[1]"]),
        (["x", "192.0.2.1", "0.0.0.0"], ["192.0.2.1"], ["error spec.externalIPs[0]", "error spec.externalIPs[2]"]),
        (["", " ", "\t", " 192.0.2.1 "], ["192.0.2.1"], []),
        (["192.0.2.1", "192.0.2.01", "::ffff:192.0.2.1"], ["192.0.2.1"], []),
    ],
)
def test_a_5_d_5_external_ips_are_those_of_the_families_of_the_service(
    texts: list[str] | None, served: list[str], places: list[str]
) -> None:
    """Blank ones are skipped in silence, each is taken once, and one that cannot be served is said at its place."""
    found, problems = _parse_service(externalIPs=texts)
    assert found == service(external_ips=served)
    assert _places(problems) == places


def test_a_5_d_5_external_ip_of_a_family_the_service_lacks_says_so() -> None:
    """The sentence tells the address and what is missing for it."""
    _, problems = _parse_service(externalIPs=["2001:db8::1"])
    assert [one.text for one in problems] == [
        "2001:db8::1 is not served, as the Service has no IPv6 address in spec.clusterIPs"
    ]


@pytest.mark.parametrize(
    ("texts", "ranges", "places"),
    [
        (None, [], []),
        (["203.0.113.0/24"], ["203.0.113.0/24"], []),
        (["2001:db8::/32", "203.0.113.0/24"], ["2001:db8::/32", "203.0.113.0/24"], []),
        ([" 203.0.113.0/24 ", "", "  "], ["203.0.113.0/24"], []),
        (["", " "], [], []),
        (["203.0.113.7/24", "203.0.113.0/24"], ["203.0.113.0/24"], []),
        (["0.0.0.0/0"], ["0.0.0.0/0"], []),
        (["x", "203.0.113.0/24"], ["203.0.113.0/24"], ["error spec.loadBalancerSourceRanges[0]"]),
        (["203.0.113.1"], [], ["error spec.loadBalancerSourceRanges[0]", "error spec.loadBalancerSourceRanges"]),
    ],
)
def test_a_5_d_6_source_ranges_are_networks_of_either_family(
    texts: list[str] | None, ranges: list[str], places: list[str]
) -> None:
    """As written but for space, bits of the host and repetition; where none can be used, the list says so."""
    found, problems = _parse_service(type="LoadBalancer", loadBalancerSourceRanges=texts)
    assert found == service(source_ranges=ranges)
    assert _places(problems) == places


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.096.0.010", "10.96.0.10"), ("172.30.0.041", "172.30.0.41"), ("FD00::00A", "fd00::a")],
)
def test_a_7_addresses_written_sloppily_are_read_as_they_are_meant(text: str, address: str) -> None:
    """Stored objects may hold leading zeros, in every place where an address can stand."""
    ingress = [{"ip": text}]
    found, problems = _parse_service(
        clusterIP=text, externalIPs=[text], loadBalancerSourceRanges=[f"{text}/32"], ingress=ingress
    )
    assert found is not None
    assert found.cluster_ips == found.external_ips == found.load_balancer_ips == (ip_address(address),)
    assert found.source_ranges[0].network_address == (
        ip_address(address) if isinstance(found.source_ranges[0], IPv4Network) else ip_address("fd00::")
    )
    assert problems == ()


@pytest.mark.parametrize(
    ("ingress", "captured", "places"),
    [
        (None, [], []),
        ([], [], []),
        ([{"ip": "198.51.100.1"}], ["198.51.100.1"], []),
        ([{"ip": "198.51.100.1", "ipMode": "VIP"}], ["198.51.100.1"], []),
        ([{"ip": "198.51.100.1", "ipMode": "Proxy"}], [], []),
        ([{"ip": "x", "ipMode": "Proxy"}], [], []),
        (
            [{"ip": "198.51.100.1", "ipMode": "Proxy"}, {"ip": "198.51.100.2", "ipMode": None}],
            ["198.51.100.2"],
            [],
        ),
        (
            [{"ip": "198.51.100.1", "ipMode": "vip"}, {"ip": "198.51.100.2"}],
            ["198.51.100.2"],
            ["warning status.loadBalancer.ingress[0].ipMode"],
        ),
        ([{"hostname": "lb.example.com"}, {"ip": ""}, {"ip": " "}, {"ip": None}], [], []),
        ([{"hostname": "lb.example.com", "ip": " 198.51.100.1 "}], ["198.51.100.1"], []),
        ([{"ip": "198.51.100.1"}, {"ip": "198.51.100.01"}], ["198.51.100.1"], []),
        ([{"ip": "2001:db8::1"}, {"ip": "198.51.100.1"}], ["198.51.100.1"], []),
        ([{"ip": "x"}, {"ip": "198.51.100.1"}], ["198.51.100.1"], ["error status.loadBalancer.ingress[0].ip"]),
    ],
)
def test_d_6_load_balancer_addresses_are_captured_unless_their_mode_is_proxy(
    ingress: list[dict[str, Any]] | None, captured: list[str], places: list[str]
) -> None:
    """Those of mode VIP or none, of the families of the Service, once each; names of hosts are none of ours."""
    found, problems = _load_balancer_ips(ingress)
    assert found == captured
    assert _places(problems) == places


def test_d_6_load_balancer_addresses_of_both_families_are_captured_for_dual_stack() -> None:
    """They keep the order of the object."""
    ingress = [{"ip": "2001:db8::1"}, {"ip": "198.51.100.1"}]
    assert _load_balancer_ips(ingress, **_DUAL_STACK) == (["2001:db8::1", "198.51.100.1"], ())

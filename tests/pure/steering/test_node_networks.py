"""What a route of ours would take from the node."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.names import IPAddress
from userspace_proxy.steering.local_route.node_networks import NodeNetworks, build_node_networks
from userspace_proxy.steering.local_route.route_messages import LO_INDEX, RTN_UNICAST, NextHop, RouteEntry, prefix_of

ETH, POD = 2, 3
NAMES = {LO_INDEX: "lo", ETH: "eth0", POD: "cali1"}


def route(target: str, *next_hops: tuple[int, str]) -> RouteEntry:
    """Return a unicast route; an empty gateway is none."""
    hops = tuple(NextHop(index, ip_address(gateway).packed if gateway else b"") for index, gateway in next_hops)
    return RouteEntry(prefix_of(ip_network(target)), 254, 3, RTN_UNICAST, 0, b"", hops, b"")


def node(*routes: RouteEntry, addresses: tuple[str, ...] = ("10.0.0.1", "fd00::1", "127.0.0.1")) -> NodeNetworks:
    """Return the networks of a node."""
    return build_node_networks(map(ip_address, addresses), routes, NAMES)


NODE = node(
    route("0.0.0.0/0", (ETH, "10.0.0.2")),
    route("10.0.0.0/24", (ETH, "")),
    route("10.0.1.7/32", (POD, "")),
    route("10.0.0.0/9", (POD, "")),
    route("192.0.2.0/24", (ETH, "10.0.0.9")),
    route("198.51.100.0/24", (ETH, "10.0.0.9"), (POD, "")),
    route("203.0.113.0/24", (LO_INDEX, "")),
    route("fd00::/64", (ETH, "")),
    route("fe80::/64", (9, "")),
    route("::/0", (ETH, "fe80::5")),
)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        pytest.param("10.0.0.77", "10.0.0.0/24", id="on the link"),
        pytest.param("10.0.1.7", "10.0.1.7/32", id="a pod"),
        pytest.param("10.0.1.8", "10.0.0.0/9", id="in a wider network only"),
        pytest.param("192.0.2.7", None, id="behind a gateway"),
        pytest.param("198.51.100.7", "198.51.100.0/24", id="behind a gateway or on the link"),
        pytest.param("203.0.113.7", None, id="on lo"),
        pytest.param("10.200.0.1", None, id="by the default route"),
        pytest.param("fd00::7", "fd00::/64", id="IPv6 on the link"),
        pytest.param("fd00:0:0:1::7", None, id="IPv6 elsewhere"),
    ],
)
def test_network_of_an_address_is_the_smallest_on_a_link(address: str, network: str | None) -> None:
    """Only a route without a gateway makes the owner of an address a neighbour."""
    assert NODE.network_of(ip_address(address)) == (None if network is None else ip_network(network))


@given(st.ip_addresses())
def test_network_of_an_address_has_it(address: IPAddress) -> None:
    """It is the first by length of all that do."""
    holding = [each for each in NODE.on_link if address in each]
    assert NODE.network_of(address) == max(holding, key=lambda each: each.prefixlen, default=None)


def test_default_route_without_a_gateway_makes_nobody_a_neighbour() -> None:
    """Else nothing could be served behind a point-to-point link."""
    assert node(route("0.0.0.0/0", (ETH, ""))).network_of(ip_address("192.0.2.1")) is None


def test_gateways_are_those_of_default_routes() -> None:
    """What is behind another one can be lost without the node being cut off."""
    assert NODE.gateways == {ip_address("10.0.0.2"), ip_address("fe80::5")}


@pytest.mark.parametrize(
    ("cidr", "conflict"),
    [
        ("127.0.0.0/8", "127.0.0.1, an address of this node"),
        ("10.0.0.1/32", "10.0.0.1, an address of this node"),
        ("10.0.0.2/32", "10.0.0.2, the default gateway of this node"),
        ("10.0.0.64/26", "addresses of 10.0.0.0/24, the network on eth0"),
        ("10.0.1.0/28", "addresses of 10.0.1.7/32, the network on cali1"),
        ("10.128.0.0/12", None),
        ("fe80:0:0:0:1::/80", "addresses of fe80::/64, the network on interface 9"),
        ("fd00:96::/112", None),
    ],
)
def test_conflict_with_a_service_cidr_names_what_is_lost(cidr: str, conflict: str | None) -> None:
    """In this order: an address, a gateway, neighbours."""
    assert NODE.conflict_with(ip_network(cidr)) == conflict

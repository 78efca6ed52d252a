"""Tests of plan.node_ports."""

from ipaddress import ip_address, ip_network

import pytest

from userspace_proxy.config import NodePortAddresses
from userspace_proxy.model.names import Family, family_of
from userspace_proxy.plan.node_ports import choose_node_port_addresses

_LOCAL = "127.0.0.1 10.0.0.5 10.1.0.5 192.0.2.10 192.0.2.9 ::1 fd00::5 2001:db8::5 fe80::5"


def _chosen(wanted: NodePortAddresses, *, local: str = _LOCAL, node: str = "") -> dict[str, str]:
    """Return what is chosen for each family, as ``{"IPv4": "10.0.0.5 10.1.0.5"}``."""
    node_addresses = {family_of(one): one for one in map(ip_address, node.split())}
    chosen = choose_node_port_addresses(wanted, list(map(ip_address, local.split())), node_addresses)
    return {str(family): " ".join(map(str, addresses)) for family, addresses in chosen.items()}


@pytest.mark.parametrize(
    ("networks", "chosen"),
    [
        # not restricted
        ("", {}),
        ("0.0.0.0/0 ::/0", {}),
        ("0.0.0.0/0", {}),
        ("10.0.0.0/8 0.0.0.0/0", {}),
        # a list of one family leaves the other as it is
        ("10.0.0.0/8", {"IPv4": "10.0.0.5 10.1.0.5"}),
        ("fd00::/8", {"IPv6": "fd00::5"}),
        ("::/0 192.0.2.0/24", {"IPv4": "192.0.2.9 192.0.2.10"}),
        ("10.0.0.0/16 fd00::/8", {"IPv4": "10.0.0.5", "IPv6": "fd00::5"}),
        # several, overlapping ones
        ("10.0.0.0/8 10.1.0.0/16 192.0.2.10/32", {"IPv4": "10.0.0.5 10.1.0.5 192.0.2.10"}),
        # loopback is an address as others are, if it is asked for
        ("127.0.0.0/8 ::1/128", {"IPv4": "127.0.0.1", "IPv6": "::1"}),
        # none here: no NodePort, until the node has one
        ("198.51.100.0/24", {"IPv4": ""}),
        # a socket cannot be bound to a link-local address alone
        ("fe80::/10", {"IPv6": ""}),
        ("fc00::/6", {"IPv6": "fd00::5"}),
    ],
)
def test_d_4_node_ports_answer_in_the_networks_of_each_family(networks: str, chosen: dict[str, str]) -> None:
    """A family without a network is open, and so is one with a network that holds everything."""
    wanted = NodePortAddresses(tuple(ip_network(one) for one in networks.split()))
    assert _chosen(wanted) == chosen


@pytest.mark.parametrize(
    ("node", "chosen"),
    [
        ("10.0.0.5 fd00::5", {"IPv4": "10.0.0.5", "IPv6": "fd00::5"}),
        ("10.0.0.5", {"IPv4": "10.0.0.5", "IPv6": ""}),
        ("", {"IPv4": "", "IPv6": ""}),
        ("127.0.0.1 ::1", {"IPv4": "", "IPv6": ""}),
        ("10.0.0.5 fe80::5", {"IPv4": "10.0.0.5", "IPv6": ""}),
    ],
)
def test_d_4_primary_is_the_address_of_the_node_in_each_family(node: str, chosen: dict[str, str]) -> None:
    """A family whose primary address is not known, or is one of loopback, has no NodePorts."""
    assert _chosen(NodePortAddresses(is_primary=True), node=node) == chosen


def test_node_port_addresses_follow_the_addresses_of_the_node() -> None:
    """An interface that comes later counts from the next reading on; each address counts once."""
    wanted = NodePortAddresses((ip_network("10.0.0.0/8"),))
    assert _chosen(wanted, local="127.0.0.1") == {Family.IPV4: ""}
    assert _chosen(wanted, local="127.0.0.1 10.0.0.7 10.0.0.7") == {Family.IPV4: "10.0.0.7"}

"""The addresses of a node that has many."""

import sys

import pytest
from netns.nodes import Node

pytestmark = pytest.mark.netns

PRINT_ADDRESSES = """
from userspace_proxy.steering.node_state import read_local_addresses, read_node_addresses
node = read_node_addresses()
print(node.default_interface, *(f"{name}={address}" for name, address in node.by_interface))
print(*sorted(map(str, read_local_addresses())))
"""


def test_addresses_are_all_found_with_their_interfaces(node: Node) -> None:
    """Secondary addresses and labels are no other interfaces, and an interface without an address is none."""
    node.ip("\n".join(f"address add 10.0.1.{host}/24 dev vethpod label vethpod:{host}" for host in range(10, 50)))
    node.ip("address add 198.51.100.1/32 dev lo")
    addresses, local = node.run(sys.executable, "-c", PRINT_ADDRESSES).stdout.splitlines()
    assert addresses.split() == [
        "eth0",
        "lo=127.0.0.1",
        "lo=198.51.100.1",
        "eth0=10.0.0.1",
        "vethpod=10.0.1.1",
        *(f"vethpod=10.0.1.{host}" for host in range(10, 50)),
        "vethpod2=10.0.5.1",
    ]
    assert {"10.0.0.1", "10.0.1.49", "fd00::1", "fd00:1::1", "fe80::1", "::1"} < set(local.split())


def test_default_interface_is_that_of_the_best_default_route(node: Node) -> None:
    """The lowest metric wins; a route to half of all addresses is no default route, and none need be there."""

    def default_interface() -> str:
        return node.run(sys.executable, "-c", PRINT_ADDRESSES).stdout.split()[0]

    node.ip("route add 0.0.0.0/1 dev vethpod\nroute add unreachable default metric 4278198272")
    assert default_interface() == "eth0"
    node.ip("route del default via 10.0.0.2\nroute add default dev eth0 metric 20")
    assert default_interface() == "eth0"
    node.ip("route add default via 10.0.1.2 metric 10")
    assert default_interface() == "vethpod"
    node.ip("route del default via 10.0.1.2\nroute del default dev eth0")
    assert default_interface() == "None"

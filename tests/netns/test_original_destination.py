"""Listeners that serve only who was steered to them: netfilter knows where a client has dialled."""

import pytest
from netns.listener_driver import Listeners
from netns.nodes import Node

pytestmark = pytest.mark.netns

PORT = 12345
ADDRESSES = {
    "IPv4": ("0.0.0.0", "10.96.0.10", "10.0.0.1", "127.0.0.1"),
    "IPv6": ("::", "fd00:96::a", "fd00:0::1", "::1"),
}
"""By family: where the listener is, the address that is steered to it, and two of the node."""
of_every_family = pytest.mark.parametrize("family", ADDRESSES)


def steer(node: Node, family: str) -> None:
    """Redirect an address, and port 80 of an address of the node, to the listener."""
    _, virtual, of_node, _ = ADDRESSES[family]
    rules = "*nat\n"
    for chain in ("PREROUTING", "OUTPUT"):
        for destination in (virtual, of_node):
            rules += f"-A {chain} -d {destination} -p tcp -m tcp --dport 80 -j REDIRECT --to-ports {PORT}\n"
    node.run(f"{'iptables' if family == 'IPv4' else 'ip6tables'}-nft-restore", "--noflush", text=f"{rules}COMMIT\n")


@of_every_family
def test_only_steered_clients_are_served_where_the_listener_has_to_see_to_it_itself(family: str, node: Node) -> None:
    """From the node, a pod, a bare pod and outside; who dials the port itself is reset and counted."""
    host, virtual, of_node, loopback = ADDRESSES[family]
    steer(node, family)
    listeners = Listeners(node)
    wanted = {"protocol": "TCP", "host": host, "port": PORT, "only_steered": True}
    assert listeners.want(wanted)["failures"] == []
    roles = ["node", "pod", "outside", *(["bare pod"] if family == "IPv6" else [])]
    for role in roles:
        client = node.client(role)
        assert client.dial(virtual, 80) == "hello", role
        assert client.dial(of_node, 80) == "hello", role
        assert client.dial(of_node, PORT) == "ConnectionResetError", role
    assert node.dial(loopback, PORT) == "ConnectionResetError"
    assert listeners.want(wanted)["closed"] == {"--": 2 * len(roles), "GA": len(roles) + 1}


@of_every_family
def test_clients_of_a_node_without_conntrack_are_not_steered(family: str, node: Node) -> None:
    """Nothing is known of their connections: all who come dial the port itself, and other listeners serve them."""
    host, _, of_node, loopback = ADDRESSES[family]
    listeners = Listeners(node)
    guarded = {"protocol": "TCP", "host": host, "port": PORT, "only_steered": True}
    assert listeners.want(guarded, {"protocol": "TCP", "host": host, "port": PORT + 1})["failures"] == []
    assert node.dial(loopback, PORT) == "ConnectionResetError"
    assert node.pod.dial(of_node, PORT) == "ConnectionResetError"
    assert node.pod.dial(of_node, PORT + 1) == "hello"

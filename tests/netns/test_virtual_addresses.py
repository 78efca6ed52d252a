"""Listeners at addresses that come to the node only later: they are open before, and refuse where they are empty."""

import pytest
from netns.listener_driver import Listeners, ask
from netns.nodes import Node

pytestmark = pytest.mark.netns

SERVED, EMPTY = 8080, 8081
NODE_PORT = SERVED
ADDRESSES = {"IPv4": "10.96.0.10", "IPv6": "fd00:96::a"}
WILDCARDS = {"IPv4": "0.0.0.0", "IPv6": "::"}
of_every_family = pytest.mark.parametrize("family", ADDRESSES)


def wanted(address: str) -> list[dict[str, object]]:
    """Return listeners of both protocols at an address, with and without Backends."""
    return [
        {"protocol": protocol, "host": address, "port": port, "is_virtual": True, "is_empty": port == EMPTY}
        for protocol in ("TCP", "UDP")
        for port in (SERVED, EMPTY)
    ]


def add_route(node: Node, address: str) -> None:
    """Bring an address to the node, as ``local-route`` does."""
    node.ip(f"route add local {address} dev lo")


@of_every_family
@pytest.mark.parametrize("is_there_before", [False, True], ids=["opened first", "route first"])
def test_listeners_at_an_address_that_comes_later_serve_and_refuse(
    family: str,
    is_there_before: bool,  # noqa: FBT001
    node: Node,
) -> None:
    """From the node, a pod and outside, with no capability but NET_ADMIN; also once Backends have come and gone."""
    address = ADDRESSES[family]
    node.allow_all_icmp()
    node.run("ip", "-4" if family == "IPv4" else "-6", "route", "del", "default")
    listeners = Listeners(node)
    if is_there_before:
        add_route(node, address)
    specs = wanted(address)
    assert listeners.want(*specs)["failures"] == []
    if not is_there_before:
        add_route(node, address)
    for served, empty in ((SERVED, EMPTY), (EMPTY, SERVED), (SERVED, EMPTY)):
        for spec in specs:
            spec["is_empty"] = spec["port"] == empty
        assert listeners.want(*specs)["failures"] == []
        for role in ("node", "pod", "outside"):
            client = node.client(role)
            assert client.dial(address, served) == "hello", role
            assert client.dial(address, empty) == "ConnectionRefusedError", role
            assert ask(client, address, served) == "ping", role
            assert ask(client, address, empty) == "ConnectionRefusedError", role


@of_every_family
def test_listener_at_an_address_and_one_at_all_share_a_port(family: str, node: Node) -> None:
    """A cluster address and a NodePort of the same number: each is reached where it is, by both protocols."""
    address, of_node = ADDRESSES[family], {"IPv4": "10.0.0.1", "IPv6": "fd00:0::1"}[family]
    node.allow_all_icmp()
    add_route(node, address)
    listeners = Listeners(node)
    virtual = [spec for spec in wanted(address) if spec["port"] == SERVED]
    node_ports: list[dict[str, object]] = [
        {"protocol": each, "host": WILDCARDS[family], "port": NODE_PORT} for each in ("TCP", "UDP")
    ]
    steps: list[tuple[list[dict[str, object]], list[dict[str, object]]]] = [
        (virtual, []),
        (virtual, node_ports),
        ([], node_ports),
        (virtual, node_ports),
    ]
    for at_address, at_all in steps:
        for is_empty in (False, True):
            for spec in at_all:
                spec["is_empty"] = is_empty
            assert listeners.want(*at_address, *at_all)["failures"] == []
            for role in ("node", "pod", "outside"):
                client = node.client(role)
                targets = {of_node: bool(at_all) and not is_empty}
                if at_address:
                    targets[address] = True
                for target, is_served in targets.items():
                    refused = "ConnectionRefusedError"
                    assert client.dial(target, NODE_PORT) == ("hello" if is_served else refused), (role, target)
                    assert ask(client, target, NODE_PORT) == ("ping" if is_served else refused), (role, target)

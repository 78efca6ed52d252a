"""A proxy port answers only whom rules have led there, whatever else the node's firewall says."""

from pathlib import Path

import pytest
from netns.nodes import Node
from netns.steering_process import Asked, Driver, ask_all

pytestmark = pytest.mark.netns

CLIENTS = ("node", "pod", "bare pod", "outside")
NODE_ADDRESSES = ("10.0.0.1", "[fd00::1]")
LOCALHOSTS = ("127.0.0.1", "[::1]")
HOSTS = ("10.96.0.10", "[fd00:96::a]")
POD_NETWORKS = ("10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64", "fd00:2::/64")
ASKED = [
    Asked(f"{host}:{port}", "load-balancer" if port == 81 else "cluster-ip", protocol, serves, source_ranges=ranges)
    for host in HOSTS
    for protocol in ("TCP", "UDP")
    for port, serves, ranges in (
        (80, ("pod", "host", "outside"), ()),
        (81, ("pod", "host", "outside"), ("::/0" if "[" in host else "0.0.0.0/0",)),
    )
]


def drop_by_default(node: Node, variant: str) -> None:
    """Let in only what belongs to connections that were let in, as a hardened host does, and what IPv6 lives by."""
    for command in ("iptables", "ip6tables"):
        established = "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
        node.run(f"{command}-{variant}", *established.split())
        node.run(f"{command}-{variant}", "-P", "INPUT", "DROP")
    node.run(f"ip6tables-{variant}", "-A", "INPUT", "-p", "ipv6-icmp", "-j", "ACCEPT")


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("is_hardened", [False, True])
def test_proxy_ports_refuse_whom_no_rule_has_led_there(
    node: Node, tmp_path: Path, variant: str, *, is_hardened: bool
) -> None:
    """From the node, pods and outside, TCP and UDP; steered connections arrive, past a policy that drops as well."""
    node.add_foreign_rules(variant)
    node.allow_all_icmp()
    if is_hardened:
        drop_by_default(node, variant)
    applied = Driver(node, tmp_path).apply(ASKED, pod_networks=POD_NETWORKS)
    for protocol in ("TCP", "UDP"):
        steered = {at.removesuffix(f"/{protocol}"): port for at, port in applied.items() if at.endswith(protocol)}
        for client in CLIENTS:
            expected = dict.fromkeys(steered, "served")
            for at, listens_at in steered.items():
                hosts = (*NODE_ADDRESSES, *(LOCALHOSTS if client == "node" else ()))
                port = listens_at.rpartition(":")[2]
                direct = (f"{host}:{port}" for host in hosts if ("[" in host) == ("[" in at))
                expected |= dict.fromkeys(direct, "ConnectionRefusedError")
            asker = node.client(client)
            said = asker.dial_all(expected) if protocol == "TCP" else ask_all(asker, expected)
            assert said == expected, (client, protocol)


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_other_ports_of_the_node_are_left_to_others(node: Node, tmp_path: Path, variant: str) -> None:
    """A program on a port between two proxy ports is reached as before."""
    node.add_foreign_rules(variant)
    driver = Driver(node, tmp_path, proxy_ports=(20000, 20002))
    placed = driver.apply(["10.96.0.10:80", "10.96.0.11:80", Asked("10.0.0.1:20003", "node-port")])
    assert node.outside.dial("10.0.0.1", 20003) == "10.0.0.1:20003/TCP"
    port = int(placed["10.96.0.10:80/TCP"].rpartition(":")[2])
    assert node.outside.dial("10.0.0.1", port) == "ConnectionRefusedError"
    (free,) = {20000, 20001, 20002} - {int(at.rpartition(":")[2]) for at in placed.values()}
    node.run(f"iptables-{variant}", *f"-A INPUT -p tcp --dport {free} -j DROP".split())
    assert node.outside.dial("10.0.0.1", free, timeout_s=0.7) == "TimeoutError"

"""What killed runs leave, and who removes it: ``cleanup``, or the next run with another kind of steering."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from builders import backend
from cli_driver import service_object, slice_objects, write_manifests
from netns.kinds import KINDS, add_foreign_rules
from netns.node_run import NodeRun, run_on, start_backend, wait_until
from netns.nodes import Node

from userspace_proxy.model.names import Family, Protocol

pytestmark = [pytest.mark.netns, pytest.mark.slow]

POD = [backend("10.0.1.2:8080"), backend("[fd00:1::2]:8080")]
WEB = ["10.96.0.10", "fd00:96::a"]
DNS = ["10.96.0.11", "fd00:96::b"]
OBJECTS = [
    *(service_object(cluster_ips=WEB, port=80, node_port=30080), *slice_objects("shop/web", *POD)),
    service_object("shop/dns", cluster_ips=DNS, port=53, protocol=Protocol.UDP),
    *slice_objects("shop/dns", *POD, protocol=Protocol.UDP),
]
LOCALHOST = "127.0.0.1 localhost\n"
COMMANDS = ("ip6tables", "iptables")
NEVER_A_PID = 2**22 + 1
"""Above what pid_max can be."""

# Sends a datagram to an address and port and prints the answer.
_ASK = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as client:
    client.settimeout(5)
    client.connect((sys.argv[1], int(sys.argv[2])))
    client.send(b"who?")
    print(client.recv(100).decode(), end="")
"""
_KUBE_PROXY = """
*nat
:KUBE-PORTALS-CONTAINER - [0:0]
:KUBE-PORTALS-HOST - [0:0]
:KUBE-NODEPORT-CONTAINER - [0:0]
:KUBE-NODEPORT-HOST - [0:0]
-A PREROUTING -m comment --comment "handle ClusterIPs; NOTE: this must be before the NodePort rules" -j KUBE-PORTALS-CONTAINER
-A PREROUTING -m addrtype --dst-type LOCAL -m comment --comment "handle service NodePorts; NOTE: this must be the last rule in the chain" -j KUBE-NODEPORT-CONTAINER
-A OUTPUT -m comment --comment "handle ClusterIPs; NOTE: this must be before the NodePort rules" -j KUBE-PORTALS-HOST
-A OUTPUT -m addrtype --dst-type LOCAL -m comment --comment "handle service NodePorts; NOTE: this must be the last rule in the chain" -j KUBE-NODEPORT-HOST
-A KUBE-PORTALS-CONTAINER -d {address} -p tcp -m comment --comment "default/kubernetes:https" -m tcp --dport 443 -j REDIRECT --to-ports 38383
-A KUBE-PORTALS-HOST -d {address} -p tcp -m comment --comment "-j KUBE-SERVICES" -m tcp --dport 443 -j DNAT --to-destination {target}
COMMIT
*filter
:KUBE-NODEPORT-NON-LOCAL - [0:0]
-A INPUT -m comment --comment "Ensure that non-local NodePort traffic can flow" -j KUBE-NODEPORT-NON-LOCAL
COMMIT
"""  # noqa: E501 - as kube-proxy writes them


@pytest.fixture
def shop(tmp_path: Path, node: Node) -> Path:
    """Return a directory with the manifests of shop/web and shop/dns, whose Backend is in the pod, and a hosts file."""
    write_manifests(tmp_path / "shop.yaml", OBJECTS)
    (tmp_path / "hosts").write_text(LOCALHOST)
    start_backend(node.pod, "pod")
    return tmp_path


def ask(node: Node, address: str, port: int = 53) -> str:
    """Return who answers a datagram of the pod's."""
    return node.pod.run(sys.executable, "-I", "-S", "-c", _ASK, address, str(port)).stdout


def led_entries(node: Node) -> list[str]:
    """Return the entries of conntrack for what was sent to port 53 by UDP and led elsewhere."""
    listed = node.run("cat", "/proc/net/nf_conntrack").stdout.splitlines()
    return [line for line in listed if {"udp", "dport=53"} < set(line.split()) and "sport=53" not in line.split()]


def remove_all(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run cleanup after a dry run, which has to say the same."""
    dry = run_on(node, "cleanup", "--dry-run", *arguments)
    done = run_on(node, "cleanup", *arguments)
    assert dry.stdout.replace("would remove ", "removed ") == done.stdout
    assert (dry.returncode, dry.stderr) == (0, "")
    return done


@pytest.mark.parametrize("kind", ["iptables-nft", "nftables", "local-route"])
def test_cleanup_after_a_kill_leaves_the_node_as_before(node: Node, shop: Path, kind: str) -> None:
    """Rules, routes, names, and what conntrack has of senders; not while the run is alive, when only a dry run may."""
    add_foreign_rules(node, KINDS[kind])
    before = node.ruleset(), node.routes()
    hosts = ("--hosts-file", str(shop / "hosts"))
    run = NodeRun(node, shop, *hosts, steering=KINDS[kind].steering)
    wait_until(lambda: "shop" in (shop / "hosts").read_text())
    assert [ask(node, address) for address in DNS] == ["pod", "pod"]
    assert len(led_entries(node)) == (0 if kind == "local-route" else 2)
    refused = run_on(node, "cleanup", *hosts)
    assert refused.returncode == 3
    assert refused.stderr == (
        f"userspace-proxy: another userspace-proxy (pid {run.process.pid}) steers this node; stop it first\n"
    )
    assert run_on(node, "cleanup", "--dry-run").returncode == 0
    assert [node.pod.dial(address, 80) for address in WEB] == ["pod", "pod"]
    run.kill()

    left = node.ruleset(), node.routes()
    assert left != before
    assert "would remove" in run_on(node, "cleanup", "--dry-run").stdout
    assert (node.ruleset(), node.routes()) == left
    done = remove_all(node, *hosts)
    assert (done.returncode, done.stderr) == (0, "")
    assert (node.ruleset(), node.routes()) == before
    assert (shop / "hosts").read_text() == LOCALHOST
    assert led_entries(node) == []
    again = run_on(node, "cleanup", *hosts)
    assert (again.returncode, again.stdout, again.stderr) == (0, "nothing to remove\n", "")


def test_run_says_what_it_removes_of_a_killed_one_of_another_kind(node: Node, shop: Path) -> None:
    """A line for each table, and nobody is cut off."""
    kind = KINDS["iptables-legacy"]
    add_foreign_rules(node, kind)
    before = node.ruleset(), node.routes()
    NodeRun(node, shop, steering=kind.steering).kill()
    run = NodeRun(node, shop, steering="local-route")
    wait_until(lambda: "IPv6 clients of UDP" in run.log)
    said = re.findall(r'INFO .*: what an earlier run has left is removed resource="(.*?)(?: \d.*)?"', run.log)
    assert sorted(said) == [
        *(f"conntrack: what leads {family} clients of UDP to proxy ports still" for family in Family),
        *(f"{command}-legacy: table {table}: chains:" for command in COMMANDS for table in ("filter", "nat")),
    ]
    assert [node.pod.dial(address, 80) for address in WEB] == ["pod", "pod"]
    assert [ask(node, address) for address in DNS] == ["pod", "pod"]
    assert run.terminate() == 0
    assert "WARN" not in run.log
    assert (node.ruleset(), node.routes()) == before


def test_probes_are_removed_unless_their_process_lives(node: Node) -> None:
    """One that was killed in the middle of it has left them; another may be at it."""
    live = node.start("sleep", "60")
    ruleset = node.ruleset()
    rules = "*nat\n:USP-PROBE-{0} - [0:0]\n-A USP-PROBE-{0} -j RETURN\n-I OUTPUT -j USP-PROBE-{0}\nCOMMIT\n"
    table = "table ip userspace-proxy-probe-{0} {{ }}\n"
    for pid in (NEVER_A_PID, live.pid):
        node.run("iptables-nft-restore", "--noflush", text=rules.format(pid))
        node.run("nft", "-f", "-", text=table.format(pid))
    assert remove_all(node).returncode == 0
    assert str(NEVER_A_PID) not in "".join(node.ruleset())
    assert sum(f"USP-PROBE-{live.pid}" in rule for rule in node.ruleset()) == 6
    assert f"userspace-proxy-probe-{live.pid}" in node.run("nft", "list", "tables").stdout
    live.kill()
    live.wait()
    assert remove_all(node).returncode == 0
    assert node.ruleset() == ruleset


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_leftovers_of_kube_proxy_are_removed_if_asked_for(node: Node, variant: str) -> None:
    """Those of its userspace mode alone: whatever mode runs now keeps its chains."""
    node.add_foreign_rules(variant)
    node.add_foreign_tables()
    before = node.ruleset()
    for command, address, target in (
        ("iptables", "10.96.0.1/32", "10.0.0.1:38383"),
        ("ip6tables", "fd00:96::1/128", "[fd00:0::1]:38383"),
    ):
        node.run(f"{command}-{variant}-restore", "--noflush", text=_KUBE_PROXY.format(address=address, target=target))
    left = node.ruleset()
    assert run_on(node, "cleanup").stdout == "nothing to remove\n"
    assert node.ruleset() == left
    done = remove_all(node, "--kube-proxy-leftovers")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"removed iptables-{variant}: table nat: chain KUBE-PORTALS-HOST (rules: 1)" in done.stdout.splitlines()
    assert done.stdout.count("rule PREROUTING -m ") == 4
    assert node.ruleset() == before
    assert run_on(node, "cleanup", "--kube-proxy-leftovers").stdout == "nothing to remove\n"


def test_leftovers_that_cannot_be_removed_are_told(node: Node) -> None:
    """A rule of somebody else leads to one of the chains: all of that table stays, the rest goes."""
    text = _KUBE_PROXY.format(address="10.96.0.1/32", target="10.0.0.1:38383")
    node.run("iptables-nft-restore", "--noflush", text=text)
    node.run("iptables-nft", "-t", "nat", "-N", "MINE")
    node.run("iptables-nft", "-t", "nat", "-A", "MINE", "-j", "KUBE-PORTALS-HOST")
    done = run_on(node, "cleanup", "--kube-proxy-leftovers")
    assert done.returncode == 1
    assert done.stderr.startswith("userspace-proxy: not removed: iptables-nft: rules stay in table nat: iptables-nft-")
    assert "table filter: chain KUBE-NODEPORT-NON-LOCAL" in done.stdout
    saved = node.run("iptables-nft-save", "-t", "nat").stdout
    assert saved.count("-j KUBE-PORTALS-HOST") == 2

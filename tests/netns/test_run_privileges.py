"""The real command with no more rights than it needs: an unprivileged user, with exactly the capabilities of each kind.

And without the tools: what ``auto`` makes of a node, what it says of it, and that looking leaves nothing.
"""

import os
import sys
from pathlib import Path

import pytest
from builders import backend
from cli_driver import COMMAND, service_object, slice_objects, write_manifests
from netns.kinds import KINDS, add_foreign_rules, path_with_only
from netns.node_run import NodeRun, start_backend
from netns.nodes import Node
from netns.unprivileged_helper import USER

import userspace_proxy

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HELPER = Path(__file__).with_name("unprivileged_helper.py")
BITS = {"net_bind_service": 10, "net_admin": 12, "net_raw": 13}
"""Source: Linux include/uapi/linux/capability.h."""
POD = [backend("10.0.1.2:8080"), backend("[fd00:1::2]:8080")]
CLUSTER_IPS = ["10.96.0.10", "fd00:96::a"]
WEB = service_object(cluster_ips=CLUSTER_IPS, port=80, node_port=30080)
NEEDS = {
    "iptables-nft": ("net_admin",),
    "iptables-legacy": ("net_admin", "net_raw"),
    "nftables": ("net_admin",),
    "local-route": ("net_admin", "net_bind_service"),
    "loopback": (),
    "none": (),
}
"""The capabilities that each kind needs, where the Service's port is 80."""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory of the unprivileged user, with manifests."""
    write_manifests(tmp_path / "shop.yaml", [WEB, *slice_objects("shop/web", *POD)])
    for path in (tmp_path, tmp_path / "shop.yaml"):
        os.chown(path, USER, USER)
    return tmp_path


@pytest.fixture
def served_node(node: Node) -> Node:
    """A node with a Backend in the pod."""
    start_backend(node.pod, "pod")
    return node


def unprivileged(directory: Path, *capabilities: str) -> tuple[str | Path, ...]:
    """Return the start of a command that runs the rest as an unprivileged user, who can reach a directory."""
    package = Path(userspace_proxy.__file__).parent.parent
    installed = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent, package}
    return (sys.executable, "-I", "-S", HELPER, ",".join(capabilities), *sorted(installed), directory, "--")


def rights_of(run: NodeRun) -> tuple[str, int]:
    """Return the user of a run, and its effective capabilities as a bit mask."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{run.process.pid}/status").read_text().splitlines() if ":" in line
    )
    return status["Uid"].split()[1], int(status["CapEff"], 16)


def in_force(node: Node) -> tuple[list[str], list[str], str]:
    """Return all rules, all routes, and which tables of iptables-legacy there are."""
    return node.ruleset(), node.routes(), node.legacy_tables()


@pytest.mark.parametrize("kind", NEEDS)
def test_unprivileged_user_needs_only_the_capabilities_of_the_kind(served_node: Node, shop: Path, kind: str) -> None:
    """It serves clients, follows changes, and removes everything, with these and no others."""
    node, env, steering = served_node, None, kind
    if kind in KINDS:
        add_foreign_rules(node, KINDS[kind])
        env, steering = path_with_only(shop / "bin", KINDS[kind]), KINDS[kind].steering
    before = in_force(node)
    run = NodeRun(node, shop, steering=steering, env=env, through=unprivileged(shop, *NEEDS[kind]))
    assert rights_of(run) == (str(USER), sum(1 << BITS[name] for name in NEEDS[kind]))
    assert f", steering {steering}, " in run.output
    assert node.outside.dial("10.0.0.1", 30080) == "pod"
    if kind in KINDS:
        for client in (node, node.pod2, node.bare_pod):
            assert [client.dial(address, 80) for address in CLUSTER_IPS] == ["pod", "pod"]
        assert set(before[0]) < set(node.ruleset()) or kind == "local-route"
    elif kind == "loopback":
        (row,) = [row for row in run.listener_rows() if CLUSTER_IPS[0] in row]
        address, _, port = row.split()[-1].rpartition(":")
        assert node.dial(address, int(port)) == "pod"
    run.apply([WEB, *slice_objects("shop/web")])
    assert node.outside.dial("10.0.0.1", 30080) == "ConnectionRefusedError"
    assert run.terminate() == 0
    assert in_force(node) == before


NO_TOOL = (
    "steering iptables does not work here: iptables is not on PATH",
    "steering nftables does not work here: nft is not on PATH",
)
NO_RIGHT = "steering local-route does not work here: not permitted (needs NET_ADMIN)"
AUTO_WITHOUT_TOOLS = {
    ("net_admin", "net_bind_service"): (*NO_TOOL, "steering local-route is used"),
    (): (*NO_TOOL, NO_RIGHT, "steering loopback is used"),
}
"""What is said of the kinds where no tool is on PATH, by capabilities."""


@pytest.mark.parametrize("capabilities", AUTO_WITHOUT_TOOLS, ids=" ".join)
def test_auto_without_any_tool_serves_cluster_ips(served_node: Node, shop: Path, capabilities: tuple[str, ...]) -> None:
    """By what needs none; the log and ``check`` say why what comes earlier is not used."""
    node = served_node
    sentences = AUTO_WITHOUT_TOOLS[capabilities]
    env = path_with_only(shop / "bin", KINDS["local-route"])
    through = unprivileged(shop, *capabilities)
    before = in_force(node)
    checked = node.run(*through, *COMMAND, "check", "--manifests", shop / "shop.yaml", env=env)
    assert all(sentence in checked.stdout for sentence in sentences)
    assert in_force(node) == before

    run = NodeRun(node, shop, steering="auto", env=env, through=through)
    assert all(sentence in run.log for sentence in sentences)
    addresses = {row.split()[1]: row.split()[2] for row in run.listener_rows()}
    if NO_RIGHT in sentences:
        address, _, port = addresses["10.96.0.10:80/TCP"].rpartition(":")
        assert node.dial(address, int(port)) == "pod"
    else:
        for client in (node, node.pod, node.bare_pod):
            assert [client.dial(address, 80) for address in CLUSTER_IPS] == ["pod", "pod"]
    assert run.terminate() == 0
    assert in_force(node) == before


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
def test_check_leaves_nothing(node: Node, shop: Path, kind: str) -> None:
    """It really tries what a run would do, and takes it away."""
    add_foreign_rules(node, KINDS.get(kind, KINDS["iptables-nft"]))
    before = in_force(node)
    steering = KINDS[kind].steering if kind in KINDS else kind
    options = ("--manifests", shop / "shop.yaml", "--state-dir", shop / "state", "--steering", steering)
    checked = node.run(*COMMAND, "check", *options)
    assert f"steering {'iptables' if kind == 'auto' else steering} is used" in checked.stdout.splitlines()
    assert in_force(node) == before
    assert [path.name for path in shop.iterdir()] == ["shop.yaml"]

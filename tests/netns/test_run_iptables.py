"""The real command on a node with pods, steered by iptables: who is served, what it leaves, what it takes over."""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import backend
from cli_driver import service_object, slice_objects, write_manifests
from netns.node_run import NodeRun, run_on, start_backend, wait_until
from netns.nodes import Node, open_node

pytestmark = [pytest.mark.netns, pytest.mark.slow]

NODE_PORT = 30080
PORT = 8123
POD = [backend("10.0.1.2:8080"), backend("[fd00:1::2]:8080")]
OUTSIDE = [backend("10.0.0.2:8080"), backend("[fd00::2]:8080")]
WEB = service_object(cluster_ips=["10.96.0.10", "fd00:96::a"], port=80, node_port=NODE_PORT)
CART = service_object("shop/cart", cluster_ips=["10.96.0.11", "fd00:96::b"], port=80)

FOREIGN_RULES = """
*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.99/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.1.2:8080
COMMIT
"""

# Connects and waits for a greeting, however long it takes.
_WAIT_FOR_GREETING = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as client:
    print("connected", flush=True)
    client.recv(1)
"""


# Accepts one client and says nothing to it.
_HOLD = """
import socket
with socket.create_server(("::", 8081), family=socket.AF_INET6) as listening:
    print("listening", flush=True)
    client, _ = listening.accept()
    print("accepted", flush=True)
    client.recv(1)
"""


def rules_with_handles(node: Node) -> str:
    """Return all nftables rules with the numbers that tell a rule from one that was written again."""
    return re.sub(r"packets \d+ bytes \d+", "", node.run("nft", "-a", "list", "ruleset").stdout)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a directory with the manifests of Service shop/web, whose Backend is in the pod."""
    write_manifests(tmp_path / "shop.yaml", [WEB, *slice_objects("shop/web", *POD)])
    return tmp_path


@pytest.fixture
def busy_node(node: Node) -> Node:
    """Return a node with rules of another proxy and a Backend in its pod."""
    node.run("iptables-nft-restore", "--noflush", text=FOREIGN_RULES)
    start_backend(node.pod, "pod")
    return node


@pytest.fixture(scope="module", params=["iptables", "auto"])
def serving_node(
    namespaces: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node that serves Services shop/web and shop/cart, the latter without endpoints; for tests that only dial."""
    directory = tmp_path_factory.mktemp("shop")
    write_manifests(directory / "shop.yaml", [WEB, *slice_objects("shop/web", *POD), CART, *slice_objects("shop/cart")])
    with open_node() as made:
        start_backend(made.pod, "pod")
        run = NodeRun(made, directory, steering=request.param)
        assert ", steering iptables, " in run.output
        yield made


@pytest.mark.parametrize("client", ["node", "pod", "bare pod", "outside"])
@pytest.mark.parametrize(
    ("address", "port"),
    [("10.96.0.10", 80), ("fd00:96::a", 80), ("10.0.0.1", NODE_PORT), ("fd00::1", NODE_PORT)],
    ids=["ClusterIP IPv4", "ClusterIP IPv6", "NodePort IPv4", "NodePort IPv6"],
)
def test_service_is_reached(serving_node: Node, client: str, address: str, port: int) -> None:
    """By the host, by a pod, by a pod behind an interface without an address, and from outside."""
    assert serving_node.client(client).dial(address, port) == "pod"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_node_port_is_reached_on_localhost(serving_node: Node, address: str) -> None:
    """It is a real listener; that needs no sysctl."""
    assert serving_node.dial(address, NODE_PORT) == "pod"


@pytest.mark.parametrize("client", ["node", "pod", "bare pod", "outside"])
@pytest.mark.parametrize("address", ["10.96.0.11", "fd00:96::b"])
def test_service_without_endpoints_refuses(serving_node: Node, client: str, address: str) -> None:
    """Nobody is accepted for nothing, and nobody waits."""
    assert serving_node.client(client).dial(address, 80) == "ConnectionRefusedError"


def test_change_of_endpoints_writes_no_rule(busy_node: Node, shop: Path) -> None:
    """Other endpoints, none, and some again: followed, with each rule the very same as before."""
    start_backend(busy_node.outside, "outside")
    NodeRun(busy_node, shop)
    before = busy_node.ruleset(), rules_with_handles(busy_node)
    for backends, answer in ((OUTSIDE, "outside"), ([], "ConnectionRefusedError"), (POD, "pod")):
        write_manifests(shop / "shop.yaml", [WEB, *slice_objects("shop/web", *backends)])
        wait_until(lambda answer=answer: busy_node.dial("10.96.0.10", 80) == answer)  # type: ignore[misc]
        assert busy_node.bare_pod.dial("fd00:96::a", 80) == answer
        assert (busy_node.ruleset(), rules_with_handles(busy_node)) == before


def test_change_of_services_changes_their_rules(busy_node: Node, shop: Path) -> None:
    """A Service that appears is steered to, one that goes is not; the rules of others stay."""
    NodeRun(busy_node, shop)
    before = busy_node.ruleset()
    both = [WEB, *slice_objects("shop/web", *POD), CART, *slice_objects("shop/cart", *POD)]
    write_manifests(shop / "shop.yaml", both)
    wait_until(lambda: busy_node.pod.dial("10.96.0.11", 80) == "pod")
    assert set(before) < set(busy_node.ruleset())
    write_manifests(shop / "shop.yaml", [WEB, *slice_objects("shop/web", *POD)])
    wait_until(lambda: busy_node.ruleset() == before)


@pytest.mark.parametrize("steering", ["iptables", "auto"])
def test_sigterm_leaves_the_ruleset_as_before(busy_node: Node, shop: Path, steering: str) -> None:
    """All that is ours goes, nothing of others does, and nobody is led into the void."""
    before = busy_node.ruleset()
    run = NodeRun(busy_node, shop, steering=steering)
    assert set(before) < set(busy_node.ruleset())
    assert run.terminate() == 0
    assert busy_node.ruleset() == before
    assert busy_node.legacy_tables() == ""


def test_second_sigterm_while_rules_are_removed_leaves_none(busy_node: Node, shop: Path, tmp_path: Path) -> None:
    """Whoever is impatient does not pay for it with rules that lead to a closed port."""
    before = busy_node.ruleset()
    run = NodeRun(busy_node, shop, env={"PATH": f"{slow_restore(tmp_path / 'bin')}:/usr/sbin:/usr/bin:/sbin:/bin"})
    (tmp_path / "bin" / "slow").touch()
    run.process.terminate()
    wait_until((tmp_path / "bin" / "called").exists)
    run.process.terminate()
    wait_until(lambda: "stopping at once" in run.log or run.process.poll() is not None)
    (tmp_path / "bin" / "slow").unlink()
    assert run.wait() == 0
    assert busy_node.ruleset() == before


def slow_restore(path: Path) -> Path:
    """Return a directory with an iptables-nft-restore that works only once there is no file ``slow`` beside it."""
    path.mkdir()
    command = path / "iptables-nft-restore"
    command.write_text(
        "#!/bin/sh\n"
        f"if [ -e {path}/slow ]; then touch {path}/called; fi\n"
        f"while [ -e {path}/slow ]; do sleep 0.05; done\n"
        'exec /usr/sbin/iptables-nft-restore "$@"\n'
    )
    command.chmod(0o755)
    return path


def test_cleanup_after_a_kill_leaves_the_ruleset_as_before(busy_node: Node, shop: Path) -> None:
    """Clients are refused meanwhile; it needs no manifests, and a second time there is nothing to do."""
    before = busy_node.ruleset()
    NodeRun(busy_node, shop).kill()
    left = busy_node.ruleset()
    assert busy_node.pod.dial("10.96.0.10", 80) == "ConnectionRefusedError"

    dry = run_on(busy_node, "cleanup", "--dry-run")
    assert dry.returncode == 0
    assert busy_node.ruleset() == left
    done = run_on(busy_node, "cleanup")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == dry.stdout.replace("would remove ", "removed ").splitlines()
    assert "removed iptables-nft: table nat: chain USP-REDIRECT (rules: 1)" in done.stdout
    assert busy_node.ruleset() == before

    again = run_on(busy_node, "cleanup")
    assert (again.returncode, again.stdout, again.stderr) == (0, "nothing to remove\n", "")
    assert busy_node.ruleset() == before


def test_run_after_a_kill_takes_over_what_is_left(busy_node: Node, shop: Path) -> None:
    """The same proxy ports, so that no rule changes; and at its end nothing is left of either."""
    before = busy_node.ruleset()
    first = NodeRun(busy_node, shop)
    during = busy_node.ruleset()
    first.kill()
    second = NodeRun(busy_node, shop)
    assert second.listener_rows() == first.listener_rows()
    assert busy_node.ruleset() == during
    assert busy_node.bare_pod.dial("10.96.0.10", 80) == "pod"
    assert second.terminate() == 0
    assert busy_node.ruleset() == before


def test_run_after_a_kill_without_its_state_steers_to_new_ports(busy_node: Node, shop: Path) -> None:
    """Rules that lead elsewhere are replaced, whatever the state directory says."""
    before = busy_node.ruleset()
    NodeRun(busy_node, shop).kill()
    (shop / "state" / "assignments.json").unlink()
    run = NodeRun(busy_node, shop, "--proxy-port-range", "20000-20009")
    assert busy_node.pod.dial("10.96.0.10", 80) == "pod"
    assert run.terminate() == 0
    assert busy_node.ruleset() == before


def test_drain_keeps_rules_until_connections_have_ended(busy_node: Node, shop: Path) -> None:
    """New clients are refused at once instead of waiting for an answer from nowhere; the open one goes on."""
    before = busy_node.ruleset()
    holder = busy_node.pod.start(sys.executable, "-c", _HOLD)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "listening\n"
    write_manifests(
        shop / "shop.yaml",
        [WEB, *slice_objects("shop/web", *POD), CART, *slice_objects("shop/cart", backend("[fd00:1::2]:8081"))],
    )
    run = NodeRun(busy_node, shop)
    client = busy_node.outside.start(sys.executable, "-c", _WAIT_FOR_GREETING, "fd00:96::b", "80")
    assert client.stdout is not None
    assert client.stdout.readline() == "connected\n"
    assert holder.stdout.readline() == "accepted\n"  # until then the client may be in the queue of the listener
    run.process.terminate()
    wait_until(lambda: busy_node.pod.dial("10.96.0.10", 80) == "ConnectionRefusedError")
    assert set(before) < set(busy_node.ruleset())
    assert run.process.poll() is None
    client.kill()
    assert run.wait() == 0
    assert busy_node.ruleset() == before


def test_black_holed_endpoint_delays_no_other_client(busy_node: Node, shop: Path) -> None:
    """While a client waits for an endpoint whose packets are dropped, the next one is served by the other."""
    busy_node.outside.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "DROP")
    write_manifests(shop / "shop.yaml", [WEB, *slice_objects("shop/web", OUTSIDE[0], POD[0])])
    NodeRun(busy_node, shop, "--dial-next-after", "1000", "--dial-timeout", "2000", "--workers", "1")
    held = busy_node.bare_pod.start(sys.executable, "-c", _WAIT_FOR_GREETING, "10.96.0.10", "80")
    assert held.stdout is not None
    assert held.stdout.readline() == "connected\n"
    wait_until(lambda: "10.0.0.2:8080" in busy_node.run("ss", "-tnH", "state", "syn-sent").stdout)
    assert busy_node.pod.dial("10.96.0.10", 80) == "pod"
    assert held.poll() is None


def test_black_holed_endpoint_costs_its_own_clients_a_moment(busy_node: Node, shop: Path) -> None:
    """By default another endpoint is dialled beside it, and every client is served."""
    busy_node.outside.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "DROP")
    write_manifests(shop / "shop.yaml", [WEB, *slice_objects("shop/web", OUTSIDE[0], POD[0])])
    NodeRun(busy_node, shop)
    assert [busy_node.bare_pod.dial("10.96.0.10", 80) for _ in range(4)] == ["pod"] * 4


@pytest.mark.parametrize("steering", ["iptables", "auto"])
def test_check_leaves_the_ruleset_as_before(busy_node: Node, shop: Path, steering: str) -> None:
    """It tries a rule and takes it away; the manifests' own are never written."""
    before = busy_node.ruleset(), rules_with_handles(busy_node)
    done = run_on(
        *(busy_node, "check", "--manifests", str(shop / "shop.yaml"), "--steering", steering),
        *("--state-dir", str(shop / "state")),
    )
    assert done.returncode == 0
    assert "steering iptables is used\n" in done.stdout
    assert busy_node.ruleset() == before[0]
    assert [path.name for path in shop.iterdir()] == ["shop.yaml"]


def test_sigint_leaves_the_ruleset_as_before(busy_node: Node, shop: Path) -> None:
    """Ctrl-C is as good as SIGTERM."""
    before = busy_node.ruleset()
    run = NodeRun(busy_node, shop, "--drain-timeout", "1000")
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 0
    assert busy_node.ruleset() == before

"""The real command from its start to its end, by each kind: what it leaves, what it takes over, what it never touches.

What ``cleanup`` removes is the matter of ``test_cleanup``.
"""

import itertools
import json
import os
import select
import shutil
import signal
import sys
from pathlib import Path

import pytest
from builders import backend
from cli_driver import COMMAND, service_object, slice_objects, write_manifests
from netns.kinds import KINDS, add_foreign_rules, path_with_only
from netns.node_run import NodeRun, start_backend, wait_until
from netns.nodes import Node

pytestmark = [pytest.mark.netns, pytest.mark.slow]

POD = [backend("10.0.1.2:8080"), backend("[fd00:1::2]:8080")]
OUTSIDE = [backend("10.0.0.2:8080"), backend("[fd00::2]:8080")]
CLUSTER_IPS = ["10.96.0.10", "fd00:96::a"]
WEB = service_object(cluster_ips=CLUSTER_IPS, port=80, node_port=30080)
CART = service_object("shop/cart", cluster_ips=["10.96.0.11", "fd00:96::b"], port=80)
LOCAL = service_object("shop/local", cluster_ips=["10.96.0.12", "fd00:96::c"], port=80, node_port=30081)
LOCAL["spec"] |= {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}
FEW_OBJECTS = [WEB, *slice_objects("shop/web", *POD)]
ALL_OBJECTS = [
    *FEW_OBJECTS,
    *(CART, *slice_objects("shop/cart")),
    *(LOCAL, *slice_objects("shop/local", *OUTSIDE)),
]

# Connects over and over until its input ends, then prints what was said to it, or the names of exceptions.
_CONNECT_ON_AND_ON = """
import collections, json, select, socket, sys
outcomes = collections.Counter()
while not select.select([sys.stdin], [], [], 0.001)[0]:
    try:
        with socket.create_connection((sys.argv[1], 80), timeout=0.5) as client:
            outcomes[client.recv(100).decode()] += 1
    except OSError as error:
        if not outcomes:
            print("connecting", flush=True)
        outcomes[type(error).__name__] += 1
print(json.dumps(outcomes))
"""
_READ_GENERATION = "from userspace_proxy.steering.ruleset_state import read_generation; print(read_generation())"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind in turn."""
    name: str = request.param
    return name


@pytest.fixture
def busy_node(node: Node, kind: str) -> Node:
    """A node where another proxy has rules, with Backends in the pod and outside."""
    add_foreign_rules(node, KINDS[kind])
    start_backend(node.pod, "pod")
    start_backend(node.outside, "outside")
    return node


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with the manifests of Service shop/web."""
    write_manifests(tmp_path / "shop.yaml", FEW_OBJECTS)
    return tmp_path


def in_force(node: Node) -> tuple[list[str], list[str]]:
    """Return all rules and routes."""
    return node.ruleset(), node.routes()


def own(node: Node, before: tuple[list[str], list[str]]) -> set[str]:
    """Return the rules and routes that were not there before, none of which has gone."""
    rules, routes = in_force(node)
    assert set(before[0]) <= set(rules)
    assert set(before[1]) <= set(routes)
    return {*rules, *routes} - {*before[0], *before[1]}


def reaches_web(node: Node, answer: str = "pod") -> bool:
    """Tell what clients of shop/web find, in both families and from either kind of interface."""
    dials = ((node, CLUSTER_IPS[0]), (node.pod2, CLUSTER_IPS[1]), (node.bare_pod, CLUSTER_IPS[0]))
    return [client.dial(address, 80) for client, address in dials] == [answer] * len(dials)


class RouteMonitor:
    """What becomes of the routes of a node."""

    def __init__(self, node: Node) -> None:
        """Start to look, and wait until it does."""
        self._node = node
        self._marks = (f"198.51.100.{number}" for number in itertools.count(1))
        self._process = node.start("ip", "monitor", "route")
        wait_until(self._sees_a_mark)

    def seen(self) -> list[str]:
        """Return what has become of those for Services since the last call, a line each."""
        mark = self._mark()
        assert self._process.stdout is not None
        lines = iter(self._process.stdout.readline, "")
        seen = itertools.takewhile(lambda line: mark not in line, lines)
        return [line for line in seen if "10.96." in line or "fd00:96:" in line]

    def _mark(self) -> str:
        mark = next(self._marks)
        self._node.ip(f"route add {mark} dev eth0")
        self._node.ip(f"route del {mark} dev eth0")
        return mark

    def _sees_a_mark(self) -> bool:
        self._mark()
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0.1)[0])


def test_life_leaves_rules_and_routes_as_before(busy_node: Node, shop: Path, kind: str) -> None:
    """All that is ours goes, after whatever change, and nothing of others does."""
    before, tables = in_force(busy_node), busy_node.legacy_tables()
    run = NodeRun(busy_node, shop, "--drain-timeout", "0", steering=KINDS[kind].steering)
    few = own(busy_node, before)
    assert few
    assert reaches_web(busy_node)
    run.apply(ALL_OBJECTS)
    assert few < own(busy_node, before)
    run.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reading all manifests again" in run.log)
    run.apply(FEW_OBJECTS)
    assert own(busy_node, before) == few
    assert run.terminate() == 0
    assert in_force(busy_node) == before
    assert busy_node.legacy_tables() == tables


def counting_restore(path: Path, variant: str) -> dict[str, str]:
    """Return an environment in which each change of rules by a variant of iptables is noted in the file ``calls``."""
    path.mkdir()
    for name in (f"iptables-{variant}-restore", f"ip6tables-{variant}-restore"):
        (path / name).write_text(f'#!/bin/sh\necho {name} >> {path}/calls\nexec {shutil.which(name)} "$@"\n')
        (path / name).chmod(0o755)
    return {"PATH": f"{path}:{os.environ['PATH']}"}


def test_change_of_endpoints_changes_nothing_in_the_kernel(busy_node: Node, shop: Path, kind: str) -> None:
    """Other endpoints, none, and some again: followed without a single transaction, command or route."""
    env = counting_restore(shop / "bin", KINDS[kind].iptables)
    monitor = RouteMonitor(busy_node)
    run = NodeRun(busy_node, shop, steering=KINDS[kind].steering, env=env)
    calls = shop / "bin" / "calls"

    def changes() -> tuple[str, str]:
        generation = busy_node.run(sys.executable, "-c", _READ_GENERATION).stdout
        return generation, calls.read_text() if calls.exists() else ""

    before = changes()
    assert bool(before[1]) == (KINDS[kind].steering == "iptables")
    assert bool(monitor.seen()) == (kind == "local-route")
    for backends, answer in ((OUTSIDE, "outside"), ([], "ConnectionRefusedError"), (POD, "pod")):
        run.apply([WEB, *slice_objects("shop/web", *backends)])
        assert reaches_web(busy_node, answer)
    assert changes() == before
    assert monitor.seen() == []
    run.apply(ALL_OBJECTS)
    assert changes() != before or monitor.seen(), "nothing is ever seen"


@pytest.mark.parametrize("keeps_state", [True, False], ids=["with its state", "without its state"])
def test_run_after_a_kill_takes_over_without_a_gap(
    busy_node: Node, shop: Path, kind: str, *, keeps_state: bool
) -> None:
    """The same proxy ports, read from the rules if there is no other record; clients are refused, but never lost."""
    before = in_force(busy_node)
    write_manifests(shop / "shop.yaml", ALL_OBJECTS)
    # A port is found by hashing over the range: in the wider one, those of the narrower one are found by no chance.
    first = NodeRun(busy_node, shop, "--proxy-port-range", "20000-20099", steering=KINDS[kind].steering)
    during = in_force(busy_node)
    first.kill()
    assert in_force(busy_node) == during
    if not keeps_state:
        shutil.rmtree(shop / "state", ignore_errors=True)  # there is none where no port had to be chosen
    monitor = RouteMonitor(busy_node)
    clients = [busy_node.start(sys.executable, "-c", _CONNECT_ON_AND_ON, address) for address in CLUSTER_IPS]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline() == "connecting\n"
    second = NodeRun(busy_node, shop, "--proxy-port-range", "20000-29999", steering=KINDS[kind].steering)
    for client in clients:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.close()
        outcomes = json.loads(client.stdout.read())
        assert outcomes.keys() <= {"ConnectionRefusedError", "ConnectionResetError", "pod"}
        assert outcomes["ConnectionRefusedError"] > 1
    assert not [line for line in monitor.seen() if line.startswith("Deleted")]
    assert second.listener_rows() == first.listener_rows()
    assert in_force(busy_node) == during
    assert reaches_web(busy_node)
    assert second.terminate() == 0
    assert in_force(busy_node) == before


def test_two_runs_started_at_once_do_not_fight(busy_node: Node, shop: Path, kind: str) -> None:
    """With directories of their own: one holds the node and goes on, the other says which, and stops."""
    before = in_force(busy_node)
    started = []
    for name in ("one", "other"):
        own_directories = ("--state-dir", shop / name / "state", "--runtime-dir", shop / name / "run")
        options = ("--manifests", shop / "shop.yaml", "--steering", KINDS[kind].steering, *own_directories)
        with (shop / f"{name}.err").open("w") as errors:
            process = busy_node.start(*COMMAND, "run", *options, stderr=errors)
        started.append((process, shop / f"{name}.err"))
    wait_until(lambda: any(process.poll() is not None for process, _ in started))
    ((holder, _),) = [each for each in started if each[0].poll() is None]
    ((loser, errors_path),) = [each for each in started if each[0] is not holder]
    assert loser.returncode == 3
    assert f"another userspace-proxy (pid {holder.pid}) steers this node; stop it" in errors_path.read_text()
    assert holder.stdout is not None
    assert any(line.startswith("ready: ") for line in iter(holder.stdout.readline, ""))
    assert reaches_web(busy_node)
    assert own(busy_node, before)
    holder.terminate()
    assert holder.wait(timeout=30) == 0
    assert in_force(busy_node) == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("iptables-nft", "nftables"),
        ("nftables", "local-route"),
        ("local-route", "iptables-nft"),
        ("iptables-legacy", "iptables-nft"),
    ],
)
def test_run_after_a_kill_by_another_kind_removes_what_is_left(
    node: Node, tmp_path: Path, first: str, second: str
) -> None:
    """Once its own is in force: nobody steers to where nobody listens."""
    add_foreign_rules(node, KINDS["iptables-nft"])
    start_backend(node.pod, "pod")
    before = in_force(node)
    write_manifests(tmp_path / "shop.yaml", ALL_OBJECTS)
    NodeRun(node, tmp_path, steering=KINDS[first].steering, env=path_with_only(tmp_path / "bin", KINDS[first])).kill()
    left = own(node, before)
    assert left
    run = NodeRun(node, tmp_path, steering=KINDS[second].steering)
    wait_until(lambda: not left & own(node, before))
    assert own(node, before)
    assert reaches_web(node)
    assert run.terminate() == 0
    assert in_force(node) == before

"""``check`` on a node with pods: what it says of steering there, and that nothing is left of what it tries."""

import json
from pathlib import Path

import pytest
from cli_driver import COMMAND, PORT, service_object, slice_objects, write_manifests
from netns.kinds import KINDS, add_foreign_rules
from netns.node_run import run_on
from netns.nodes import Node

pytestmark = [pytest.mark.netns, pytest.mark.slow]

ON_LINK = "10.0.0.77"
"""Of the network that the node shares with the host outside."""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return the manifests of a Service with an external IP in the node's own network."""
    web = service_object(cluster_ips=["10.96.0.10", "fd00:96::a"])
    web["spec"]["externalIPs"] = [ON_LINK]
    write_manifests(tmp_path / "shop.yaml", [web, *slice_objects("shop/web")])
    return tmp_path / "shop.yaml"


@pytest.mark.parametrize("steering", ["iptables", "nftables", "local-route", "auto"])
def test_check_leaves_rules_and_routes_as_they_are(node: Node, shop: Path, steering: str) -> None:
    """It tries what a run would do, and undoes it; also beside another proxy."""
    add_foreign_rules(node, KINDS["iptables-nft"])
    before = node.ruleset(), node.routes()
    done = run_on(node, "check", "--manifests", str(shop), "--steering", steering)
    assert done.returncode == 0, done.stderr
    kind = "iptables" if steering == "auto" else steering
    assert done.stdout.startswith(f"steering {kind} is used\n")
    assert (node.ruleset(), node.routes()) == before


def test_check_says_why_earlier_kinds_are_refused(node: Node, shop: Path) -> None:
    """Where no command is on PATH a route does, and what that costs is told."""
    done = run_on(node, "check", "--manifests", str(shop), env={"PATH": "/nonexistent"})
    assert done.stdout.splitlines()[:3] == [
        "steering iptables does not work here: iptables is not on PATH; ip6tables is not on PATH",
        "steering nftables does not work here: nft is not on PATH",
        "steering local-route is used",
    ]


def test_check_by_routes_names_what_is_not_served_and_who_becomes_reachable(node: Node, shop: Path) -> None:
    """An external IP of the node's network is not the node's to take; a program on all addresses gets more of them."""
    listening = node.start("python3", "-c", "import socket; s = socket.create_server(('', 7777)); print(); input()")
    assert listening.stdout is not None
    listening.stdout.readline()
    command = ("check", "--manifests", str(shop), "--steering", "local-route")
    done = run_on(node, *command)
    assert done.returncode == 0, "what the node cannot serve is no mistake of the manifests"
    (sentence,) = [line for line in done.stdout.splitlines() if ON_LINK in line]
    assert sentence.startswith("warning: Service shop/web: ")
    assert f"(pid {listening.pid})" in done.stdout
    assert "7777/TCP" in done.stdout
    problems = json.loads(run_on(node, *command, "-o", "json").stdout)["problems"]
    assert ("warning", "Service shop/web") in [(one["severity"], one["subject"]) for one in problems]


def test_check_by_rules_serves_it(node: Node, shop: Path) -> None:
    """Rules take nothing away from the network."""
    done = run_on(node, "check", "--manifests", str(shop), "--steering", "nftables")
    (row,) = [line for line in done.stdout.splitlines() if ON_LINK in line]
    assert row.startswith(f"shop/web:http  {ON_LINK}:{PORT}/TCP ")


def test_check_by_routes_without_the_right_to_bind_low_ports_says_what_that_costs(node: Node, shop: Path) -> None:
    """The setting that is missing is named, and not a word is said where it is there."""
    rights = "-all,+net_admin,+dac_override"  # the latter as the interpreter may be in a place for root only
    setpriv = ("setpriv", "--reuid=65534", f"--bounding-set={rights}", f"--inh-caps={rights}")
    command = (*COMMAND, "check", "--manifests", str(shop), "--steering", "local-route")
    said = node.run(*setpriv, f"--ambient-caps={rights}", *command).stdout
    assert "ports of Services below 1024 are not served, as this process may not bind them: " in said
    assert "CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start" in said
    node.set_sysctl("net/ipv4/ip_unprivileged_port_start", 0)
    assert "are not served" not in node.run(*setpriv, f"--ambient-caps={rights}", *command).stdout

"""iptables steering in the kernel: who is kept away from what, and what of it is left."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns.nodes import Node, open_node
from netns.restriction_cases import ASKED, CASES, CLIENTS, NOT_OUTSIDE, POD_NETWORKS
from netns.steering_process import Asked, Driver, ask_all, clean_up

pytestmark = pytest.mark.netns

LB_FOR_PODS = Asked("203.0.113.20:1202", "load-balancer", serves=NOT_OUTSIDE)
OPEN = "10.96.0.10:80"


@pytest.fixture(scope="module", params=["nft", "legacy"])
def guarded_node(
    namespaces: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node with foreign rules in one variant of iptables and all CASES in force; for tests that only dial."""
    with open_node() as made:
        made.add_foreign_rules(request.param)
        made.allow_all_icmp()
        driver = Driver(made, tmp_path_factory.mktemp("state"))
        assert "error" not in driver.apply(ASKED, pod_networks=POD_NETWORKS)
        assert any(f"iptables-{request.param} *filter :USP-INPUT -" in line for line in made.ruleset())
        yield made


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_each_class_of_clients_is_served_dropped_or_refused(guarded_node: Node, client: str, family: int) -> None:
    """Who may not come in hears nothing, who asks for what is nowhere is refused, and the others are served."""
    expected = {case.target(family): case.outcome(client) for case in CASES}
    assert guarded_node.client(client).dial_all(expected) == expected
    assert ask_all(guarded_node.client(client), expected) == expected


def test_other_services_of_the_node_on_the_same_ports_are_left_alone(guarded_node: Node) -> None:
    """A rule is for its address: the node's own port of that number, and a NodePort at another address, answer."""
    targets = ["10.0.0.1:1002", "[fd00::1]:1103", "10.0.1.1:30005"]
    assert guarded_node.outside.dial_all(targets) == dict.fromkeys(targets, "ConnectionRefusedError")


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_what_others_lead_to_a_node_port_is_not_taken_for_it(node: Node, tmp_path: Path, variant: str) -> None:
    """Who was sent to the port from another address did not dial the NodePort."""
    rule = "-A PREROUTING -d 10.96.0.77/32 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1:30002"
    node.run(f"iptables-{variant}", "-t", "nat", *rule.split())
    Driver(node, tmp_path).apply([Asked("0.0.0.0:30002", "node-port", serves=NOT_OUTSIDE)])
    expected = {"10.96.0.77:80": "served", "10.0.0.1:30002": "TimeoutError"}
    assert node.outside.dial_all(expected) == expected


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_health_check_port_is_let_in_before_a_firewall(node: Node, tmp_path: Path, variant: str) -> None:
    """Load balancers reach it whatever others forbid; its neighbour stays shut. Nobody listens: that is refused."""
    node.run(f"iptables-{variant}", "-A", "INPUT", "-i", "eth0", "-p", "tcp", "-j", "DROP")
    before = node.ruleset()
    driver = Driver(node, tmp_path)
    driver.apply([], health_check_ports=[32000])
    expected = {"10.0.0.1:32000": "ConnectionRefusedError", "10.0.0.1:32001": "TimeoutError"}
    assert node.outside.dial_all(expected) == expected
    driver.terminate()
    assert node.ruleset() == before


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_restriction_alone_is_written_and_gone_with_its_chains(node: Node, tmp_path: Path, variant: str) -> None:
    """A policy that changes while all stays where it is takes effect at once, and leaves no chain behind."""
    node.add_foreign_rules(variant)
    before = node.ruleset()
    driver = Driver(node, tmp_path)
    assert node.ruleset() == before, "probing left something"
    lb = Asked(LB_FOR_PODS.at, LB_FOR_PODS.kind)
    driver.apply([OPEN, lb])
    unrestricted = node.ruleset()
    assert not any("USP-ROUTE-" in line for line in unrestricted)
    assert node.outside.dial(*split(lb.at)) == f"{lb.at}/TCP"

    driver.apply([OPEN, LB_FOR_PODS], pod_networks=POD_NETWORKS)
    assert node.outside.dial(*split(lb.at), timeout_s=0.7) == "TimeoutError"
    assert node.pod.dial(*split(lb.at)) == f"{lb.at}/TCP"

    driver.apply([OPEN, lb])
    assert node.ruleset() == unrestricted
    assert node.outside.dial(*split(lb.at)) == f"{lb.at}/TCP"
    driver.apply([OPEN, LB_FOR_PODS], pod_networks=POD_NETWORKS)
    assert driver.terminate() == 0
    assert node.ruleset() == before


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_jump_comes_first_and_foreign_rules_stay(node: Node, tmp_path: Path, variant: str) -> None:
    """What others accept does not come before what we keep away; they keep their place otherwise."""
    node.add_foreign_rules(variant)
    before = node.run(f"iptables-{variant}", "-S", "INPUT").stdout.splitlines()
    Driver(node, tmp_path).apply([LB_FOR_PODS])
    policy, jump, *rest = node.run(f"iptables-{variant}", "-S", "INPUT").stdout.splitlines()
    assert jump == "-A INPUT -m conntrack --ctstate NEW -j USP-INPUT"
    assert [policy, *rest] == before


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_killed_run_is_cleaned_up_or_taken_over(node: Node, tmp_path: Path, variant: str) -> None:
    """Both cleanup and the next run, which has nothing to restrict, leave nothing of what it restricted."""
    node.add_foreign_rules(variant)
    before = node.ruleset()
    first = Driver(node, tmp_path)
    first.apply(ASKED, pod_networks=POD_NETWORKS)
    first.kill()
    second = Driver(node, tmp_path)
    port = second.apply([OPEN])[f"{OPEN}/TCP"].rpartition(":")[2]
    guards = [line for line in node.ruleset() if "*filter -A USP-PORTS-" in line]
    assert [line.split("-p ")[1] for line in guards] == [f"tcp -m tcp --dport {port} -g USP-STEERED"]
    second.apply(ASKED, pod_networks=POD_NETWORKS)
    second.kill()

    report = clean_up(node)
    assert report["failed"] == []
    assert [line for line in report["removed"] if re.search(r"table filter: rule INPUT .* -j USP-INPUT$", line)]
    assert node.ruleset() == before


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_thousand_source_ranges_load_at_once(node: Node, tmp_path: Path, variant: str) -> None:
    """All go in by one command, each with ranges of its own, and the last is guarded as the first."""
    node.add_foreign_rules(variant)
    asked = [
        Asked(
            f"203.0.{number // 250}.{number % 250 + 1}:80",
            "load-balancer",
            source_ranges=("10.0.1.2/32", f"192.168.{number // 250}.{number % 250}/32"),
        )
        for number in range(1000)
    ]
    driver = Driver(node, tmp_path)
    started = time.perf_counter()
    driver.apply(asked)
    assert time.perf_counter() - started < 5  # 0.3 s on two idle cores
    expected = {asked[0].at: "served", asked[-1].at: "served"}
    assert node.pod.dial_all(expected) == expected
    assert node.outside.dial_all(expected) == dict.fromkeys(expected, "TimeoutError")


def split(at: str) -> tuple[str, int]:
    """Return address and port of ``10.96.0.10:80``."""
    host, _, port = at.rpartition(":")
    return host, int(port)

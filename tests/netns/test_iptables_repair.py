"""What others do to our iptables rules is put back, within seconds, and nothing of theirs is touched."""

import re
from pathlib import Path

import pytest
from netns.command_wrappers import CommandWrappers
from netns.nodes import Node, wait_until
from netns.steering_process import Asked, Driver

pytestmark = pytest.mark.netns

ASKED: list[str | Asked] = [
    "10.96.0.10:80",
    "[fd00:96::a]:80",
    Asked("10.96.0.11:53", protocol="UDP"),
    Asked("[fd00:96::b]:53", protocol="UDP"),
    Asked("203.0.113.20:80", "load-balancer", source_ranges=("10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32")),
    Asked("[2001:db8::14]:80", "load-balancer", source_ranges=("::/0", "::ffff:192.0.2.0/120", "fd00::/16")),
    Asked("203.0.113.21:80", "load-balancer", serves=("pod", "host"), source_ranges=("10.0.0.0/8",)),
    Asked("203.0.113.22:80", "load-balancer", serves=()),
    Asked("[2001:db8::16]:80", "load-balancer", serves=("pod", "host")),
    Asked("0.0.0.0:30002", "node-port", serves=("pod", "host")),
    Asked("10.0.0.1:30005", "node-port", serves=("pod", "host")),
    Asked("[::]:30002", "node-port", serves=("pod", "host")),
    Asked("10.0.0.1:200", "node-port", serves=()),
    Asked("[::]:65500", "node-port", serves=()),
]
POD_NETWORKS = ("10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64", "fd00:2::/64")
BOTH = ("iptables", "ip6tables")
DAMAGES = {
    "table nat flushed": "*nat -F",
    "table filter flushed": "*filter -F",
    "all flushed and deleted": "*nat -F -X *filter -F -X",
    "jump from PREROUTING": "*nat -D PREROUTING -j USP-PREROUTING",
    "jump from OUTPUT": "*nat -D OUTPUT -j USP-REDIRECT",
    "jump from INPUT": "*filter -D INPUT -m conntrack --ctstate NEW -j USP-INPUT",
    "jump doubled": "*nat -A PREROUTING -j USP-PREROUTING",
    "rule that leads": "*nat -D USP-REDIRECT-0A 1",
    "rule that guards": "*filter -D USP-STEERED 1",
    "rule too many": "*nat -I USP-REDIRECT -j RETURN",
    "bucket emptied": "*nat -F USP-REDIRECT-0A",
    "bucket deleted": "*nat -F USP-REDIRECT -F USP-REDIRECT-0A -X USP-REDIRECT-0A",
    "chain too many": "*nat -N USP-MINE -A OUTPUT -j USP-MINE",
}
"""Lines of iptables-restore, one behind the other: a capital letter begins one, and so does a table."""


def own(node: Node) -> list[str]:
    """Return our rules and chains, by the iptables commands."""
    return sorted(line for line in _rules(node) if "USP-" in _without_comment(line))


def foreign(node: Node) -> list[str]:
    """Return those that are not ours."""
    return [line for line in _rules(node) if "USP-" not in _without_comment(line)]


def _rules(node: Node) -> list[str]:
    built_in = re.compile(r"\*\w+ :\w+ ACCEPT$")  # listed only while there is a rule in it
    return [line for line in node.ruleset() if line.startswith("ip") and not built_in.search(line)]


def _without_comment(line: str) -> str:
    return line.replace("not ours: -j USP-REDIRECT", "")


def do_damage(node: Node, variant: str, damage: str) -> None:
    """Do what others do, in both families at once."""
    lines = re.sub(r" (?=-[A-Z]|\*)", "\n", DAMAGES[damage]).replace("\n*", "\nCOMMIT\n*")
    for command in BOTH:
        node.run(f"{command}-{variant}-restore", "--noflush", "-w", "5", text=f"{lines}\nCOMMIT\n")


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_either_family_is_put_back_and_counted(node: Node, tmp_path: Path, variant: str, damage: str) -> None:
    """One write in each family puts back what is gone; what the others have done to theirs stays done."""
    node.add_foreign_rules(variant)
    driver = Driver(node, tmp_path)
    driver.apply(ASKED, pod_networks=POD_NETWORKS, health_check_ports=[32000])
    before = own(node)
    do_damage(node, variant, damage)
    left = foreign(node)
    wait_until(lambda: own(node) == before)
    assert foreign(node) == left
    assert node.pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
    assert node.outside.dial("fd00:96::a", 80) == "[fd00:96::a]:80/TCP"
    tables = [table for table in ("nat", "filter") if f"*{table}" in DAMAGES[damage]]
    assert driver.repairs().keys() == {f"{family} {table}" for family in ("IPv4", "IPv6") for table in tables}
    assert driver.terminate() == 0
    assert not own(node)


def test_flush_of_the_whole_ruleset_is_put_back(node: Node, tmp_path: Path) -> None:
    """Even the tables and their built-in chains are gone after it."""
    driver = Driver(node, tmp_path)
    driver.apply(ASKED, pod_networks=POD_NETWORKS)
    before = own(node)
    node.run("nft", "flush", "ruleset")
    wait_until(lambda: own(node) == before)
    assert node.pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
    assert node.pod.dial("fd00:96::a", 80) == "[fd00:96::a]:80/TCP"


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_reload_of_a_firewall_is_put_back(node: Node, tmp_path: Path, variant: str) -> None:
    """It replaces all there is in a table by its own, and its rules stay as it wrote them."""
    node.add_foreign_rules(variant)
    Driver(node, tmp_path).apply(ASKED, pod_networks=POD_NETWORKS)
    before = own(node)
    text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n"
    node.run(f"iptables-{variant}-restore", "-w", "5", text=text)
    wait_until(lambda: own(node) == before)
    assert f"iptables-{variant} *filter -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT" in foreign(node)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_storm_of_flushes_between_changes_ends_with_all_in_place(node: Node, tmp_path: Path, variant: str) -> None:
    """However often it happens, and whatever is just being written."""
    node.add_foreign_rules(variant)
    driver = Driver(node, tmp_path)
    driver.apply(ASKED)
    before = own(node)
    storm = f"for i in 1 2 3 4 5 6 7 8 9 10; do iptables-{variant} -w 5 -t nat -F; ip6tables-{variant} -w 5 -F; done"
    for _ in range(3):
        flushing = node.start("sh", "-c", storm)
        while flushing.poll() is None:
            driver.apply([*ASKED, Asked("10.96.0.12:80", service="shop/new")])
            driver.apply(ASKED)
    wait_until(lambda: own(node) == before)
    assert node.pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_rules_are_read_as_they_were_written(node: Node, tmp_path: Path, variant: str) -> None:
    """Else each change by others would look like one of ours; here all that we write is compared to the letter."""
    node.add_foreign_rules(variant)
    commands = CommandWrappers(tmp_path / "bin")
    driver = Driver(node, tmp_path, prefix=commands.prefix)
    commands.forget()
    driver.apply(ASKED, pod_networks=POD_NETWORKS, health_check_ports=[32000])
    written = sorted(
        f"{command}-{variant} {line}"
        for command in BOTH
        for line in commands.written(f"{command}-{variant}")
        if line.startswith("-A USP-")
    )
    read = sorted(line.replace(" *nat ", " ").replace(" *filter ", " ") for line in own(node) if " -A USP-" in line)
    assert written == read
    node.run(f"iptables-{variant}", "-w", "5", "-A", "FORWARD", "-j", "ACCEPT")
    commands.forget()
    assert driver.repairs() == {}
    assert commands.looks(f"iptables-{variant}") > 0


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_change_of_one_service_writes_its_chains_only(node: Node, tmp_path: Path, variant: str) -> None:
    """Nobody looks at the rest, and on a node at rest nothing is run at all."""
    node.add_foreign_rules(variant)
    commands = CommandWrappers(tmp_path / "bin")
    driver = Driver(node, tmp_path, prefix=commands.prefix)
    many = [Asked(f"10.96.{number // 250}.{number % 250 + 1}:80", service=f"shop/{number}") for number in range(300)]
    driver.apply(many)
    driver.repairs()
    commands.forget()
    driver.repairs()
    assert not any(commands.looks(f"{one}-{variant}") or commands.written(f"{one}-{variant}") for one in BOTH)
    port = driver.apply([*many, Asked("10.97.0.5:80", service="shop/new")])["10.97.0.5:80/TCP"].rpartition(":")[2]
    written = commands.written(f"iptables-{variant}")
    chains = sorted(line.split()[0][1:] for line in written if line.startswith(":"))
    assert chains == ["USP-DNAT-05", f"USP-PORTS-T-{int(port) // 256:02X}", "USP-REDIRECT-05"]
    assert commands.written(f"ip6tables-{variant}") == []
    assert node.pod.dial("10.97.0.5", 80) == "10.97.0.5:80/TCP"

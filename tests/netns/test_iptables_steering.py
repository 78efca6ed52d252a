"""iptables steering in the kernel: who gets where, what is left, what of others' is touched."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns.nodes import Node, open_namespace, open_node, wait_until
from netns.steering_process import Driver, clean_up

pytestmark = pytest.mark.netns

FRONTENDS = ["10.96.0.10:80", "[fd00:96::a]:80"]
NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
NO_PATH = ("env", "PATH=/nonexistent")


@pytest.fixture(scope="module", params=["nft", "legacy"])
def steered_node(
    namespaces: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node with foreign rules in one variant of iptables, steered; for tests that only dial."""
    with open_node() as made:
        made.add_foreign_rules(request.param)
        Driver(made, tmp_path_factory.mktemp("state")).apply(FRONTENDS)
        rules = made.ruleset()
        assert any(f"iptables-{request.param} *nat :USP-REDIRECT -" in line for line in rules)
        yield made


@pytest.mark.parametrize("client", ["node", "pod", "bare pod", "outside"])
@pytest.mark.parametrize(("address", "frontend"), [("10.96.0.10", FRONTENDS[0]), ("fd00:96::a", FRONTENDS[1])])
def test_cluster_address_is_reached(steered_node: Node, client: str, address: str, frontend: str) -> None:
    """Whoever dials a cluster address arrives at its Listener, also over an interface without an IPv4 address."""
    assert steered_node.client(client).dial(address, 80) == f"{frontend}/TCP"


def test_other_port_of_a_cluster_address_is_not_steered(steered_node: Node) -> None:
    """Rules take the Frontend's port only: the rest goes where it went before, here to a gateway that refuses."""
    steered_node.outside.ip("address add 10.96.0.10/32 dev lo")
    assert steered_node.pod.dial("10.96.0.10", 81) == "ConnectionRefusedError"


def test_pod_that_appears_after_the_rules_is_served_at_once(steered_node: Node) -> None:
    """An interface that the rules do not name yet works, with and without an address of its own."""
    with open_namespace("late") as late:
        steered_node.add_bare_link("calilate", late, "10.0.3.2", "fd00:3::2")
        assert late.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
        assert late.dial("fd00:96::a", 80) == "[fd00:96::a]:80/TCP"
    with open_namespace("late") as late:
        steered_node.ip(
            f"""
            link add vethlate type veth peer name eth0 netns {late.name}
            address add 10.0.4.1/24 dev vethlate
            link set vethlate up
            """
        )
        late.ip("address add 10.0.4.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.0.4.1")
        assert late.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_whole_life_leaves_the_ruleset_as_before(node: Node, tmp_path: Path, variant: str) -> None:
    """The variant in use is taken; rules of others never change, and at the end there are no others."""
    node.add_foreign_rules(variant)
    before = node.ruleset()
    driver = Driver(node, tmp_path)
    assert driver.chosen["explained"] == ["steering iptables is used"]
    assert node.ruleset() == before, "probing left something"

    driver.apply(FRONTENDS)
    during = node.ruleset()
    assert set(before) < set(during)
    driver.apply(FRONTENDS[:1])
    assert driver.terminate() == 0
    assert node.ruleset() == before


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_cleanup_after_a_kill_leaves_the_ruleset_as_before(node: Node, tmp_path: Path, variant: str) -> None:
    """Also what was doubled by hand goes; a dry run only says so, and a second cleanup has nothing to say."""
    node.add_foreign_rules(variant)
    before = node.ruleset()
    driver = Driver(node, tmp_path)
    driver.apply(FRONTENDS)
    driver.kill()
    node.run(f"iptables-{variant}", "-t", "nat", "-A", "PREROUTING", "-j", "USP-PREROUTING")
    left = node.ruleset()

    would_go = clean_up(node, dry_run=True)
    assert node.ruleset() == left
    assert clean_up(node) == would_go
    assert would_go["failed"] == []
    assert len([line for line in would_go["removed"] if "rule PREROUTING -j USP-PREROUTING" in line]) == 3
    assert node.ruleset() == before
    assert clean_up(node) == {"removed": [], "failed": []}


def test_start_after_a_kill_takes_the_rules_over_with_the_same_ports(node: Node, tmp_path: Path) -> None:
    """The next run finds what the killed one left, keeps its proxy ports, and removes all at its end."""
    before = node.ruleset()
    first = Driver(node, tmp_path)
    ports = first.apply(FRONTENDS)
    rules = node.ruleset()
    first.kill()
    assert node.pod.dial("10.96.0.10", 80) == "ConnectionRefusedError"

    second = Driver(node, tmp_path)
    assert second.apply(FRONTENDS[::-1]) == ports
    assert node.ruleset() == rules
    assert node.pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
    assert second.terminate() == 0
    assert node.ruleset() == before


def test_nft_is_taken_where_both_variants_are_in_use(node: Node, tmp_path: Path) -> None:
    """Packets pass through the tables of both; one of them has to be chosen, always the same."""
    node.add_foreign_rules("nft")
    node.add_foreign_rules("legacy")
    Driver(node, tmp_path).apply(FRONTENDS)
    rules = node.ruleset()
    assert any(line.startswith("iptables-nft *nat :USP-") for line in rules)
    assert not any(line.startswith("iptables-legacy *nat :USP-") for line in rules)


def test_unused_legacy_tables_are_not_created(node: Node, tmp_path: Path) -> None:
    """Where the nft variant works nothing looks at the other: that alone would make tables that stay."""
    driver = Driver(node, tmp_path)
    driver.apply(FRONTENDS)
    driver.terminate()
    clean_up(node)
    assert node.legacy_tables() == ""


def test_node_address_that_changes_is_followed(node: Node, tmp_path: Path) -> None:
    """A pod behind an interface without an address is led to one that the node has now, whichever it saw first."""
    driver = Driver(node, tmp_path)
    driver.apply(FRONTENDS)
    assert node.bare_pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
    node.ip(
        """
        address del 10.0.0.1/24 dev eth0
        address add 10.0.0.3/24 dev eth0
        route add default via 10.0.0.2
        """
    )

    def targets() -> set[str]:
        return set(re.findall(r"--to-destination (\S+):", "\n".join(node.ruleset())))

    wait_until(lambda: len(targets()) == 1 and targets() < {"10.0.0.3", "10.0.1.1", "10.0.5.1"})
    assert node.bare_pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"


def test_interface_that_loses_or_gains_its_address_is_followed(node: Node, tmp_path: Path) -> None:
    """REDIRECT would drop what comes in without an address, so such an interface changes sides."""
    Driver(node, tmp_path).apply(FRONTENDS)
    dispatched = "-A USP-PREROUTING -i vethpod -g USP-REDIRECT"
    assert any(dispatched in line for line in node.ruleset())
    node.ip("address del 10.0.1.1/24 dev vethpod\nroute add 10.0.1.2/32 dev vethpod")
    node.set_sysctl("net/ipv4/conf/vethpod/proxy_arp", 1)
    wait_until(lambda: not any(dispatched in line for line in node.ruleset()))
    assert node.pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
    node.ip("address add 10.0.1.1/24 dev vethpod")
    wait_until(lambda: any(dispatched in line for line in node.ruleset()))
    assert node.pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"


def test_node_without_any_address_uses_redirect_alone(node: Node, tmp_path: Path) -> None:
    """Without a target there is no DNAT chain, and IPv6 is served all the same."""
    addresses = {"eth0": "10.0.0.1/24", "vethpod": "10.0.1.1/24", "vethpod2": "10.0.5.1/24"}
    node.ip("\n".join(f"address del {address} dev {interface}" for interface, address in addresses.items()))
    Driver(node, tmp_path).apply(FRONTENDS)
    rules = node.ruleset()
    assert any("-A USP-REDIRECT-0A -d 10.96.0.10/32" in line for line in rules)
    assert not any("USP-DNAT" in line for line in rules)
    assert node.bare_pod.dial("fd00:96::a", 80) == "[fd00:96::a]:80/TCP"


def test_auto_where_nothing_is_permitted_serves_on_loopback(node: Node, tmp_path: Path) -> None:
    """The reason is said, and a Service is found at its loopback address, on a port that may be bound."""
    before = node.ruleset()
    driver = Driver(node, tmp_path, "auto", prefix=NO_CAPABILITIES)
    assert driver.chosen["kind"] == "loopback"
    explained = driver.chosen["explained"]
    assert explained[0] == "steering iptables does not work here: not permitted (needs NET_ADMIN)"
    assert "steering loopback is used" in explained
    assert driver.apply(FRONTENDS[:1]) == {"10.96.0.10:80/TCP": "127.102.205.38:10080"}
    assert node.dial("127.102.205.38", 10080) == "10.96.0.10:80/TCP"
    assert driver.terminate() == 0
    assert node.ruleset() == before
    assert node.legacy_tables() == ""


def test_auto_where_there_is_no_command_goes_on_to_another_kind(node: Node, tmp_path: Path) -> None:
    """It says which command is missing, and serves the same addresses."""
    before = node.ruleset()
    driver = Driver(node, tmp_path, "auto", prefix=NO_PATH)
    assert driver.chosen["explained"][0] == (
        "steering iptables does not work here: iptables is not on PATH; ip6tables is not on PATH"
    )
    assert driver.chosen["kind"] == "local-route"
    driver.apply(FRONTENDS)
    assert node.pod.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"
    assert driver.terminate() == 0
    assert node.ruleset() == before


def test_auto_where_not_even_loopback_works_is_an_error(namespaces: None, tmp_path: Path) -> None:
    """A namespace whose lo is down serves nobody; both reasons are said."""
    with open_namespace("empty") as empty:
        driver = Driver(empty, tmp_path, "auto", prefix=NO_PATH)
        assert "loopback addresses cannot be used: Network is unreachable; is lo up?" in driver.chosen["error"]


def test_kind_asked_for_without_the_right_is_an_error(node: Node, tmp_path: Path) -> None:
    """Nothing else is taken in its place."""
    driver = Driver(node, tmp_path, "iptables", prefix=NO_CAPABILITIES)
    assert driver.chosen["error"] == (
        "--steering iptables does not work here: not permitted (needs NET_ADMIN); --steering auto finds what does"
    )


def test_cleanup_without_the_right_says_so(node: Node) -> None:
    """Not being able to look is not the same as nothing being there."""
    report = clean_up(node, prefix=NO_CAPABILITIES)
    assert report["removed"] == []
    assert "iptables-nft: rules cannot be looked at: not permitted (needs NET_ADMIN)" in report["failed"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_five_thousand_services_load_at_once(node: Node, tmp_path: Path, variant: str) -> None:
    """All go in by one transaction, with the last as reachable as the first."""
    node.add_foreign_rules(variant)
    frontends = [f"10.100.{number // 250}.{number % 250 + 1}:80" for number in range(5000)]
    driver = Driver(node, tmp_path)
    started = time.perf_counter()
    driver.apply(frontends)
    assert time.perf_counter() - started < 5  # 0.5 s on two idle cores
    assert node.bare_pod.dial("10.100.19.250", 80) == "10.100.19.250:80/TCP"

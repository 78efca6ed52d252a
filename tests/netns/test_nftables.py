"""nftables steering in the kernel: who gets where, what is put back, what of others' is touched."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from netns.nodes import Namespace, Node, open_node, wait_until
from netns.restriction_cases import ASKED, CASES, CLIENTS, NOT_OUTSIDE, POD_NETWORKS
from netns.steering_process import Asked, Driver, Sender, ask_all, clean_up

pytestmark = pytest.mark.netns

FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
OPEN, OPEN6 = "10.96.0.10:80", "[fd00:96::a]:80"
TABLES = ("ip userspace-proxy", "ip6 userspace-proxy")


def steer(node: Namespace, state_dir: Path, *, prefix: tuple[str, ...] = ()) -> Driver:
    """Return steering of a node by nftables."""
    return Driver(node, state_dir, "nftables", prefix=prefix)


def own_tables(node: Namespace) -> list[str]:
    """Return the tables of ours."""
    lines = node.run("nft", "list", "tables").stdout.splitlines()
    return [line.removeprefix("table ") for line in lines if "userspace-proxy" in line]


def led_to(node: Namespace, table: str = TABLES[0]) -> dict[str, int]:
    """Return where a table leads each address that it steers."""
    listed = json.loads(node.run("nft", "-j", "list", "map", *table.split(), "steered").stdout)
    (elements,) = (one["map"].get("elem", []) for one in listed["nftables"] if "map" in one)
    return {key["elem"]["val"]["concat"][0]: port for key, port in elements}


def packets(node: Namespace) -> dict[str, int]:
    """Return how many connections the IPv4 table has led away, by the comments of its elements."""
    listed = json.loads(node.run("nft", "-j", "list", "map", *TABLES[0].split(), "steered").stdout)
    (elements,) = (one["map"]["elem"] for one in listed["nftables"] if "map" in one)
    return {key["elem"]["comment"]: key["elem"]["counter"]["packets"] for key, _ in elements}


@pytest.fixture(scope="module")
def guarded_node(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with rules of others and all CASES in force; for tests that only dial."""
    with open_node() as made:
        made.add_foreign_rules("nft")
        made.add_foreign_tables()
        made.allow_all_icmp()
        driver = steer(made, tmp_path_factory.mktemp("state"))
        assert "error" not in driver.apply(ASKED, pod_networks=POD_NETWORKS)
        yield made


@FAMILIES
@pytest.mark.parametrize("client", CLIENTS)
def test_each_class_of_clients_is_served_dropped_or_refused(guarded_node: Node, client: str, family: int) -> None:
    """Who may not come in hears nothing, who asks for what is nowhere is refused, and the others are served."""
    expected = {case.target(family): case.outcome(client) for case in CASES}
    assert guarded_node.client(client).dial_all(expected) == expected
    assert ask_all(guarded_node.client(client), expected) == expected


@FAMILIES
@pytest.mark.parametrize("client", CLIENTS)
def test_proxy_port_is_closed_to_who_was_not_led_there(guarded_node: Node, client: str, family: int) -> None:
    """Whoever dials one directly is refused, whether others are kept away from it or not."""
    host = ("10.0.0.1", "[fd00::1]")[family]
    targets = [f"{host}:{port}" for port in set(led_to(guarded_node, TABLES[family]).values())]
    expected = dict.fromkeys(targets, "ConnectionRefusedError")
    assert guarded_node.client(client).dial_all(expected) == expected
    assert ask_all(guarded_node.client(client), expected) == expected


def test_other_ports_and_addresses_are_left_alone(guarded_node: Node) -> None:
    """A rule is for its address and port: the neighbours answer as they would without us."""
    targets = ["10.0.0.1:1002", "[fd00::1]:1102", "10.0.1.1:30005"]
    assert guarded_node.outside.dial_all(targets) == dict.fromkeys(targets, "ConnectionRefusedError")


def test_what_others_lead_to_a_node_port_is_not_taken_for_it(node: Node, tmp_path: Path) -> None:
    """Who was sent to the port from another address did not dial the NodePort."""
    rule = "-A PREROUTING -d 10.96.0.77/32 -p tcp --dport 80 -j DNAT --to-destination 10.0.0.1:30002"
    node.run("iptables-nft", "-t", "nat", *rule.split())
    steer(node, tmp_path).apply([Asked("0.0.0.0:30002", "node-port", serves=NOT_OUTSIDE)])
    expected = {"10.96.0.77:80": "served", "10.0.0.1:30002": "TimeoutError"}
    assert node.outside.dial_all(expected) == expected


def test_restriction_is_for_new_clients(node: Node, tmp_path: Path) -> None:
    """Who is served when source ranges come to exclude him stays served."""
    at = "203.0.113.20:53"
    driver = steer(node, tmp_path)
    driver.apply([Asked(at, "load-balancer", "UDP")])
    sender = Sender(node.outside, "203.0.113.20", 53)
    assert sender.send() == f"{at}/UDP"
    driver.apply([Asked(at, "load-balancer", "UDP", source_ranges=("10.0.1.0/24",))])
    assert ask_all(node.outside, [at]) == {at: "TimeoutError"}
    assert sender.send() == f"{at}/UDP"


def test_whole_life_leaves_the_ruleset_as_before(node: Node, tmp_path: Path) -> None:
    """Rules of others never change, a probe leaves nothing, and at the end there is no table of ours."""
    node.add_foreign_rules("nft")
    node.add_foreign_tables()
    before = node.ruleset()
    driver = steer(node, tmp_path)
    assert driver.chosen["explained"] == ["steering nftables is used"]
    assert node.ruleset() == before, "probing left something"
    driver.apply(ASKED, pod_networks=POD_NETWORKS)
    assert set(before) < set(node.ruleset())
    driver.apply([OPEN])
    assert driver.terminate() == 0
    assert node.ruleset() == before


def test_connections_are_counted_by_service_and_a_change_resets_none(node: Node, tmp_path: Path) -> None:
    """The counters are in the list of nft, under the name of the Service; others' changes are not a new table."""
    driver = steer(node, tmp_path)
    web, dns = Asked(OPEN, service="shop/web"), Asked("10.96.0.11:80", service="shop/dns")
    driver.apply([web])
    for client in CLIENTS:
        assert node.client(client).dial("10.96.0.10", 80)
    (name,) = packets(node)
    assert name.startswith("shop/web:")
    assert packets(node)[name] == len(CLIENTS)
    driver.apply([web, dns])
    counted = packets(node)
    assert (len(counted), counted[name]) == (2, len(CLIENTS))
    driver.apply([dns], pod_networks=POD_NETWORKS)
    assert name not in packets(node)


def rule_handle(node: Node, chain: str) -> str:
    """Return the handle of the first rule of a chain of ours."""
    listed = json.loads(node.run("nft", "-j", "list", "chain", *TABLES[0].split(), chain).stdout)
    return str(next(one["rule"]["handle"] for one in listed["nftables"] if "rule" in one))


def delete_rule(node: Node) -> None:
    """Delete the rule that guards proxy ports."""
    node.run("nft", "delete", "rule", *TABLES[0].split(), "direct", "handle", rule_handle(node, "direct"))


def replace_rule(node: Node) -> None:
    """Put another rule into the place of one of ours."""
    handle = rule_handle(node, "steer")
    node.run("nft", "replace", "rule", *TABLES[0].split(), "steer", "handle", handle, "counter")


def lead_elsewhere(node: Node) -> None:
    """Let an element lead to another port."""
    key = "10.96.0.10 . tcp . 80"
    node.run("nft", f"delete element {TABLES[0]} steered {{ {key} }}; add element {TABLES[0]} steered {{ {key} : 9 }}")


DAMAGE: dict[str, Callable[[Node], object]] = {
    "ruleset flushed": lambda node: node.run("nft", "flush", "ruleset"),
    "table deleted": lambda node: node.run("nft", "delete", "table", *TABLES[0].split()),
    "table flushed": lambda node: node.run("nft", "flush", "table", *TABLES[0].split()),
    "table dormant": lambda node: node.run("nft", f"add table {TABLES[0]} {{ flags dormant; }}"),
    "element removed": lambda node: node.run("nft", f"delete element {TABLES[0]} steered {{ 10.96.0.10 . tcp . 80 }}"),
    "element led elsewhere": lead_elsewhere,
    "element added": lambda node: node.run("nft", f"add element {TABLES[0]} proxy-ports {{ tcp . 22 }}"),
    "map flushed": lambda node: node.run("nft", "flush", "map", *TABLES[0].split(), "steered"),
    "chain flushed": lambda node: node.run("nft", "flush", "chain", *TABLES[0].split(), "steer"),
    "chain removed": lambda node: node.run("nft", f"delete chain {TABLES[0]} output"),
    "policy changed": lambda node: node.run("nft", f"chain {TABLES[0]} input {{ policy drop; }}"),
    "rule removed": delete_rule,
    "rule replaced": replace_rule,
    "rule added": lambda node: node.run("nft", f"insert rule {TABLES[0]} input drop"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_others_remove_or_change_is_put_back(node: Node, tmp_path: Path, damage: str) -> None:
    """Whatever they do to a table of ours is undone and counted, once; nothing else is touched."""
    driver = steer(node, tmp_path)
    driver.apply([OPEN, OPEN6, Asked("0.0.0.0:30002", "node-port", serves=NOT_OUTSIDE)])
    before = node.ruleset()
    DAMAGE[damage](node)
    repaired = {f"{family} nftables table" for family in ("IPv4", "IPv6")}
    expected = repaired if damage == "ruleset flushed" else {"IPv4 nftables table"}
    wait_until(lambda: driver.repairs() == dict.fromkeys(expected, 1))
    assert sorted(node.ruleset()) == sorted(before)
    assert node.outside.dial("10.96.0.10", 80) == f"{OPEN}/TCP"
    node.add_foreign_tables()
    assert node.outside.dial("10.96.0.10", 80) == f"{OPEN}/TCP"
    assert driver.repairs() == dict.fromkeys(expected, 1)


def test_counters_survive_the_repair_of_another_element(node: Node, tmp_path: Path) -> None:
    """What is missing is added to the table that is there."""
    driver = steer(node, tmp_path)
    driver.apply([OPEN, "10.96.0.11:80"])
    assert node.dial("10.96.0.11", 80)
    node.run("nft", f"delete element {TABLES[0]} steered {{ 10.96.0.10 . tcp . 80 }}")
    wait_until(lambda: driver.repairs() == {"IPv4 nftables table": 1})
    assert sorted(packets(node).values()) == [0, 1]


def test_table_is_looked_at_only_after_others_have_changed_something(node: Node, tmp_path: Path) -> None:
    """Neither idle time nor what we change ourselves runs a command; each change by others runs one per family."""
    directory, log = tmp_path / "bin", tmp_path / "log"
    directory.mkdir()
    nft = directory / "nft"
    nft.write_text(f'#!/bin/sh\necho "$*" >>{log}\nexec {shutil.which("nft")} "$@"\n')
    nft.chmod(0o755)

    def count_lists() -> int:
        return sum(" list table " in line for line in log.read_text().splitlines())

    driver = steer(node, tmp_path / "state", prefix=("env", f"PATH={directory}:{os.environ['PATH']}"))
    driver.apply([OPEN])
    at_start = count_lists()
    for number in range(1, 4):
        driver.apply([f"10.96.0.{number}:80", f"[fd00:96::{number}]:80"])
        assert node.outside.dial("10.96.0.99", 80, timeout_s=0.4) == "TimeoutError"  # as long as several refreshes
        assert count_lists() == at_start + 2 * (number - 1)
        node.run("nft", "add", "table", "ip", f"other{number}")
        wait_until(lambda: count_lists() >= at_start + 2 * number)  # noqa: B023 - called at once
    assert driver.repairs() == {}


def test_change_after_the_table_was_deleted_is_in_force_at_once(node: Node, tmp_path: Path) -> None:
    """What cannot be changed is written anew, with all that was asked for before."""
    driver = steer(node, tmp_path)
    driver.apply([OPEN])
    node.run("nft", "flush", "ruleset")
    assert "error" not in driver.apply([OPEN, "10.96.0.11:80"])
    assert {node.dial(address, 80) for address in ("10.96.0.10", "10.96.0.11")} == {f"{OPEN}/TCP", "10.96.0.11:80/TCP"}


def test_start_after_a_kill_takes_the_table_over_with_the_same_ports(node: Node, tmp_path: Path) -> None:
    """Without a file that remembers them they are read from the table; what is no longer asked for is gone."""
    first = steer(node, tmp_path / "one")
    taken = first.apply([OPEN, OPEN6, "10.96.0.11:80"])
    first.kill()
    assert own_tables(node) == list(TABLES)
    second = Driver(node, tmp_path / "two", "nftables", proxy_ports=(11000, 29999))  # by itself it would choose others
    assert own_tables(node) == list(TABLES)
    assert "error" not in second.apply([OPEN, OPEN6])
    assert led_to(node) == {"10.96.0.10": int(taken[f"{OPEN}/TCP"].rpartition(":")[2])}
    assert second.apply([OPEN, OPEN6])[f"{OPEN6}/TCP"] == taken[f"{OPEN6}/TCP"]
    assert node.outside.dial("10.96.0.10", 80) == f"{OPEN}/TCP"


def test_cleanup_after_a_kill_leaves_the_ruleset_as_before(node: Node, tmp_path: Path) -> None:
    """Both tables go, with that of a probe whose process was killed; a dry run only tells."""
    node.add_foreign_tables()
    before = node.ruleset()
    driver = steer(node, tmp_path)
    driver.apply([OPEN])
    driver.kill()
    node.run("nft", "add table ip6 userspace-proxy-probe-999999999")
    assert clean_up(node, dry_run=True)["removed"]
    assert len(own_tables(node)) == 3
    assert clean_up(node)["failed"] == []
    assert own_tables(node) == []
    assert node.ruleset() == before


def test_node_address_that_changes_is_followed(node: Node, tmp_path: Path) -> None:
    """Pods behind an interface without an address are led to one that the node has."""
    node.ip("address add 10.0.0.7/24 dev eth0")
    steer(node, tmp_path).apply([OPEN])
    assert node.bare_pod.dial("10.96.0.10", 80) == f"{OPEN}/TCP"
    node.ip("address delete 10.0.0.1/24 dev eth0\naddress add 10.0.0.8/24 dev eth0\nroute replace default via 10.0.0.2")
    wait_until(lambda: "dnat to 10.0.0.1:" not in node.run("nft", "list", "table", *TABLES[0].split()).stdout)
    assert node.bare_pod.dial("10.96.0.10", 80) == f"{OPEN}/TCP"


def test_interface_that_loses_its_address_is_followed(node: Node, tmp_path: Path) -> None:
    """What came by redirect comes by DNAT then."""
    steer(node, tmp_path).apply([OPEN])
    assert node.pod.dial("10.96.0.10", 80) == f"{OPEN}/TCP"
    node.set_sysctl("net/ipv4/conf/vethpod/proxy_arp", 1)
    node.set_sysctl("net/ipv4/neigh/vethpod/proxy_delay", 0)
    node.ip("address delete 10.0.1.1/24 dev vethpod\nroute add 10.0.1.2/32 dev vethpod")
    wait_until(lambda: '"vethpod"' not in node.run("nft", "list", "table", *TABLES[0].split()).stdout)
    assert node.pod.dial("10.96.0.10", 80) == f"{OPEN}/TCP"


def test_policy_that_drops_is_told_before_it_bites(node: Node, tmp_path: Path) -> None:
    """What our chain accepts, a chain of another table may drop still; so its owner has to let it through."""
    node.run("iptables-nft", "-P", "INPUT", "DROP")
    driver = steer(node, tmp_path)
    (sentence,) = (line for line in driver.chosen["explained"] if "policy" in line)
    assert sentence == (
        "the table ip filter drops by policy what no rule of it accepts: connections to Services are cut off unless it "
        "accepts those to ports 12000-29999 and to NodePorts"
    )
    driver.apply([OPEN])
    assert node.outside.dial("10.96.0.10", 80, timeout_s=0.7) == "TimeoutError"
    node.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "12000:29999", "-j", "ACCEPT")
    assert node.outside.dial("10.96.0.10", 80) == f"{OPEN}/TCP"


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (("setpriv", "--bounding-set=-all", "--inh-caps=-all"), "not permitted (needs NET_ADMIN)"),
        (("env", "PATH=/nonexistent"), "nft is not on PATH"),
    ],
)
def test_kind_that_does_not_work_here_says_why(
    node: Node, tmp_path: Path, prefix: tuple[str, ...], reason: str
) -> None:
    """It is asked for by name, so there is no other."""
    assert reason in steer(node, tmp_path, prefix=prefix).chosen["error"]


def nft_without(directory: Path, text: str) -> tuple[str, str]:
    """Return what runs a command with an nft that refuses all that has a text in it, as on a poorer kernel."""
    directory.mkdir()
    nft = directory / "nft"
    nft.write_text(
        "#!/bin/bash\n"
        f'[ "$1" = -f ] || exec {shutil.which("nft")} "$@"\n'
        f'told=$(cat); [[ $told == *"{text}"* ]] && {{ echo "Error: not in this kernel" >&2; exit 1; }}\n'
        f'exec {shutil.which("nft")} "$@" <<< "$told"\n'
    )
    nft.chmod(0o755)
    return "env", f"PATH={directory}:{os.environ['PATH']}"


def test_kernel_that_cannot_reject_steers_without_keeping_away(node: Node, tmp_path: Path) -> None:
    """It says so, and Listeners reset instead; a probe leaves nothing either way."""
    driver = steer(node, tmp_path / "state", prefix=nft_without(tmp_path / "bin", "reject with"))
    reason = "are reset, not dropped: nft: not in this kernel"
    assert [reason in line for line in driver.chosen["explained"]] == [False, True, True]
    assert own_tables(node) == []
    driver.apply([OPEN, Asked("0.0.0.0:30002", "node-port", serves=NOT_OUTSIDE)])
    assert node.outside.dial_all([OPEN, "10.0.0.1:30002"]) == {OPEN: "served", "10.0.0.1:30002": "served"}
    node.run("nft", "flush", "ruleset")
    wait_until(lambda: driver.repairs() == {"IPv4 nftables table": 1, "IPv6 nftables table": 1})
    assert node.outside.dial("10.96.0.10", 80) == f"{OPEN}/TCP"


def test_what_could_not_be_written_is_written_when_it_works_again(node: Node, tmp_path: Path) -> None:
    """The reason is told meanwhile; nobody has to ask for the Service again."""
    directory = tmp_path / "bin"
    driver = steer(node, tmp_path / "state", prefix=nft_without(directory, "10.96.0.11"))
    driver.apply([OPEN])
    error = driver.apply([OPEN, "10.96.0.11:80"])["error"]
    assert error == "IPv4 addresses of Services are not steered as they should be: nft: not in this kernel"
    assert node.outside.dial("10.96.0.10", 80) == f"{OPEN}/TCP"
    (directory / "nft").unlink()
    (directory / "nft").symlink_to(str(shutil.which("nft")))
    wait_until(lambda: "10.96.0.11" in led_to(node))
    assert node.outside.dial("10.96.0.11", 80) == "10.96.0.11:80/TCP"


def test_family_that_does_not_work_leaves_the_other_one(node: Node, tmp_path: Path) -> None:
    """Its addresses are not served, and the reason is told."""
    driver = steer(node, tmp_path / "state", prefix=nft_without(tmp_path / "bin", "table ip6 "))
    assert "IPv6 addresses of Services are not served: nft: not in this kernel" in driver.chosen["explained"]
    assert [*driver.apply([OPEN, OPEN6])] == [f"{OPEN}/TCP"]
    assert own_tables(node) == [TABLES[0]]


def test_ten_thousand_services_are_in_force_and_gone_again(node: Node, tmp_path: Path) -> None:
    """The last one answers, and so does one that is added to them."""
    asked = [
        Asked(f"10.{97 + number // 65536}.{number // 256 % 256}.{number % 256}:80", serves=(), service=f"a/s{number}")
        for number in range(10_000)
    ]
    driver = steer(node, tmp_path)
    assert "error" not in driver.apply(asked)
    assert len(led_to(node)) == 10_000
    assert "error" not in driver.apply([*asked, OPEN])
    assert node.outside.dial("10.96.0.10", 80) == f"{OPEN}/TCP"
    assert driver.terminate() == 0
    assert own_tables(node) == []


def test_services_too_many_for_one_transaction_are_in_force_all_the_same(node: Node, tmp_path: Path) -> None:
    """In a user namespace the kernel limits the length of a transaction: then it takes several."""
    asked = [
        Asked(f"10.97.{number // 256}.{number % 256}:80", serves=(), service=f"a/s{number}") for number in range(5000)
    ]
    driver = steer(node, tmp_path, prefix=("unshare", "--user", "--map-root-user", "--net"))
    assert len(driver.apply(asked)) == 5000
    assert driver.repairs() == {}
    inside = ("nsenter", "--preserve-credentials", "--user", "--net", "--target", str(driver._process.pid))
    listed = node.run(*inside, "nft", "list", "map", *TABLES[0].split(), "steered").stdout
    assert listed.count(" . tcp . 80 ") == 5000
    assert driver.terminate() == 0

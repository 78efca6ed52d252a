"""Steering by routes in the kernel: which routes there are, whose they are, and what becomes of them."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import backend
from cli_driver import service_object, slice_objects, write_manifests
from netns.node_run import NodeRun, start_backend
from netns.nodes import Node, open_namespace, open_node, wait_until
from netns.steering_process import Asked, Driver, ask_all, clean_up

pytestmark = pytest.mark.netns

KIND = "local-route"
FRONTENDS = ["10.96.0.10:80", "[fd00:96::a]:80"]
ROUTES = {
    "-4 route show table all local 10.96.0.10 dev lo table local proto 117 scope host src 10.0.0.1 metric 11717",
    "-6 route show table all local fd00:96::a dev lo table local proto 117 metric 11717 pref medium",
}
"""Those of FRONTENDS."""
CIDRS = ("10.96.0.0/12", "fd00:96::/112")
NO_PATH = ("env", "PATH=/nonexistent")
NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
NEEDED_RIGHTS = ("setpriv", "--bounding-set=-all,+net_admin,+net_bind_service", "--inh-caps=-all")

# Connects to ADDRESS PORT by both protocols and prints the addresses it has itself then.
_PRINT_OWN_ADDRESS = """
import socket, sys
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, kind) as client:
        client.connect((sys.argv[1], int(sys.argv[2])))
        print(client.getsockname()[0])
"""
# Misses what is told of routes because others write too many, then says in which families it has put something back.
_OVERFLOW = """
import subprocess
from ipaddress import ip_address
from userspace_proxy.steering.local_route.route_messages import prefix_of
from userspace_proxy.steering.local_route.route_table import RouteTable
table = RouteTable()
table.want(map(prefix_of, map(ip_address, ("10.96.0.10", "10.96.0.11", "fd00:96::a"))))
assert not table.settle()
batch = [f"route add 172.{16 + i // 50000}.{i // 250 % 200}.{i % 250} dev eth0 table 7" for i in range(20000)]
subprocess.run(["ip", "-batch", "-"], input="\\n".join(batch), text=True, check=True)
subprocess.run(["ip", "route", "del", "local", "10.96.0.11", "dev", "lo", "table", "local"], check=True)
table.follow()
print(*table.settle(), table.work)
table.close()
"""

# Has a route removed by others, and does not want it itself any more before it hears of that.
_GONE = """
import subprocess
from ipaddress import ip_address
from userspace_proxy.steering.local_route.route_messages import prefix_of
from userspace_proxy.steering.local_route.route_table import RouteTable
table = RouteTable()
gone, kept = (prefix_of(ip_address(text)) for text in ("10.96.0.10", "10.96.0.11"))
table.want([gone, kept])
table.settle()
subprocess.run(["ip", "route", "del", "local", "10.96.0.10", "dev", "lo", "table", "local"], check=True)
table.drop([gone])
print(*table.settle(), table.work)
table.follow()
print(*table.settle(), table.work)
table.close()
"""


@pytest.fixture
def own_routes(node: Node) -> Callable[[], set[str]]:
    """Return a function that returns what routes there are on the node besides those of now."""
    before = node.routes()
    return lambda: set(node.routes()).difference(before)


@pytest.fixture(scope="module", params=[pytest.param((), id="each address"), pytest.param(CIDRS, id="service CIDRs")])
def steered_node(
    namespaces: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node that is steered with a route for each address, or for all; for tests that only dial."""
    with open_node() as made:
        made.allow_all_icmp()
        driver = Driver(made, tmp_path_factory.mktemp("state"), KIND, service_cidrs=request.param)
        driver.apply([*FRONTENDS, *(Asked(one, protocol="UDP", service="shop/dns") for one in FRONTENDS)])
        yield made


@pytest.mark.parametrize("client", ["node", "pod", "bare pod", "outside"])
@pytest.mark.parametrize("frontend", FRONTENDS)
def test_cluster_address_is_reached(steered_node: Node, client: str, frontend: str) -> None:
    """By both protocols, whoever sends by way of the node; other ports are refused, as nobody listens there."""
    where = steered_node.client(client)
    closed = frontend.replace(":80", ":81")
    assert where.dial_all([frontend, closed]) == {frontend: "served", closed: "ConnectionRefusedError"}
    assert ask_all(where, [frontend, closed]) == {frontend: "served", closed: "ConnectionRefusedError"}


@pytest.mark.parametrize(("address", "own"), [("10.96.0.10", "10.0.0.1"), ("fd00:96::a", "fd00:")])
def test_node_dials_from_an_address_of_its_own(steered_node: Node, address: str, own: str) -> None:
    """Not from the very address it dials, by which nobody could tell that it is the node."""
    said = steered_node.run(sys.executable, "-c", _PRINT_OWN_ADDRESS, address, "80").stdout.split()
    assert len(said) == 2
    assert address not in said
    assert all(one.startswith(own) for one in said)


def test_whole_life_touches_nothing_but_own_routes(node: Node, tmp_path: Path) -> None:
    """Neither rules nor routes of others change, and at the end there is nothing else."""
    node.add_foreign_rules("nft")
    ruleset, routes = node.ruleset(), node.routes()
    driver = Driver(node, tmp_path, KIND)
    assert (node.ruleset(), node.routes()) == (ruleset, routes), "probing left something"
    assert "steering local-route is used" in driver.chosen["explained"]

    driver.apply(FRONTENDS)
    assert (node.ruleset(), set(node.routes()).symmetric_difference(routes)) == (ruleset, ROUTES)
    driver.apply(FRONTENDS[1:])
    assert len(node.routes()) == len(routes) + 1
    assert driver.repairs() == {}
    assert driver.terminate() == 0
    assert (node.ruleset(), node.routes()) == (ruleset, routes)


def test_address_that_several_services_share_has_its_route_until_the_last_goes(
    node: Node, own_routes: Callable[[], set[str]], tmp_path: Path
) -> None:
    """One of them alone keeps it."""
    driver = Driver(node, tmp_path, KIND)
    first, second = (Asked(f"192.0.2.1:{port}", "external-ip", service=f"shop/{port}") for port in (80, 81))
    driver.apply([first, second])
    shared = own_routes()
    assert len(shared) == 1
    driver.apply([second])
    assert own_routes() == shared
    driver.apply([])
    assert own_routes() == set()


def test_service_cidrs_have_one_route_each(node: Node, own_routes: Callable[[], set[str]], tmp_path: Path) -> None:
    """What is outside of them has its own."""
    driver = Driver(node, tmp_path, KIND, service_cidrs=CIDRS)
    driver.apply([*FRONTENDS, Asked("192.0.2.1:80", "external-ip")])
    assert sorted(line.split()[6] for line in own_routes()) == ["10.96.0.0/12", "192.0.2.1", "fd00:96::/112"]
    driver.apply([])
    assert sorted(line.split()[6] for line in own_routes()) == ["10.96.0.0/12", "fd00:96::/112"]


def test_service_cidr_that_has_the_nodes_own_network_gets_no_route(
    node: Node, own_routes: Callable[[], set[str]], tmp_path: Path
) -> None:
    """It would cut the node off; each address of a Service has its own then, also when that is found out later."""
    driver = Driver(node, tmp_path, KIND, service_cidrs=("10.0.0.0/8", CIDRS[1]))
    assert any(
        line.startswith("each address of a Service gets a route of its own, as one for all of 10.0.0.0/8 would take")
        for line in driver.chosen["explained"]
    )
    driver.apply(FRONTENDS)
    assert sorted(line.split()[6] for line in own_routes()) == ["10.96.0.10", "fd00:96::/112"]
    assert node.dial("10.0.0.2", 80) == "ConnectionRefusedError"
    assert node.dial("10.96.0.10", 80) == "10.96.0.10:80/TCP"

    node.ip("address add fd00:96::5555/120 dev eth0 nodad")
    wait_until(lambda: any(" local fd00:96::a " in line for line in node.routes()))
    assert not any(" local fd00:96::/112 " in line for line in node.routes())
    node.ip("address del fd00:96::5555/120 dev eth0")
    wait_until(lambda: any(" local fd00:96::/112 " in line for line in node.routes()))
    assert not any(" local fd00:96::a " in line for line in node.routes())


@pytest.mark.parametrize(
    ("damage", "repaired"),
    [
        ("ip route flush table local proto 117", {"IPv4 routes": 1}),
        ("ip -6 route flush table local proto 117", {"IPv6 routes": 1}),
        ("ip route del local 10.96.0.10 dev lo table local", {"IPv4 routes": 1}),
        ("ip route change local 10.96.0.10 dev lo table local proto 117 metric 11717", {"IPv4 routes": 1}),
        ("ip route replace blackhole 10.96.0.10 table local proto static metric 11717", {"IPv4 routes": 1}),
        ("ip -6 route replace blackhole fd00:96::a table local proto static metric 11717", {"IPv6 routes": 1}),
        ("ip link set lo down; ip link set lo up", {"IPv6 routes": 1}),
        (
            "echo 1 > /proc/sys/net/ipv6/route/skip_notify_on_dev_down; ip link set lo down; ip link set lo up",
            {"IPv6 routes": 1},
        ),
    ],
)
def test_what_others_change_is_put_back(
    node: Node, own_routes: Callable[[], set[str]], tmp_path: Path, damage: str, repaired: dict[str, int]
) -> None:
    """And counted once for each family."""
    driver = Driver(node, tmp_path, KIND)
    driver.apply(FRONTENDS)
    node.run("sh", "-c", damage)
    wait_until(lambda: driver.repairs() == repaired)
    assert own_routes() == ROUTES
    assert node.dial_all(FRONTENDS) == dict.fromkeys(FRONTENDS, "served")
    assert driver.repairs() == repaired


def test_news_that_were_missed_are_made_up_for_by_a_look(node: Node) -> None:
    """Where others change more routes than the kernel holds ready."""
    assert node.run(sys.executable, "-c", _OVERFLOW).stdout.split() == ["IPv4", "0"]


def test_route_that_is_gone_already_need_not_be_removed(node: Node) -> None:
    """Nor is that a repair."""
    assert node.run(sys.executable, "-c", _GONE).stdout.split() == ["0", "0"]


def test_node_address_that_changes_is_followed(node: Node, own_routes: Callable[[], set[str]], tmp_path: Path) -> None:
    """Also to 127.0.0.1 where there is none at all: never to the address of the Service. That is no repair."""
    driver = Driver(node, tmp_path, KIND)
    driver.apply(FRONTENDS[:1])
    node.ip("address del 10.0.0.1/24 dev eth0\naddress add 10.0.0.3/24 dev eth0")
    wait_until(lambda: any(" local 10.96.0.10 " in line and " src 10.0.0.3 " in line for line in own_routes()))
    for interface, address in (("eth0", "10.0.0.3/24"), ("vethpod", "10.0.1.1/24"), ("vethpod2", "10.0.5.1/24")):
        node.ip(f"address del {address} dev {interface}")
    wait_until(lambda: any(" local 10.96.0.10 " in line and " src 127.0.0.1 " in line for line in own_routes()))
    said = node.run(sys.executable, "-c", _PRINT_OWN_ADDRESS, "10.96.0.10", "80").stdout.split()
    assert said == ["127.0.0.1", "127.0.0.1"]
    assert driver.repairs() == {}


def test_address_that_the_node_gets_itself_stays_when_the_route_goes(node: Node, tmp_path: Path) -> None:
    """The kernel's route to it is another one than ours, and no damage to it."""
    driver = Driver(node, tmp_path, KIND)
    driver.apply(FRONTENDS)
    node.ip("address add 10.96.0.10/32 dev eth0\naddress add fd00:96::a/128 dev eth0 nodad")
    assert node.dial_all(FRONTENDS) == dict.fromkeys(FRONTENDS, "served")
    with_both = node.routes()
    assert driver.repairs() == {}
    assert driver.terminate() == 0
    assert set(with_both).difference(node.routes()) == ROUTES
    assert node.dial_all(FRONTENDS) == dict.fromkeys(FRONTENDS, "ConnectionRefusedError")


def test_start_after_a_kill_takes_the_routes_over(
    node: Node, own_routes: Callable[[], set[str]], tmp_path: Path
) -> None:
    """Those that are wanted still are never removed, those that are not are; also what we did not make so."""
    first = Driver(node, tmp_path, KIND)
    first.apply([*FRONTENDS, "10.96.0.11:80"])
    first.kill()
    node.ip("route add blackhole 10.96.0.12 table 7 proto 117")
    monitor = node.start("ip", "monitor", "route")
    second = Driver(node, tmp_path, KIND)
    second.apply(FRONTENDS)
    assert own_routes() == ROUTES
    assert second.repairs() == {}
    node.ip("route add 198.51.100.1 dev eth0")
    seen: list[str] = []
    assert monitor.stdout is not None
    while not (seen and "198.51.100.1" in seen[-1]):
        seen.append(monitor.stdout.readline())
    assert not [line for line in seen if "10.96.0.10" in line or "fd00:96::a" in line]


def test_cleanup_after_a_kill_removes_the_routes(node: Node, tmp_path: Path) -> None:
    """A dry run only says so, and a second cleanup has nothing to say."""
    before = node.routes()
    driver = Driver(node, tmp_path, KIND)
    driver.apply(FRONTENDS)
    driver.kill()
    found = ["route local 10.96.0.10 dev lo", "route local fd00:96::a dev lo"]
    assert clean_up(node, dry_run=True)["removed"] == found
    assert len(node.routes()) == len(before) + 2
    assert clean_up(node)["removed"] == found
    assert node.routes() == before
    assert clean_up(node)["removed"] == []


def test_route_that_cannot_be_added_does_not_stop_the_others(
    node: Node, own_routes: Callable[[], set[str]], tmp_path: Path
) -> None:
    """It is named with the reason, and added once it can be."""
    driver = Driver(node, tmp_path, KIND)
    node.set_sysctl("net/ipv6/conf/lo/disable_ipv6", 1)
    said = driver.apply([*FRONTENDS, "[fd00:96::b]:80"])
    assert re.fullmatch(
        r"not all routes are as they should be: local fd00:96::[ab] dev lo and 1 more: Permission denied",
        said["error"],
    )
    assert len(own_routes()) == 1
    node.set_sysctl("net/ipv6/conf/lo/disable_ipv6", 0)
    wait_until(lambda: len(own_routes()) == 3)


@pytest.mark.parametrize(
    ("prefix", "setting", "reason"),
    [
        pytest.param(NO_CAPABILITIES, "", "not permitted (needs NET_ADMIN)", id="no right"),
        pytest.param((), "link set lo down", "lo is down", id="no lo"),
    ],
)
def test_kind_that_does_not_work_here_says_why(
    namespaces: None, tmp_path: Path, prefix: tuple[str, ...], setting: str, reason: str
) -> None:
    """One reason for both families."""
    with open_namespace("empty") as empty:
        empty.ip(f"link set lo up\n{setting}")
        driver = Driver(empty, tmp_path, KIND, prefix=prefix)
        assert driver.chosen["error"] == (
            f"--steering local-route does not work here: {reason}; --steering auto finds what does"
        )


def test_family_that_is_disabled_is_left_out(node: Node, own_routes: Callable[[], set[str]], tmp_path: Path) -> None:
    """The other one is served."""
    node.set_sysctl("net/ipv6/conf/lo/disable_ipv6", 1)
    driver = Driver(node, tmp_path, KIND, service_cidrs=CIDRS[1:])
    assert "IPv6 addresses of Services are not served: IPv6 is disabled on lo" in driver.chosen["explained"]
    assert driver.apply(FRONTENDS) == {"10.96.0.10:80/TCP": "10.96.0.10:80"}
    assert len(own_routes()) == 1


def test_auto_without_any_command_takes_routes(node: Node, tmp_path: Path) -> None:
    """They need no command, and no right but NET_ADMIN, and that to bind the ports of the Services."""
    driver = Driver(node, tmp_path, "auto", prefix=(*NEEDED_RIGHTS, *NO_PATH))
    assert "steering local-route is used" in driver.chosen["explained"]
    driver.apply(FRONTENDS)
    assert node.bare_pod.dial_all(FRONTENDS) == dict.fromkeys(FRONTENDS, "served")


def test_programs_on_all_addresses_are_named(node: Node, tmp_path: Path) -> None:
    """They are reached at the addresses of Services, too."""
    program = node.start(sys.executable, "-c", "import socket; s = socket.create_server(('', 7022)); print(); input()")
    assert program.stdout is not None
    program.stdout.readline()
    explained = Driver(node, tmp_path, KIND).chosen["explained"]
    assert re.search(r"reached at every address of a Service, too: python\S* \(pid \d+\) at 7022/TCP", explained[-1])


def test_addresses_of_the_nodes_networks_are_refused_with_a_sentence(node: Node, tmp_path: Path) -> None:
    """Nobody's place is taken, on the link or as the gateway; what the node has itself is served, also later."""
    node.ip("route add 198.51.100.0/24 dev eth0")
    before = node.routes()
    web = service_object(cluster_ips=["10.96.0.10", "fd00:96::a"], port=80)
    web["spec"]["externalIPs"] = ["10.0.0.77", "fd00::77", "10.0.0.1", "198.51.100.7"]
    gateway = service_object("shop/gateway", cluster_ips=["10.0.0.2"], port=80)
    slices = [*slice_objects("shop/web", backend("10.0.1.2:8080"), backend("[fd00:1::2]:8080"))]
    start_backend(node.pod, "pod")
    write_manifests(tmp_path / "shop.yaml", [web, gateway, *slices])
    run = NodeRun(node, tmp_path, steering=KIND)
    assert "is not served at 10.0.0.77:80/TCP: that is in 10.0.0.0/24, the network on eth0, where this node" in run.log
    assert "is not served at [fd00::77]:80/TCP: that is in fd00::/64, the network on eth0, where this node" in run.log
    assert "is not served at 10.0.0.2:80/TCP: that is the default gateway of this node" in run.log
    assert {line.split()[6] for line in set(node.routes()).difference(before)} == {"10.96.0.10", "fd00:96::a"}
    targets = ["10.0.0.77:80", "198.51.100.7:80", "10.0.0.1:80"]
    outcomes = node.outside.dial_all(targets)
    assert (outcomes.pop("10.0.0.1:80"), "served" in outcomes.values()) == ("served", False)

    node.ip("address add 10.0.0.77/32 dev eth0")
    wait_until(lambda: node.outside.dial_all(targets[:1]) == {targets[0]: "served"})
    node.ip("route del 198.51.100.0/24 dev eth0")
    wait_until(lambda: node.outside.dial_all(targets[1:2]) == {targets[1]: "served"})
    assert run.terminate() == 0
    node.ip("address del 10.0.0.77/32 dev eth0\nroute add 198.51.100.0/24 dev eth0")
    assert node.routes() == before


@pytest.mark.slow
def test_ten_thousand_services_load_at_once(node: Node, tmp_path: Path) -> None:
    """The last is as reachable as the first, and none of our own changes counts as a repair."""
    before = node.routes()
    frontends = [
        Asked(f"10.100.{number // 250}.{number % 250 + 1}:80", serves=(), is_refused=True, service=f"shop/{number}")
        for number in range(10000)
    ]
    driver = Driver(node, tmp_path, KIND)
    driver.apply(frontends[:-1])
    started = time.perf_counter()
    driver.apply([*frontends[:-1], "10.100.39.250:80"])
    assert time.perf_counter() - started < 5  # most of it is the driver's own
    assert node.bare_pod.dial("10.100.39.250", 80) == "10.100.39.250:80/TCP"
    assert driver.repairs() == {}
    assert driver.terminate() == 0
    assert node.routes() == before

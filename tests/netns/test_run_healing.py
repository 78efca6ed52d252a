"""The real command while others remove what it has put into the kernel: it is put back, and nothing else is touched.

What a command leaves of the other proxy's rules is seen on a twin of the node, where nobody puts anything back.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial

import pytest
from attrs import frozen
from builders import backend
from cli_driver import service_object, slice_objects, write_manifests
from netns.kinds import KINDS, add_foreign_rules
from netns.node_run import NodeRun, start_backend, wait_until
from netns.nodes import Namespace, Node, open_node

pytestmark = [pytest.mark.netns, pytest.mark.slow]

REPAIRED_WITHIN_S = 5.0
CLUSTER_IPS = ["10.96.0.10", "fd00:96::a"]
WEB = service_object(cluster_ips=CLUSTER_IPS, port=80)
ECHO = service_object("shop/echo", cluster_ips=["10.96.0.11", "fd00:96::b"], port=7)
OBJECTS = [
    *(WEB, *slice_objects("shop/web", backend("10.0.1.2:8080"), backend("[fd00:1::2]:8080"))),
    *(ECHO, *slice_objects("shop/echo", backend("10.0.1.2:9000"), backend("[fd00:1::2]:9000"))),
]

# Says to each of its clients what it says.
_ECHO = """
import select, socket
with socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
    print("listening", flush=True)
    clients = [listening]
    while True:
        for ready in select.select(clients, [], [])[0]:
            if ready is listening:
                clients.append(listening.accept()[0])
            elif said := ready.recv(100):
                ready.sendall(said)
            else:
                clients.remove(ready)
"""
# Connects once, and then sends what it reads and prints what comes.
_TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7), timeout=20) as client:
    for line in sys.stdin:
        client.sendall(line.encode())
        print(client.recv(100).decode(), end="", flush=True)
"""
# Connects over and over, and says how often it was served so far when it reads a line.
_CONNECT_ON_AND_ON = """
import select, socket, sys
served = 0
while True:
    try:
        with socket.create_connection((sys.argv[1], 80), timeout=0.2) as client:
            served += client.recv(100) == b"pod"
    except OSError:
        pass
    if select.select([sys.stdin], [], [], 0.01)[0] and sys.stdin.readline():
        print(served, flush=True)
"""

# Shell commands of others, by what they do; IPV4 and IPV6 are the commands of one variant of iptables.
_IPTABLES_DAMAGE = {
    "filter flushed": "IPV4 -F; IPV4 -X; IPV6 -F; IPV6 -X",
    "nat flushed": "IPV4 -t nat -F; IPV4 -t nat -X; IPV6 -t nat -F; IPV6 -t nat -X",
    "jump of OUTPUT removed": "IPV4 -t nat -D OUTPUT -j USP-REDIRECT",
    "IPv6 jump of PREROUTING removed": "IPV6 -t nat -D PREROUTING -j USP-PREROUTING",
    "jump of INPUT removed": "IPV4 $(IPV4-save -t filter | grep -m1 -e '^-A INPUT .*-j USP-' | sed 's/^-A/-D/')",
    "rule of a Service removed": "IPV6 -t nat $(IPV6-save -t nat | grep -m1 -e 'fd00:96::a/128' | sed 's/^-A/-D/')",
}
_FLUSH = {"ruleset flushed": "nft flush ruleset"}
_OWN_TABLE = "userspace-proxy"
DAMAGE: Mapping[str, Mapping[str, str]] = {
    "iptables-nft": _IPTABLES_DAMAGE | _FLUSH,
    "iptables-legacy": _IPTABLES_DAMAGE,
    "nftables": {
        **_FLUSH,
        "table deleted": f"nft delete table ip6 {_OWN_TABLE}",
        "element deleted": f"nft delete element ip {_OWN_TABLE} steered '{{ 10.96.0.10 . tcp . 80 }}'",
        "chain flushed": f"nft flush chain ip {_OWN_TABLE} output",
    },
    "local-route": {
        "routes flushed": " ".join(
            f"ip {family} route flush root {network} table local;"
            for family, network in (("-4", "10.96.0.0/16"), ("-6", "fd00:96::/64"))
        ),
        "route deleted": "ip route del local 10.96.0.10 dev lo table local",
        "IPv6 route deleted": "ip -6 route del local fd00:96::a dev lo table local",
    },
}


class OpenConnection:
    """A connection to Service shop/echo."""

    def __init__(self, client: Namespace, address: str) -> None:
        self._process = client.start(sys.executable, "-c", _TALK, address)

    def talks(self) -> bool:
        """Tell whether bytes go there and back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("hello\n")
        return self._process.stdout.readline() == "hello\n"


@frozen
class Healing:
    """A run on a node where others remove what it needs."""

    kind: str
    node: Node
    twin: Node
    """It has the other proxy's rules, too, and no run."""
    run: NodeRun
    own: frozenset[str]
    """What the run has put into the kernel."""
    open: tuple[OpenConnection, ...]

    def damage(self, command: str) -> None:
        """Have others do something, on the twin too."""
        variant = KINDS[self.kind].iptables
        text = command.replace("IPV4", f"iptables-{variant}").replace("IPV6", f"ip6tables-{variant}")
        for each in (self.node, self.twin):  # it fails where nothing of ours is there, or no more
            each.run("sh", "-c", text, check=False)

    def is_healed(self) -> bool:
        """Tell whether all of our own is there, and of others what is on the twin."""
        return in_force(self.node) == in_force(self.twin) | self.own

    def repairs(self) -> int:
        """Return how often something was put back."""
        return self.run.metric("userspace_proxy_steering_repairs_total")

    def has_repaired_since(self, repairs: int) -> bool:
        """Tell whether something was put back since there were so many repairs."""
        return self.repairs() > repairs


def in_force(node: Node) -> frozenset[str]:
    """Return all rules, and those routes that lead to Services.

    Not in which chains and tables the rules are: an empty one may stay. Other routes have addresses of this node only.
    """
    rules = (line for line in node.ruleset() if not re.search(r' :[A-Z]+ ACCEPT$|^{"(table|chain)"', line))
    return frozenset([*rules, *(route for route in node.routes() if "10.96." in route or "fd00:96:" in route)])


@pytest.fixture(scope="module", params=DAMAGE)
def healing(
    namespaces: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Healing]:
    """Serve two Services on a node, with open connections to one of them."""
    kind = KINDS[request.param]
    directory = tmp_path_factory.mktemp("shop")
    write_manifests(directory / "shop.yaml", OBJECTS)
    with open_node() as node, open_node() as twin:
        for each in (node, twin):
            add_foreign_rules(each, kind)
        before = in_force(node)
        start_backend(node.pod, "pod")
        echo = node.pod.start(sys.executable, "-c", _ECHO)
        assert echo.stdout is not None
        assert echo.stdout.readline() == "listening\n"
        run = NodeRun(node, directory, "--drain-timeout", "0", steering=kind.steering)
        assert in_force(twin) == before
        clients = ((node, "10.96.0.11"), (node.bare_pod, "10.96.0.11"), (node.outside, "fd00:96::b"))
        connections = tuple(OpenConnection(client, address) for client, address in clients)
        assert all(each.talks() for each in connections)
        yield Healing(request.param, node, twin, run, in_force(node) - before, connections)
        assert run.terminate() == 0
        assert in_force(node) == in_force(twin)


def test_what_others_remove_is_put_back(healing: Healing) -> None:
    """Within seconds, and counted; new clients are served again, those connected before go on."""
    for name, command in DAMAGE[healing.kind].items():
        assert healing.is_healed(), f"before {name}"
        repairs = healing.repairs()
        healing.damage(command)
        damaged_s = time.monotonic()
        wait_until(healing.is_healed)
        assert time.monotonic() - damaged_s < REPAIRED_WITHIN_S, name
        wait_until(partial(healing.has_repaired_since, repairs))
        for client in (healing.node, healing.node.pod, healing.node.bare_pod, healing.node.outside):
            assert [client.dial(address, 80) for address in CLUSTER_IPS] == ["pod", "pod"], name
        assert all(each.talks() for each in healing.open), name


def test_storm_of_removals_ends_well(healing: Healing) -> None:
    """All of it over and over, while clients connect: the run lives, and when it is over all is there again."""
    client = healing.node.pod.start(sys.executable, "-c", _CONNECT_ON_AND_ON, CLUSTER_IPS[0])
    assert client.stdin is not None
    assert client.stdout is not None

    def served() -> int:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("\n")
        return int(client.stdout.readline())

    wait_until(lambda: served() > 0)
    commands = DAMAGE[healing.kind].values()
    for command in (*commands, *commands, *commands):
        healing.damage(command)
    wait_until(healing.is_healed)
    before = served()
    wait_until(lambda: served() > before)
    assert all(each.talks() for each in healing.open)
    assert healing.run.process.poll() is None
    assert "Traceback" not in healing.run.log

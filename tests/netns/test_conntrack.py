"""UDP under iptables steering: clients that keep their port go where rules lead now, and are told of what is closed."""

import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns.nodes import Namespace, Node, open_node, wait_until
from netns.steering_process import Asked, Driver, Sender, ask_all

pytestmark = pytest.mark.netns

DNS = ("10.96.0.10", "fd00:96::a")
"""A cluster address, in both families."""
OTHER = ("10.96.0.11", "fd00:96::b")
FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
CLIENTS = ("node", "pod", "bare pod", "outside")
SILENCE = "TimeoutError"
QUICK_S = 0.3
"""For answers that are not to come."""

NET_ADMIN_WHEN_RUN = struct.pack("<5I", 0x02000001, 1 << 12 | 1 << 13, 0, 0, 0)
"""struct vfs_cap_data, revision 2: CAP_NET_ADMIN and CAP_NET_RAW, in effect. Source: capabilities(7)."""
_FOREIGN = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as bound:
    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    bound.bind(("::", int(sys.argv[1])))
    print("bound", flush=True)
    while True:
        _, led_to, _, client = bound.recvmsg(1500, 100)
        bound.sendmsg([b"foreign"], led_to, 0, client)
"""


@pytest.fixture
def node(namespaces: None) -> Iterator[Node]:
    """A node that tracks connections and counts their packets, as a node with another proxy does."""
    with open_node() as made:
        made.add_foreign_rules("nft")
        made.set_sysctl("net/netfilter/nf_conntrack_acct", 1)
        made.allow_all_icmp()
        yield made


def udp(address: str, port: int = 53) -> Asked:
    """Return the UDP Frontend of an address."""
    return Asked(at(address, port), protocol="UDP")


def at(address: str, port: int = 53) -> str:
    """Return ``address:port`` or ``[address]:port``."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def entries(node: Node, *words: str) -> list[str]:
    """Return the entries of conntrack that have all of some words, as ``udp`` or ``sport=40000``."""
    listed = node.run("cat", "/proc/net/nf_conntrack").stdout.splitlines()
    return [line for line in listed if set(words) <= set(line.split())]


def proxy_port(applied: dict[str, str], address: str) -> str:
    """Return the port a UDP Frontend is led to."""
    return applied[f"{at(address)}/UDP"].rpartition(":")[2]


@FAMILIES
@pytest.mark.parametrize("client", CLIENTS)
def test_sender_that_came_before_the_rule_is_led_by_it_at_once(
    node: Node, tmp_path: Path, client: str, family: int
) -> None:
    """What it has sent into the void until then does not bind it to that; it does not have to pause."""
    driver = Driver(node, tmp_path)
    driver.apply([udp(OTHER[family])])
    sender = Sender(node.client(client), DNS[family], 53)
    assert sender.send(timeout_s=QUICK_S) == SILENCE
    assert entries(node, "udp", f"sport={sender.port}", "[UNREPLIED]")
    driver.apply([udp(DNS[family])])
    assert sender.send() == f"{at(DNS[family])}/UDP"


@FAMILIES
def test_sender_follows_its_service_to_another_proxy_port(node: Node, tmp_path: Path, family: int) -> None:
    """Where the killed run had it, a foreign program listens now."""
    first = Driver(node, tmp_path)
    applied = first.apply([udp(DNS[family])])
    senders = [Sender(node.client(client), DNS[family], 53) for client in CLIENTS]
    assert [sender.send() for sender in senders] == [f"{at(DNS[family])}/UDP"] * len(CLIENTS)
    first.kill()
    start_foreign(node, proxy_port(applied, DNS[family]))
    assert [sender.send() for sender in senders] == ["foreign"] * len(CLIENTS)

    again = Driver(node, tmp_path).apply([udp(DNS[family])])
    assert proxy_port(again, DNS[family]) != proxy_port(applied, DNS[family])
    assert [sender.send() for sender in senders] == [f"{at(DNS[family])}/UDP"] * len(CLIENTS)


@FAMILIES
def test_sender_to_a_service_that_is_gone_reaches_no_other(node: Node, tmp_path: Path, family: int) -> None:
    """Another Service has its proxy port now, and would get its datagrams."""
    driver = Driver(node, tmp_path, proxy_ports=(20000, 20000))
    driver.apply([udp(DNS[family])])
    sender = Sender(node.pod, DNS[family], 53)
    assert sender.send() == f"{at(DNS[family])}/UDP"
    driver.apply([])
    assert proxy_port(driver.apply([udp(OTHER[family])]), OTHER[family]) == "20000"
    assert sender.send(timeout_s=QUICK_S) == SILENCE
    assert Sender(node.pod, OTHER[family], 53).send() == f"{at(OTHER[family])}/UDP"


@FAMILIES
def test_entry_that_is_right_stays_over_changes_and_a_restart(node: Node, tmp_path: Path, family: int) -> None:
    """Neither other Services nor a run that takes over with the same proxy ports break off what goes on."""
    first = Driver(node, tmp_path)
    first.apply([udp(DNS[family])])
    senders = [Sender(node.client(client), DNS[family], 53) for client in CLIENTS]
    assert {sender.send() for sender in senders} == {f"{at(DNS[family])}/UDP"}
    first.apply([udp(DNS[family]), udp(OTHER[family])])
    first.kill()
    second = Driver(node, tmp_path)
    second.apply([udp(OTHER[family]), udp(DNS[family])])
    assert {sender.send() for sender in senders} == {f"{at(DNS[family])}/UDP"}
    for sender in senders:
        (entry,) = entries(node, "udp", f"sport={sender.port}", "packets=2")
        assert entry.count("packets=2") == 2


@FAMILIES
def test_what_a_killed_run_led_here_is_gone_with_the_first_apply(node: Node, tmp_path: Path, family: int) -> None:
    """The next run does not know its Services any more, only which ports were for them."""
    first = Driver(node, tmp_path)
    applied = first.apply([udp(DNS[family])])
    sender = Sender(node.pod, DNS[family], 53)
    assert sender.send() == f"{at(DNS[family])}/UDP"
    first.kill()
    assert entries(node, "udp", f"sport={proxy_port(applied, DNS[family])}")
    Driver(node, tmp_path).apply([])
    assert not entries(node, "udp", f"sport={sender.port}")


def test_sender_follows_when_the_address_it_was_led_to_is_gone(node: Node, tmp_path: Path) -> None:
    """Rules lead to addresses of the node; one that gets another keeps its clients."""
    Driver(node, tmp_path).apply([udp(DNS[0])])
    sender = Sender(node.outside, DNS[0], 53)
    assert sender.send() == f"{at(DNS[0])}/UDP"
    node.ip("address del 10.0.0.1/24 dev eth0\naddress add 10.0.0.3/24 dev eth0")
    node.outside.ip("route replace default via 10.0.0.3")
    wait_until(lambda: sender.send(timeout_s=QUICK_S) == f"{at(DNS[0])}/UDP")


def test_entries_follow_rules_that_could_be_written_only_later(node: Node, tmp_path: Path) -> None:
    """As long as the old ones are in force so are the entries they make, and after that none is left."""
    commands, broken = tmp_path / "bin", tmp_path / "broken"
    commands.mkdir()
    script = commands / "iptables-nft-restore"
    script.write_text(f'#!/bin/sh\n[ -e {broken} ] && exit 4\nexec {shutil.which(script.name)} "$@"\n')
    script.chmod(0o755)
    driver = Driver(node, tmp_path, prefix=("env", f"PATH={commands}:{os.environ['PATH']}"))
    driver.apply([udp(DNS[0])])
    sender = Sender(node.pod, DNS[0], 53)
    sender.send()
    broken.touch()
    assert "IPv4 addresses of Services are not steered as they should be" in driver.apply([])["error"]
    sender.send(timeout_s=QUICK_S)
    broken.unlink()
    wait_until(lambda: not entries(node, "udp", f"sport={sender.port}"))


@FAMILIES
def test_close_removes_what_was_led_to_a_proxy_port(node: Node, tmp_path: Path, family: int) -> None:
    """Whoever steers these addresses next gets the datagrams of those who never pause, too."""
    driver = Driver(node, tmp_path)
    driver.apply([udp(DNS[family])])
    sender = Sender(node.pod, DNS[family], 53)
    assert sender.send() == f"{at(DNS[family])}/UDP"
    assert driver.terminate() == 0
    assert not entries(node, "udp", f"sport={sender.port}")
    assert sender.send(timeout_s=QUICK_S) == SILENCE


def test_entries_of_others_and_of_tcp_are_left_alone(node: Node, tmp_path: Path) -> None:
    """What others lead somewhere stays, what goes to a local port of our range undiverted, and all connections."""
    start_foreign(node.pod, "20053")
    start_foreign(node, "20001")
    rule = "-A PREROUTING -d 10.96.0.77/32 -p udp --dport 53 -j DNAT --to-destination 10.0.1.2:20053"
    node.run("iptables-nft", "-t", "nat", *rule.split())
    others = [Sender(node.outside, "10.96.0.77", 53), Sender(node.outside, "10.0.0.1", 20001)]
    assert [sender.send() for sender in others] == ["foreign"] * 2

    driver = Driver(node, tmp_path)
    driver.apply([udp(DNS[0]), at(DNS[0], 80)])
    assert node.pod.dial(DNS[0], 80) == f"{at(DNS[0], 80)}/TCP"
    connections = entries(node, "tcp", f"dst={DNS[0]}", "dport=80")
    assert len(connections) == 1
    driver.apply([udp(DNS[0], 54)])
    assert driver.terminate() == 0
    assert len(entries(node, "tcp", f"dst={DNS[0]}", "dport=80")) == 1
    assert [sender.send() for sender in others] == ["foreign"] * 2
    for sender in others:
        assert entries(node, "udp", f"sport={sender.port}", "packets=2")


def test_entry_in_another_zone_is_removed(node: Node, tmp_path: Path) -> None:
    """Rules of others may put what comes from pods into a zone of its own; entries are told apart by it."""
    node.run("iptables-nft", "-t", "raw", "-A", "PREROUTING", "-i", "vethpod", "-j", "CT", "--zone", "7")
    driver = Driver(node, tmp_path)
    driver.apply([udp(OTHER[0])])
    sender = Sender(node.pod, DNS[0], 53)
    assert sender.send(timeout_s=QUICK_S) == SILENCE
    assert entries(node, "udp", f"sport={sender.port}", "zone=7")
    driver.apply([udp(DNS[0])])
    assert not entries(node, "udp", f"sport={sender.port}")


def test_without_the_right_it_is_said_once_and_rules_work_all_the_same(node: Node, tmp_path: Path) -> None:
    """Here only the commands have the right to change anything: clients that come anew are served."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("iptables-nft", "ip6tables-nft"):
        for command in (f"{name}-save", f"{name}-restore"):
            found = shutil.which(command)
            assert found is not None
            shutil.copy(found, commands / command)
            os.setxattr(commands / command, "security.capability", NET_ADMIN_WHEN_RUN)
    without = ("setpriv", "--securebits", "+noroot", "--inh-caps=-all", "env", f"PATH={commands}")
    with (tmp_path / "log").open("w+") as log:
        driver = Driver(node, tmp_path, prefix=without, stderr=log)
        assert driver.chosen["kind"] == "iptables"
        driver.apply([at(DNS[0], 80)])
        log.seek(0)
        assert log.read() == "", "there is nothing to lose without UDP"
        early = Sender(node.pod, DNS[0], 53)
        assert early.send(timeout_s=QUICK_S) == SILENCE
        driver.apply([udp(DNS[0]), udp(DNS[1])])
        driver.apply([udp(DNS[0]), udp(DNS[1]), udp(OTHER[0])])
        assert Sender(node.pod, DNS[0], 53).send() == f"{at(DNS[0])}/UDP"
        assert early.send(timeout_s=QUICK_S) == SILENCE
        assert driver.terminate() == 0
        log.seek(0)
        assert log.read() == (
            "UDP clients that never pause may stay where they were led before a Service changed: their entries in "
            "conntrack cannot be removed; give CAP_NET_ADMIN, and load nf_conntrack_netlink\n"
        )


@FAMILIES
@pytest.mark.parametrize("client", CLIENTS)
def test_closed_listener_is_told_in_the_name_of_the_cluster_address(
    node: Node, tmp_path: Path, client: str, family: int
) -> None:
    """The kernel's ICMP message comes from the proxy port and reaches the client as if from where it had sent to."""
    refused, open_ = Asked(at(DNS[family]), protocol="UDP", serves=(), is_refused=True), udp(OTHER[family])
    Driver(node, tmp_path).apply([refused, open_])
    expected = {refused.at: "ConnectionRefusedError", open_.at: "served"}
    assert ask_all(node.client(client), expected) == expected


def start_foreign(node: Namespace, port: str) -> None:
    """Start a foreign program that answers datagrams at a port of all addresses."""
    process = node.start(sys.executable, "-I", "-S", "-c", _FOREIGN, port)
    assert process.stdout is not None
    assert process.stdout.readline() == "bound\n"

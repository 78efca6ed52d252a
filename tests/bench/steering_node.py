"""The node of ``steering_scale.py``: its network namespaces, and what the kernel there holds of each kind of steering.

Entry points: ``node``, ``KINDS``, ``Kind``.
"""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from apiserver.scale import cluster_ip
from attrs import frozen

from userspace_proxy.model.names import Family
from userspace_proxy.steering.ruleset_state import read_generation, read_legacy_table

NODE = """\
link set lo up
link add pod0 type veth peer name eth0 netns {name}-pod
address add 198.51.100.1/24 dev pod0
link set pod0 up
link add eth0 type veth peer name eth0 netns {name}-out
address add 192.0.2.2/24 dev eth0
link set eth0 up
route add default via 192.0.2.1
route add local 10.244.0.0/15 dev lo
"""
"""All addresses of backends are local."""
POD = """\
link set lo up
address add 198.51.100.2/24 dev eth0
link set eth0 up
route add default via 198.51.100.1
"""
OUTSIDE = """\
link set lo up
address add 192.0.2.1/24 dev eth0
link set eth0 up
route add local 10.97.0.0/16 dev lo
"""
"""It refuses at once what is not steered: who looks for the first connection that works need not wait for time-outs."""

_RULE = re.compile(r"^-A (?P<chain>\S+) (?P<matches>.*?)\s?-[jg] (?P<target>\S+)(?P<options>.*)$")
_TO_ADDRESS = re.compile(r"-d ([\d.]+)/32 ")
_PROXY_PORT = re.compile(r"--to-ports (\d+)")
_AT_PORT = re.compile(r"--dport (\d+)(?!:|\d)")


@contextmanager
def node() -> Iterator[str]:
    """Make the network namespaces of a node, of a pod on it, and of what is outside; yields the name of the first.

    That of the pod has ``-pod`` behind it.
    """
    name = f"usp-bench-{os.getpid()}"
    with ExitStack() as stack:
        for each in (name, f"{name}-pod", f"{name}-out"):
            subprocess.run(["ip", "netns", "add", each], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "delete", each], check=True)
        for each, commands in ((name, NODE), (f"{name}-pod", POD), (f"{name}-out", OUTSIDE)):
            subprocess.run(["ip", "-n", each, "-batch", "-"], input=commands.format(name=name), text=True, check=True)
        yield name


@frozen
class Kind:
    """A kind of steering under measurement."""

    steering: str
    """As ``--steering`` has it."""
    prefix: str = ""
    """Of the commands that its programs are to be limited to; empty: it is limited to none."""
    foreign: tuple[str, ...] = ()
    """Commands that change something that is not ours, and change it back."""
    flush: tuple[str, ...] = ()
    """Commands that remove all rules or routes of ours."""

    def commands(self, lines: Iterable[str]) -> list[list[str]]:
        """Return commands as lists, each with the path of its program."""
        return [[_find(program), *rest] for program, *rest in (line.split() for line in lines)]

    def environment(self, folder: Path) -> Mapping[str, str]:
        """Return an environment in which only its commands are found, by links in a folder."""
        if not self.prefix:
            return os.environ
        commands = folder / "commands"
        commands.mkdir()
        for family in ("iptables", "ip6tables"):
            for command in (f"{family}-{self.prefix}{ending}" for ending in ("", "-save", "-restore")):
                (commands / command).symlink_to(_find(command))
        return {**os.environ, "PATH": str(commands)}

    @contextmanager
    def watched(self) -> Iterator[Callable[[], object]]:
        """Watch what the kernel holds of it; yields what tells two states of that apart."""
        match self.steering, self.prefix:
            case "iptables", "legacy":
                yield _read_legacy_tables
            case "iptables" | "nftables", _:
                yield read_generation
            case _:
                with _watched_routes() as count:
                    yield count

    def first_and_last(self, services: int) -> tuple[int, int]:
        """Return the Services for whose connections the fewest and the most rules are looked at, as far as known."""
        if self.steering != "iptables":
            return 0, services - 1
        saved = subprocess.run([_find(f"iptables-{self.prefix}-save")], stdout=subprocess.PIPE, text=True, check=True)
        passed = _rules_passed(saved.stdout)
        costs = {number: passed[cluster_ip(number)] for number in range(services)}
        return min(costs, key=costs.__getitem__), max(costs, key=costs.__getitem__)


KINDS: Mapping[str, Kind] = {
    "iptables-nft": Kind(
        "iptables",
        "nft",
        foreign=("iptables-nft -A OUTPUT -d 203.0.113.1 -j ACCEPT", "iptables-nft -D OUTPUT -d 203.0.113.1 -j ACCEPT"),
        flush=("iptables-nft -t nat -F", "iptables-nft -F"),
    ),
    "iptables-legacy": Kind(
        "iptables",
        "legacy",
        foreign=("iptables-legacy -A OUTPUT -d 203.0.113.1 -j ACCEPT",),  # taken back it would not show at all
        flush=("iptables-legacy -t nat -F", "iptables-legacy -F"),
    ),
    "nftables": Kind(
        "nftables", foreign=("nft add table ip foreign", "nft delete table ip foreign"), flush=("nft flush ruleset",)
    ),
    "local-route": Kind(
        "local-route",
        foreign=("ip route add 203.0.113.0/24 dev eth0", "ip route del 203.0.113.0/24 dev eth0"),
        flush=("ip route flush table local root 10.97.0.0/16",),
    ),
}


def _find(command: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise SystemExit(f"{command} is not on PATH; --kinds leaves out what needs it")
    return path


def _read_legacy_tables() -> object:
    states = []
    for family, names in ((Family.IPV4, "ip_tables_names"), (Family.IPV6, "ip6_tables_names")):
        with suppress(FileNotFoundError):
            tables = sorted(Path(f"/proc/thread-self/net/{names}").read_text(encoding="ascii").split())
            states += [read_legacy_table(family, table) for table in tables]
    return states


@contextmanager
def _watched_routes() -> Iterator[Callable[[], int]]:
    """Have ``ip monitor`` write down changes of routes; yields how many lines it has written."""
    lines: list[str] = []
    with subprocess.Popen(["ip", "monitor", "route"], stdout=subprocess.PIPE, text=True) as monitor:
        assert monitor.stdout is not None
        reader = threading.Thread(target=lines.extend, args=(monitor.stdout,))
        reader.start()
        try:
            yield lambda: len(lines)
        finally:
            monitor.terminate()
            reader.join()


def _rules_passed(saved: str) -> Mapping[str, int]:
    """Return how many rules of chains for many Services or ports the first packet of a connection meets, by address.

    Args:
        saved: What iptables-save says. Two levels are looked at in each table: the rule that leads to the chain of the
            address, or of the proxy port, and the one in that chain.
    """
    positions: dict[tuple[str, str], int] = {}
    led_from: dict[str, int] = {}
    steered: dict[str, tuple[str, int, str]] = {}
    guarded: dict[str, tuple[str, int]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line
        rule = _RULE.match(line)
        if rule is None:
            continue
        chain, matches, target = rule["chain"], rule["matches"] + " ", rule["target"]
        position = positions[table, chain] = positions.get((table, chain), 0) + 1
        address, proxy_port, at_port = _TO_ADDRESS.search(matches), _PROXY_PORT.search(line), _AT_PORT.search(matches)
        if table == "*nat" and address and proxy_port:
            steered[address[1]] = chain, position, proxy_port[1]
        elif table == "*filter" and at_port:
            guarded[at_port[1]] = chain, position
        elif target.startswith("USP-"):
            led_from[target] = position
    return {
        address: position
        + led_from.get(chain, 0)
        + guarded.get(port, ("", 0))[1]
        + led_from.get(guarded.get(port, ("", 0))[0], 0)
        for address, (chain, position, port) in steered.items()
    }

"""A node with pods, each a network namespace of its own: what steering is tried on.

Nothing here touches the namespace that the tests run in: even links are made inside the others. ::

    outside eth0 ------- eth0 node vethpod -------- eth0 pod
    10.0.0.2         10.0.0.1      10.0.1.1         10.0.1.2
    fd00:0::2        fd00:0::1     fd00:1::1        fd00:1::2
                              node vethpod2 ------- eth0 pod2
                                   10.0.5.1         10.0.5.2
                                   fd00:5::1        fd00:5::2
                              node calipod -------- eth0 bare_pod
                              (no IPv4; fe80::1)    10.0.2.2/32, fd00:2::2/128

The bare pod is connected as Calico does it: the host end has no address and answers ARP for everything.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from netns.rulesets import FOREIGN_IPTABLES, FOREIGN_NFTABLES, normalise_nft, normalise_saved

_PREFIX = "usp-test"
_NUMBERS = itertools.count()
_COMMAND_TIMEOUT_S = 30.0
_IP = shutil.which("ip") or "ip"
"""Whatever PATH is in the environment for a command inside."""

_DIAL = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as client:
        with client.makefile() as stream:
            print(stream.read(), end="")
except OSError as error:
    print(type(error).__name__, end="")
"""

_DIAL_ALL = """
import errno, json, select, socket, sys, time
outcomes, dialled = dict.fromkeys(sys.argv[2:], "TimeoutError"), {}
def settle(client, target, error):
    try:
        if error:
            raise OSError(error, "")
        client.settimeout(5)
        with client.makefile() as stream:
            outcomes[target] = "served" if stream.read() else "closed"
    except OSError as error:
        outcomes[target] = type(error).__name__
for target in outcomes:
    host, _, port = target.rpartition(":")
    client = socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET)
    client.setblocking(False)
    error = client.connect_ex((host.strip("[]"), int(port)))
    if error in (0, errno.EINPROGRESS):
        dialled[client] = target
    else:
        settle(client, target, error)
deadline = time.monotonic() + float(sys.argv[1])
while dialled and (rest := deadline - time.monotonic()) > 0:
    for client in select.select([], list(dialled), [], rest)[1]:
        settle(client, dialled.pop(client), client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
print(json.dumps(outcomes))
"""
# An interface has another index than its peer: were they equal, the kernel would take up to a second to see it up.
_NODE_LINKS = """
link set lo up
link add eth0 index 10 type veth peer name eth0 netns {outside}
link add vethpod index 11 type veth peer name eth0 netns {pod}
link add vethpod2 index 12 type veth peer name eth0 netns {pod2}
address add 10.0.0.1/24 dev eth0
address add fd00:0::1/64 dev eth0 nodad
address add 10.0.1.1/24 dev vethpod
address add fd00:1::1/64 dev vethpod nodad
address add 10.0.5.1/24 dev vethpod2
address add fd00:5::1/64 dev vethpod2 nodad
link set eth0 up
link set vethpod up
link set vethpod2 up
route add default via 10.0.0.2
route add default via fd00:0::2
"""
_OUTSIDE_LINKS = """
link set lo up
address add 10.0.0.2/24 dev eth0
address add fd00:0::2/64 dev eth0 nodad
link set eth0 up
route add default via 10.0.0.1
route add default via fd00:0::1
"""
_POD_LINKS = """
link set lo up
address add 10.0.{number}.2/24 dev eth0
address add fd00:{number}::2/64 dev eth0 nodad
link set eth0 up
route add default via 10.0.{number}.1
route add default via fd00:{number}::1
"""


class Namespace:
    """A network namespace; ``close`` ends what was started in it and deletes it."""

    def __init__(self, role: str) -> None:
        self.name = f"{_PREFIX}-{os.getpid()}-{next(_NUMBERS)}-{role}"
        self._processes: list[subprocess.Popen[str]] = []
        _ip("netns", "add", self.name)
        # No duplicate address detection: addresses are usable at once.
        self.set_sysctl("net/ipv6/conf/all/accept_dad", 0)
        self.set_sysctl("net/ipv6/conf/default/accept_dad", 0)

    def run(
        self,
        *argv: str | Path,
        text: str | None = None,
        env: dict[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, to its end.

        Args:
            argv: The command.
            text: Its input.
            env: Added to the environment.
            check: Fail the test, with what the command said, if its exit status is not 0.
        """
        done = subprocess.run(
            self._inside(argv),
            input=text,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{argv}: exit status {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def start(
        self, *argv: str | Path, env: dict[str, str] | None = None, stderr: IO[str] | int | None = None
    ) -> subprocess.Popen[str]:
        """Start a command inside, with pipes for input and output; it is killed by ``close`` at the latest."""
        process = subprocess.Popen(
            self._inside(argv),
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            bufsize=1,
        )
        self._processes.append(process)
        return process

    def ip(self, batch: str) -> None:
        """Run lines of iproute2 commands, each without the leading ``ip``."""
        done = subprocess.run(
            ["ip", "-n", self.name, "-batch", "-"], input=batch.strip(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def set_sysctl(self, path: str, value: int) -> None:
        """Set a sysctl that belongs to the namespace, as ``net/ipv4/ip_forward``."""
        self.run("sh", "-c", f"echo {value} > /proc/sys/{path}")

    def allow_all_icmp(self) -> None:
        """Have the kernel say of every datagram that it is refused; usually it says so once a second to each host."""
        self.set_sysctl("net/ipv4/icmp_ratemask", 0)
        self.set_sysctl("net/ipv6/icmp/ratemask", 0)

    def dial(self, address: str, port: int, *, timeout_s: float = 3) -> str:
        """Connect by TCP, send nothing, and return what the other side says until it closes.

        If there is no connection, return the name of Python's exception: ``ConnectionRefusedError``,
        ``TimeoutError`` (nobody answers), ``OSError`` (no route).
        """
        return self.run(sys.executable, "-I", "-S", "-c", _DIAL, address, str(port), str(timeout_s)).stdout

    def dial_all(self, targets: Iterable[str], *, timeout_s: float = 0.7) -> dict[str, str]:
        """Connect to several ``address:port`` at once, and return what has become of each.

        ``served`` where somebody says something, ``closed`` where nobody does, else the name of Python's exception, as
        ``dial`` returns it. The time-out is for connecting: its default is less than the first retransmission takes.
        """
        said = self.run(sys.executable, "-I", "-S", "-c", _DIAL_ALL, str(timeout_s), *targets).stdout
        outcomes: dict[str, str] = json.loads(said)
        return outcomes

    def close(self) -> None:
        """End what was started inside and delete the namespace with its links."""
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()
        _ip("netns", "delete", self.name)

    def _inside(self, argv: Sequence[str | Path]) -> list[str]:
        return [_IP, "netns", "exec", self.name, *map(str, argv)]


class Node(Namespace):
    """A node with two pods, a bare pod and a host outside (see the top of this file)."""

    def __init__(self, pod: Namespace, pod2: Namespace, bare_pod: Namespace, outside: Namespace) -> None:
        super().__init__("node")
        self.pod = pod
        """Its host end has addresses."""
        self.pod2 = pod2
        """As ``pod``."""
        self.bare_pod = bare_pod
        """Its host end has no IPv4 address and only a link-local IPv6 address."""
        self.outside = outside
        """A host on the node's network, and the node's default gateway."""
        self._indexes = itertools.count(20)

    def connect(self) -> None:
        """Make all links."""
        self.set_sysctl("net/ipv4/ip_forward", 1)  # without it the kernel answers no ARP for others
        self.set_sysctl("net/ipv6/conf/all/forwarding", 1)
        self.ip(_NODE_LINKS.format(outside=self.outside.name, pod=self.pod.name, pod2=self.pod2.name))
        self.outside.ip(_OUTSIDE_LINKS)
        self.pod.ip(_POD_LINKS.format(number=1))
        self.pod2.ip(_POD_LINKS.format(number=5))
        self.add_bare_link("calipod", self.bare_pod, "10.0.2.2", "fd00:2::2")

    def add_bare_link(self, interface: str, pod: Namespace, ipv4: str, ipv6: str) -> None:
        """Connect a pod by an interface of the node that has no IPv4 address."""
        self.ip(f"link add {interface} index {next(self._indexes)} type veth peer name eth0 netns {pod.name}")
        self.set_sysctl(f"net/ipv4/conf/{interface}/proxy_arp", 1)
        self.set_sysctl(f"net/ipv4/neigh/{interface}/proxy_delay", 0)  # else it answers after up to 0.8 s
        self.ip(
            f"""
            link set {interface} addrgenmode none
            address add fe80::1/64 dev {interface} nodad
            link set {interface} up
            route add {ipv4}/32 dev {interface}
            route add {ipv6}/128 dev {interface}
            """
        )
        pod.ip(
            f"""
            link set lo up
            address add {ipv4}/32 dev eth0
            address add {ipv6}/128 dev eth0 nodad
            link set eth0 up
            route add 169.254.1.1 dev eth0 scope link
            route add default via 169.254.1.1 dev eth0
            route add default via fe80::1 dev eth0
            """
        )

    def add_foreign_rules(self, variant: str) -> None:
        """Add the rules of another proxy, which are to be left alone, in one variant of iptables."""
        for command, other, pod in (
            ("iptables", "10.96.0.99/32", "10.0.1.2:8080"),
            ("ip6tables", "fd00:96::63/128", "[fd00:1::2]:8080"),
        ):
            self.run(f"{command}-{variant}-restore", "--noflush", text=FOREIGN_IPTABLES.format(other=other, pod=pod))

    def add_foreign_tables(self) -> None:
        """Add tables of nftables of another proxy, which are to be left alone."""
        ipv4 = {"family": "ip", "type": "ipv4_addr", "other": "10.96.0.99", "pod": "10.0.1.2:8080"}
        ipv6 = {"family": "ip6", "type": "ipv6_addr", "other": "fd00:96::63", "pod": "[fd00:1::2]:8080"}
        text = FOREIGN_NFTABLES.format(**ipv4) + FOREIGN_NFTABLES.format(**ipv6)
        self.run("nft", "-f", "-", text=text)

    def client(self, role: str) -> Namespace:
        """Return who dials: ``node``, ``pod``, ``pod2``, ``bare pod`` or ``outside``."""
        clients = {"pod": self.pod, "pod2": self.pod2, "bare pod": self.bare_pod, "outside": self.outside}
        return self if role == "node" else clients[role]

    def ruleset(self) -> list[str]:
        """Return all netfilter rules of the node, normalised: equal lists say that the ruleset is the same.

        Without comments, counters, handles, and built-in chains that are empty with policy ACCEPT. The legacy variant
        is asked only for tables that exist, as asking for others creates them.
        """
        lines = []
        for command in ("iptables", "ip6tables"):
            for variant in ("nft", "legacy"):
                saved = self.run(f"{command}-{variant}-save").stdout
                lines += [f"{command}-{variant} {line}" for line in normalise_saved(saved)]
        return lines + normalise_nft(self.run("nft", "-j", "list", "ruleset").stdout)

    def routes(self) -> list[str]:
        """Return all routes, rules for routes, and addresses of the node; equal lists say that they are the same."""
        asked = [(family, *what) for family in ("-4", "-6") for what in (("route", "show", "table", "all"), ("rule",))]
        return sorted(
            " ".join([*what, *line.replace("linkdown", "").split()])
            for what in (*asked, ("-o", "address"))
            for line in self.run("ip", *what).stdout.splitlines()
        )

    def legacy_tables(self) -> str:
        """Return the names of the iptables-legacy tables that exist, of both families."""
        return self.run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names").stdout


@contextlib.contextmanager
def open_node() -> Iterator[Node]:
    """Make a node and all around it; all of it is deleted at the end."""
    with contextlib.ExitStack() as stack:
        around = [stack.enter_context(open_namespace(role)) for role in ("pod", "pod2", "bare", "outside")]
        node = Node(*around)
        stack.callback(node.close)
        node.connect()
        yield node


@contextlib.contextmanager
def open_namespace(role: str) -> Iterator[Namespace]:
    """Make a namespace without links, as for one more pod; it is deleted at the end."""
    namespace = Namespace(role)
    try:
        yield namespace
    finally:
        namespace.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until a condition holds; after 10 s it counts as never."""
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true within 10 s"


def delete_orphans() -> None:
    """Delete the namespaces of earlier test runs that were killed."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        owner = re.match(rf"{_PREFIX}-(\d+)-", name)
        if owner and not Path("/proc", owner[1]).exists():
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout

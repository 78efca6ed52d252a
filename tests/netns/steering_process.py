"""Steering in a process of its own on a node, as tests command it (see ``steering_driver.py``)."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from attrs import asdict, frozen
from netns.nodes import Namespace

_DRIVER = Path(__file__).with_name("steering_driver.py")

_ASK_ALL = """
import json, select, socket, sys, time
outcomes, asked = dict.fromkeys(sys.argv[2:], "TimeoutError"), {}
for target in outcomes:
    host, _, port = target.rpartition(":")
    client = socket.socket(socket.AF_INET6 if "[" in host else socket.AF_INET, socket.SOCK_DGRAM)
    client.connect((host.strip("[]"), int(port)))
    client.send(b"")
    asked[client] = target
deadline = time.monotonic() + float(sys.argv[1])
while asked and (rest := deadline - time.monotonic()) > 0:
    for client in select.select(list(asked), [], [], rest)[0]:
        target = asked.pop(client)
        try:
            outcomes[target] = "served" if client.recv(1500) else "closed"
        except OSError as error:
            outcomes[target] = type(error).__name__
print(json.dumps(outcomes))
"""
_SEND = """
import socket, sys
client = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
client.connect((sys.argv[1], int(sys.argv[2])))
print(client.getsockname()[1], flush=True)
for timeout_s in sys.stdin:
    client.settimeout(float(timeout_s))
    try:
        client.send(b"again")
        print(client.recv(1500).decode(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


@frozen
class Asked:
    """A Frontend that is to be brought into force."""

    at: str
    """As ``10.96.0.10:80``, or ``[::]:30080`` for a NodePort on all IPv6 addresses."""
    kind: str = "cluster-ip"
    protocol: str = "TCP"
    serves: tuple[str, ...] = ("pod", "host", "outside")
    """Classes of clients that reach the Listener; others are dropped. Without any it is closed."""
    is_refused: bool = False
    """Whether those who are not served are to be refused instead."""
    source_ranges: tuple[str, ...] = ()
    service: str = "shop/web"
    """Each Service is one of its own for ``Steering.apply``."""


class Driver:
    """Steering of one node, from ``choose_steering`` to ``aclose``; the node kills it at the latest."""

    def __init__(
        self,
        node: Namespace,
        state_dir: Path,
        kind: str = "iptables",
        *,
        prefix: tuple[str, ...] = (),
        proxy_ports: tuple[int, int] = (12000, 29999),
        service_cidrs: tuple[str, ...] = (),
        stderr: IO[str] | None = None,
    ) -> None:
        arguments: tuple[str | Path, ...] = (kind, state_dir, *map(str, proxy_ports), *service_cidrs)
        self._process = node.start(*prefix, sys.executable, _DRIVER, *arguments, stderr=stderr)
        self.chosen = self._read()

    def apply(
        self,
        frontends: Iterable[str | Asked],
        *,
        pod_networks: Iterable[str] = (),
        health_check_ports: Iterable[int] = (),
    ) -> dict[str, Any]:
        """Bring Frontends into force and return where each is listened for; a text is an address that serves all."""
        command = {
            "frontends": [asdict(Asked(one) if isinstance(one, str) else one) for one in frontends],
            "pod_networks": [*pod_networks],
            "health_check_ports": [*health_check_ports],
        }
        return self._ask(command)

    def repairs(self) -> dict[str, int]:
        """Refresh, and return how often something was put back so far, by where it was."""
        return self._ask({})

    def terminate(self) -> int:
        """End it as SIGTERM does, and return its exit status."""
        self._process.terminate()
        return self._process.wait(timeout=20)

    def kill(self) -> None:
        """End it without a chance to remove anything."""
        self._process.kill()
        self._process.wait()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the driver has ended; its traceback is on stderr"
        said: dict[str, Any] = json.loads(line)
        return said


class Sender:
    """A UDP client that keeps its port; its namespace ends it."""

    def __init__(self, namespace: Namespace, address: str, port: int) -> None:
        self._process = namespace.start(sys.executable, "-I", "-S", "-c", _SEND, address, str(port))
        self.port = int(self._read())

    def send(self, *, timeout_s: float = 3) -> str:
        """Send one datagram, and return the answer, or the name of Python's exception if there is none."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{timeout_s}\n")
        return self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the sender has ended; its traceback is on stderr"
        return line.rstrip("\n")


def ask_all(client: Namespace, targets: Iterable[str], *, timeout_s: float = 0.7) -> dict[str, str]:
    """Send a datagram to each ``address:port``; what becomes of them is said as ``Namespace.dial_all`` does."""
    said = client.run(sys.executable, "-I", "-S", "-c", _ASK_ALL, str(timeout_s), *targets).stdout
    outcomes: dict[str, str] = json.loads(said)
    return outcomes


def clean_up(node: Namespace, *, dry_run: bool = False, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run cleanup on a node and return its report."""
    done = node.run(*prefix, sys.executable, _DRIVER, "dry-run" if dry_run else "cleanup")
    report: dict[str, Any] = json.loads(done.stdout)
    return report

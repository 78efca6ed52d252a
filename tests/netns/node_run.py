"""The real command on a node with pods, and Backends for it.

Entry points: ``NodeRun``, ``run_on``, ``start_backend``.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli_driver import COMMAND, write_manifests
from netns.nodes import Namespace, Node
from process_tree import children, has_ended

# Greets each client with a name and closes; answers each datagram with the name. Both in both families.
_GREET = """
import select, socket, sys
name = sys.argv[1].encode()
with (
    socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True) as listening,
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams,
):
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(("::", 8080))
    print("listening", flush=True)
    while True:
        ready, _, _ = select.select([listening, datagrams], [], [])
        if listening in ready:
            client, _ = listening.accept()
            with client:
                client.sendall(name)
        if datagrams in ready:
            datagrams.sendto(name, datagrams.recvfrom(65535)[1])
"""


def start_backend(namespace: Namespace, name: str) -> None:
    """Start a Backend on port 8080 of a namespace, for TCP and UDP."""
    process = namespace.start(sys.executable, "-c", _GREET, name)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"


class NodeRun:
    """``userspace-proxy run`` on a node, ready."""

    def __init__(
        self,
        node: Node,
        directory: Path,
        *arguments: str,
        steering: str = "iptables",
        env: dict[str, str] | None = None,
        through: Sequence[str | Path] = (),
    ) -> None:
        """Start it with a directory that keeps its state, on the manifests there unless arguments name a source.

        Args:
            node: Where.
            directory: It has the manifests as ``shop.yaml``.
            arguments: More of them.
            steering: Which kind.
            env: Added to the environment.
            through: A command that runs it.
        """
        self._node = node
        self._manifests = directory / "shop.yaml"
        self._errors = directory / "errors"
        own = ("--state-dir", directory / "state", "--runtime-dir", directory / "run", "--steering", steering)
        with self._errors.open("w") as errors:
            source = () if "--kubeconfig" in arguments else ("--manifests", self._manifests)
            self.process = node.start(*through, *COMMAND, "run", *source, *own, *arguments, env=env, stderr=errors)
        assert self.process.stdout is not None
        self.output = ""
        while "\nready: " not in self.output:
            line = self.process.stdout.readline()
            assert line, self.log
            self.output += line

    @property
    def log(self) -> str:
        """All of stderr so far."""
        return self._errors.read_text()

    def listener_rows(self) -> list[str]:
        """Return the rows of the table."""
        return re.findall(r"(?m)^shop/.*", self.output)

    def apply(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Put objects in the place of the manifests, and wait until all of them, and all rules, are in force."""
        before = self._applied_generation
        write_manifests(self._manifests, objects)
        wait_until(lambda: self._applied_generation > before)

    def metric(self, name: str) -> int:
        """Return a metric, summed over its labels; 0 if it is not there."""
        metrics = self._node.run("curl", "-s", "http://127.0.0.1:10249/metrics").stdout
        return sum(int(float(value)) for value in re.findall(rf"(?m)^{name}(?:{{.*}})? (\S+)$", metrics))

    @property
    def _applied_generation(self) -> int:
        return self.metric("userspace_proxy_applied_generation")

    def terminate(self) -> int:
        """End it as SIGTERM does, and return its exit status."""
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        """End it without a chance to remove anything; its workers have ended with it."""
        workers = children(self.process.pid)
        self.process.kill()
        self.process.wait()
        wait_until(lambda: all(map(has_ended, workers)))

    def wait(self) -> int:
        """Wait for its end and return its exit status."""
        status = self.process.wait(timeout=30)
        assert "Traceback" not in self.log
        return status


def run_on(node: Node, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of userspace-proxy on a node, to its end."""
    return node.run(*COMMAND, *arguments, check=False, env=env)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until a condition holds that a process on the node brings about."""
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true within 20 s"

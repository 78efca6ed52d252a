"""The real command on a node with pods, and Backends for it.

Entry points: ``NodeRun``, ``run_on``, ``start_backend``.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cli_driver import COMMAND
from netns.nodes import Namespace, Node

# Greets each client with a name and closes; answers in both families.
_GREET = """
import socket, sys
with socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
    print("listening", flush=True)
    while True:
        client, _ = listening.accept()
        with client:
            client.sendall(sys.argv[1].encode())
"""


def start_backend(namespace: Namespace, name: str) -> None:
    """Start a Backend on port 8080 of a namespace."""
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
    ) -> None:
        """Start it with a directory that keeps its state, on the manifests there unless arguments name a source."""
        self._errors = directory / "errors"
        own = ("--state-dir", directory / "state", "--runtime-dir", directory / "run", "--steering", steering)
        with self._errors.open("w") as errors:
            source = () if "--kubeconfig" in arguments else ("--manifests", directory / "shop.yaml")
            self.process = node.start(*COMMAND, "run", *source, *own, *arguments, env=env, stderr=errors)
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

    def terminate(self) -> int:
        """End it as SIGTERM does, and return its exit status."""
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        """End it without a chance to remove anything."""
        self.process.kill()
        self.process.wait()

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

"""Steering in a process of its own on a node, as tests command it (see ``steering_driver.py``)."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from netns.nodes import Namespace

_DRIVER = Path(__file__).with_name("steering_driver.py")


@frozen
class Asked:
    """A Frontend that is to be brought into force."""

    at: str
    """As ``10.96.0.10:80``, or ``[::]:30080`` for a NodePort on all IPv6 addresses."""
    kind: str = "cluster-ip"
    serves: tuple[str, ...] = ("pod", "host", "outside")
    """Classes of clients that reach the Listener; others are dropped. Without any it is closed."""
    is_refused: bool = False
    """Whether those who are not served are to be refused instead."""
    source_ranges: tuple[str, ...] = ()


class Driver:
    """Steering of one node, from ``choose_steering`` to ``aclose``; the node kills it at the latest."""

    def __init__(self, node: Namespace, state_dir: Path, kind: str = "iptables", prefix: tuple[str, ...] = ()) -> None:
        self._process = node.start(*prefix, sys.executable, _DRIVER, kind, state_dir)
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
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        return self._read()

    def terminate(self) -> int:
        """End it as SIGTERM does, and return its exit status."""
        self._process.terminate()
        return self._process.wait(timeout=20)

    def kill(self) -> None:
        """End it without a chance to remove anything."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the driver has ended; its traceback is on stderr"
        said: dict[str, Any] = json.loads(line)
        return said


def clean_up(node: Namespace, *, dry_run: bool = False, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run cleanup on a node and return its report."""
    done = node.run(*prefix, sys.executable, _DRIVER, "dry-run" if dry_run else "cleanup")
    report: dict[str, Any] = json.loads(done.stdout)
    return report

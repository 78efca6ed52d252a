"""Listeners of the data plane alone, in a process in a network namespace, and UDP clients that ask them.

Entry point: ``Listeners``.
"""

import json
import os
import sys
from pathlib import Path
from subprocess import Popen
from typing import Any

from netns.nodes import Namespace

_HELPER = Path(__file__).with_name("listener_helper.py")
_ONLY_NET_ADMIN = ("setpriv", "--bounding-set", "-all,+net_admin", "--inh-caps", "-all,+net_admin")
_ASK = """
import socket, sys
client = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(3)
try:
    client.connect((sys.argv[1], int(sys.argv[2])))
    client.send(b"ping")
    print(client.recv(100).decode(), end="")
except OSError as error:
    print(type(error).__name__, end="")
"""


class Listeners:
    """A process with listeners; the namespace ends it."""

    def __init__(self, namespace: Namespace) -> None:
        """Start it, as root without any capability but NET_ADMIN."""
        search_path = os.pathsep.join([str(_HELPER.parents[1]), *filter(None, sys.path)])
        command = (*_ONLY_NET_ADMIN, sys.executable, "-W", "error", _HELPER)
        self._process: Popen[str] = namespace.start(*command, env={"PYTHONPATH": search_path})

    def want(self, *wanted: dict[str, Any]) -> dict[str, Any]:
        """Have these listeners and no others (see ``listener_helper``); return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def ask(client: Namespace, address: str, port: int) -> str:
    """Send a datagram; return the answer, or the name of Python's exception as ``Namespace.dial`` does."""
    return client.run(sys.executable, "-I", "-S", "-c", _ASK, address, str(port)).stdout

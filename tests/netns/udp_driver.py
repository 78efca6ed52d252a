"""Backends and clients of UDP in network namespaces, with exact numbers of what was sent and what has come.

Entry points: ``UdpBackend``, ``Chat``, ``ask``, ``exchange``.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from netns.node_run import wait_until
from netns.nodes import Namespace

_PROCESS = (sys.executable, "-I", "-S", Path(__file__).with_name("udp_process.py"))
LARGEST_DATAGRAM = 65507
"""Bytes that fit in a datagram of IPv4, RFC 768 and RFC 791."""
CHAT_INTERVAL_MS = 5


class _Process:
    """A process of this kind, ready, that answers lines."""

    def __init__(self, namespace: Namespace, *arguments: str | int) -> None:
        self._process = namespace.start(*_PROCESS, *map(str, arguments))
        self._read()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")

    def _ask(self) -> Any:
        self._write("")
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process has ended"
        return json.loads(line)


class UdpBackend(_Process):
    """Answers each datagram with its name, a blank and the datagram, and remembers what came from Chats."""

    def __init__(self, namespace: Namespace, name: str, *ports: int, holds_answers: bool = False) -> None:
        """Start it on ports of a namespace.

        Args:
            namespace: Where.
            name: With ``""`` answers are the datagrams as they are.
            ports: There may be several.
            holds_answers: Do not answer Chats until ``answer_held``.
        """
        role = "holding-backend" if holds_answers else "backend"
        super().__init__(namespace, role, f"{name} " if name else "", *ports)

    def numbers(self, chat: "Chat") -> list[int]:
        """Return what a Chat has sent here, in the order in which it came."""
        numbers: dict[str, list[int]] = self._ask()
        return numbers.get(chat.name, [])

    def answer_held(self) -> None:
        """Send all answers that were held."""
        self._write("answer")
        self._read()

    def wait_for(self, chat: "Chat", number: int) -> list[int]:
        """Wait until a Chat's number has come, and return all of its numbers that have."""
        wait_until(lambda: number in self.numbers(chat))
        return self.numbers(chat)


@frozen
class ChatState:
    """How far a Chat has come."""

    sent: int
    """The number of the next datagram: those below were sent."""
    answers: dict[str, int]
    """How many there were, by the name of the Backend."""
    errors: dict[str, int]
    """How many datagrams were reported as undeliverable, by the name of Python's exception."""


class Chat(_Process):
    """A client that sends a number every few milliseconds from the same port, whatever comes back."""

    def __init__(self, namespace: Namespace, address: str, port: int, source_port: int) -> None:
        """Start it; the port it sends from is its name."""
        self.name = str(source_port)
        super().__init__(namespace, "chat", self.name, address, port, source_port, CHAT_INTERVAL_MS)

    @property
    def state(self) -> ChatState:
        """How far it has come."""
        return ChatState(**self._ask())

    def wait_sent(self, count: int) -> None:
        """Wait until it has sent that many more."""
        until = self.state.sent + count
        wait_until(lambda: self.state.sent >= until)

    def stop(self) -> None:
        """Have it send no more."""
        self._write("end")

    def result(self) -> ChatState:
        """Return how far it has come, once it was stopped and no more answers come."""
        return ChatState(**self._read())


def exchange(
    namespace: Namespace, address: str, port: int, datagrams: Sequence[bytes], *, timeout_s: float = 3
) -> list[bytes | str]:
    """Send each datagram from one new port, and return its answer, or the name of Python's exception."""
    texts = json.dumps([datagram.hex() for datagram in datagrams])
    said = namespace.run(*_PROCESS, "ask", address, str(port), str(timeout_s), text=texts).stdout
    return [outcome if isinstance(outcome, str) else bytes.fromhex(outcome["hex"]) for outcome in json.loads(said)]


def ask(namespace: Namespace, address: str, port: int, *, timeout_s: float = 3) -> str:
    """Return who answers a datagram from a new port, or the name of Python's exception."""
    (outcome,) = exchange(namespace, address, port, [b""], timeout_s=timeout_s)
    return outcome if isinstance(outcome, str) else outcome.decode().strip()

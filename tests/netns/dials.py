"""Clients that dial many places at once, by TCP and UDP. Entry points: ``Dial``, ``dial_each``."""

import json
import sys
from collections.abc import Iterable, Mapping

from attrs import astuple, frozen
from netns.nodes import Node

QUIET_S = 1.5
"""After so long without any answer those that have none get none. Arbitrary: a served one takes milliseconds, also
where some hundred are served at the same time; TCP sends again only after 1 s."""

# Reads [protocol, address, port] of each as JSON, dials all at once, and prints what came of each, in their order.
_DIAL_ALL = """
import errno, json, select, socket, sys

def start(number, protocol, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    client = socket.socket(family, socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM)
    client.setblocking(False)
    error = client.connect_ex((address, port))
    if error not in (0, errno.EINPROGRESS):
        raise OSError(error, "")
    if protocol == "UDP":
        client.send(b"")
    poll.register(client, select.POLLIN)
    dialled[client.fileno()] = number, client

def receive(descriptor):
    number, client = dialled[descriptor]
    try:
        data = client.recv(65535)
        said[number] += data
        if data and client.type == socket.SOCK_STREAM:
            return
        outcomes[number] = said[number].decode() or "closed"
    except OSError as error:
        outcomes[number] = type(error).__name__
    poll.unregister(descriptor)
    del dialled[descriptor]

poll, dialled = select.poll(), {}
targets = json.load(sys.stdin)
outcomes, said = ["TimeoutError"] * len(targets), [b""] * len(targets)
for number, target in enumerate(targets):
    try:
        start(number, *target)
    except OSError as error:
        outcomes[number] = type(error).__name__
while dialled and (ready := poll.poll(float(sys.argv[1]) * 1000)):
    for descriptor, _ in ready:
        receive(descriptor)
print(json.dumps(outcomes))
"""


@frozen(order=True)
class Dial:
    """One place to dial. By UDP that is to send a datagram from a connected socket."""

    protocol: str
    address: str
    port: int


Answers = Mapping[tuple[str, Dial], frozenset[str]]
"""What came of each dial, by client: see ``dial_each``."""


def dial_each(node: Node, dials: Mapping[str, Iterable[Dial]], *, times: int = 1) -> Answers:
    """Have clients dial, all of them at the same time.

    Args:
        node: What is around it dials.
        dials: Where, by the client's role: see ``Node.client``.
        times: How often each place is dialled by each client.

    Returns:
        What was said until the end of the connection, or in the first datagram; ``closed`` where that is nothing; else
        the name of Python's exception: ``ConnectionRefusedError`` (by UDP told by ICMP), ``ConnectionResetError``,
        ``TimeoutError`` (nobody answers, see ``QUIET_S``), ``OSError`` (no route).
    """
    started = []
    for role, places in dials.items():
        targets = [place for place in places for _ in range(times)]
        process = node.client(role).start(sys.executable, "-I", "-S", "-c", _DIAL_ALL, str(QUIET_S))
        assert process.stdin is not None
        process.stdin.write(json.dumps([astuple(target) for target in targets]))
        process.stdin.close()
        started.append((role, targets, process.stdout))
    found: dict[tuple[str, Dial], frozenset[str]] = {}
    for role, targets, output in started:
        assert output is not None
        for target, outcome in zip(targets, json.loads(output.read()), strict=True):
            found[role, target] = found.get((role, target), frozenset()) | {outcome}
    return found

"""Which programs listen on all addresses."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from userspace_proxy.model.names import Protocol
from userspace_proxy.steering.local_route.wildcard_listeners import WildcardListener, find_wildcard_listeners

# Binds sockets as it is told by PROTOCOL/ADDRESS, prints their ports, and waits for the end of its input.
_BIND = """
import socket, sys
held = []
for argument in sys.argv[1:]:
    protocol, _, address = argument.partition("/")
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    bound.bind((address, 0))
    if protocol == "TCP":
        bound.listen()
    elif protocol == "connected UDP":
        bound.connect(("127.0.0.1", 9))
    held.append(bound)
print(*(bound.getsockname()[1] for bound in held), flush=True)
sys.stdin.read()
"""
WILDCARD = ("TCP/0.0.0.0", "TCP/::", "UDP/0.0.0.0", "UDP/::")


@pytest.fixture
def program() -> Iterator[tuple[int, list[int]]]:
    """Start a program with sockets on all addresses and some others; return its pid and the ports in this order."""
    arguments = (*WILDCARD, "TCP/127.0.0.1", "UDP/::1", "connected UDP/0.0.0.0")
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _BIND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.pid, [int(port) for port in process.stdout.readline().split()]
        process.communicate()


def test_programs_on_all_addresses_are_named_with_their_ports(program: tuple[int, list[int]]) -> None:
    """Those of both protocols and families, by port; who is bound to one address, or connected, is not among them."""
    pid, ports = program
    found = find_wildcard_listeners()
    name = Path("/proc", str(pid), "comm").read_text().rstrip()
    expected = {
        WildcardListener(port, Protocol(place[:3]), f"{name} (pid {pid})")
        for port, place in zip(ports, WILDCARD, strict=False)
    }
    assert {one for one in found if f"(pid {pid})" in one.program} == expected
    assert list(found) == sorted(found)


def test_own_sockets_are_left_out() -> None:
    """They are meant to be reached."""
    with (
        socket.create_server(("", 0)) as own,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own_datagrams,
    ):
        own_datagrams.bind(("", 0))
        ports = {own.getsockname()[1], own_datagrams.getsockname()[1]}
        assert not [one for one in find_wildcard_listeners() if one.port in ports]


def test_program_is_described_in_one_phrase() -> None:
    """For the sentence that lists them."""
    assert str(WildcardListener(22, Protocol.TCP, "sshd (pid 612)")) == "sshd (pid 612) at 22/TCP"

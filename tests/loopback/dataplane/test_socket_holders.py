"""Who holds a port, with real sockets and processes."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
from peers import own_host

from userspace_proxy.dataplane.socket_holders import describe_holder
from userspace_proxy.model.names import IPAddress, Protocol

CHROOTED = """
import os, sys
from ipaddress import IPv4Address
from userspace_proxy.dataplane.socket_holders import describe_holder
from userspace_proxy.model.names import Protocol
os.chroot(sys.argv[1])
print(describe_holder(IPv4Address("127.0.0.1"), 8080, Protocol.TCP))
"""

KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
LOCALHOST = IPv4Address("127.0.0.1")

HOLD = """
import pathlib, socket, sys
pathlib.Path("/proc/self/comm").write_text(sys.argv[2])
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""


def own_name() -> str:
    """Return how this process is described."""
    with open("/proc/self/comm", encoding="utf-8") as comm:  # noqa: PTH123
        return f"pid {os.getpid()} ({comm.read().rstrip()})"


@contextmanager
def listening(address: str, *, dual_stack: bool = False, protocol: Protocol = Protocol.TCP) -> Iterator[socket.socket]:
    """Hold any free port of an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, KINDS[protocol]) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        server.bind((address, 0))
        if protocol is Protocol.TCP:
            server.listen()
        yield server


def port_of(sock: socket.socket) -> int:
    """Return the local port of a socket."""
    return int(sock.getsockname()[1])


@contextmanager
def other_process(name: str) -> Iterator[tuple[int, int]]:
    """Run a process of that name that listens on 127.0.0.1; yield its pid and the port."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "127.0.0.1", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize("protocol", KINDS)
@pytest.mark.parametrize(
    ("held", "dual_stack", "wanted", "conflict"),
    [
        pytest.param("127.0.0.1", False, "127.0.0.1", True, id="same"),
        pytest.param("127.0.0.1", False, "127.0.0.2", False, id="other address"),
        pytest.param("0.0.0.0", False, "127.0.0.1", True, id="wildcard held"),
        pytest.param("127.0.0.1", False, "0.0.0.0", True, id="wildcard wanted"),
        pytest.param("::1", False, "::1", True, id="same, IPv6"),
        pytest.param("::", False, "::1", True, id="wildcard held, IPv6"),
        pytest.param("::1", False, "::", True, id="wildcard wanted, IPv6"),
        pytest.param("::", True, "127.0.0.1", True, id="dual stack held"),
        pytest.param("::1", False, "127.0.0.1", False, id="IPv6 held, IPv4 wanted"),
        pytest.param("127.0.0.1", False, "::1", False, id="IPv4 held, IPv6 wanted"),
        pytest.param("0.0.0.0", False, "::", False, id="wildcards of two families"),
        pytest.param("::ffff:127.0.0.3", True, "127.0.0.3", True, id="mapped address held"),
        pytest.param("::ffff:127.0.0.3", True, "127.0.0.4", False, id="other mapped address held"),
        pytest.param("::ffff:127.0.0.3", True, "::", False, id="mapped address held, IPv6 wanted"),
    ],
)
def test_describe_holder_names_a_socket_exactly_if_it_is_in_the_way(
    held: str,
    dual_stack: bool,  # noqa: FBT001
    wanted: str,
    conflict: bool,  # noqa: FBT001
    protocol: Protocol,
) -> None:
    """The description agrees with what bind would say, for a V6ONLY socket as we open them."""
    address = ip_address(wanted)
    with listening(held, dual_stack=dual_stack, protocol=protocol) as server:
        port = port_of(server)
        assert bind_fails(address, port, protocol) == conflict
        assert describe_holder(address, port, protocol) == (own_name() if conflict else None)


def bind_fails(address: IPAddress, port: int, protocol: Protocol) -> bool:
    """Return whether the kernel refuses the address."""
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, KINDS[protocol]) as ours:
        ours.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, protocol is Protocol.TCP
        )  # TIME_WAIT is in nobody's way
        if address.version == 6:
            ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            ours.bind((str(address), port))
        except OSError:
            return True
        return False


def test_describe_holder_of_a_free_port_is_none() -> None:
    """A port that nobody listens on has no holder; an established connection on it is none."""
    with listening("127.0.0.1") as server, socket.create_connection(server.getsockname()) as client:
        assert describe_holder(LOCALHOST, port_of(client), Protocol.TCP) is None
        assert describe_holder(LOCALHOST, port_of(server), Protocol.TCP) is not None


@pytest.mark.parametrize(("held", "wanted"), [(Protocol.TCP, Protocol.UDP), (Protocol.UDP, Protocol.TCP)])
def test_describe_holder_looks_only_at_the_protocol_that_is_wanted(held: Protocol, wanted: Protocol) -> None:
    """TCP and UDP have ports of their own."""
    host = own_host(8)
    with listening(host, protocol=held) as server:
        assert describe_holder(ip_address(host), port_of(server), wanted) is None
        assert not bind_fails(ip_address(host), port_of(server), wanted)


def test_describe_holder_names_who_has_a_connected_socket_of_udp() -> None:
    """It takes nobody's datagrams but one peer's, and is in the way all the same."""
    with listening("127.0.0.1", protocol=Protocol.UDP) as server:
        server.connect(server.getsockname())
        assert bind_fails(LOCALHOST, port_of(server), Protocol.UDP)
        assert describe_holder(LOCALHOST, port_of(server), Protocol.UDP) == own_name()


@pytest.mark.parametrize(
    ("name", "shown"),
    [pytest.param("two words", "two words", id="space"), pytest.param("x\x1b[31m", "x?[31m", id="terminal control")],
)
def test_describe_holder_in_another_process_has_its_pid_and_printable_name(name: str, shown: str) -> None:
    """Another process is named as ps shows it, without anything a terminal would obey."""
    with other_process(name) as (pid, port):
        assert describe_holder(LOCALHOST, port, Protocol.TCP) == f"pid {pid} ({shown})"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it looks at a process of root as another user")
def test_describe_holder_of_a_process_of_another_user_is_none() -> None:
    """An owner that we may not look at is not named, and that is no error."""
    with other_process("hidden") as (_, port):
        os.seteuid(65534)
        try:
            assert describe_holder(LOCALHOST, port, Protocol.TCP) is None
        finally:
            os.seteuid(0)


def test_describe_holder_of_a_shared_socket_is_the_lowest_pid_and_not_this_process() -> None:
    """Of several processes with the same socket always the same one is named: the parent as a rule, but never we."""
    with listening("127.0.0.1") as server, ExitStack() as stack:
        server.set_inheritable(True)
        pids = []
        for _ in range(2):
            child = stack.enter_context(subprocess.Popen(["sleep", "60"], close_fds=False))
            stack.callback(child.kill)
            pids.append(child.pid)
        holder = describe_holder(LOCALHOST, port_of(server), Protocol.TCP)
    assert holder == f"pid {min(pids)} (sleep)"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it puts a process where /proc is another")
def test_describe_holder_without_proc_or_with_a_process_that_goes_is_no_error(tmp_path: Path) -> None:
    """No /proc names nobody; a process that ends while it is looked at is named by its pid."""

    def describe() -> str:
        command = [sys.executable, "-c", CHROOTED, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert describe() == "None\n"
    (tmp_path / "proc" / "net").mkdir(parents=True)
    word = int.from_bytes(IPv4Address("127.0.0.1").packed, sys.byteorder)
    row = f"0: {word:08X}:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 777 1 0 100 0 0 10 0"
    (tmp_path / "proc" / "net" / "tcp").write_text(f"  sl  local_address ...\n{row}\n")
    (tmp_path / "proc" / "4242" / "fd").mkdir(parents=True)
    (tmp_path / "proc" / "4242" / "fd" / "3").symlink_to("socket:[777]")
    assert describe() == "pid 4242 (gone)\n"

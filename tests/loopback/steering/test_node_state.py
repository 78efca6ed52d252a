"""What is read of the node the tests run on."""

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest

from userspace_proxy.model.names import Protocol
from userspace_proxy.steering.node_state import (
    is_interface_up,
    is_port_in_use,
    read_local_addresses,
    read_node_addresses,
    tcp_ports_in_use,
)


def test_addresses_of_this_node_have_loopback() -> None:
    """Whatever else the node has, lo has 127.0.0.1, and every address can be bound."""
    node = read_node_addresses()
    assert ("lo", IPv4Address("127.0.0.1")) in node.by_interface
    for _, address in node.by_interface:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
            bound.bind((str(address), 0))
    assert set(node.interfaces) <= {name for _, name in socket.if_nameindex()}


def test_local_addresses_are_those_of_both_families() -> None:
    """A NodePort answers at each of them."""
    addresses = read_local_addresses()
    assert {address for _, address in read_node_addresses().by_interface} <= addresses
    if socket.has_ipv6:
        assert IPv6Address("::1") in addresses


def test_tcp_ports_in_use_are_those_listened_on() -> None:
    """The ports of connections do not count: SO_REUSEADDR lets a listening socket have the same."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening,
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listening6,
    ):
        listening.bind(("127.0.0.1", 0))
        listening6.bind(("::1", 0))
        listening.listen()
        listening6.listen()
        client.connect(listening.getsockname())
        in_use = tcp_ports_in_use()
        assert {one.getsockname()[1] for one in (listening, listening6)} <= in_use
        assert client.getsockname()[1] not in in_use


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, ""),
        (socket.AF_INET6, "::1"),
        (socket.AF_INET6, ""),
    ],
)
def test_udp_port_is_in_use_while_a_socket_is_bound_to_it(family: socket.AddressFamily, address: str) -> None:
    """At whatever address, connected or not; the trial leaves nothing behind."""
    with socket.socket(family, socket.SOCK_DGRAM) as bound:
        bound.bind((address, 0))
        port = bound.getsockname()[1]
        assert is_port_in_use(port, Protocol.UDP)
        bound.connect(("127.0.0.1" if family is socket.AF_INET else "::1", 9))
        assert is_port_in_use(port, Protocol.UDP)
    assert not is_port_in_use(port, Protocol.UDP)
    assert not is_port_in_use(port, Protocol.UDP)


def test_tcp_port_is_in_use_while_a_socket_listens_on_it() -> None:
    """Not for what a connection has left behind, nor because somebody has the port for UDP."""
    with socket.socket() as listening, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert is_port_in_use(port, Protocol.TCP)
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_WR)  # who ends first has it in TIME_WAIT
        listening.close()
        datagrams.bind(("127.0.0.1", port))
        assert not is_port_in_use(port, Protocol.TCP)


def test_interface_is_up_or_there_is_none() -> None:
    """The tests could not run without lo."""
    assert is_interface_up("lo")
    with pytest.raises(OSError, match="No such device"):
        is_interface_up("no-such-device")

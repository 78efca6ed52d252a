"""The addresses of datagrams as bytes: what the kernel has written comes back in an answer, the other way round."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.dataplane.udp_addresses import IP_PKTINFO, AddressLayout, address_layout

ports = st.integers(0, 65535)
LINK_LOCAL = IPv6Address("fe80::1")


def name4(client: IPv4Address, port: int) -> bytes:
    """Return a ``struct sockaddr_in``, as the kernel writes it."""
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, client.packed)


def name6(client: IPv6Address, port: int, interface: int) -> bytes:
    """Return a ``struct sockaddr_in6``, as the kernel writes it."""
    return (
        struct.pack("=H", socket.AF_INET6) + struct.pack("!H4x16s", port, client.packed) + struct.pack("=I", interface)
    )


def control(level: int, kind: int, data: bytes) -> bytes:
    """Return a control message as cmsg(3) describes it."""
    return struct.pack("@Nii", socket.CMSG_LEN(len(data)), level, kind) + data


def memory4(layout: AddressLayout, client: IPv4Address, port: int, local: IPv4Address, interface: int) -> bytes:
    """Return what the kernel has written for one datagram at an IPv4 socket."""
    memory = bytearray(layout.size)
    if layout.is_wildcard:
        message = control(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I", interface) + local.packed + local.packed)
        memory[layout.control : layout.control + len(message)] = message
    memory[layout.name : layout.name + layout.name_bytes] = name4(client, port)
    return bytes(memory)


def memory6(layout: AddressLayout, client: IPv6Address, port: int, local: IPv6Address, interface: int) -> bytes:
    """Return what the kernel has written for one datagram at an IPv6 socket."""
    memory = bytearray(layout.size)
    scope = interface if client.is_link_local else 0
    memory[layout.name : layout.name + layout.name_bytes] = name6(client, port, scope)
    if layout.is_wildcard:
        data = local.packed + struct.pack("=I", interface)
        message = control(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data)
        memory[layout.control : layout.control + len(message)] = message
    return bytes(memory)


def origin_of(layout: AddressLayout, memory: bytes) -> bytes:
    """Return the origin that is in the memory of one datagram."""
    return layout.full_origin(memory) if layout.has_link_local else memory[layout.origin : layout.origin_end]


@pytest.mark.parametrize("is_wildcard", [False, True], ids=["bound", "wildcard"])
@given(client=st.ip_addresses(v=4), port=ports, local=st.ip_addresses(v=4), interface=st.integers(1, 1 << 30))
def test_origin_of_ipv4_says_who_and_where_and_is_the_same_by_every_interface(
    client: IPv4Address, port: int, local: IPv4Address, interface: int, *, is_wildcard: bool
) -> None:
    """The interface is no part of it, and an answer leaves by whichever leads there."""
    layout = address_layout(socket.AF_INET, is_wildcard=is_wildcard)
    origin = origin_of(layout, memory4(layout, client, port, local, interface))
    assert origin == origin_of(layout, memory4(layout, client, port, local, interface + 1))
    assert layout.client(origin) == (str(client), port)
    answer = layout.answer(origin)
    assert len(answer) == layout.size
    assert answer[layout.name : layout.name + layout.name_bytes] == name4(client, port)
    if is_wildcard:
        assert layout.local_address(origin) == str(local)
        message = answer[layout.control : layout.control + socket.CMSG_LEN(12)]
        assert message[:-4] == control(socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + local.packed + bytes(4))[:-4]


@pytest.mark.parametrize("is_wildcard", [False, True], ids=["bound", "wildcard"])
@given(
    client=st.one_of(st.ip_addresses(v=6), st.just(LINK_LOCAL)),
    port=ports,
    local=st.one_of(st.ip_addresses(v=6), st.just(LINK_LOCAL)),
    interface=st.integers(1, 1 << 30),
)
def test_origin_of_ipv6_has_the_interface_where_an_address_means_nothing_without(
    client: IPv6Address, port: int, local: IPv6Address, interface: int, *, is_wildcard: bool
) -> None:
    """An answer from a link-local address leaves by the interface that the question came by, any other by any."""
    layout = address_layout(socket.AF_INET6, is_wildcard=is_wildcard)
    origin = origin_of(layout, memory6(layout, client, port, local, interface))
    needs_interface = client.is_link_local or (is_wildcard and local.is_link_local)
    assert (origin != origin_of(layout, memory6(layout, client, port, local, interface + 1))) == needs_interface
    host, client_port = layout.client(origin)
    assert (IPv6Address(host), client_port) == (client, port)
    answer = layout.answer(origin)
    assert len(answer) == layout.size
    scope = interface if client.is_link_local else 0
    assert answer[layout.name : layout.name + layout.name_bytes] == name6(client, port, scope)
    if is_wildcard:
        assert IPv6Address(layout.local_address(origin)) == local
        by = struct.pack("=I", interface if local.is_link_local else 0)
        expected = control(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local.packed + by)
        assert answer[layout.control : layout.control + len(expected)] == expected


@given(one=st.tuples(st.ip_addresses(v=4), ports, st.ip_addresses(v=4)), data=st.data())
def test_origins_differ_where_client_port_or_local_address_do(
    one: tuple[IPv4Address, int, IPv4Address], data: st.DataObject
) -> None:
    """No two flows are taken for one."""
    layout = address_layout(socket.AF_INET, is_wildcard=True)
    other = data.draw(
        st.tuples(st.sampled_from([one[0], IPv4Address(1)]), ports, st.sampled_from([one[2], IPv4Address(2)]))
    )
    origins = [origin_of(layout, memory4(layout, *each, 1)) for each in (one, other)]
    assert (origins[0] == origins[1]) == (one == other)

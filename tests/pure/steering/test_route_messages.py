"""Messages of rtnetlink, as a kernel 6.18 wrote them (little-endian)."""

import sys
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.names import Family, IPAddress
from userspace_proxy.steering.local_route.route_messages import (
    RTM_DELROUTE,
    RTM_NEWROUTE,
    NextHop,
    RouteEntry,
    build_addition,
    build_dump,
    build_removal,
    build_removal_of,
    describe,
    network_of,
    prefix_of,
    read_link_index,
    read_route,
)
from userspace_proxy.steering.netlink import read_messages

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the kernel writes in the order of the machine")

OWN_IPV4 = bytes.fromhex(
    "44000000 1800 2200 00000000 f7120000 02200000 ff75fe02 00000000 08000f00ff000000 080001000a60000a"
    "08000600c52d0000 080007000a000001 0800040001000000"
)
"""local 10.96.0.10 dev lo table local proto 117 src 10.0.0.1 metric 11717"""
OWN_IPV6 = bytes.fromhex(
    "74000000 1800 2200 00000000 f7120000 0a800000 ff750002 00000000 08000f00ff000000"
    "14000100fd00009600000000000000000000000a 08000600c52d0000 0800040001000000"
    "24000c00 0000000000000000 0000000000000000 0000000000000000 0000000000000000 0500140000000000"
)
"""local fd00:96::a dev lo table local proto 117 metric 11717"""
DEFAULT = bytes.fromhex(
    "34000000 1800 2200 00000000 f7120000 02000000 fe030001 00000000 08000f00fe000000 080005000a000002 0800040003000000"
)
"""default via 10.0.0.2 dev eth0"""
CONNECTED = bytes.fromhex(
    "3c000000 1800 2200 00000000 f7120000 02180000 fe02fd01 00000000 08000f00fe000000 080001000a000000 080007000a000001"
    "0800040003000000"
)
"""10.0.0.0/24 dev eth0 proto kernel scope link src 10.0.0.1"""
TWO_HOPS = bytes.fromhex(
    "48000000 1800 2200 00000000 f7120000 02180000 fe030001 00000000 08000f00fe000000 08000100c6336400"
    "1c000900 1000000003000000 080005000a000002 0800000002000000"
)
"""198.51.100.0/24 nexthop via 10.0.0.2 dev eth0 nexthop dev eth1"""
VIA_IPV6 = bytes.fromhex(
    "4c000000 1800 2200 00000000 f7120000 02180000 fe030001 00000000 08000f00fe000000 08000100cb007100"
    "16001200 0a00fd000000000000000000000000000009 0000 0800040003000000"
)
"""203.0.113.0/24 via inet6 fd00::9 dev eth0"""

ADDRESSES = st.ip_addresses()
NETWORKS = st.builds(
    lambda address, length: ip_network((address, min(length, address.max_prefixlen)), strict=False),
    ADDRESSES,
    st.integers(0, 128),
)


def read_all(received: bytes) -> Iterator[RouteEntry]:
    """Yield the routes that some messages tell of."""
    for message in read_messages(received):
        assert message.kind in (RTM_NEWROUTE, RTM_DELROUTE)
        yield read_route(received, message.start, message.stop)


def test_own_routes_are_known_as_such() -> None:
    """In both families, with the source they have."""
    ipv4, ipv6 = read_all(OWN_IPV4 + OWN_IPV6)
    assert (ipv4.is_own, ipv6.is_own) == (True, True)
    assert (ipv4.prefix, ipv6.prefix) == (prefix_of(ip_address("10.96.0.10")), prefix_of(ip_address("fd00:96::a")))
    assert (ipv4.source, ipv6.source) == (ip_address("10.0.0.1").packed, b"")


@pytest.mark.parametrize(
    ("at", "byte", "has_own_place"),
    [
        pytest.param(21, 4, True, id="another protocol"),
        pytest.param(23, 1, True, id="no local route"),
        pytest.param(32, 254, False, id="another table"),
        pytest.param(48, 0, False, id="another metric"),
    ],
)
def test_route_that_differs_in_one_thing_is_not_ours(at: int, byte: int, *, has_own_place: bool) -> None:
    """It may still be where ours would be."""
    (entry,) = read_all(OWN_IPV4[:at] + bytes([byte]) + OWN_IPV4[at + 1 :])
    assert not entry.is_own
    assert entry.has_own_place is has_own_place


def test_next_hops_are_read_in_all_their_forms() -> None:
    """One with or without gateway, several, and an IPv6 gateway for IPv4."""
    default, connected, two, by_ipv6 = read_all(DEFAULT + CONNECTED + TWO_HOPS + VIA_IPV6)
    gateway = ip_address("10.0.0.2").packed
    assert (network_of(default.prefix), default.next_hops) == (IPv4Network("0.0.0.0/0"), (NextHop(3, gateway),))
    assert (network_of(connected.prefix), connected.next_hops) == (IPv4Network("10.0.0.0/24"), (NextHop(3),))
    assert two.next_hops == (NextHop(3, gateway), NextHop(2))
    assert by_ipv6.next_hops == (NextHop(3, ip_address("fd00::9").packed),)


@given(target=st.one_of(ADDRESSES, NETWORKS), source=st.one_of(st.none(), ADDRESSES), sequence=st.integers(0, 99))
def test_route_that_is_built_is_read_as_ours(
    target: IPAddress | IPv4Network | IPv6Network, source: IPAddress | None, sequence: int
) -> None:
    """Whatever it is for; the removal names the same route, and so does one made of what was read."""
    packed = b"" if source is None else source.packed
    prefix = prefix_of(target)
    added = build_addition(prefix, packed, sequence=sequence, is_acknowledged=False)
    (entry,) = read_all(added)
    assert (entry.is_own, entry.prefix, entry.source) == (True, prefix, packed)
    (removed,) = read_all(build_removal(prefix, sequence=sequence, is_acknowledged=False))
    assert removed._replace(source=packed, content=entry.content) == entry
    assert list(read_all(build_removal_of(entry, sequence=sequence, is_acknowledged=False))) == [entry]
    assert network_of(prefix) == ip_network(target)


def test_requests_are_acknowledged_where_asked() -> None:
    """Errors are told in any case, by the sequence number; an addition creates or replaces."""
    prefix = prefix_of(ip_address("10.96.0.10"))
    body = "02200000 ff75fe02 00000000 080001000a60000a 0800040001000000 08000600c52d0000 080007000a000001"
    for is_acknowledged, flags in ((False, "0105"), (True, "0505")):
        request = build_addition(prefix, bytes([10, 0, 0, 1]), sequence=7, is_acknowledged=is_acknowledged)
        assert request == bytes.fromhex(f"3c000000 1800 {flags} 07000000 00000000 {body}")
    for is_acknowledged, flags in ((False, "0100"), (True, "0500")):
        request = build_removal(prefix, sequence=7, is_acknowledged=is_acknowledged)
        assert request == bytes.fromhex(f"34000000 1900 {flags} 07000000 00000000 {body[: -len(' 080007000a000001')]}")


def test_dump_asks_for_one_family_and_what_is_wanted_of_it() -> None:
    """The kernel leaves out all other protocols and kinds."""
    head = "1c000000 1a00 0103 00000000 00000000"
    assert build_dump(Family.IPV4, protocol=117) == bytes.fromhex(f"{head} 02000000 00750000 00000000")
    assert build_dump(Family.IPV6, kind=1) == bytes.fromhex(f"{head} 0a000000 00000001 00000000")


def test_link_is_named_by_its_index() -> None:
    """As in a message that says that lo is down."""
    assert read_link_index(bytes.fromhex("00000403 01000000 08000000 41000000"), 0) == 1


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("10.96.0.10/32", "local 10.96.0.10 dev lo"),
        ("10.96.0.0/12", "local 10.96.0.0/12 dev lo"),
        ("fd00:96::a/128", "local fd00:96::a dev lo"),
    ],
)
def test_route_is_described_as_iproute2_does(target: str, text: str) -> None:
    """So that it can be looked for, and removed by hand."""
    assert describe(prefix_of(ip_network(target))) == text

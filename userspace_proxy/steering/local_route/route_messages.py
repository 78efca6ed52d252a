"""The rtnetlink messages by which ``local`` routes are listed, added and removed, as bytes. Pure: sends nothing.

Our routes have a protocol number and a metric of their own: so they are told from all others, and replacing or removing
one never touches what others have for the same address, such as the kernel's route to an address of the node.
Entry points: ``build_dump``, ``build_addition``, ``build_removal``, ``read_route``.
Source: rtnetlink(7); Linux include/uapi/linux/rtnetlink.h, net/ipv4/fib_frontend.c, net/ipv6/route.c.
"""

import socket
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from struct import Struct
from typing import NamedTuple

from userspace_proxy.model.names import Family, IPAddress, IPNetwork
from userspace_proxy.steering.netlink import NLM_F_ACK, NLM_F_DUMP, build_attribute, build_message, read_attributes

OWN_PROTOCOL = 117
"""Arbitrary: nobody has it in the rt_protos of iproute2, nor in rtnetlink.h."""
OWN_METRIC = 11717
"""Arbitrary; the kernel's own routes, with metric 0, come before ours."""

RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTN_UNICAST, RTN_LOCAL = 1, 2
LO_INDEX = 1
"""LOOPBACK_IFINDEX of Linux include/net/flow.h: lo is the first in every network namespace."""

_RTM_GETROUTE = 26
_NLM_F_REPLACE, _NLM_F_CREATE = 0x100, 0x400
_RT_TABLE_LOCAL = 255
_RT_SCOPE_HOST = 254
_FAMILY: Mapping[Family, int] = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_BYTES = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}

_ROUTE = Struct("=BBBBBBBBI")
"""struct rtmsg: family, length of the destination, of the source, tos, table, protocol, scope, type, flags."""
_NEXT_HOP = Struct("=HBBi")
"""struct rtnexthop: length with its attributes, flags, hops, interface."""
_NUMBER = Struct("=I")
_LINK = Struct("=BxHi")
"""The start of struct ifinfomsg: family, type, index."""
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 7, 9, 15
_RTA_VIA = 18

Prefix = tuple[bytes, int]
"""A network: its address, as ``packed`` has it, and the length of its prefix."""


class NextHop(NamedTuple):
    """Where a route leads."""

    interface: int = 0
    """Its index; 0: none."""
    gateway: bytes = b""
    """Packed; empty: what the route is for is on the link itself."""


class RouteEntry(NamedTuple):
    """A route, as the kernel tells of it."""

    prefix: Prefix
    table: int
    protocol: int
    """Who has made it."""
    kind: int
    """RTN_..."""
    metric: int
    source: bytes
    """The address that connections from this node have, packed; empty: not given."""
    next_hops: tuple[NextHop, ...]
    content: bytes
    """All the kernel says of it."""

    @property
    def has_own_place(self) -> bool:
        """Whether it is where one of ours for the same prefix would be."""
        return self.metric == OWN_METRIC and self.table == _RT_TABLE_LOCAL

    @property
    def is_own(self) -> bool:
        """Whether it is as ``build_addition`` makes them."""
        return self.has_own_place and self.protocol == OWN_PROTOCOL and self.kind == RTN_LOCAL


def prefix_of(target: IPAddress | IPNetwork) -> Prefix:
    """Return a network as it is in messages; an address is a network of its own."""
    if isinstance(target, IPv4Address | IPv6Address):
        return target.packed, target.max_prefixlen
    return target.network_address.packed, target.prefixlen


def network_of(prefix: Prefix) -> IPNetwork:
    """Return the network of a prefix."""
    packed, length = prefix
    return IPv4Network((packed, length)) if len(packed) == 4 else IPv6Network((packed, length))  # noqa: PLR2004


def family_of_prefix(prefix: Prefix) -> Family:
    """Return the family of a prefix."""
    return Family.IPV4 if len(prefix[0]) == 4 else Family.IPV6  # noqa: PLR2004


def describe(prefix: Prefix) -> str:
    """Return ``local 10.96.0.10 dev lo`` or ``local 10.96.0.0/12 dev lo``, as iproute2 writes routes."""
    network = network_of(prefix)
    return f"local {network.network_address if network.num_addresses == 1 else network} dev lo"


def build_dump(family: Family, *, protocol: int = 0, kind: int = 0) -> bytes:
    """Return the request for all routes of a family, in all tables.

    Args:
        family: Which one.
        protocol: Only those of this protocol; 0: of all.
        kind: Only those of this kind; 0: of all. Kernels before 4.20, and sockets without NETLINK_GET_STRICT_CHK,
            heed neither.
    """
    return build_message(_RTM_GETROUTE, NLM_F_DUMP, _ROUTE.pack(_FAMILY[family], 0, 0, 0, 0, protocol, 0, kind, 0))


def build_addition(prefix: Prefix, source: bytes, *, sequence: int, is_acknowledged: bool) -> bytes:
    """Return the request for a route of ours; it replaces the one for the same prefix.

    Args:
        prefix: Where to.
        source: The address that connections from this node are to have, packed; empty: the kernel's choice.
        sequence: What an error is told by.
        is_acknowledged: The kernel is to answer also if it works.
    """
    chosen = build_attribute(_RTA_PREFSRC, source) if source else b""
    flags = _NLM_F_CREATE | _NLM_F_REPLACE | (NLM_F_ACK if is_acknowledged else 0)
    return build_message(RTM_NEWROUTE, flags, _content(prefix) + chosen, sequence)


def build_removal(prefix: Prefix, *, sequence: int, is_acknowledged: bool) -> bytes:
    """Return the request to remove a route of ours; the answer is ESRCH where there is none.

    Args:
        prefix: See ``build_addition``.
        sequence: See there.
        is_acknowledged: See there.
    """
    return build_message(RTM_DELROUTE, NLM_F_ACK if is_acknowledged else 0, _content(prefix), sequence)


def build_removal_of(entry: RouteEntry, *, sequence: int, is_acknowledged: bool) -> bytes:
    """Return the request to remove a route named by all that the kernel has said of it."""
    return build_message(RTM_DELROUTE, NLM_F_ACK if is_acknowledged else 0, entry.content, sequence)


def read_route(received: bytes, start: int, stop: int) -> RouteEntry:
    """Return the route that a message (RTM_NEWROUTE, RTM_DELROUTE) tells of.

    Args:
        received: What was received.
        start: Where the content of the message starts.
        stop: Where it stops.
    """
    family, length, _, _, table, protocol, _, route_kind, _ = _ROUTE.unpack_from(received, start)
    destination = bytes(_BYTES.get(family, 0))
    interface = metric = 0
    source = gateway = b""
    next_hops: tuple[NextHop, ...] = ()
    for kind, at, end in read_attributes(received, start + _ROUTE.size, stop):
        if kind == _RTA_DST:
            destination = received[at:end]
        elif kind == _RTA_TABLE:
            (table,) = _NUMBER.unpack_from(received, at)
        elif kind == _RTA_OIF:
            (interface,) = _NUMBER.unpack_from(received, at)
        elif kind == _RTA_PRIORITY:
            (metric,) = _NUMBER.unpack_from(received, at)
        elif kind == _RTA_PREFSRC:
            source = received[at:end]
        elif kind in (_RTA_GATEWAY, _RTA_VIA):
            gateway = _read_gateway(kind, received[at:end])
        elif kind == _RTA_MULTIPATH:
            next_hops = tuple(_read_next_hops(received, at, end))
    return RouteEntry(
        prefix=(destination, length),
        table=table,
        protocol=protocol,
        kind=route_kind,
        metric=metric,
        source=source,
        next_hops=next_hops or (NextHop(interface, gateway),),
        content=received[start:stop],
    )


def read_link_index(received: bytes, start: int) -> int:
    """Return the index of the interface that a message (RTM_NEWLINK, RTM_DELLINK) tells of."""
    index: int = _LINK.unpack_from(received, start)[2]
    return index


def _content(prefix: Prefix) -> bytes:
    packed, length = prefix
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6  # noqa: PLR2004
    head = _ROUTE.pack(family, length, 0, 0, _RT_TABLE_LOCAL, OWN_PROTOCOL, _RT_SCOPE_HOST, RTN_LOCAL, 0)
    return head + build_attribute(_RTA_DST, packed) + _TO_LO


def _read_next_hops(received: bytes, at: int, end: int) -> Iterator[NextHop]:
    while at + _NEXT_HOP.size <= end:
        length, _flags, _hops, interface = _NEXT_HOP.unpack_from(received, at)
        gateway = b""
        for kind, start, stop in read_attributes(received, at + _NEXT_HOP.size, at + length):
            if kind in (_RTA_GATEWAY, _RTA_VIA):
                gateway = _read_gateway(kind, received[start:stop])
        yield NextHop(interface, gateway)
        at += (max(length, _NEXT_HOP.size) + 3) & ~3


def _read_gateway(kind: int, content: bytes) -> bytes:
    return content[2:] if kind == _RTA_VIA else content  # struct rtvia: a family, then an address of it


_TO_LO = build_attribute(_RTA_OIF, _NUMBER.pack(LO_INDEX)) + build_attribute(_RTA_PRIORITY, _NUMBER.pack(OWN_METRIC))

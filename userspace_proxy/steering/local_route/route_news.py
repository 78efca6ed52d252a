"""What the kernel tells of changes of routes, addresses and links, without being asked. Entry point: ``RouteNews``."""

import contextlib
import errno
import socket
from collections.abc import Iterator

from userspace_proxy.steering.local_route.route_messages import (
    LO_INDEX,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RouteEntry,
    read_link_index,
    read_route,
)
from userspace_proxy.steering.netlink import Message, read_messages

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_SO_RCVBUFFORCE = 33
"""Source: socket(7); module socket does not have it."""
_GROUPS = {"link": 1, "IPv4 addresses": 5, "IPv4 routes": 7, "IPv6 addresses": 9, "IPv6 routes": 11}
"""RTNLGRP_... of Linux include/uapi/linux/rtnetlink.h."""
_BUFFER_BYTES = 1 << 22
"""Holds some thousand messages: what routing daemons change between two looks. Arbitrary; used only while filled."""
_RECEIVE_BYTES = 1 << 16


class RouteNews:
    """Owns the socket; what happens after its construction is told.

    Args:
        own_port: That of the socket by which our own changes are made: they are no news.

    Raises:
        OSError: no file descriptor is left.
    """

    def __init__(self, own_port: int) -> None:
        self._own_port = own_port
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.setblocking(False)  # noqa: FBT003 - positional only
        self._netlink.bind((0, 0))  # without a port of its own a socket is passed over
        with contextlib.suppress(PermissionError):  # the default holds some hundred messages
            self._netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        for group in _GROUPS.values():
            self._netlink.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        self.has_gap = False
        """Something was missed, or is not told: which IPv6 routes go when lo does. Whoever looks anew resets it."""
        self.has_addresses = False
        """Addresses of the node have come or gone. Whoever looks anew resets it."""

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def read(self) -> Iterator[tuple[bool, RouteEntry]]:
        """Yield the routes that others have added (True) or removed (False) since the last call, in order."""
        while True:
            try:
                received = self._netlink.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.has_gap = True
                continue
            for message in read_messages(received):
                if message.kind in (RTM_NEWROUTE, RTM_DELROUTE):
                    if message.sender != self._own_port:  # known; there may be thousands
                        yield message.kind == RTM_NEWROUTE, read_route(received, message.start, message.stop)
                else:
                    self._note(received, message)

    def _note(self, received: bytes, message: Message) -> None:
        if message.kind in (RTM_NEWLINK, RTM_DELLINK):
            self.has_gap |= read_link_index(received, message.start) == LO_INDEX
        elif message.kind in (RTM_NEWADDR, RTM_DELADDR):
            self.has_addresses = True

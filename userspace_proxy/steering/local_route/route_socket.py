"""A netlink socket by which routes are asked for and changed. Effects; blocking, but the kernel answers at once.

Entry point: ``RouteSocket``.
"""

import os
import socket
from collections.abc import Iterator, Sequence

from userspace_proxy.model.names import Family
from userspace_proxy.steering.local_route.route_messages import (
    RTM_NEWROUTE,
    RouteEntry,
    build_dump,
    family_of_prefix,
    read_route,
)
from userspace_proxy.steering.netlink import NLMSG_DONE, NLMSG_ERROR, read_errno, read_messages

BATCH = 100
"""Changes sent at a time: what is told of them has to fit the buffers of sockets. Arbitrary."""

_SOL_NETLINK = 270
_NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK = 10, 12
"""Source: Linux include/uapi/linux/netlink.h; module socket has none of them."""
_RECEIVE_BYTES = 1 << 16
"""The kernel sends 32 KiB at a time, at most."""
_TIMEOUT_S = 5.0
"""For one answer; arbitrary."""


class RouteSocket:
    """Owns the socket.

    Raises:
        OSError: no file descriptor is left.
    """

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.settimeout(_TIMEOUT_S)
        self._netlink.bind((0, 0))
        for option in (_NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK):
            try:
                self._netlink.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:  # before Linux 4.20: longer answers, and routes that nobody has asked for
                continue

    @property
    def port(self) -> int:
        """By what changes of this socket are told from those of others."""
        port: int = self._netlink.getsockname()[0]
        return port

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def list_routes(self, *, protocol: int = 0, kind: int = 0) -> list[RouteEntry]:
        """Return the routes of both families in all tables.

        Args:
            protocol: Only those of this protocol; 0: of all.
            kind: Only those of this kind; 0: of all.

        Raises:
            OSError: it did not work, for once.
        """
        found = []
        for family in Family:
            self._netlink.send(build_dump(family, protocol=protocol, kind=kind))
            for entry in self._receive_routes():
                is_asked_for = kind in (0, entry.kind) and protocol in (0, entry.protocol)
                if is_asked_for and family_of_prefix(entry.prefix) is family:
                    found.append(entry)
        return found

    def change(self, requests: Sequence[bytes]) -> list[tuple[int, int]]:
        """Send some requests, at most ``BATCH``, and return which have failed.

        Args:
            requests: Their sequence numbers count from 0; only the last is acknowledged.

        Returns:
            The sequence number and errno of each that has failed.

        Raises:
            OSError: it is not known what became of them.
        """
        failed = []
        self._netlink.send(b"".join(requests))
        while True:
            received = self._netlink.recv(_RECEIVE_BYTES)
            for message in read_messages(received):
                if message.kind == NLMSG_ERROR:
                    number = read_errno(received, message)
                    if number:
                        failed.append((message.sequence, number))
                    if message.sequence == len(requests) - 1:
                        return failed

    def _receive_routes(self) -> Iterator[RouteEntry]:
        while True:
            received = self._netlink.recv(_RECEIVE_BYTES)
            for message in read_messages(received):
                if message.kind == RTM_NEWROUTE:
                    yield read_route(received, message.start, message.stop)
                elif message.kind in (NLMSG_DONE, NLMSG_ERROR):
                    number = read_errno(received, message)
                    if number:
                        raise OSError(number, os.strerror(number))
                    return

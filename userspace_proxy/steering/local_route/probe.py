"""Whether ``local`` routes are of use here: one is added, a datagram is sent by it, and it is removed again.

Entry point: ``probe_routes``.
"""

import errno
import os
import socket
from collections.abc import Mapping
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, IPAddress
from userspace_proxy.steering.command import NOT_PERMITTED
from userspace_proxy.steering.local_route.route_messages import build_addition, build_removal, prefix_of
from userspace_proxy.steering.local_route.route_socket import RouteSocket
from userspace_proxy.steering.node_state import is_interface_up

_ADDRESSES: Mapping[Family, IPAddress] = {
    Family.IPV4: IPv4Address("192.0.2.222"),
    Family.IPV6: IPv6Address("100::222"),
}
"""Nobody's: TEST-NET-1 (RFC 5737) and the discard prefix (RFC 6666)."""
_DOMAINS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_IP_FREEBIND = 15
"""For both families; source: Linux include/uapi/linux/in.h. Module socket does not have it."""
_TIMEOUT_S = 1.0
"""Arbitrary: the kernel delivers at once."""


def probe_routes(family: Family) -> None:
    """Return if a Listener at an address that only a route of ours makes one of this node is reached.

    Raises:
        SteeringError: it is not; one clause says why.
    """
    try:
        _send_by_route(family)
    except TimeoutError as error:
        raise SteeringError(
            f"what is sent to a local route of {family} does not arrive; does a firewall drop packets on lo?"
        ) from error
    except OSError as error:
        raise SteeringError(_reason(family, error)) from error


def _send_by_route(family: Family) -> None:
    if not is_interface_up("lo"):  # IPv4 routes could be added all the same, and packets would vanish
        raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
    address = _ADDRESSES[family]
    with socket.socket(_DOMAINS[family], socket.SOCK_DGRAM) as bound, closing(RouteSocket()) as requests:
        bound.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        bound.bind((str(address), 0))
        _change(requests, build_addition(prefix_of(address), b"", sequence=0, is_acknowledged=True))
        try:
            bound.settimeout(_TIMEOUT_S)
            bound.sendto(b"", bound.getsockname())
            bound.recv(1)
        finally:
            _change(requests, build_removal(prefix_of(address), sequence=0, is_acknowledged=True))


def _change(requests: RouteSocket, request: bytes) -> None:
    for _, number in requests.change([request]):
        raise OSError(number, os.strerror(number))


def _reason(family: Family, error: OSError) -> str:
    match error.errno:
        case errno.EPERM:
            return NOT_PERMITTED
        case errno.EAFNOSUPPORT | errno.EOPNOTSUPP:
            return f"this kernel has no {family}"
        case errno.EACCES:
            return f"{family} is disabled on lo"
        case errno.ENETDOWN:
            return "lo is down"
        case _:
            return f"local routes of {family} cannot be used: {error.strerror or error}"

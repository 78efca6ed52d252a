"""UDP sockets as the data plane uses them: their options, and which errors mean what."""

import errno
import socket
import struct
from typing import cast

from userspace_proxy.dataplane.sockets import OUT_OF_CAPACITY, opening
from userspace_proxy.dataplane.udp_addresses import IP_PKTINFO
from userspace_proxy.model.names import IPAddress
from userspace_proxy.plan.state import ListenerSpec

NO_BUFFER = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
"""send(2): the datagram found no room."""

NO_FLOW_CAPACITY = OUT_OF_CAPACITY | {errno.EAGAIN}
"""socket(2), epoll_ctl(2), connect(2) of an upstream socket: no descriptor, memory or local port is left."""

REFUSALS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
        errno.EACCES,
    }
)
"""send(2), recv(2): what ICMP has said of an earlier datagram (Linux, net/ipv4/icmp.c and net/ipv6/icmp.c)."""

NO_WAY = frozenset(
    {
        errno.EPERM,  # a firewall rule
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,  # no local port is left, or no local address leads there
        errno.EINVAL,  # an address that nothing can be sent to
    }
)
"""connect(2), send(2): this very datagram cannot leave; of earlier ones nothing is said."""

_DESTROYED = frozenset({errno.ECONNABORTED, errno.EDESTADDRREQ})
"""Somebody has destroyed the socket (ss -K), as others do with those to Backends that are gone."""

BACKEND_UNUSABLE = REFUSALS | NO_WAY | _DESTROYED
"""connect(2), send(2), recv(2) on a socket connected to a Backend: another one may be better."""

CLIENT_UNREACHABLE = frozenset(
    {
        errno.EINVAL,  # port 0, or an address that this node has no longer
        errno.EACCES,
        errno.EPERM,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETDOWN,
        errno.ENODEV,
        errno.EADDRNOTAVAIL,
    }
)
"""sendmmsg(2): this node cannot send an answer where it is to go."""

_RECEIVE_BUFFER_BYTES = 4 << 20
"""What the kernel may keep for a listener that does not get its turn: some ten thousand small datagrams. Arbitrary."""

# Linux, asm-generic/socket.h; Python has no names for them.
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55

_MEMINFO = struct.Struct("=9I")
_DROPS = 8
"""Position in what SO_MEMINFO returns: SK_MEMINFO_DROPS of linux/sock_diag.h."""


def open_datagram_socket(spec: ListenerSpec, *, names_holder: bool) -> socket.socket:
    """Return a non-blocking UDP socket bound to where the spec says; the caller owns it.

    Args:
        spec: Where.
        names_holder: See ``sockets.open_listening_socket``.

    Raises:
        ListenError: it cannot be opened; the sentence names the place and the reason.
    """
    with opening(spec, socket.SOCK_DGRAM, names_holder=names_holder) as sock:
        _prepare(sock, spec.address)
        sock.bind((str(spec.address), spec.port))
    return sock


def _prepare(sock: socket.socket, address: IPAddress) -> None:
    """Set the options of a listener's socket that is about to be bound to an address."""
    if address.is_unspecified:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    except OSError:  # not permitted, or not known in a sandbox; the kernel cuts it to net.core.rmem_max
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)


def refuse_datagrams(sock: socket.socket) -> None:
    """Have the kernel answer all further datagrams with ICMP port unreachable; the socket can still send.

    It is connected to itself, so that nobody else's datagrams are for it. What was received before is still there.

    Raises:
        OSError: it cannot be.
    """
    address, *rest = sock.getsockname()
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    sock.connect((loopback.get(address, address), *rest))


def read_drops(sock: socket.SocketType) -> int:
    """Return how many datagrams the kernel had to drop, as they found no room in the socket's buffer; 0: unknown."""
    try:
        info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:  # before Linux 4.12, or in a sandbox
        return 0
    return cast("int", _MEMINFO.unpack(info)[_DROPS])

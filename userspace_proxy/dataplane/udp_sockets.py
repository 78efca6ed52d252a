"""UDP sockets as the data plane uses them: how they are opened, their options, and which errors mean what."""

import errno
import socket
import struct
from contextlib import suppress
from typing import cast

from userspace_proxy.dataplane.sockets import OUT_OF_CAPACITY, listen_errors, opening, share_port
from userspace_proxy.dataplane.udp_addresses import IP_PKTINFO
from userspace_proxy.errors import ListenError
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

_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

# Linux, asm-generic/socket.h, linux/in.h and linux/in6.h; Python has no names for them.
_TRANSPARENT = {socket.AF_INET: (socket.IPPROTO_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}
"""By family: level and number of IP_TRANSPARENT and IPV6_TRANSPARENT."""
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55

_MEMINFO = struct.Struct("=9I")
_DROPS = 8
"""Position in what SO_MEMINFO returns: SK_MEMINFO_DROPS of linux/sock_diag.h."""


def open_datagram_sockets(
    spec: ListenerSpec,
    count: int,
    *,
    shares_port: bool,
    names_holder: bool,
    predecessors: tuple[socket.socket, ...] = (),
    takes_over: bool = False,
) -> tuple[socket.socket, ...]:
    """Return non-blocking UDP sockets bound to where the spec says, a group if there are several; the caller owns them.

    They are a group of their own: nothing is led to their predecessors, and they are numbered in this order.

    Args:
        spec: Where.
        count: How many.
        shares_port: See ``sockets.share_port``.
        names_holder: See ``sockets.hold_port``.
        predecessors: Hold the port so far (see ``refuse_datagrams``), and still do so afterwards; none: nobody does.
        takes_over: Somebody may have a socket there still that was given up (see ``give_up_datagram_port``).

    Raises:
        ListenError: they cannot be opened; the sentence names the place and the reason.
    """
    sockets: list[socket.socket] = []
    try:
        for other in predecessors:
            _make_way(other, is_on=True)
            share_port(other, is_shared=False)  # or they would be of one group
        for _ in range(count):
            is_shared = shares_port or bool(sockets)
            with opening(spec, socket.SOCK_DGRAM, shares_port=is_shared, names_holder=names_holder) as sock:
                _prepare(sock, spec.address)
                for other in sockets:
                    share_port(other, is_shared=True)
                _make_way(sock, is_on=takes_over or bool(predecessors))
                sock.bind((str(spec.address), spec.port))
                _make_way(sock, is_on=False)
            sockets.append(sock)
    except Exception:
        for sock in sockets:
            sock.close()
        raise
    finally:
        for other in predecessors:
            _make_way(other, is_on=False)
            share_port(other, is_shared=shares_port)
    return tuple(sockets)


def give_up_datagram_port(sock: socket.socket, spec: ListenerSpec) -> None:
    """Have a socket take no more datagrams, and not be in the way of those that are bound to its place to take over.

    It is to be closed now; but engines may have it for a moment still, and its port with it.
    """
    with suppress(ListenError):
        refuse_datagrams(sock, spec)
    share_port(sock, is_shared=False)
    _make_way(sock, is_on=True)


def _make_way(sock: socket.socket, *, is_on: bool) -> None:
    """Set whether a UDP socket may be bound where others are that say the same (socket(7), SO_REUSEADDR)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, is_on)


def hold_datagram_port(
    spec: ListenerSpec, *, shares_port: bool, names_holder: bool, takes_over: bool = False
) -> socket.socket:
    """Return a UDP socket at which nothing arrives (see ``refuse_datagrams``), so that nobody else has the port.

    The caller owns it. Args and errors are those of ``open_datagram_sockets``.
    """
    (sock,) = open_datagram_sockets(spec, 1, shares_port=shares_port, names_holder=names_holder, takes_over=takes_over)
    try:
        refuse_datagrams(sock, spec)
    except ListenError:
        sock.close()
        raise
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


def refuse_datagrams(sock: socket.socket, spec: ListenerSpec) -> None:
    """Have the kernel answer all further datagrams with ICMP port unreachable; the socket can still send.

    It is connected to itself, so that nobody else's datagrams are for it. What was received before is still there. The
    port stays held; that of a wildcard address against other wildcard sockets, but not at single addresses, as the
    socket has one itself now, that of loopback.

    Args:
        sock: Bound, not connected.
        spec: Where.

    Raises:
        ListenError: datagrams are not refused: this node cannot even send to itself.
    """
    port = sock.getsockname()[1]
    host = str(spec.address)
    loopback = _LOOPBACK[sock.family]
    with listen_errors(spec, names_holder=False):
        try:
            sock.connect((loopback if spec.address.is_unspecified else host, port))
        except OSError:
            if not spec.is_virtual:
                raise
            _connect_before_address_is_there(sock, (loopback, port))


def _connect_before_address_is_there(sock: socket.socket, address: tuple[str, int]) -> None:
    """Connect a socket whose own address may come to this node later.

    Only a transparent socket may (ip(7)), and steering that brings addresses has the capability needed; to loopback
    there is a way in any case.
    """
    level, option = _TRANSPARENT[sock.family]
    sock.setsockopt(level, option, 1)
    try:
        sock.connect(address)
    finally:
        sock.setsockopt(level, option, 0)


def read_drops(sock: socket.SocketType) -> int:
    """Return how many datagrams the kernel had to drop, as they found no room in the socket's buffer; 0: unknown."""
    try:
        info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:  # before Linux 4.12, or in a sandbox
        return 0
    return cast("int", _MEMINFO.unpack(info)[_DROPS])

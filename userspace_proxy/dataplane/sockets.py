"""Sockets as the data plane uses them: how they are opened, and which errors mean what.

The one place where an ``OSError`` of a listening socket becomes a ``ListenError``, and where errnos are sorted into
sets. What is in no set is unexpected and propagates.
"""

import ctypes
import errno
import os
import resource
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.socket_holders import describe_holder
from userspace_proxy.errors import ListenError
from userspace_proxy.model.names import Family, family_of
from userspace_proxy.plan.state import ListenerSpec

OUT_OF_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC})
"""accept(2), socket(2), epoll_ctl(2): this process or the machine has no more to give; waiting helps."""

ACCEPT_LOST = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,  # a firewall rule (accept(2), Linux notes)
        errno.EPROTO,
        # Network errors already pending on the new socket, which accept(2) on Linux passes on:
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
    }
)
"""accept(2): that one client is gone; the next one may be fine."""

NO_LOCAL_PORT = frozenset({errno.EADDRNOTAVAIL, errno.EAGAIN})
"""connect(2): every local port towards this Backend is in use, in TIME_WAIT mostly; another Backend has its own."""

_DIAL_OUTCOMES = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.EACCES: "not_permitted",
    errno.EPERM: "not_permitted",
    errno.EADDRNOTAVAIL: "no_local_port",
    errno.EAGAIN: "no_local_port",
}

AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}

_LIBC = ctypes.CDLL(None)
_NOWHERE = struct.pack("=H14x", socket.AF_UNSPEC)
"""struct sockaddr, which has connect(2) dissolve what there is; ``socket.connect`` takes no such address."""

MOST_RESERVED_FILES = 96
"""Descriptors that listeners leave for all else, so that a process with too many listeners still has some for clients,
for admin pages and for new workers; where it may have few, a quarter of them. Arbitrary."""

_ABORTIVE = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger: on, 0 seconds

# Linux, linux/in.h and linux/netfilter_ipv4.h; Python has no names for them.
_IP_FREEBIND = 15
"""Of IPv6 sockets too."""
_SO_ORIGINAL_DST = 80
"""IP6T_SO_ORIGINAL_DST is the same number."""

_ORIGINAL_DESTINATION: Mapping[int, tuple[int, struct.Struct]] = {
    socket.AF_INET: (socket.SOL_IP, struct.Struct("!2xH4s8x")),
    socket.AF_INET6: (socket.IPPROTO_IPV6, struct.Struct("!2xH4x16s4x")),
}
"""By family: the level of SO_ORIGINAL_DST, and the port and address in what it returns (ip(7), ipv6(7))."""

_NO_ORIGINAL_DESTINATION = frozenset({errno.ENOENT, errno.ENOPROTOOPT})
"""getsockopt(2), SO_ORIGINAL_DST: conntrack does not know the connection, or there is no conntrack."""


def set_nodelay(sock: socket.SocketType) -> None:
    """Have the kernel send small writes at once (tcp(7)); accepted sockets inherit it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def set_keepalive(sock: socket.SocketType, limits: RelayLimits) -> None:
    """Have the kernel probe a silent peer (tcp(7)); accepted sockets inherit it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, limits.keepalive_idle_s)


def set_reset_on_close(sock: socket.SocketType) -> None:
    """Make closing the socket send RST instead of FIN (socket(7), SO_LINGER) and leave no TIME_WAIT behind."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORTIVE)


def hold_port(spec: ListenerSpec, *, shares_port: bool, names_holder: bool) -> socket.socket:
    """Return a non-blocking TCP socket that is bound to where the spec says and does not listen; the caller owns it.

    Clients are refused as if there was no socket, but nobody else can listen there.

    Args:
        spec: Where.
        shares_port: See ``share_port``.
        names_holder: Look for the process that has the port already, if one has; walks through all processes.

    Raises:
        ListenError: the port cannot be had; the sentence names the place and the reason.
    """
    with opening(spec, socket.SOCK_STREAM, shares_port=shares_port, names_holder=names_holder) as sock:
        _pass_over_connections(sock, is_on=True)
        sock.bind((str(spec.address), spec.port))
        _pass_over_connections(sock, is_on=False)
    return sock


def start_listening(sock: socket.socket, spec: ListenerSpec, limits: RelayLimits, *, names_holder: bool) -> None:
    """Have a socket from ``hold_port`` listen.

    Args:
        sock: Also one that has listened before.
        spec: As for ``hold_port``.
        limits: Has the backlog and the keepalive time.
        names_holder: As for ``hold_port``.

    Raises:
        ListenError: it does not listen, and holds its port as before.
    """
    with listen_errors(spec, names_holder=names_holder):
        set_nodelay(sock)
        set_keepalive(sock, limits)
        # An urgent byte stays in the stream, also one that comes first; accepted sockets inherit it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        _pass_over_connections(sock, is_on=True)
        try:
            sock.listen(limits.listen_backlog)
        except OSError:
            _pass_over_connections(sock, is_on=False)
            raise


def stop_listening(sock: socket.socket) -> None:
    """Have a socket refuse clients from now on, and reset those in its queue; it holds its port, without any gap.

    Linux lets it listen again later (inet_shutdown() and inet_listen() in net/ipv4/af_inet.c), which HAProxy relies on
    too. Copies of the descriptor in other processes do not keep it listening.

    One that somebody has destroyed (ss -K) is made good: it does not listen, but would have what it accepts later be
    shut down from the start (tcp_done() in net/ipv4/tcp.c).
    """
    _pass_over_connections(sock, is_on=False)
    if is_listening(sock):
        sock.shutdown(socket.SHUT_RDWR)
    else:
        _LIBC.connect(sock.fileno(), _NOWHERE, len(_NOWHERE))  # where a sandbox cannot, all is as before


def give_up_port(sock: socket.socket) -> None:
    """Have a socket refuse clients for good, and not be in the way of the next one at its place.

    It is to be closed now; but engines may have it for a moment still, and its port with it.
    """
    with suppress(OSError):  # ENOTCONN: it does not listen
        sock.shutdown(socket.SHUT_RDWR)
    _pass_over_connections(sock, is_on=True)


def is_listening(sock: socket.socket) -> bool:
    """Return whether a socket listens (socket(7), SO_ACCEPTCONN)."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _pass_over_connections(sock: socket.socket, *, is_on: bool) -> None:
    """Set whether connections at the port, in TIME_WAIT say, do not matter to bind(2) and listen(2).

    Not while the port is only held: two sockets with SO_REUSEADDR may both be bound (socket(7)), so that most servers
    could have the port.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, is_on)


def share_port(sock: socket.socket, *, is_shared: bool) -> None:
    """Set whether sockets of this user may have the same port: one at the wildcard address, others at single ones.

    All of them need it set when the last one is bound; the kernel leads clients to the one with the most exact address.
    It is not to be set where there is no need: other processes could share the place itself, and thereby the clients.
    (Of a TCP port that was shared once the kernel remembers it until its last socket is closed. Of a shared UDP port it
    may overlook that others have it at a single address.)
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, is_shared)


def was_steered(accepted: socket.SocketType) -> bool:
    """Return whether netfilter has led an accepted connection here from another address or port.

    Source: getorigdst() in Linux, net/netfilter/nf_conntrack_proto.c.
    """
    level, address_struct = _ORIGINAL_DESTINATION[accepted.family]
    try:
        option = accepted.getsockopt(level, _SO_ORIGINAL_DST, address_struct.size)
    except OSError as error:
        if error.errno in _NO_ORIGINAL_DESTINATION:
            return False
        raise
    port, packed = address_struct.unpack(option)
    host, local_port = accepted.getsockname()[:2]
    local = ip_address(host.partition("%")[0])
    return (port, packed) != (local_port, local.packed)


@contextmanager
def opening(spec: ListenerSpec, kind: int, *, shares_port: bool, names_holder: bool) -> Iterator[socket.socket]:
    """Yield a new non-blocking socket that the block is to bind; it is closed if that fails, else it is the caller's.

    Args:
        spec: Where.
        kind: SOCK_STREAM or SOCK_DGRAM.
        shares_port: See ``share_port``.
        names_holder: See ``hold_port``.

    Raises:
        ListenError: for every OSError in the block, or if there is no socket.
    """
    family = family_of(spec.address)
    with listen_errors(spec, names_holder=names_holder):
        sock = socket.socket(AF[family], kind | socket.SOCK_NONBLOCK)
        try:
            _require_room(sock)
            if family is Family.IPV6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if spec.is_virtual:
                sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            share_port(sock, is_shared=shares_port)
            yield sock
        except Exception:
            sock.close()
            raise


def _require_room(sock: socket.socket) -> None:
    """Raise OSError as if there was no descriptor for a socket if it has got one of those that are reserved."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_reserved = limit - min(limit // 4, MOST_RESERVED_FILES)
    if limit != resource.RLIM_INFINITY and sock.fileno() >= first_reserved:  # the kernel gives the lowest that is free
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@contextmanager
def listen_errors(spec: ListenerSpec, *, names_holder: bool) -> Iterator[None]:
    """Turn every OSError in the block into a ListenError that names the place and the reason (see ``hold_port``)."""
    try:
        yield
    except OSError as error:
        raise ListenError(_listen_text(spec, error, names_holder=names_holder)) from error


def _listen_text(spec: ListenerSpec, error: OSError, *, names_holder: bool) -> str:
    """Return what failed, where, why and what to do."""
    name = spec.key.service_port
    host = f"[{spec.address}]" if spec.address.version == 6 else str(spec.address)  # noqa: PLR2004
    is_held = names_holder and error.errno == errno.EADDRINUSE
    holder = describe_holder(spec.address, spec.port, name.protocol) if is_held else None
    reason = _reason(error, holder)
    return f"cannot listen on {host}:{spec.port} for {name}: {reason}"


def _reason(error: OSError, holder: str | None) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"in use by {holder or 'another process'}; stop it or change the port"
        case errno.EACCES:
            return "not permitted; ports below net.ipv4.ip_unprivileged_port_start need root or CAP_NET_BIND_SERVICE"
        case errno.EADDRNOTAVAIL:
            return "no such address on this node"
        case errno.EMFILE:
            return "no file descriptor is left; raise the limit (ulimit -n, LimitNOFILE=)"
        case errno.ENOSPC:  # epoll_ctl(2)
            return "the kernel watches no more file descriptors; raise fs.epoll.max_user_watches"
        case _:
            return os.strerror(error.errno) if error.errno else str(error)


def dial_outcome(error_number: int) -> str:
    """Return the metric label for a dial that failed with an errno of socket(2) or connect(2)."""
    if error_number in OUT_OF_CAPACITY:
        return "no_descriptor"
    return _DIAL_OUTCOMES.get(error_number, "error")


def errno_name(number: int) -> str:
    """Return the symbolic name of an errno, as ``EMFILE``."""
    return errno.errorcode.get(number, str(number))

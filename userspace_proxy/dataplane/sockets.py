"""Sockets as the data plane uses them: how they are opened, and which errors mean what.

The one place where an ``OSError`` of a listening socket becomes a ``ListenError``, and where errnos are sorted into
sets. What is in no set is unexpected and propagates.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

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

_ABORTIVE = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # struct linger: on, 0 seconds


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


def open_listening_socket(spec: ListenerSpec, limits: RelayLimits, *, names_holder: bool) -> socket.socket:
    """Return a non-blocking TCP socket that listens where the spec says; the caller owns it.

    Args:
        spec: Where.
        limits: Has the backlog and the keepalive time.
        names_holder: Look for the process that has the port already, if one has; walks through all processes.

    Raises:
        ListenError: it cannot be opened; the sentence names the place and the reason.
    """
    with opening(spec, socket.SOCK_STREAM, names_holder=names_holder) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        set_nodelay(sock)
        set_keepalive(sock, limits)
        sock.bind((str(spec.address), spec.port))
        sock.listen(limits.listen_backlog)
    return sock


@contextmanager
def opening(spec: ListenerSpec, kind: int, *, names_holder: bool) -> Iterator[socket.socket]:
    """Yield a new non-blocking socket that the block is to bind; it is closed if that fails, else it is the caller's.

    Args:
        spec: Where.
        kind: SOCK_STREAM or SOCK_DGRAM.
        names_holder: See ``open_listening_socket``.

    Raises:
        ListenError: for every OSError in the block, or if there is no socket.
    """
    family = family_of(spec.address)
    sock = None
    try:
        sock = socket.socket(AF[family], kind | socket.SOCK_NONBLOCK)
        if family is Family.IPV6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        yield sock
    except OSError as error:
        if sock is not None:
            sock.close()
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

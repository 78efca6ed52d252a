"""TcpRelay: one client connection, from accept to the end of both directions.

Rules of the state machine (``_NEXT`` has all transitions):

- Nothing is read from the client before a Backend is connected (see ``tcp_dialling``): what it sends waits in the
  kernel.
- Each direction ends on its own: FIN is passed on once all bytes before it were delivered; the other direction goes on.
- The last direction to end needs no ``shutdown``: closing both sockets says the same.
- A failure (RST, unreachable) ends both directions: what was received before it is still delivered, then both sides
  are reset, so that nobody takes a cut stream for a whole one.
"""

import select
import socket
from collections.abc import Callable
from sys import intern
from typing import TYPE_CHECKING

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.balance.live_pool import LivePool, Member
from userspace_proxy.dataplane.engine import RELAY_EVENTS
from userspace_proxy.dataplane.relay_side import BLOCKED, RECV_FLAGS, SEND_FLAGS, Side
from userspace_proxy.dataplane.sockets import set_keepalive, set_reset_on_close
from userspace_proxy.dataplane.tcp_dialling import Dialling

if TYPE_CHECKING:
    from userspace_proxy.dataplane.tcp_listener import TcpListener

DIALLING, OPEN, CLIENT_ENDED, BACKEND_ENDED, CLOSED = range(5)
_CONNECTED, _CLIENT_END, _BACKEND_END = range(3)

_NEXT = {
    DIALLING: {_CONNECTED: OPEN},
    OPEN: {_CLIENT_END: CLIENT_ENDED, _BACKEND_END: BACKEND_ENDED},
    CLIENT_ENDED: {_BACKEND_END: CLOSED},
    BACKEND_ENDED: {_CLIENT_END: CLOSED},
}
"""What follows on what; any state may also be closed at once (``close``)."""

_GONE = select.EPOLLERR | select.EPOLLHUP
_RESCUE_READS = 64
"""Buffers that are moved at most after one side has failed (4 MiB: more than a receive queue holds by default)."""
_LONGEST_LOOK_S = 10.0
"""A timer holds on to its connection, also to one that has ended: so none is set for longer. Arbitrary."""
_IDLE_CHECKS = 8
"""A connection found active is looked at again after this part of the time-out, and so closed up to 1/8 late. Looking
exactly at the end would give every connection a timer length of its own (see ``Timers``)."""


class TcpRelay:
    """One connection. Created by its listener right after accept; closes itself and tells the listener."""

    __slots__ = (
        "accepted_s",
        "active_s",
        "backend",
        "client",
        "client_host",
        "client_port",
        "connected_s",
        "dialling",
        "listener",
        "member",
        "state",
    )

    def __init__(
        self, listener: "TcpListener", pool: LivePool, sock: socket.SocketType, client_address: tuple[str, int]
    ) -> None:
        """Take ownership of an accepted socket and start to dial the Members of a Pool.

        Args:
            listener: Has accepted it.
            pool: Where the Backends are.
            sock: The client.
            client_address: Its host and port; more that accept(2) has said of it does not matter.
        """
        engine = listener.engine
        now_s = engine.now_s
        self.listener = listener
        self.client_host = intern(client_address[0])  # connections of one client share the text
        self.client_port = client_address[1]
        self.state = DIALLING
        self.accepted_s = self.active_s = now_s
        self.connected_s = 0.0
        self.member: Member | None = None
        """The Backend's; None: none is connected yet."""
        self.backend: Side | None = None
        self.client = Side(self, engine, sock)
        engine.add(sock.fileno(), self.client, RELAY_EVENTS)
        listener.relays[self] = None
        listener.young.add(self, now_s)
        idle_timeout_s = listener.limits.idle_timeout_s
        if idle_timeout_s is not None:
            engine.timers.add(now_s, min(idle_timeout_s, _LONGEST_LOOK_S), self._on_idle_timer)
        self.dialling: Dialling | None = Dialling(self, pool)
        """None: it has come to its end."""
        self.dialling.dial_next()

    @property
    def client_address(self) -> tuple[str, int]:
        """Host and port of the client."""
        return self.client_host, self.client_port

    # Dialling

    def on_unconnected_event(self, side: Side, mask: int) -> None:  # noqa: ARG002
        """Handle an event of the client before a Backend is connected."""
        if mask & _GONE:
            self.close(CloseReason.CLIENT_DIALLING, reset=True)

    def open(self, member: Member, backend: Side) -> None:
        """Go on with a Backend that is connected, taking ownership of its side."""
        self.dialling = None
        self.connected_s = self.listener.engine.now_s
        self.member = member
        self.backend = backend
        self.state = _NEXT[self.state][_CONNECTED]
        self.client.connect(backend)

    def on_first_look(self) -> None:
        """Look after a connection that is still dialling, or that lives longer than most."""
        if self.dialling is None:
            self._keep_alive()
            return
        limits = self.listener.limits
        rest_s = limits.dial_timeout_s - limits.dial_next_after_s
        if rest_s <= 0:
            self.dialling.give_up()
            return
        engine = self.listener.engine
        engine.timers.add(engine.now_s, rest_s, self._on_dial_timeout)
        self._on_dial_timer()

    def _on_dial_timer(self) -> None:
        if self.dialling is None:
            self._keep_alive()
            return
        engine = self.listener.engine
        engine.timers.add(engine.now_s, self.listener.limits.dial_next_after_s, self._on_dial_timer)
        self.dialling.go_on(last_failed=False)

    def _keep_alive(self) -> None:
        """Have the Backend's socket probed; done by a timer, as short connections are to be spared the calls."""
        if self.backend is not None and self.state != CLOSED:
            set_keepalive(self.backend.sock, self.listener.limits)

    def _on_dial_timeout(self) -> None:
        if self.dialling is not None:
            self.dialling.give_up()

    # Open, half-closed

    def on_end(self, side: Side) -> None:
        """Handle that all bytes of one side were delivered and it has ended."""
        state = _NEXT[self.state][_CLIENT_END if side is self.client else _BACKEND_END]
        if state == CLOSED:
            self.close(CloseReason.NORMAL, reset=False)
            return
        try:
            side.peer.sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # ENOTCONN: the peer was reset meanwhile
            self.on_failure(side.peer, error)
            return
        self.state = state
        half_closed_timeout_s = self.listener.limits.half_closed_timeout_s
        if half_closed_timeout_s is not None:
            engine = self.listener.engine
            look_s = min(half_closed_timeout_s, _LONGEST_LOOK_S)
            engine.timers.add(engine.now_s, look_s, self._on_half_closed_timer)

    def on_failure(self, side: Side, error: OSError) -> None:  # noqa: ARG002
        """Handle that one side is gone: deliver what it had sent, then reset both."""
        self._rescue(side)
        if side is self.client:
            reason = CloseReason.CLIENT_OPEN if self.state == OPEN else CloseReason.CLIENT_HALF_CLOSED
        else:
            reason = CloseReason.BACKEND_OPEN if self.state == OPEN else CloseReason.BACKEND_HALF_CLOSED
        self.close(reason, reset=True)

    def _rescue(self, side: Side) -> None:
        """Deliver what was received from a failed side and not yet read, as far as the peer takes it at once."""
        buffer = side.engine.buffer
        overtakes = side.flags & BLOCKED or (side.pipe is not None and side.pipe.level)
        for _ in range(0 if overtakes else _RESCUE_READS):
            try:
                count = side.sock.recv_into(buffer, 0, RECV_FLAGS)
                if not count:
                    return
                sent = side.peer.sock.send(buffer[:count], SEND_FLAGS)
            except OSError:
                return
            side.byte_count += sent
            if sent < count:
                return

    def _on_idle_timer(self) -> None:
        if self.state != CLOSED:
            timeout_s = self.listener.limits.idle_timeout_s
            if timeout_s is not None and self._is_idle(timeout_s, self._on_idle_timer):
                reason = CloseReason.IDLE_OPEN if self.state == OPEN else CloseReason.IDLE_HALF_CLOSED
                self.close(reason, reset=True)

    def _on_half_closed_timer(self) -> None:
        if self.state != CLOSED:
            timeout_s = self.listener.limits.half_closed_timeout_s
            if timeout_s is not None and self._is_idle(timeout_s, self._on_half_closed_timer):
                self.close(CloseReason.IDLE_HALF_CLOSED, reset=True)

    def _is_idle(self, timeout_s: float, callback: Callable[[], None]) -> bool:
        """Return whether no byte has moved for the time-out; if one has, have ``callback`` called again later.

        Dialling has a time-out of its own.
        """
        engine = self.listener.engine
        look_again_s = min(timeout_s / _IDLE_CHECKS, _LONGEST_LOOK_S)
        if self.state != DIALLING and engine.now_s - self.active_s >= timeout_s:
            return True
        rest_s = timeout_s - (engine.now_s - self.active_s)
        engine.timers.add(engine.now_s, _LONGEST_LOOK_S if rest_s >= _LONGEST_LOOK_S else look_again_s, callback)
        return False

    # The end

    def abort(self) -> None:
        """Reset both sides because the proxy says so."""
        reasons = {DIALLING: CloseReason.KILLED_DIALLING, OPEN: CloseReason.KILLED_OPEN}
        self.close(reasons.get(self.state, CloseReason.KILLED_HALF_CLOSED), reset=True)

    def on_bug(self) -> None:
        """Give up this connection after an internal error, and nothing else."""
        self.close(CloseReason.BUG, reset=True)

    def close(self, reason: CloseReason, *, reset: bool) -> None:
        """End the connection: RST to both sides if ``reset``, else FIN where it was not sent yet."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        if self.dialling is not None:
            self.dialling.abandon()
            self.dialling = None
        client, backend = self.client, self.backend
        if reset:
            set_reset_on_close(client.sock)
        client.release()
        if backend is not None and self.member is not None:  # there are both or none
            if reset:
                set_reset_on_close(backend.sock)
            backend.release()
            del client.peer, backend.peer
            self.member.open -= 1
        self.listener.young.discard(self)
        self.listener.on_closed(self, reason)

"""TcpRelay: one client connection, from accept through dialling a Backend to the end of both directions.

Rules of the state machine (``_NEXT`` has all transitions):

- Nothing is read from the client before a Backend is connected: until then every Backend of the Pool may be tried, and
  what the client sends waits in the kernel.
- Each direction ends on its own: FIN is passed on once all bytes before it were delivered; the other direction goes on.
- The last direction to end needs no ``shutdown``: closing both sockets says the same.
- A failure (RST, unreachable) ends both directions: what was received before it is still delivered, then both sides
  are reset, so that nobody takes a cut stream for a whole one.
"""

import errno
import select
import socket
from collections.abc import Callable
from sys import intern
from typing import TYPE_CHECKING

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.balance.dial_plan import Step, next_step
from userspace_proxy.balance.live_pool import LivePool, Member
from userspace_proxy.dataplane.engine import RELAY_EVENTS, WRITER_EVENTS
from userspace_proxy.dataplane.relay_side import RECV_FLAGS, SEND_FLAGS, Side
from userspace_proxy.dataplane.sockets import (
    NO_LOCAL_PORT,
    OUT_OF_CAPACITY,
    dial_outcome,
    set_keepalive,
    set_nodelay,
    set_reset_on_close,
)

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

_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_GONE = select.EPOLLERR | select.EPOLLHUP
_RESCUE_READS = 64
"""Buffers that are moved at most after one side has failed (4 MiB: more than a receive queue holds by default)."""
_LONGEST_LOOK_S = 10.0
"""A timer holds on to its connection, also to one that has ended: so none is set for longer. Arbitrary."""
_IDLE_CHECKS = 8
"""A connection found active is looked at again after this part of the time-out, and so closed up to 1/8 late. Looking
exactly at the end would give every connection a timer length of its own (see ``Timers``)."""


class _ClosedRelay:
    """Takes the place of a relay that was closed, for events that still come: cuts the cycle of references."""

    is_open = False
    active_s = 0.0

    def on_unconnected_event(self, side: Side, mask: int) -> None:
        pass

    def on_end(self, side: Side) -> None:
        pass

    def on_failure(self, side: Side, error: OSError) -> None:
        pass

    def on_bug(self) -> None:
        pass


_CLOSED_RELAY = _ClosedRelay()


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
        "dials",
        "is_open",
        "last_tried",
        "listener",
        "pool",
        "starved",
        "state",
        "tried",
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
        self.listener = listener
        self.pool = pool
        self.client_host = intern(client_address[0])  # connections of one client share the text
        self.client_port = client_address[1]
        self.state = DIALLING
        self.is_open = False
        self.accepted_s = self.active_s = engine.now_s
        self.connected_s = 0.0
        self.dials: tuple[Side, ...] = ()
        """Under way, the oldest first."""
        self.starved = False
        """A dial failed for want of a descriptor or a local port."""
        self.tried: set[Member] | tuple[()] = ()
        self.last_tried: Member | None = None
        self.backend: Side | None = None
        self.client = Side(self, engine, sock)
        engine.add(self.client.fd, self.client, RELAY_EVENTS)
        listener.relays[self] = None
        limits = listener.limits
        listener.young.add(self, engine.now_s)
        if limits.idle_timeout_s is not None:
            engine.timers.add(engine.now_s, min(limits.idle_timeout_s, _LONGEST_LOOK_S), self._on_idle_timer)
        self._dial_next()

    @property
    def client_address(self) -> tuple[str, int]:
        """Host and port of the client."""
        return self.client_host, self.client_port

    # Dialling

    def on_unconnected_event(self, side: Side, mask: int) -> None:
        """Handle an event of the client or of a dial before a Backend is connected."""
        if side is self.client:
            if mask & _GONE:
                self.close(CloseReason.CLIENT_DIALLING, reset=True)
            return
        dial = next(dial for dial in self.dials if dial is side)
        if mask & _GONE:
            self._dial_failed(dial, dial.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            self._go_on_dialling(last_failed=dial.member is self.last_tried)
        elif mask & select.EPOLLOUT:
            self._connected(dial)
            if self.client.readable:
                self.client.pump()
            if self.is_open:
                dial.on_event(mask)

    def _go_on_dialling(self, *, last_failed: bool) -> None:
        listener = self.listener
        now_s = listener.engine.now_s
        members = self.pool.members
        step = next_step(
            listener.limits,
            untried=len(self.tried) < len(members) or any(member not in self.tried for member in members),
            pending=len(self.dials),
            last_failed=last_failed,
            elapsed_s=now_s - self.accepted_s,
            since_dial_s=now_s - self.dials[-1].dialled_s if self.dials else 0.0,
        )
        if step is Step.DIAL:
            self._dial_next()
        elif step is Step.GIVE_UP:
            self._give_up()

    def _dial_next(self) -> None:
        """Start a dial; go on to the next Backend while one fails at once."""
        listener = self.listener
        while True:
            member = self.pool.pick_for(self.client_host, self.tried, listener.engine.now_s)
            if member is None:
                if not self.dials:
                    self._give_up()
                return
            try:
                sock = socket.SocketType(socket.AF_INET6 if member.is_ipv6 else socket.AF_INET, _STREAM)
            except OSError as error:
                if error.errno not in OUT_OF_CAPACITY:
                    raise
                # Not this Backend's fault: the dial timer comes back to it while there is time.
                self.starved = True
                listener.count_dial(dial_outcome(error.errno))
                listener.pause(error.errno)
                return
            if self._start_dial(member, sock):
                return

    def _start_dial(self, member: Member, sock: socket.SocketType) -> bool:
        """Dial a Backend with a new socket, taking ownership; return whether it has connected, or may still do so."""
        engine = self.listener.engine
        dial = Side(self, engine, sock)
        dial.member = member
        dial.dialled_s = engine.now_s
        member.open += 1
        error_number = sock.connect_ex(member.address)
        if error_number == errno.EINPROGRESS:
            # A Backend on this node has answered by now. Another call tells, for less than an event costs: Linux
            # returns 0, or EALREADY (__inet_stream_connect() in net/ipv4/af_inet.c).
            error_number = sock.connect_ex(member.address)
        waits = error_number == errno.EALREADY
        if waits or error_number == 0:
            try:
                engine.add(dial.fd, dial, WRITER_EVENTS if waits else RELAY_EVENTS)
            except OSError as error:
                waits, error_number = False, error.errno or 0
            else:
                if not waits:
                    self._connected(dial)
                    if engine.is_calm or self.client.readable:
                        self.client.pump()
                    return True
        self.dials += (dial,)
        self.last_tried = member
        self.tried = self.tried or set()
        self.tried.add(member)
        if waits:
            dial.writes_watched = True
        else:
            self._dial_failed(dial, error_number)
        return waits

    def _give_up(self) -> None:
        for _ in self.dials:
            self.listener.count_dial("timeout")
        if self.starved:
            reason = CloseReason.RESOURCE
        else:
            reason = CloseReason.BACKEND_DIALLING if self.tried else CloseReason.NO_BACKEND
        self.close(reason, reset=True)

    def _dial_failed(self, dial: Side, error_number: int) -> None:
        self.starved = error_number in NO_LOCAL_PORT or error_number in OUT_OF_CAPACITY
        self.listener.count_dial(dial_outcome(error_number))
        self._drop_dial(dial)

    def _drop_dial(self, dial: Side) -> None:
        dial.member.open -= 1
        dial.relay = _CLOSED_RELAY
        dial.release()
        self.dials = tuple(other for other in self.dials if other is not dial)

    def _connected(self, dial: Side) -> None:
        listener = self.listener
        self.connected_s = now_s = listener.engine.now_s
        for other in self.dials:
            if other is not dial:
                set_reset_on_close(other.sock)
                listener.count_dial("superseded")
                self._drop_dial(other)
        self.dials = ()
        listener.count_connected(dial.member, now_s - dial.dialled_s)
        if self.tried:
            self.tried.add(dial.member)
            if len(self.tried) > 1:
                self.pool.note_connected(self.client_host, dial.member, self.tried, now_s)
            self.tried = ()
        set_nodelay(dial.sock)
        client = self.client
        self.backend = dial
        dial.peer = client
        client.peer = dial
        self.state = _NEXT[self.state][_CONNECTED]
        self.is_open = True

    def on_first_look(self) -> None:
        """Look after a connection that is still dialling, or that lives longer than most."""
        if self.state != DIALLING:
            self._keep_alive()
        else:
            limits = self.listener.limits
            rest_s = limits.dial_timeout_s - limits.dial_next_after_s
            if rest_s <= 0:
                self._on_dial_timeout()
                return
            engine = self.listener.engine
            engine.timers.add(engine.now_s, rest_s, self._on_dial_timeout)
            self._on_dial_timer()

    def _on_dial_timer(self) -> None:
        if self.state == DIALLING:
            engine = self.listener.engine
            engine.timers.add(engine.now_s, self.listener.limits.dial_next_after_s, self._on_dial_timer)
            self._go_on_dialling(last_failed=False)
        else:
            self._keep_alive()

    def _keep_alive(self) -> None:
        """Have the Backend's socket probed; done by a timer, as short connections are to be spared the calls."""
        if self.backend is not None and self.is_open:
            set_keepalive(self.backend.sock, self.listener.limits)

    def _on_dial_timeout(self) -> None:
        if self.state == DIALLING:
            self._give_up()

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
        overtakes = side.blocked or (side.pipe is not None and side.pipe.level)
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
        self.is_open = False
        for dial in self.dials:
            set_reset_on_close(dial.sock)
            self._drop_dial(dial)
        client, backend = self.client, self.backend
        if reset:
            set_reset_on_close(client.sock)
        client.relay = _CLOSED_RELAY
        client.release()
        if backend is not None:
            if reset:
                set_reset_on_close(backend.sock)
            backend.relay = _CLOSED_RELAY
            backend.release()
            del client.peer, backend.peer
            backend.member.open -= 1
        self.listener.young.discard(self)
        self.listener.on_closed(self, reason)

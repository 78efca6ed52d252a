"""Dialling: finds a Backend for one connection, trying one after another, or a second one beside a slow one.

It lives from the accept of a connection until a Backend is connected, or all is given up. Which Backend comes next says
the Pool; when, ``balance.dial_plan``. Nothing is read from the client meanwhile: so every Backend may be tried.
"""

import errno
import select
import socket
from typing import TYPE_CHECKING

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.balance.dial_plan import Step, next_step
from userspace_proxy.balance.live_pool import LivePool, Member
from userspace_proxy.dataplane.engine import RELAY_EVENTS, WRITER_EVENTS
from userspace_proxy.dataplane.relay_side import READABLE, Side
from userspace_proxy.dataplane.sockets import (
    NO_LOCAL_PORT,
    OUT_OF_CAPACITY,
    dial_outcome,
    set_nodelay,
    set_reset_on_close,
)

if TYPE_CHECKING:
    from userspace_proxy.dataplane.tcp_relay import TcpRelay

_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_GONE = select.EPOLLERR | select.EPOLLHUP


class Dial:
    """One dial under way, which is called for its events; owns the socket until it is dropped or connected."""

    __slots__ = ("_dialling", "dialled_s", "member", "sock")

    def __init__(self, dialling: "Dialling", member: Member, sock: socket.SocketType, now_s: float) -> None:
        """Take ownership of a socket that was just told to connect."""
        self._dialling = dialling
        self.member = member
        self.sock = sock
        self.dialled_s = now_s

    def on_event(self, mask: int) -> None:
        """Say how it went."""
        self._dialling.on_dial_event(self, mask)

    def on_bug(self) -> None:
        """Give up the connection."""
        self._dialling.relay.on_bug()


class Dialling:
    """The dials of one connection."""

    __slots__ = ("_last_tried", "_pool", "_starved", "_tried", "dials", "relay")

    def __init__(self, relay: "TcpRelay", pool: LivePool) -> None:
        """Start without a dial (see ``dial_next``).

        Args:
            relay: Is told of the Backend that is connected (``open``), or why none is (``close``).
            pool: Where the Backends are.
        """
        self.relay = relay
        self._pool = pool
        self.dials: tuple[Dial, ...] = ()
        """Under way, the oldest first."""
        self._tried: set[Member] | tuple[()] = ()
        self._last_tried: Member | None = None
        self._starved = False
        """The last dial that failed did so for want of a descriptor or a local port."""

    def dial_next(self) -> None:
        """Start a dial; go on to the next Backend while one fails at once."""
        relay = self.relay
        listener = relay.listener
        while True:
            member = self._pool.pick_for(relay.client_host, self._tried, listener.engine.now_s)
            if member is None:
                if not self.dials:
                    self.give_up()
                return
            try:
                sock = socket.SocketType(socket.AF_INET6 if member.is_ipv6 else socket.AF_INET, _STREAM)
            except OSError as error:
                if error.errno not in OUT_OF_CAPACITY:
                    raise
                # Not this Backend's fault: the dial timer comes back to it while there is time.
                self._starved = True
                listener.count_dial(dial_outcome(error.errno))
                listener.pause(error.errno)
                return
            if self._start_dial(member, sock):
                return

    def go_on(self, *, last_failed: bool) -> None:
        """Do what is next by what has happened, and by how late it is.

        Args:
            last_failed: The dial that was started last has just failed.
        """
        listener = self.relay.listener
        now_s = listener.engine.now_s
        members = self._pool.members
        step = next_step(
            listener.limits,
            untried=len(self._tried) < len(members) or any(member not in self._tried for member in members),
            pending=len(self.dials),
            last_failed=last_failed,
            elapsed_s=now_s - self.relay.accepted_s,
            since_dial_s=now_s - self.dials[-1].dialled_s if self.dials else 0.0,
        )
        if step is Step.DIAL:
            self.dial_next()
        elif step is Step.GIVE_UP:
            self.give_up()

    def give_up(self) -> None:
        """Reset the client, as no Backend is connected."""
        for _ in self.dials:
            self.relay.listener.count_dial("timeout")
        if self._starved:
            reason = CloseReason.RESOURCE
        else:
            reason = CloseReason.BACKEND_DIALLING if self._tried else CloseReason.NO_BACKEND
        self.relay.close(reason, reset=True)

    def abandon(self) -> None:
        """Drop what is under way."""
        for dial in self.dials:
            set_reset_on_close(dial.sock)
            self._close(dial.member, dial.sock)
        self.dials = ()

    def on_dial_event(self, dial: Dial, mask: int) -> None:
        """Handle an event of a dial that is under way."""
        if mask & _GONE:
            self._remove(dial)
            self._fail(dial.member, dial.sock, dial.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            self.go_on(last_failed=dial.member is self._last_tried)
        elif mask & select.EPOLLOUT:
            self._remove(dial)
            client = self.relay.client
            engine = self.relay.listener.engine
            backend = Side(self.relay, engine, dial.sock)
            self._open(dial.member, backend, dial.dialled_s)
            engine.hand_over(dial.sock.fileno(), backend, RELAY_EVENTS)
            if client.flags & READABLE:
                client.pump()
            backend.on_event(mask)

    def _start_dial(self, member: Member, sock: socket.SocketType) -> bool:
        """Dial a Backend with a new socket, taking ownership; return whether it has connected, or may still do so."""
        engine = self.relay.listener.engine
        member.open += 1
        error_number = sock.connect_ex(member.address)
        if error_number == errno.EINPROGRESS:
            # A Backend on this node has answered by now. Another call tells, for less than an event costs: Linux
            # returns 0, or EALREADY (__inet_stream_connect() in net/ipv4/af_inet.c).
            error_number = sock.connect_ex(member.address)
        if not error_number:
            backend = Side(self.relay, engine, sock)
            try:
                engine.add(sock.fileno(), backend, RELAY_EVENTS)
            except OSError as error:
                error_number = error.errno or 0
            else:
                self._open(member, backend, engine.now_s)
                if engine.is_calm or self.relay.client.flags & READABLE:
                    self.relay.client.pump()
                return True
        self._last_tried = member
        self._tried = self._tried or set()
        self._tried.add(member)
        if error_number == errno.EALREADY:
            dial = Dial(self, member, sock, engine.now_s)
            try:
                engine.add(sock.fileno(), dial, WRITER_EVENTS)
            except OSError as error:
                error_number = error.errno or 0
            else:
                self.dials += (dial,)
                return True
        self._fail(member, sock, error_number)
        return False

    def _open(self, member: Member, backend: Side, dialled_s: float) -> None:
        """Have the relay go on with the Backend that is connected."""
        relay = self.relay
        now_s = relay.listener.engine.now_s
        relay.open(member, backend)
        if self._tried:  # there were dials that did not connect at once
            for _ in self.dials:
                relay.listener.count_dial("superseded")
            self.abandon()
            self._tried.add(member)
            if len(self._tried) > 1:
                self._pool.note_connected(relay.client_host, member, self._tried, now_s)
        set_nodelay(backend.sock)
        relay.listener.count_connected(member, now_s - dialled_s)

    def _fail(self, member: Member, sock: socket.SocketType, error_number: int) -> None:
        self._starved = error_number in NO_LOCAL_PORT or error_number in OUT_OF_CAPACITY
        self.relay.listener.count_dial(dial_outcome(error_number))
        self._close(member, sock)

    def _remove(self, dial: Dial) -> None:
        self.dials = tuple(other for other in self.dials if other is not dial)

    def _close(self, member: Member, sock: socket.SocketType) -> None:
        member.open -= 1
        self.relay.listener.engine.close_later(sock)

"""Side: one socket of a relay, and the direction of bytes that starts at it.

Small reads go through the engine's one buffer with ``recv`` and ``send`` at once. A direction whose read fills the
buffer is *bulk*: it moves through a pipe with ``splice(2)``, without the bytes ever reaching user space, until it runs
dry. What the peer does not take waits here (the copy in ``pending``, or the pipe), and nothing more is read until it
does: a slow reader costs one buffer or one pipe, never more.

What a reader may trust (epoll(7), tcp(7)):

- A stream socket that returns less than was asked for is drained, and edge-triggered epoll will tell of more. After
  RDHUP that means the end, so that the read which would return 0 is saved.
- Both fail once after an error (RST behind the last bytes) and at an urgent mark, which splice(2) never passes: from
  then on only the result of a read counts (``trusts_short_reads``).
- A read tells nothing of an RST behind a FIN, and nothing is read while the peer takes nothing: then EPOLLERR counts.
- EAGAIN of splice means an empty socket *or* a full pipe: so bytes are spliced in only while the pipe is empty.
- splice from or to a socket in blocking mode blocks, whatever its flags say: sockets are made non-blocking first.
"""

import errno
import os
import select
import socket
from typing import Protocol

from userspace_proxy.balance.live_pool import Member
from userspace_proxy.dataplane.engine import BUFFER_BYTES, Engine
from userspace_proxy.dataplane.pipe_pool import PIPE_BYTES, Pipe

RECV_FLAGS = socket.MSG_DONTWAIT
SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
MOVES_PER_TURN = 16
"""Fills of the pipe that one direction moves before others get their turn: 4 MiB, about 1 ms. With a quarter of it CPU
per byte was measured to be up to 1.8 times as much, as each turn costs a look for other events."""

_OUT = int(select.EPOLLOUT)
_RDHUP = int(select.EPOLLRDHUP)
_TROUBLE = select.EPOLLERR | select.EPOLLPRI
_TO_READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | _TROUBLE
_SPLICE_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})


class Relay(Protocol):
    """What a Side needs of the relay it belongs to."""

    is_open: bool
    """Whether both sides are connected and bytes may be moved."""
    active_s: float

    def on_unconnected_event(self, side: "Side", mask: int) -> None:
        """Handle an event while the relay is not open."""

    def on_end(self, side: "Side") -> None:
        """Handle that ``side`` has ended and all its bytes were delivered."""

    def on_failure(self, side: "Side", error: OSError) -> None:
        """Handle that a read from or a write to ``side`` failed for good."""

    def on_bug(self) -> None:
        """Give up the relay."""


class Side:
    """One socket of a relay; owns it until ``release``.

    The same class for clients, dials and Backends: the interpreter finds the attributes of one class faster than those
    of two in turn, which was measured to be worth a sixth of the CPU of a round trip.
    """

    __slots__ = (
        "blocked",
        "bulk",
        "byte_count",
        "dialled_s",
        "end_seen",
        "engine",
        "fd",
        "hung_up",
        "member",
        "peer",
        "pending",
        "pipe",
        "queued",
        "readable",
        "relay",
        "reported_byte_count",
        "sock",
        "trusts_short_reads",
        "writes_watched",
    )

    peer: "Side"
    """Set while the relay is open."""
    member: Member
    """The Backend; of dials and Backends only."""
    dialled_s: float
    """When; of dials and Backends only."""

    def __init__(self, relay: Relay, engine: Engine, sock: socket.SocketType) -> None:
        """Take ownership of a socket; ``peer`` is set by the relay once both sides are connected."""
        self.relay = relay
        self.engine = engine
        self.sock = sock
        self.fd = sock.fileno()
        self.readable = False
        """An event said so, and no read has shown the opposite since."""
        self.hung_up = False
        """The far end has sent FIN; bytes may still be waiting."""
        self.trusts_short_reads = True
        self.end_seen = False
        """All bytes of this side have been read; some may be pending."""
        self.blocked = False
        """Bytes of this side wait for the peer to become writable."""
        self.writes_watched = False
        """Events say when this socket takes more."""
        self.pending: memoryview | None = None
        self.pipe: Pipe | None = None
        self.bulk = False
        self.queued = False
        """The engine has been asked for another turn."""
        self.byte_count = 0
        """Bytes of this side that were delivered to the peer."""
        self.reported_byte_count = 0
        """How many of these have been added to the Service's counters."""

    def on_event(self, mask: int) -> None:
        """Note what the event mask says and move what can be moved; 0 means another turn (see ``Engine.again``)."""
        if mask & _TO_READ and not self.end_seen:  # the bits of the end stay in every later mask
            self.readable = True
            if mask & _RDHUP:
                self.hung_up = True
        if mask & _TROUBLE:
            self._note_trouble(mask)
        relay = self.relay
        if not relay.is_open:
            relay.on_unconnected_event(self, mask)
            return
        relay.active_s = self.engine.now_s
        if mask & _OUT:
            if self.peer.blocked:
                self.peer.flush()
        elif not mask:
            self.queued = False
        if self.readable and not self.blocked and relay.is_open:
            if self.bulk:
                self._pump_bulk()
            else:
                self._copy()

    def on_bug(self) -> None:
        """Give up the relay."""
        self.relay.on_bug()

    def pump(self) -> None:
        """Move what this side has to the peer, up to a turn's worth; nothing may be pending."""
        if self.bulk:
            self._pump_bulk()
        else:
            self._copy()

    def flush(self) -> None:
        """Go on after the peer has become writable."""
        self.blocked = False
        if self.pending is not None:
            try:
                sent = self.peer.sock.send(self.pending, SEND_FLAGS)
            except BlockingIOError:
                self.blocked = True
                return
            except OSError as error:
                self.relay.on_failure(self.peer, error)
                return
            self.byte_count += sent
            if sent < len(self.pending):
                self.pending = self.pending[sent:]
                self.blocked = True
                return
            self.pending = None
            if self.end_seen:
                self.relay.on_end(self)
                return
        else:  # what waits is in the pipe
            self._pump_bulk()
            return
        if self.readable:
            self.pump()

    def release(self) -> None:
        """Give the pipe back and have the socket closed."""
        if self.pipe is not None:
            self.engine.pipes.give_back(self.pipe)
            self.pipe = None
        self.pending = None
        self.engine.close_later(self.sock)

    def _note_trouble(self, mask: int) -> None:
        """Note that a read tells less than usual: after an error, or at an urgent mark."""
        self.trusts_short_reads = False
        if mask & select.EPOLLPRI:
            # The urgent byte stays in the stream instead of being lost; no proxy can send it on as urgent.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if mask & select.EPOLLERR and (self.end_seen or self.blocked) and self.relay.is_open:
            self._fail_on_error()

    def _block(self) -> None:
        """Wait until the peer takes more."""
        self.blocked = True
        peer = self.peer
        if not peer.writes_watched:
            peer.writes_watched = True
            self.engine.watch_writer(peer.fd)

    def _fail_on_error(self) -> bool:
        """Have the relay fail if this socket has an error that no read tells of: an RST behind a FIN, say."""
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.relay.on_failure(self, OSError(number, os.strerror(number)))
        return number != 0

    def _copy(self) -> None:
        """Move one buffer's worth."""
        engine = self.engine
        buffer = engine.buffer
        try:
            count = self.sock.recv_into(buffer, 0, RECV_FLAGS)
        except BlockingIOError:
            self.readable = False
            return
        except OSError as error:
            self.relay.on_failure(self, error)
            return
        if not count:
            self._end()
            return
        if count < BUFFER_BYTES and self.trusts_short_reads:
            self.readable = False
            self.end_seen = self.hung_up
        try:
            sent = self.peer.sock.send(buffer[:count], SEND_FLAGS)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.relay.on_failure(self.peer, error)
            return
        self.byte_count += sent
        if sent < count:
            self.pending = memoryview(bytes(buffer[sent:count]))
            self._block()
        elif self.end_seen:
            self.relay.on_end(self)
        elif self.readable:
            self.bulk = count == BUFFER_BYTES
            self._ask_again()

    def _pump_bulk(self) -> None:
        """Move a turn's worth through a pipe; without one, copy."""
        pipe = self.pipe
        if pipe is None:
            pipe = self.pipe = self.engine.pipes.take()
            if pipe is None:
                self._copy()
                return
            for sock in (self.sock, self.peer.sock):
                if sock.gettimeout() is None:  # accepted, and still blocking
                    sock.setblocking(False)  # noqa: FBT003
        before = self.byte_count
        for _ in range(MOVES_PER_TURN):
            if not pipe.level and not (self.trusts_short_reads and self._fill(pipe)):
                break
            if not self._drain(pipe):
                return
        else:
            self._ask_again()
            return
        if self.pipe is pipe:
            # Dry: the pipe goes back. A direction that had little to move is not bulk any more.
            self.bulk = self.byte_count - before >= BUFFER_BYTES
            self.pipe = None
            self.engine.pipes.give_back(pipe)
            if self.readable:
                self._ask_again()

    def _fill(self, pipe: Pipe) -> bool:
        """Splice from the socket into the empty pipe; return whether it has bytes now."""
        try:
            pipe.level = os.splice(self.fd, pipe.write_fd, PIPE_BYTES)
        except BlockingIOError:
            self.readable = False
        except OSError as error:
            self._splice_failed(self, error)
        else:
            if pipe.level:
                return True
            self._end()
        return False

    def _drain(self, pipe: Pipe) -> bool:
        """Splice from the pipe into the peer; return whether it may take more."""
        try:
            count = os.splice(pipe.read_fd, self.peer.fd, pipe.level)
        except BlockingIOError:
            self._block()
            return False
        except OSError as error:
            self._splice_failed(self.peer, error)
            return False
        pipe.level -= count
        self.byte_count += count
        return True

    def _splice_failed(self, side: "Side", error: OSError) -> None:
        """Go back to copying for good where the kernel (or a sandbox) cannot splice; else the side has failed."""
        pipe = self.pipe
        if error.errno not in _SPLICE_UNSUPPORTED or pipe is None:
            self.relay.on_failure(side, error)
            return
        if pipe.level:
            self.pending = memoryview(os.read(pipe.read_fd, pipe.level))
            pipe.level = 0
        self.pipe = None
        self.bulk = False
        self.engine.pipes.give_back(pipe)
        self.engine.pipes.disable()
        if self.pending is not None:
            self.flush()
        else:
            self._ask_again()

    def _end(self) -> None:
        self.readable = False
        if self.trusts_short_reads or not self._fail_on_error():
            self.end_seen = True
            self.relay.on_end(self)

    def _ask_again(self) -> None:
        if not self.queued:
            self.queued = True
            self.engine.again(self)

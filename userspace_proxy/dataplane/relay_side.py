"""Side: one socket of a relay, and the direction of bytes that starts at it.

Small reads go through the engine's one buffer with ``recv`` and ``send`` at once. A direction whose read fills the
buffer is *bulk*: it moves through a pipe with ``splice(2)``, without the bytes ever reaching user space, until it runs
dry. What the peer does not take waits here (the copy in ``pending``, or the pipe), and nothing more is read until it
does: a slow reader costs one buffer or one pipe, never more.

All that is out of the ordinary about a direction is a bit of ``flags``. Most of the time there is none, and an event
that says no more than that bytes (or the end) have come leads straight to one ``recv`` and one ``send``.

What a reader may trust (epoll(7), tcp(7)):

- A stream socket that returns less than was asked for is drained, and edge-triggered epoll will tell of more. After
  RDHUP that means the end, so that the read which would return 0 is saved.
- Both fail once after an error (RST behind the last bytes) and at an urgent mark, which splice(2) never passes: from
  then on only the result of a read counts (``DOUBTFUL``).
- A read tells nothing of an RST behind a FIN, and nothing is read while the peer takes nothing: then EPOLLERR counts.
- EAGAIN of splice means an empty socket *or* a full pipe: so bytes are spliced in only while the pipe is empty.
- splice from or to a socket in blocking mode blocks, whatever its flags say: sockets are made non-blocking first.
"""

import errno
import os
import select
import socket
from typing import Protocol

from userspace_proxy.dataplane.engine import BUFFER_BYTES, Engine
from userspace_proxy.dataplane.pipe_pool import PIPE_BYTES, Pipe

RECV_FLAGS = socket.MSG_DONTWAIT
SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
MOVES_PER_TURN = 16
"""Fills of the pipe that one direction moves before others get their turn: 4 MiB, about 1 ms. With a quarter of it CPU
per byte was measured to be up to 1.8 times as much, as each turn costs a look for other events."""

_IN = int(select.EPOLLIN)
_OUT = int(select.EPOLLOUT)
_RDHUP = int(select.EPOLLRDHUP)
_TROUBLE = select.EPOLLERR | select.EPOLLPRI
_UNUSUAL = _OUT | _TROUBLE
_TO_READ = _IN | _RDHUP | select.EPOLLHUP | _TROUBLE

HUNG_UP = _RDHUP
UNCONNECTED, READABLE, ENDED, BLOCKED, BULK, QUEUED, DOUBTFUL, WRITES_WATCHED = (1 << bit for bit in range(8))
"""Bits of ``Side.flags``:

- UNCONNECTED: the relay is not open yet, or not any more; ``peer`` is not set.
- READABLE: an event said so, and no read has shown the opposite since.
- ENDED: all bytes of this side have been read; some may be pending.
- BLOCKED: bytes of this side wait for the peer to become writable.
- BULK: bytes move through a pipe.
- QUEUED: the engine has been asked for another turn.
- DOUBTFUL: a read that returns less than was asked for does not tell that the socket is drained.
- WRITES_WATCHED: events say when this socket takes more.
- HUNG_UP: the far end has sent FIN; bytes may still be waiting. It is the bit of the event that says so.
"""
_SPLICE_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})


class Relay(Protocol):
    """What a Side needs of the relay it belongs to."""

    active_s: float
    """When bytes have moved last; the side says so."""

    def on_unconnected_event(self, side: "Side", mask: int) -> None:
        """Handle an event of a side that is not connected with a peer."""

    def on_end(self, side: "Side") -> None:
        """Handle that ``side`` has ended and all its bytes were delivered."""

    def on_failure(self, side: "Side", error: OSError) -> None:
        """Handle that a read from or a write to ``side`` failed for good."""

    def on_bug(self) -> None:
        """Give up the relay."""


class _NoRelay:
    """Takes the place of the relay of a side that was released: cuts the cycle of references."""

    active_s = 0.0

    def on_unconnected_event(self, side: "Side", mask: int) -> None:
        pass

    def on_end(self, side: "Side") -> None:
        pass

    def on_failure(self, side: "Side", error: OSError) -> None:
        pass

    def on_bug(self) -> None:
        pass


_NO_RELAY = _NoRelay()


class Side:
    """One socket of a relay; owns it until ``release``.

    The same class for clients and Backends: the interpreter finds the attributes of one class faster than those of two
    in turn, which was measured to be worth a sixth of the CPU of a round trip.
    """

    __slots__ = ("byte_count", "engine", "flags", "peer", "pending", "pipe", "relay", "reported_byte_count", "sock")

    peer: "Side"
    """Set while the relay is open."""

    def __init__(self, relay: Relay, engine: Engine, sock: socket.SocketType) -> None:
        """Take ownership of a socket; ``connect`` is to follow once there is a peer."""
        self.relay = relay
        self.engine = engine
        self.sock = sock
        self.flags = UNCONNECTED
        self.pending: memoryview | None = None
        self.pipe: Pipe | None = None
        self.byte_count = 0
        """Bytes of this side that were delivered to the peer."""
        self.reported_byte_count = 0
        """How many of these have been added to the Service's counters."""

    def connect(self, peer: "Side") -> None:
        """Have bytes of this side be delivered to another one from now on, and of that one to this."""
        self.peer = peer
        peer.peer = self
        self.flags &= ~UNCONNECTED
        peer.flags &= ~UNCONNECTED

    def on_event(self, mask: int) -> None:
        """Move what an event says has come, one buffer's worth if it is copied; 0 means another turn (``again``)."""
        if (self.flags or mask & _UNUSUAL) and not self._on_unusual_event(mask):
            return
        engine = self.engine
        self.relay.active_s = engine.now_s
        buffer = engine.buffer
        try:
            count = self.sock.recv_into(buffer, 0, RECV_FLAGS)
        except BlockingIOError:
            self.flags &= ~READABLE
            return
        except OSError as error:
            self.relay.on_failure(self, error)
            return
        if not count:
            self._end()
            return
        flags = self.flags | mask & HUNG_UP
        if flags or count == BUFFER_BYTES:
            flags = self.flags = _flags_after_read(flags, count)
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
        elif flags:
            self._go_on()

    def _go_on(self) -> None:
        """Do what is next when all that was read is delivered."""
        if self.flags & ENDED:
            self.relay.on_end(self)
        elif self.flags & READABLE:
            self._ask_again()

    def _on_unusual_event(self, mask: int) -> bool:
        """Do what an event asks for where anything is out of the ordinary; return whether to copy as usual then."""
        if mask & _TO_READ and not self.flags & ENDED:  # the bits of the end stay in every later mask
            self.flags |= READABLE | mask & HUNG_UP
        if mask & _TROUBLE:
            self._note_trouble(mask)
        relay = self.relay
        if self.flags & UNCONNECTED:
            relay.on_unconnected_event(self, mask)
            return False
        relay.active_s = self.engine.now_s
        if mask & _OUT:
            if self.peer.flags & BLOCKED:
                self.peer.flush()
        elif not mask:
            self.flags &= ~QUEUED
        if self.flags & (READABLE | BLOCKED) != READABLE:
            return False
        if self.flags & BULK:
            self._pump_bulk()
            return False
        return True

    def on_bug(self) -> None:
        """Give up the relay."""
        self.relay.on_bug()

    def pump(self) -> None:
        """Move what this side may have, as if an event said so."""
        self.on_event(_IN)

    def flush(self) -> None:
        """Go on after the peer has become writable."""
        self.flags &= ~BLOCKED
        if self.pending is not None:
            try:
                sent = self.peer.sock.send(self.pending, SEND_FLAGS)
            except BlockingIOError:
                self._block()
                return
            except OSError as error:
                self.relay.on_failure(self.peer, error)
                return
            self.byte_count += sent
            if sent < len(self.pending):
                self.pending = self.pending[sent:]
                self._block()
                return
            self.pending = None
            self._go_on()
        else:  # what waits is in the pipe
            self._pump_bulk()

    def release(self) -> None:
        """Give the pipe back and have the socket closed; events that still come do nothing."""
        self.relay = _NO_RELAY
        self.flags = UNCONNECTED
        if self.pipe is not None:
            self.engine.pipes.give_back(self.pipe)
            self.pipe = None
        self.pending = None
        self.engine.close_later(self.sock)

    def _note_trouble(self, mask: int) -> None:
        """Note that a read tells less than usual: after an error, or at an urgent mark."""
        self.flags |= DOUBTFUL
        if mask & select.EPOLLPRI:
            # The urgent byte stays in the stream instead of being lost; no proxy can send it on as urgent.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        if mask & select.EPOLLERR and self.flags & (ENDED | BLOCKED):
            self._fail_on_error()

    def _block(self) -> None:
        """Wait until the peer takes more."""
        self.flags |= BLOCKED
        peer = self.peer
        if not peer.flags & WRITES_WATCHED:
            peer.flags |= WRITES_WATCHED
            self.engine.watch_writer(peer.sock.fileno())

    def _fail_on_error(self) -> bool:
        """Have the relay fail if this socket has an error that no read tells of: an RST behind a FIN, say."""
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self.relay.on_failure(self, OSError(number, os.strerror(number)))
        return number != 0

    def _pump_bulk(self) -> None:
        """Move a turn's worth through a pipe; without one, copy."""
        pipe = self.pipe or self._take_pipe()
        if pipe is None:
            self.flags &= ~BULK
            self.pump()
            return
        before = self.byte_count
        for _ in range(MOVES_PER_TURN):
            if not pipe.level and (self.flags & DOUBTFUL or not self._fill(pipe)):
                break
            if not self._drain(pipe):
                return
        else:
            self._ask_again()
            return
        if self.pipe is pipe:
            # Dry: the pipe goes back. A direction that had little to move is not bulk any more.
            if self.byte_count - before < BUFFER_BYTES:
                self.flags &= ~BULK
            self.pipe = None
            self.engine.pipes.give_back(pipe)
            if self.flags & READABLE:
                self._ask_again()

    def _take_pipe(self) -> Pipe | None:
        pipe = self.pipe = self.engine.pipes.take()
        if pipe is not None:
            for sock in (self.sock, self.peer.sock):
                if sock.gettimeout() is None:  # accepted, and still blocking
                    sock.setblocking(False)  # noqa: FBT003
        return pipe

    def _fill(self, pipe: Pipe) -> bool:
        """Splice from the socket into the empty pipe; return whether it has bytes now."""
        try:
            pipe.level = os.splice(self.sock.fileno(), pipe.write_fd, PIPE_BYTES)
        except BlockingIOError:
            self.flags &= ~READABLE
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
            count = os.splice(pipe.read_fd, self.peer.sock.fileno(), pipe.level)
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
        self.flags &= ~BULK
        self.engine.pipes.give_back(pipe)
        self.engine.pipes.disable()
        if self.pending is not None:
            self.flush()
        else:
            self._ask_again()

    def _end(self) -> None:
        if not self.flags & DOUBTFUL or not self._fail_on_error():
            self.flags = (self.flags | ENDED) & ~READABLE
            self.relay.on_end(self)

    def _ask_again(self) -> None:
        if not self.flags & QUEUED:
            self.flags |= QUEUED
            self.engine.again(self)


def _flags_after_read(flags: int, count: int) -> int:
    """Return the flags of a side after a read has returned ``count`` bytes, of at most a buffer's worth."""
    if count == BUFFER_BYTES:
        return flags | READABLE | BULK
    if flags & DOUBTFUL:
        return flags | READABLE
    flags &= ~READABLE
    return flags | ENDED if flags & HUNG_UP else flags

"""Engine: one epoll, its timers, and the work that was cut short.

It has a ``fileno()`` that is readable when there is something to do, and ``poll()`` which does it, so that either a
blocking loop or an event loop can drive it. It knows no connection: handlers are called with the event mask.

Rules for handlers, which keep a busy engine fair and correct:

- Relay sockets are edge-triggered; a handler reads until it knows the socket is drained, but moves a bounded amount,
  and asks for another turn with ``again`` where more is left.
- A file descriptor is closed through ``close_later``: within one batch of events its number may still stand in the
  rest of the batch, and must not be taken by a new socket meanwhile.
- An exception that leaves a handler is a bug: it is reported once for each place in the code, the handler is told
  (``on_bug``), everything else goes on.
"""

import select
import socket
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import Protocol

from userspace_proxy.dataplane.counters import EngineCounters
from userspace_proxy.dataplane.pipe_pool import PipePool
from userspace_proxy.dataplane.timers import Timers

RELAY_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
WRITER_EVENTS = RELAY_EVENTS | select.EPOLLOUT
"""Of a relay socket that somebody waits to be connected, or to take more. The others are spared these events: epoll(7)
reports that a socket is writable with everything else that happens to it."""
LISTENER_EVENTS = select.EPOLLIN

EVENTS_PER_POLL = 256
"""Events taken from the kernel at a time; arbitrary: bounds one poll to some milliseconds."""
FEW_EVENTS = 2
"""A batch with no more is calm (see ``Engine.is_calm``); arbitrary, an accept and the end of another connection."""
BUFFER_BYTES = 65536
"""Size of the one buffer that all copying goes through; a read that fills it promotes the direction to splice(2)."""


class Handler(Protocol):
    """Who is called for the events of one file descriptor."""

    def on_event(self, mask: int) -> None:
        """Do what the epoll event mask asks for."""

    def on_bug(self) -> None:
        """Give up what the failed call was working on, and nothing else; must not raise."""


class Engine:
    """Calls handlers for events of their file descriptors, for their timers, and for another turn."""

    __slots__ = (
        "_again",
        "_at_end",
        "_clock",
        "_closing",
        "_epoll",
        "_has_batch",
        "_report_bug",
        "buffer",
        "counters",
        "handlers",
        "is_calm",
        "now_s",
        "pipes",
        "polls",
        "timers",
    )

    def __init__(self, clock: Callable[[], float], report_bug: Callable[[Exception], None]) -> None:
        """Create the epoll.

        Args:
            clock: Seconds that never run backwards.
            report_bug: Called with each exception that a handler let out.
        """
        self._epoll = select.epoll()
        self._clock = clock
        self._report_bug = report_bug
        self._again: deque[Handler] = deque()
        self._at_end: list[Callable[[], None]] = []
        self._closing: list[socket.SocketType] = []
        self._has_batch = False
        """Handlers are being called for a batch of events."""
        self.handlers: dict[int, Handler] = {}
        self.timers = Timers()
        self.pipes = PipePool()
        self.counters = EngineCounters()
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        """Scratch: valid until the handler returns."""
        self.now_s = clock()
        """The time of the current batch of events."""
        self.is_calm = True
        """There are few events in the current batch. Otherwise it pays to leave what a new client has sent to the next
        one: sending all of it together wakes those who receive it less often."""
        self.polls = 0
        """Batches of events so far, this one included."""

    def fileno(self) -> int:
        """Return the file descriptor that is readable when ``poll`` has events."""
        return self._epoll.fileno()

    def add(self, fd: int, handler: Handler, events: int) -> None:
        """Have ``handler`` called for events of ``fd``, until ``remove`` or ``close_later``.

        Raises:
            OSError: the kernel watches no more (ENOSPC, ENOMEM; epoll_ctl(2)); nothing has changed.
        """
        self._epoll.register(fd, events)
        self.handlers[fd] = handler

    def look_at_clock(self) -> None:
        """Bring ``now_s`` up to date; for callers outside ``poll``, which does it for each batch of events."""
        self.now_s = self._clock()

    def remove(self, fd: int) -> None:
        """Watch ``fd`` no more; needed before closing only where another process holds the same socket (epoll(7))."""
        del self.handlers[fd]
        self._epoll.unregister(fd)

    def hand_over(self, fd: int, handler: Handler, events: int) -> None:
        """Have another handler called for a file descriptor from now on, and for other events."""
        self._epoll.modify(fd, events)
        self.handlers[fd] = handler

    def watch_writer(self, fd: int) -> None:
        """Have the handler of a relay socket told as well, from now on, when the socket takes more."""
        self._epoll.modify(fd, WRITER_EVENTS)

    def requeue(self, fd: int, events: int) -> None:
        """Have this engine be the last to be woken of those that watch the same socket with EPOLLEXCLUSIVE.

        The kernel wakes the first that waits, and would so leave nearly all to one of several idle engines.

        Raises:
            OSError: as for ``add``; the descriptor is not watched any more.
        """
        self._epoll.unregister(fd)
        try:
            self._epoll.register(fd, events)
        except OSError:  # others of this user may have taken the room
            del self.handlers[fd]
            raise

    def close_later(self, sock: socket.SocketType) -> None:
        """Watch a socket no more, and close it at the end of this batch of events; takes ownership."""
        self.handlers.pop(sock.fileno(), None)
        self._closing.append(sock)

    def close_now(self, sock: socket.SocketType) -> None:
        """Close a socket that ``close_later`` has taken, for another one that gets its number at once.

        That one may then be called for an event of the first: it must not mind if there is nothing to do.
        """
        self._closing.remove(sock)
        sock.close()

    def again(self, handler: Handler) -> None:
        """Call ``handler.on_event(0)`` in the next poll: it has more to do than its turn allows."""
        self._again.append(handler)

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call something once, when all handlers have been called for this batch of events.

        For handlers that have work which is cheaper done together.
        """
        self._at_end.append(callback)

    def run(self, callbacks: Iterable[Callable[[], None]]) -> None:
        """Call each, whatever becomes of the others: a bug ends what that one belongs to."""
        for callback in callbacks:
            try:
                callback()
            except Exception as error:  # noqa: BLE001
                self._bug(getattr(callback, "__self__", None), error)

    def wait_s(self) -> float | None:
        """Return how many seconds ``poll`` may be left alone while the descriptor is silent; None: for ever."""
        if self._again:
            return 0.0
        next_s = self.timers.next_s
        return None if next_s == inf else max(0.0, next_s - self._clock())

    def poll(self, timeout_s: float) -> bool:
        """Do what is due, waiting up to ``timeout_s`` for the first event; return whether anything was done."""
        events = self._epoll.poll(timeout_s, EVENTS_PER_POLL)
        self.is_calm = len(events) <= FEW_EVENTS
        self.polls += 1
        self.now_s = self._clock()
        self._has_batch = True
        busy = bool(events)
        handlers = self.handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.on_event(mask)
                except Exception as error:  # noqa: BLE001
                    self._bug(handler, error)
        if self._at_end:
            self._run_at_end()
        if self._again:
            busy = True
            self._run_again()
        if self.timers.next_s <= self.now_s:
            busy = True
            self._run_timers()
        self._has_batch = False
        if self._closing:
            self._close_waiting()
        return busy

    def close_waiting(self) -> None:
        """Close what ``close_later`` took: at once, or within a batch of events at its end."""
        if not self._has_batch:
            self._close_waiting()

    def close(self) -> None:
        """Close the epoll, spare pipes and sockets that wait to be closed; handlers must have let go of theirs."""
        self._close_waiting()
        self.pipes.close_spare()
        self._epoll.close()

    def _close_waiting(self) -> None:
        for sock in self._closing:
            sock.close()
        self._closing.clear()

    def _run_again(self) -> None:
        for _ in range(len(self._again)):
            handler = self._again.popleft()
            try:
                handler.on_event(0)
            except Exception as error:  # noqa: BLE001
                self._bug(handler, error)

    def _run_at_end(self) -> None:
        callbacks, self._at_end = self._at_end, []
        self.run(callbacks)

    def _run_timers(self) -> None:
        self.run(self.timers.take_due(self.now_s))

    def _bug(self, handler: object, error: Exception) -> None:
        self.counters.unexpected_errors += 1
        on_bug = getattr(handler, "on_bug", None)
        if on_bug is not None:
            on_bug()
        self._report_bug(error)

"""Timers: many deadlines of few different lengths, without a heap.

Every connection has a deadline or two, nearly all of them pass without effect, and most have the same length. So each
length has a queue in which deadlines are in order as they are added: adding and running cost the same however many
there are. A timer is never taken back: whoever is called looks whether there is still something to do.

Where most of many owners leave before their time has come, ``Deadlines`` lets go of them at once.
"""

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

Owner = TypeVar("Owner")


class Timers:
    """Callbacks to be called once their time has come."""

    __slots__ = ("_queues", "next_s")

    def __init__(self) -> None:
        self._queues: dict[float, deque[tuple[float, Callable[[], None]]]] = {}
        self.next_s = inf
        """When the next timer is due, on the clock of ``add``; infinite without timers."""

    def add(self, now_s: float, delay_s: float, callback: Callable[[], None]) -> None:
        """Have ``callback`` called ``delay_s`` seconds after ``now_s``, which must not run backwards."""
        deadline_s = now_s + delay_s
        queue = self._queues.get(delay_s)
        if queue is None:
            queue = self._queues[delay_s] = deque()
        queue.append((deadline_s, callback))
        if deadline_s < self.next_s:  # noqa: PLR1730 - min() would cost every connection
            self.next_s = deadline_s

    def take_due(self, now_s: float) -> list[Callable[[], None]]:
        """Remove and return the callbacks whose time has come."""
        due = []
        for length, queue in list(self._queues.items()):
            while queue and queue[0][0] <= now_s:
                due.append(queue.popleft()[1])
            if not queue:
                del self._queues[length]  # lengths can be computed: keep only those in use
        self.next_s = min((queue[0][0] for queue in self._queues.values()), default=inf)
        return due


class Deadlines(Generic[Owner]):
    """A time for each of many owners, as long after each was added."""

    __slots__ = ("_delay_s", "_due_s", "_has_timer", "_on_due", "_timers")

    def __init__(self, timers: Timers, delay_s: float, on_due: Callable[[], None]) -> None:
        """Start without owners.

        Args:
            timers: Call ``on_due``.
            delay_s: Seconds from ``add`` until an owner is due.
            on_due: Called when somebody may be due; is to call ``take_due``.
        """
        self._timers = timers
        self._delay_s = delay_s
        self._on_due = on_due
        self._due_s: dict[Owner, float] = {}
        """In the order of their times, as all have the same delay."""
        self._has_timer = False

    def add(self, owner: Owner, now_s: float) -> None:
        """Have an owner, which is not there yet, be due one delay after ``now_s``, which must not run backwards."""
        self._due_s[owner] = now_s + self._delay_s
        if not self._has_timer:
            self._has_timer = True
            self._timers.add(now_s, self._delay_s, self._on_due)

    def discard(self, owner: Owner) -> None:
        """Let go of an owner, if it is there still."""
        self._due_s.pop(owner, None)

    def take_due(self, now_s: float) -> list[Owner]:
        """Remove and return the owners whose time has come; to be called by ``on_due`` and nowhere else."""
        due = []
        for owner, due_s in self._due_s.items():
            if due_s > now_s:
                self._timers.add(now_s, due_s - now_s, self._on_due)
                break
            due.append(owner)
        else:
            self._has_timer = False
        for owner in due:
            del self._due_s[owner]
        return due

"""Timers: many deadlines of few different lengths, without a heap.

Every connection has a deadline or two, nearly all of them pass without effect, and most have the same length. So each
length has a queue in which deadlines are in order as they are added: adding and running cost the same however many
there are. A timer is never taken back: whoever is called looks whether there is still something to do.
"""

from collections import deque
from collections.abc import Callable
from math import inf


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

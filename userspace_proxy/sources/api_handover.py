"""Handover: how threads give WatchEvents to the loop of trio: in order, in batches, and never more than it can take.

A thread puts, and goes on at once; whatever has come together until the loop gets round to it makes one batch. So a
busy loop gets large batches instead of many wake-ups. Entry point: ``Handover``.
"""

import threading
from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

import trio
from attrs import define, field

MAX_BATCH = 500
"""Arbitrary: as many objects as one page of a list has."""
_MAX_WAITING = 2000
"""Arbitrary: then threads wait, and the API server with them."""

_T = TypeVar("_T")


@define(eq=False)
class Handover(Generic[_T]):
    """What waits for the loop; made in the loop."""

    _token: trio.lowlevel.TrioToken = field(factory=trio.lowlevel.current_trio_token, init=False)
    _waiting: deque[_T] = field(factory=deque, init=False)
    _changed: threading.Condition = field(factory=threading.Condition, init=False)
    _is_closed: bool = field(default=False, init=False)
    _wake: trio.Event = field(factory=trio.Event, init=False)

    def put(self, items: Iterable[_T]) -> None:
        """Hand items over; for threads. Waits while too many are waiting; after ``close`` they are thrown away."""
        with self._changed:
            while len(self._waiting) >= _MAX_WAITING and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return
            self._waiting.extend(items)
            self._token.run_sync_soon(self._notify, idempotent=True)

    async def take(self) -> list[_T]:
        """Return what is waiting, in order and at most ``MAX_BATCH``; waits until there is something."""
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        with self._changed:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
            self._changed.notify_all()
        return batch

    def close(self) -> None:
        """Throw away what is waiting, and let no thread wait; for the loop."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _notify(self) -> None:
        self._wake.set()

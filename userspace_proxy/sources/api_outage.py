"""OutageLog: says in the log why the API server cannot be watched, how old what is known is, and when that ends.

Each distinct failure is said once while an outage lasts, whichever resources it strikes, and every few minutes that it
goes on. Entry point: ``OutageLog``.
"""

import logging
import threading
from collections.abc import Callable

from userspace_proxy.sources.base import ResourceState

LOG = logging.getLogger(__name__)

REMIND_AFTER_S = 300.0
"""Arbitrary."""


class OutageLog:
    """What has failed, and what was said of it, for all resources of one API server; any thread may call it."""

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        """Begin with all well.

        Args:
            clock: Returns seconds, never going back.
            wall_clock: Returns seconds since the epoch, as in ``ResourceState``.
        """
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._failing: set[str] = set()
        """The resources that are not watched."""
        self._since_s = 0.0
        """When the first of them failed."""
        self._remind_at_s: dict[str, float] = {}
        """The sentences that were said, and until when not again."""

    def failed(self, resource: str, state: ResourceState, sentence: str) -> None:
        """Take in another failure of a resource."""
        now_s = self._clock()
        with self._lock:
            state.failure = sentence
            if not self._failing:
                self._since_s = now_s
            self._failing.add(resource)
            # sentences may hold what a server never says twice: only those of the last minutes are kept
            self._remind_at_s = {said: at_s for said, at_s in self._remind_at_s.items() if at_s > now_s}
            if sentence in self._remind_at_s:
                return
            self._remind_at_s[sentence] = now_s + REMIND_AFTER_S
        if state.current_at_s is None:
            served = "nothing is known of it yet"
        else:
            age_s = max(0.0, self._wall_clock() - state.current_at_s)
            served = f"what is served goes on, as it was {age_s:.0f} s ago"
        LOG.warning(
            "cannot watch the API server, trying again",
            extra={"resource": resource, "reason": f"{sentence}; {served}"},
        )

    def ended(self, resource: str, state: ResourceState) -> None:
        """Take in that a resource is being watched."""
        with self._lock:
            state.failure = ""
            if resource not in self._failing:
                return
            self._failing.discard(resource)
            if self._failing:
                return
            self._remind_at_s.clear()
            lasted_s = self._clock() - self._since_s
        LOG.info("watching the API server again", extra={"duration_s": round(lasted_s, 1)})

"""When a watch lists, when it watches, and how long it waits before it tries again. Pure: time and luck are arguments.

The rules:

- A complete list is followed by a watch from its version on, at once.
- A watch that ends as the server announced, or that was silent for too long, is followed by another one from the last
  version on. That loses nothing and costs little, so it is no failure.
- A version that the server has forgotten (410) is followed by a list, at once.
- Whatever fails is tried again after a while that doubles from failure to failure, or when the server asks for it. So
  is what "succeeded" without any progress: it must not become a busy loop.
- Progress of a watch, be it a bookmark, ends a series of failures.

Entry point: ``Schedule``.
"""

from collections.abc import Callable
from enum import Enum, auto

from attrs import define, field, frozen

FIRST_DELAY_S = 0.2
"""After the first failure, at most; arbitrary: many nodes lose one API server at the same moment."""
MAX_DELAY_S = 10.0
"""Arbitrary: a third of what client-go waits, as there are three requests, not hundreds, to be made again."""
MIN_WATCH_S = 5.0
"""A watch that ended sooner without a word made no progress; arbitrary."""


class Action(Enum):
    """What to do next."""

    LIST = auto()
    WATCH = auto()


class Outcome(Enum):
    """How the last action ended."""

    LISTED = auto()
    """The list is complete."""
    ENDED = auto()
    """The watch ended as the server announced."""
    SILENT = auto()
    """Nothing came for longer than the read timeout of the watch."""
    EXPIRED = auto()
    """The server has forgotten the version, or the continuation of a list."""
    FAILED = auto()
    """Anything else."""


@frozen
class Step:
    """What to do next, and when."""

    action: Action
    delay_s: float


@define
class Schedule:
    """The state of one watch; begins with a list."""

    _random: Callable[[], float]
    """Returns numbers from 0 to 1, for the jitter."""
    _action: Action = field(default=Action.LIST, init=False)
    failures: int = field(default=0, init=False)
    """Attempts in a row without progress."""

    def progress(self) -> None:
        """Take in that a watch has told something."""
        self.failures = 0

    def after(self, outcome: Outcome, *, lasted_s: float = 0.0, retry_after_s: float = 0.0) -> Step:
        """Return the next step.

        Args:
            outcome: Of the last step.
            lasted_s: For how long a watch went on.
            retry_after_s: Seconds for which the server asked to be left alone.
        """
        if outcome is Outcome.LISTED:
            self._action = Action.WATCH
            return Step(Action.WATCH, 0.0)
        if outcome is Outcome.EXPIRED:
            self._action = Action.LIST
        if lasted_s >= MIN_WATCH_S:
            self.failures = 0
        if outcome in {Outcome.ENDED, Outcome.SILENT, Outcome.EXPIRED} and not self.failures:
            self.failures = 1
            return Step(self._action, 0.0)
        delay_s = self._delay_s()
        self.failures += 1
        return Step(self._action, max(delay_s, retry_after_s))

    def _delay_s(self) -> float:
        longest_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self.failures, 16))
        return longest_s * (0.5 + 0.5 * self._random())

"""Folding of repeated log records, so that a fault that strikes a thousand times a second costs a few lines.

``Folding`` decides and knows no clock; ``FoldingHandler`` is the thin edge to ``logging``. A summary is written with
the next record of any kind after the window has ended, at the latest when logging shuts down: no thread, no timer.
"""

import logging
import math
from collections.abc import Callable, Hashable
from typing import TextIO

from attrs import define

from userspace_proxy.telemetry.log_keys import SUBJECT_KEYS

SHOWN_PER_WINDOW = 5
"""Equal records shown before folding starts. Arbitrary: a few, to see that it repeats."""

WINDOW_S = 10
"""Seconds from the first of equal records in which the further ones are folded."""

MAX_WINDOWS = 1000
"""Windows kept at a time; past that the oldest ends early. Arbitrary: bounds the memory."""


@define
class _Window:
    started: float
    attributes: dict[str, object]
    """What a summary takes over from the first record."""
    message: str
    count: int = 0


class Folding:
    """Which records are shown, and what is said about those that are not."""

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}  # in the order in which they started

    def admit(self, record: logging.LogRecord, now: float) -> bool:
        """Return whether the record is to be shown; if not, it is counted for a summary.

        Records are equal when logger, level, message and the subject keys are. The message is taken with its
        arguments filled in: a record that says something new is never folded away.

        Args:
            record: What is logged.
            now: Seconds on any clock that never goes back; the same clock as for ``end_windows``.
        """
        message = record.getMessage()
        subject = tuple(str(getattr(record, key, None)) for key in SUBJECT_KEYS)
        key = (record.name, record.levelno, message, subject)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(now, _attributes(record), message)
        window.count += 1
        return window.count <= SHOWN_PER_WINDOW

    def end_windows(self, now: float) -> list[dict[str, object]]:
        """End the windows whose time is over, and return one summary for each in which something was folded.

        To be called before ``admit`` at each record. ``math.inf`` ends all windows.

        Returns:
            The attributes of a record for each summary, oldest window first.
        """
        summaries = []
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if now - window.started < WINDOW_S and len(self._windows) <= MAX_WINDOWS:
                break
            del self._windows[key]
            folded = window.count - SHOWN_PER_WINDOW
            if folded > 0:
                message = f"{window.message} ... repeated {folded:,} times in {WINDOW_S} s"
                summaries.append({**window.attributes, "msg": message})
        return summaries


def _attributes(record: logging.LogRecord) -> dict[str, object]:
    """Return what places a record, without the traceback: its frames would keep everything in them alive."""
    return {key: getattr(record, key, None) for key in ("name", "levelno", "levelname", *SUBJECT_KEYS)}


class FoldingHandler(logging.StreamHandler[TextIO]):
    """Writes records to a stream, warnings and errors folded.

    Lower levels are written as they come: INFO tells of state changes, and who turns on DEBUG or the records of single
    connections wants each one.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        """Start without a record.

        Args:
            stream: Written to; stays the caller's.
            clock: Returns seconds, and never goes back.
        """
        super().__init__(stream)
        self._clock = clock
        self._folding = Folding()

    def emit(self, record: logging.LogRecord) -> None:
        """Write the summaries that are due, then the record unless it is folded."""
        now = self._clock()
        self._write_summaries(now)
        if record.levelno < logging.WARNING or self._folding.admit(record, now):
            super().emit(record)

    def close(self) -> None:
        """Write the summaries of all windows; called by ``logging.shutdown`` at exit."""
        self._write_summaries(math.inf)
        super().close()

    def _write_summaries(self, now: float) -> None:
        for attributes in self._folding.end_windows(now):
            super().emit(logging.makeLogRecord(attributes))

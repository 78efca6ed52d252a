"""Folding: what is shown, what is counted, and when the count is told."""

import gc
import io
import logging
import math
import weakref

from userspace_proxy.telemetry.log_folding import MAX_WINDOWS, SHOWN_PER_WINDOW, Folding, FoldingHandler
from userspace_proxy.telemetry.log_format import TextFormatter


def record(message: str, *args: object, level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    """Return a record as a module of ours would log it."""
    made = logging.LogRecord("userspace_proxy.dataplane.engine", level, "engine.py", 1, message, args, None)
    made.__dict__.update(extra)
    return made


def admitted(folding: Folding, records: list[logging.LogRecord], now: float) -> int:
    """Return how many of the records are shown."""
    return sum(folding.admit(each, now) for each in records)


def summaries(folding: Folding, now: float) -> list[object]:
    """Return the messages of the summaries that are due."""
    return [each["msg"] for each in folding.end_windows(now)]


def test_admit_equal_records_shows_a_few_and_sums_up_the_rest() -> None:
    """Equal records are shown five times in a window; its summary says how many were not."""
    folding = Folding()
    assert admitted(folding, [record("pause", errno="EMFILE")] * 1209, 100.0) == SHOWN_PER_WINDOW
    assert summaries(folding, 109.9) == []
    assert summaries(folding, 110.0) == ["pause ... repeated 1,204 times in 10 s"]
    assert summaries(folding, math.inf) == []


def test_admit_after_the_window_shows_again() -> None:
    """A fault that lasts is told anew in each window."""
    folding = Folding()
    admitted(folding, [record("pause")] * 7, 0.0)
    assert summaries(folding, 10.0) == ["pause ... repeated 2 times in 10 s"]
    assert admitted(folding, [record("pause")] * 7, 10.0) == SHOWN_PER_WINDOW


def test_end_windows_without_folded_records_says_nothing() -> None:
    """What was shown in full needs no summary."""
    folding = Folding()
    admitted(folding, [record("pause")] * SHOWN_PER_WINDOW, 0.0)
    assert summaries(folding, math.inf) == []


def test_admit_records_that_differ_in_subject_are_not_equal() -> None:
    """Another logger, level, message, argument or subject key is another record; a measured value is not."""
    folding = Folding()
    variants = [
        record("pause"),
        record("pause", level=logging.ERROR),
        record("pause", errno="EMFILE"),
        record("pause", service="a/b"),
        record("%s is broken", "a.yaml"),
        record("%s is broken", "b.yaml"),
    ]
    variants.append(record("pause"))
    variants[-1].name = "userspace_proxy.dataplane.tcp_listener"
    assert admitted(folding, variants * SHOWN_PER_WINDOW, 0.0) == len(variants) * SHOWN_PER_WINDOW
    assert admitted(folding, [record("pause", client="10.0.0.1:1", duration_s=3, attempt=2)], 0.0) == 0


def test_end_windows_past_the_cap_ends_the_oldest() -> None:
    """Many different records cannot grow the table: the oldest window ends early, and its count is told."""
    folding = Folding()
    admitted(folding, [record("first")] * 6, 0.0)
    for number in range(MAX_WINDOWS):
        folding.admit(record("other", resource=number), 1.0)
    assert summaries(folding, 1.0) == ["first ... repeated 1 times in 10 s"]
    assert summaries(folding, 1.0) == []


def test_admit_record_with_traceback_keeps_no_frame() -> None:
    """A window holds neither the exception nor what its frames hold."""

    class Held(Exception):  # noqa: N818
        pass

    folding = Folding()
    error = Held()
    reference = weakref.ref(error)
    made = record("bug")
    made.exc_info = (Held, error, None)
    folding.admit(made, 0.0)
    del made, error
    gc.collect()
    assert reference() is None


def test_handler_repeated_records_are_folded_at_warning_only() -> None:
    """Warnings are folded, with the summary at close at the latest; INFO and DEBUG are written one by one."""
    stream = io.StringIO()
    handler = FoldingHandler(stream, lambda: 0.0)
    for _ in range(8):
        handler.handle(record("warned %d", 7, service="a/b"))
        handler.handle(record("told", level=logging.INFO))
    handler.close()
    lines = stream.getvalue().splitlines()
    assert lines.count("warned 7") == SHOWN_PER_WINDOW
    assert lines.count("told") == 8
    assert lines[-1] == "warned 7 ... repeated 3 times in 10 s"
    assert len(lines) == SHOWN_PER_WINDOW + 8 + 1


def test_handler_after_the_window_writes_the_summary_before_the_next_record() -> None:
    """The next record of any kind brings out what was folded before it, with its level, logger and subject."""
    stream = io.StringIO()
    times = iter([*[0.0] * 7, 10.0])
    handler = FoldingHandler(stream, lambda: next(times))
    handler.setFormatter(TextFormatter())
    for _ in range(7):
        handler.handle(record("warned", service="a/b"))
    handler.handle(record("told", level=logging.INFO))
    assert [line.split("Z ", 1)[1] for line in stream.getvalue().splitlines()[SHOWN_PER_WINDOW:]] == [
        "WARNING dataplane.engine: warned ... repeated 2 times in 10 s service=a/b",
        "INFO  dataplane.engine: told",
    ]
    handler.close()

"""Tests of the log of Problems."""

import logging

import pytest

from userspace_proxy.control.problem_log import ProblemLog
from userspace_proxy.model.problem import Problem, Severity


def problem(text: str, severity: Severity = Severity.ERROR) -> Problem:
    """Return a Problem of a Service."""
    return Problem(severity, "Service shop/web", "spec.ports", text, "shop.yaml, line 3")


def replace(log: ProblemLog, origin: str, *problems: Problem) -> int:
    """Replace the Problems of an origin and return how many steps that took."""
    return sum(1 for _ in log.replace(origin, problems))


def test_problem_log_says_a_problem_once_while_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    """Only what was not there before is logged, with its severity as the level."""
    log = ProblemLog(lambda _: None)
    replace(log, "shop.yaml", problem("first"))
    replace(log, "shop.yaml", problem("first"), problem("second", Severity.WARNING))
    replace(log, "shop.yaml", problem("second", Severity.WARNING))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, str(problem("first"))),
        (logging.WARNING, str(problem("second", Severity.WARNING))),
    ]


def test_problem_log_says_a_problem_again_after_it_was_gone(caplog: pytest.LogCaptureFixture) -> None:
    """Who repairs a file and breaks it again is told again."""
    log = ProblemLog(lambda _: None)
    for problems in ((problem("first"),), (), (problem("first"),)):
        replace(log, "shop.yaml", *problems)
    assert len(caplog.records) == 2


def test_problem_log_tells_of_each_problem_that_it_logs() -> None:
    """Of no other: who is told makes Events of them."""
    told: list[Problem] = []
    log = ProblemLog(told.append)
    replace(log, "shop.yaml", problem("first"))
    replace(log, "shop.yaml", problem("first"), problem("second"))
    assert told == [problem("first"), problem("second")]


def test_problem_log_keeps_origins_apart(caplog: pytest.LogCaptureFixture) -> None:
    """What one origin says neither hides nor ends the Problems of another."""
    log = ProblemLog(lambda _: None)
    replace(log, "shop.yaml", problem("first"))
    replace(log, "plan shop/web", problem("first"))
    replace(log, "plan shop/web")
    replace(log, "shop.yaml", problem("first"))
    assert len(caplog.records) == 2


def test_problem_log_says_a_problem_that_is_named_twice_once(caplog: pytest.LogCaptureFixture) -> None:
    """The same sentence twice helps nobody."""
    replace(ProblemLog(lambda _: None), "shop.yaml", problem("first"), problem("first"))
    assert len(caplog.records) == 1


def test_problem_log_takes_a_step_for_each_line() -> None:
    """Thousands of lines can be written between the turns of the data path; no line is no step."""
    log = ProblemLog(lambda _: None)
    problems = [problem(str(number)) for number in range(100)]
    assert replace(log, "shop.yaml", *problems) == 100
    assert replace(log, "shop.yaml", *problems) == 0


class _Counted(str):
    """A text that counts how often it is compared."""

    __slots__ = ()
    comparisons = 0

    def __eq__(self, other: object) -> bool:
        _Counted.comparisons += 1
        return str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def test_problem_log_compares_each_problem_with_few_others() -> None:
    """The work is in proportion to the Problems: five thousand that stand must not cost seconds at each look."""
    log = ProblemLog(lambda _: None)
    count = 300
    for _ in range(2):
        replace(log, "orphans", *(problem(_Counted(number)) for number in range(count)))
    assert _Counted.comparisons < 10 * count

"""Tests of model.problem."""

import pytest

from userspace_proxy.model.problem import Problem, Severity, fold_problems


def _problem(text: str, severity: Severity = Severity.WARNING) -> Problem:
    return Problem(severity, "Service shop/web", "spec.ports", text, "shop.yaml, document 1, line 1")


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            Problem(Severity.ERROR, "Service shop/web", "spec.ports[0].port", "is missing", "shop.yaml, document 2"),
            "shop.yaml, document 2: Service shop/web: spec.ports[0].port: is missing",
        ),
        (Problem(Severity.ERROR, "Service shop/web", "", "is odd"), "Service shop/web: is odd"),
        (Problem(Severity.ERROR, "", "", "is empty", "shop.yaml"), "shop.yaml: is empty"),
    ],
)
def test_problem_prints_without_its_empty_parts(problem: Problem, text: str) -> None:
    """The sentence has the place before it, as far as it is known."""
    assert str(problem) == text


def test_fold_problems_up_to_ten_keeps_all() -> None:
    """Ten Problems of one object are shown one by one."""
    problems = tuple(_problem(f"text {i}") for i in range(10))
    assert fold_problems(problems) == problems


@pytest.mark.parametrize(
    ("severities", "worst"),
    [
        ([Severity.WARNING] * 3, Severity.WARNING),
        ([Severity.WARNING, Severity.ERROR, Severity.WARNING], Severity.ERROR),
    ],
)
def test_fold_problems_beyond_ten_counts_the_rest_at_the_worst_severity(
    severities: list[Severity], worst: Severity
) -> None:
    """A folded error still makes the whole an error, and the number of those not shown is right."""
    problems = [_problem(f"text {i}") for i in range(10)]
    folded = fold_problems([*problems, *(_problem("tail", severity) for severity in severities)])
    assert folded[:10] == tuple(problems)
    assert folded[10:] == (Problem(worst, "Service shop/web", "", "and 3 more", "shop.yaml, document 1, line 1"),)

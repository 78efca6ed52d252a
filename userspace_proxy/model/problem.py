"""Problem: a defect in one API object, collected and shown, never raised."""

from collections.abc import Sequence
from enum import StrEnum

from attrs import frozen


class Severity(StrEnum):
    """How bad a Problem is."""

    ERROR = "error"
    """Something the object asks for is not served."""
    WARNING = "warning"
    """All is served, though probably not as its author meant."""


MAX_PROBLEMS_PER_OBJECT = 10
"""Arbitrary: enough to see the pattern, few enough that a thousand bad endpoints do not bury other objects."""


@frozen(order=True)
class Problem:
    """A defect in one API object, as one sentence with the place it is about."""

    severity: Severity
    subject: str
    """The object, as ``Service namespace/name``; ``""`` where no object could be made out."""
    field: str
    """Path of the field inside the object, as ``spec.ports[0].nodePort``; ``""`` when it is about the whole."""
    text: str
    """What is wrong and what to do, without a full stop."""
    origin: str = ""
    """Where the object was read, as ``shop.yaml, document 2, line 14``; ``""`` where the API server is the origin."""
    event_reason: str = ""
    """Under which reason (a CamelCase word) it is told as an Event of the object; ``""``: it is not."""

    def __str__(self) -> str:
        """Return ``origin: subject: field: text``, without the parts that are empty."""
        return ": ".join(part for part in (self.origin, self.subject, self.field, self.text) if part)


def fold_problems(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Return the Problems of one object, those beyond the first ten folded into one that counts them."""
    kept, folded = tuple(problems[:MAX_PROBLEMS_PER_OBJECT]), problems[MAX_PROBLEMS_PER_OBJECT:]
    if not folded:
        return kept
    worst = min(problem.severity for problem in folded)
    return (*kept, Problem(worst, folded[0].subject, "", f"and {len(folded)} more", folded[0].origin))

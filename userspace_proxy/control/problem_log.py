"""ProblemLog: says each Problem once when it appears, and keeps those that stand.

There can be as many as there are objects, so it works in steps.
"""

import logging
from collections.abc import Callable, Generator, Iterable

from userspace_proxy.model.problem import Problem, Severity

LOG = logging.getLogger(__name__)

_LEVELS = {Severity.ERROR: logging.ERROR, Severity.WARNING: logging.WARNING}


class ProblemLog:
    """The Problems of all origins."""

    def __init__(self, on_problem: Callable[[Problem], None]) -> None:
        """Start without Problems; ``on_problem`` is called with each one that is logged."""
        self._on_problem = on_problem
        self._by_origin: dict[str, frozenset[Problem]] = {}

    def replace(self, origin: str, problems: Iterable[Problem]) -> Generator[None, None, None]:
        """Take in all Problems of one origin; log those that were not among its Problems before, one at each step."""
        before = self._by_origin.pop(origin, frozenset())
        new = dict.fromkeys(problems)
        if new:
            self._by_origin[origin] = frozenset(new)
        for problem in new:
            if problem not in before:
                LOG.log(_LEVELS[problem.severity], "%s", problem)
                self._on_problem(problem)
                yield

"""Fixtures for the demonstration: runs of it as a user starts them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from loopback.demo.demo_run import DemoRun


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., DemoRun]]:
    """Return a function that starts ``demo`` with arguments, if wanted ``through`` a program or on a terminal."""
    runs: list[DemoRun] = []

    def start(*arguments: str, through: Sequence[str] = (), terminal: int | None = None) -> DemoRun:
        runs.append(DemoRun(tmp_path / f"run-{len(runs)}", arguments, through, terminal))
        return runs[-1]

    yield start
    for run in runs:
        run.close()

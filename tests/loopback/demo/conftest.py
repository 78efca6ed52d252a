"""Fixtures for the demonstration: runs of it as a user starts them."""

import fcntl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from loopback.demo.demo_run import DemoRun


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Keep other runs of these tests (another Python, beside this one) from taking the addresses in between."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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

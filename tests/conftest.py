"""What all tests share: builders on ``sys.path``, profiles of hypothesis, trio for ``async def`` tests, skips in CI.

``HYPOTHESIS_PROFILE=deep`` looks for new examples, many of them; the default ``fast`` repeats the same few each time.
"""

import inspect
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from trio.testing import MockClock, trio_test

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("fast", max_examples=60, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=3000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a skipped test as failed where ``CI`` is set: there every tool and right is to be had."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, though in CI nothing may be missing: {report.longreprtext}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Run a test that is an ``async def`` under trio, on the Clock among its fixtures if there is one."""
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = trio_test(pyfuncitem.obj)


@pytest.fixture
def autojump_clock() -> MockClock:
    """Return a clock of trio that jumps to the next deadline when all tasks wait."""
    return MockClock(autojump_threshold=0)

"""Fixtures for runs of the control process within the tests."""

import gc
import resource
from collections.abc import Iterator

import pytest


@pytest.fixture
def undone() -> Iterator[None]:
    """Undo what a run does to its process."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)

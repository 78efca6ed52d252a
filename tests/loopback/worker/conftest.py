"""Fixtures for the tests of workers."""

from collections.abc import Iterator

import pytest
from loopback.worker.serving import Shop, open_shop
from worker_driver import WorkerProcess, open_worker


@pytest.fixture
def shop() -> Iterator[Shop]:
    """Return a Shop."""
    with open_shop() as shop:
        yield shop


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    """Return a worker that has started."""
    with open_worker() as worker:
        yield worker

"""Waiting for what real processes bring about, with an end. Entry point: ``wait_until``."""

import threading
import time
from collections.abc import Callable

DEADLINE_S = 60.0
_LOOK = threading.Event()
"""Never set: to wait between two looks."""


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until a condition on real processes holds."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < give_up_at, f"it did not come true within {DEADLINE_S} s"
        _LOOK.wait(0.02)

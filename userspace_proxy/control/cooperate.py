"""Long pure work in small steps, so that the data path in the same process is not kept waiting."""

from collections.abc import Generator
from typing import TypeVar

import trio

T = TypeVar("T")

STEP_S = 0.001
"""Seconds of work between two turns of the other tasks; a single step may be longer."""


async def cooperate(steps: Generator[None, None, T]) -> T:
    """Run a generator to its end, let other tasks run between its steps, and return what it returns.

    Cancellation: the generator is closed where it stands.
    """
    pause_at = trio.current_time() + STEP_S
    try:
        while True:
            next(steps)
            if trio.current_time() >= pause_at:
                await trio.lowlevel.checkpoint()
                pause_at = trio.current_time() + STEP_S
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()

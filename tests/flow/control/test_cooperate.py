"""Tests of work in small steps."""

from collections.abc import Generator

import pytest
import trio
from trio.testing import MockClock

from userspace_proxy.control.cooperate import STEP_S, cooperate


@pytest.fixture
def mock_clock() -> MockClock:
    """Return a clock that moves only when it is told to."""
    return MockClock()


def work(clock: MockClock, steps: int, step_s: float) -> Generator[None, None, str]:
    """Take steps of some seconds each, without giving way."""
    for _ in range(steps):
        clock.jump(step_s)
        yield
    return "done"


async def count_turns(turns: list[None]) -> None:
    """Note each turn that another task gets."""
    while True:
        turns.append(None)
        await trio.lowlevel.checkpoint()


async def test_cooperate_returns_what_the_generator_returns(mock_clock: MockClock) -> None:
    """The caller gets the result of the work, however many steps it took."""
    assert await cooperate(work(mock_clock, 0, 0.0)) == "done"
    assert await cooperate(work(mock_clock, 10, STEP_S)) == "done"


@pytest.mark.parametrize(
    ("step_s", "turns_wanted"),
    [
        pytest.param(2 * STEP_S, 20, id="long steps: after each"),
        pytest.param(STEP_S / 2, 10, id="short steps: after each millisecond"),
        pytest.param(0.0, 0, id="no time at all: never"),
    ],
)
async def test_cooperate_lets_others_run_once_a_step_s_is_over(
    mock_clock: MockClock, step_s: float, turns_wanted: int
) -> None:
    """Another task waits no longer than STEP_S and one step, and work that is short does not pay for it."""
    turns: list[None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns, turns)
        await cooperate(work(mock_clock, 20, step_s))
        assert len(turns) == pytest.approx(turns_wanted, abs=1)
        nursery.cancel_scope.cancel()


async def test_cooperate_lets_an_error_of_the_work_out(mock_clock: MockClock) -> None:
    """What goes wrong in a step goes wrong for the caller."""

    def fail() -> Generator[None, None, None]:
        yield
        raise ValueError("in step 2")

    with pytest.raises(ValueError, match="in step 2"):
        await cooperate(fail())


async def test_cooperate_cancelled_closes_the_generator(mock_clock: MockClock) -> None:
    """What the work holds open is let go of where it stands."""
    closed_after: list[int] = []

    def endless() -> Generator[None, None, None]:
        steps = 0
        try:
            while True:
                steps += 1
                mock_clock.jump(STEP_S)
                yield
        finally:
            closed_after.append(steps)

    with trio.CancelScope() as scope:
        scope.cancel()
        await cooperate(endless())
    assert scope.cancelled_caught
    assert closed_after == [1]

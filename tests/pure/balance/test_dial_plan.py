"""The dial plan: its whole table, and that it never gets stuck."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.balance.dial_plan import Step, next_step
from userspace_proxy.config import RelayLimits

LIMITS = RelayLimits(dial_next_after_s=0.25, dial_timeout_s=2.0)


@pytest.mark.parametrize(
    ("untried", "pending", "last_failed", "since_dial_s", "step"),
    [
        pytest.param(True, 0, False, 0.0, Step.DIAL, id="nothing under way"),
        pytest.param(True, 0, True, 0.0, Step.DIAL, id="the only one failed"),
        pytest.param(True, 1, False, 0.0, Step.WAIT, id="one under way"),
        pytest.param(True, 1, False, 0.2499, Step.WAIT, id="one under way, not yet slow"),
        pytest.param(True, 1, False, 0.25, Step.DIAL, id="one under way, slow"),
        pytest.param(True, 1, True, 0.0, Step.DIAL, id="an old one under way, the last failed"),
        pytest.param(True, 2, False, 0.2499, Step.WAIT, id="the second not yet slow"),
        pytest.param(True, 2, False, 0.25, Step.DIAL, id="the second slow too"),
        pytest.param(False, 1, False, 1.9, Step.WAIT, id="all tried, one slow"),
        pytest.param(False, 1, True, 0.0, Step.WAIT, id="all tried, the last failed, an old one under way"),
        pytest.param(False, 3, False, 0.25, Step.WAIT, id="all tried and slow"),
        pytest.param(False, 0, True, 0.0, Step.GIVE_UP, id="all failed"),
        pytest.param(False, 0, False, 0.0, Step.GIVE_UP, id="nothing to dial"),
    ],
)
@pytest.mark.parametrize("elapsed_s", [0.0, 1.9999])
def test_next_step_within_the_budget_is_as_the_table_says(
    *, untried: bool, pending: int, last_failed: bool, since_dial_s: float, elapsed_s: float, step: Step
) -> None:
    """Within the budget the step depends on what is under way and untried, not on the time that is left."""
    assert step is next_step(
        LIMITS,
        untried=untried,
        pending=pending,
        last_failed=last_failed,
        elapsed_s=elapsed_s,
        since_dial_s=since_dial_s,
    )


@given(
    untried=st.booleans(),
    pending=st.integers(0, 5),
    last_failed=st.booleans(),
    over_s=st.floats(0, 10),
    since_dial_s=st.floats(0, 10),
)
def test_next_step_after_the_budget_is_to_give_up(
    *, untried: bool, pending: int, last_failed: bool, over_s: float, since_dial_s: float
) -> None:
    """Once the budget is spent, nothing that is untried or under way keeps the client waiting."""
    step = next_step(
        LIMITS,
        untried=untried,
        pending=pending,
        last_failed=last_failed,
        elapsed_s=LIMITS.dial_timeout_s + over_s,
        since_dial_s=since_dial_s,
    )
    assert step is Step.GIVE_UP


@given(
    untried=st.booleans(),
    pending=st.integers(0, 5),
    last_failed=st.booleans(),
    elapsed_s=st.floats(0, 10),
    since_dial_s=st.floats(0, 10),
)
def test_next_step_is_always_one_that_can_be_done(
    *, untried: bool, pending: int, last_failed: bool, elapsed_s: float, since_dial_s: float
) -> None:
    """It never dials where all are tried, and never waits for nothing."""
    step = next_step(
        LIMITS,
        untried=untried,
        pending=pending,
        last_failed=last_failed,
        elapsed_s=elapsed_s,
        since_dial_s=since_dial_s,
    )
    assert untried or step is not Step.DIAL
    assert pending or step is not Step.WAIT

"""FlowEnd and DropReason: what they are as labels of metrics."""

import re

import pytest

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd


@pytest.mark.parametrize("outcome", [*FlowEnd, *DropReason], ids=repr)
def test_outcome_is_a_word_that_needs_no_quoting(outcome: FlowEnd | DropReason) -> None:
    """It is its name, so that a log, a label and the documentation say the same."""
    assert str(outcome) == outcome.name.lower()
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", outcome)

"""CloseReason: the two letters."""

import re

import pytest

from userspace_proxy.balance.close_reason import CloseReason


@pytest.mark.parametrize("reason", CloseReason, ids=lambda reason: reason.name)
def test_close_reason_prints_as_two_letters(reason: CloseReason) -> None:
    """The text is who and phase, of the letters that are documented, and no two reasons share it."""
    assert str(reason) == reason.who + reason.phase
    assert re.fullmatch(r"[-CBPGRTKI][-ADOH]", str(reason))
    assert [other for other in CloseReason if str(other) == str(reason)] == [reason]


def test_close_reason_of_the_usual_end_is_two_dashes() -> None:
    """A glance tells the connections that ended as they should from all others."""
    assert [reason for reason in CloseReason if str(reason) == "--"] == [CloseReason.NORMAL]

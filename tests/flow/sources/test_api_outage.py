"""What the log says while the API server is lost, and for how long."""

import logging
from collections.abc import Callable

import pytest
from attrs import define

from userspace_proxy.sources.api_outage import REMIND_AFTER_S, OutageLog
from userspace_proxy.sources.base import ResourceState

REFUSED = "the API server https://127.0.0.1:6443 cannot be reached: Connection refused"


@define(slots=False)
class Outages:
    """An OutageLog with its clock, and the states of two resources."""

    said: Callable[[], list[str]]
    now_s: float = 1000.0

    def __attrs_post_init__(self) -> None:
        """Make the parts."""
        self.log = OutageLog(lambda: self.now_s, lambda: self.now_s)
        self.states = {"services": ResourceState(current_at_s=990.0), "nodes": ResourceState()}

    def failed(self, resource: str, sentence: str = REFUSED) -> None:
        """Have a resource fail."""
        self.log.failed(resource, self.states[resource], sentence)

    def ended(self, resource: str) -> None:
        """Have a resource be watched."""
        self.log.ended(resource, self.states[resource])


@pytest.fixture
def outages(caplog: pytest.LogCaptureFixture) -> Outages:
    """Return an OutageLog and what it has said."""
    caplog.set_level(logging.INFO)

    def said() -> list[str]:
        return [f"{one.getMessage()}: {vars(one).get('reason', vars(one).get('duration_s'))}" for one in caplog.records]

    return Outages(said)


def test_outage_of_all_resources_is_said_once(outages: Outages) -> None:
    """Whichever resources and attempts it strikes; each resource keeps the sentence, and the age is told."""
    for _ in range(3):
        outages.failed("services")
        outages.failed("nodes")
    assert outages.said() == [
        f"cannot watch the API server, trying again: {REFUSED}; what is served goes on, as it was 10 s ago"
    ]
    assert {state.failure for state in outages.states.values()} == {REFUSED}


def test_outage_with_another_failure_says_that_too(outages: Outages) -> None:
    """What is new is never left out; a resource that was never listed is served by nothing."""
    outages.failed("services")
    outages.failed("nodes", "forbidden")
    outages.failed("services")
    assert outages.said()[1:] == ["cannot watch the API server, trying again: forbidden; nothing is known of it yet"]


def test_outage_that_goes_on_is_said_again_after_a_while(outages: Outages) -> None:
    """Nobody forgets it."""
    outages.failed("services")
    outages.now_s += REMIND_AFTER_S - 0.1
    outages.failed("services")
    assert len(outages.said()) == 1
    outages.now_s += 0.1
    outages.failed("services")
    assert len(outages.said()) == 2


def test_outage_is_over_when_every_resource_is_watched(outages: Outages) -> None:
    """Its length counts from the first failure; the next outage is said from the start."""
    outages.ended("services")
    outages.failed("services")
    outages.now_s += 5
    outages.failed("nodes")
    outages.ended("services")
    assert outages.states["services"].failure == ""
    assert len(outages.said()) == 1
    outages.now_s += 2
    outages.ended("nodes")
    assert outages.said()[1:] == ["watching the API server again: 7.0"]
    outages.failed("nodes")
    assert len(outages.said()) == 3


def test_outage_with_sentences_that_are_never_the_same_does_not_grow(outages: Outages) -> None:
    """A server may put a number of its own into each answer, for days."""
    for number in range(1000):
        outages.failed("services", f"request {number} failed")
        outages.now_s += 10.0
    assert len(outages.log._remind_at_s) <= REMIND_AFTER_S / 10.0 + 1

"""When a watch of the API server tries what again."""

import pytest

from userspace_proxy.sources.api_schedule import MAX_DELAY_S, Action, Outcome, Schedule, Step

LIST, WATCH = Action.LIST, Action.WATCH


def schedule(luck: float = 1.0) -> Schedule:
    """Return a schedule whose jitter is always the same."""
    return Schedule(lambda: luck)


@pytest.mark.parametrize(
    ("outcomes", "steps"),
    [
        pytest.param([Outcome.LISTED], [Step(WATCH, 0.0)], id="list-then-watch"),
        pytest.param([Outcome.LISTED, Outcome.ENDED], [Step(WATCH, 0.0)] * 2, id="end-then-watch"),
        pytest.param([Outcome.LISTED, Outcome.SILENT], [Step(WATCH, 0.0)] * 2, id="silence-then-watch"),
        pytest.param([Outcome.LISTED, Outcome.EXPIRED], [Step(WATCH, 0.0), Step(LIST, 0.0)], id="expired-then-list"),
        pytest.param([Outcome.EXPIRED], [Step(LIST, 0.0)], id="list-expired-then-list"),
        pytest.param([Outcome.FAILED] * 3, [Step(LIST, 0.2), Step(LIST, 0.4), Step(LIST, 0.8)], id="failures-double"),
        pytest.param(
            [Outcome.LISTED, Outcome.FAILED, Outcome.FAILED],
            [Step(WATCH, 0.0), Step(WATCH, 0.2), Step(WATCH, 0.4)],
            id="failed-watch-is-resumed",
        ),
        pytest.param(
            [Outcome.LISTED, Outcome.EXPIRED, Outcome.LISTED, Outcome.EXPIRED],
            [Step(WATCH, 0.0), Step(LIST, 0.0), Step(WATCH, 0.0), Step(LIST, 0.4)],
            id="expired-again-without-progress-waits",
        ),
        pytest.param(
            [Outcome.LISTED, Outcome.ENDED, Outcome.ENDED, Outcome.ENDED],
            [Step(WATCH, 0.0), Step(WATCH, 0.0), Step(WATCH, 0.4), Step(WATCH, 0.8)],
            id="ended-again-without-progress-waits",
        ),
    ],
)
def test_schedule_after_outcomes_gives_steps(outcomes: list[Outcome], steps: list[Step]) -> None:
    """Each outcome leads to the right action; only what fails or gets nowhere waits, longer each time."""
    under_test = schedule()
    assert [under_test.after(outcome) for outcome in outcomes] == steps


def test_schedule_after_many_failures_waits_no_longer_than_the_longest_delay() -> None:
    """The delay is capped, however long an outage is."""
    under_test = schedule()
    delays = [under_test.after(Outcome.FAILED).delay_s for _ in range(2000)]
    assert delays[-1] == MAX_DELAY_S
    assert sorted(delays) == delays


def test_schedule_jitter_takes_off_up_to_a_half() -> None:
    """Many nodes that fail together do not come back together."""
    assert schedule(0.0).after(Outcome.FAILED).delay_s == pytest.approx(0.1)
    assert schedule(0.5).after(Outcome.FAILED).delay_s == pytest.approx(0.15)


def test_schedule_after_progress_begins_with_the_shortest_delay() -> None:
    """A watch that told something ends the series of failures."""
    under_test = schedule()
    for _ in range(10):
        under_test.after(Outcome.FAILED)
    under_test.progress()
    assert under_test.after(Outcome.FAILED) == Step(LIST, 0.2)


def test_schedule_after_long_watch_counts_as_progress() -> None:
    """A watch on which nothing happened for long was a good one."""
    under_test = schedule()
    for _ in range(10):
        under_test.after(Outcome.FAILED)
    under_test.after(Outcome.LISTED)
    assert under_test.after(Outcome.ENDED, lasted_s=300.0) == Step(WATCH, 0.0)


def test_schedule_list_alone_is_no_progress() -> None:
    """Where lists work and watches do not, the delays still grow."""
    under_test = schedule()
    delays = []
    for _ in range(4):
        under_test.after(Outcome.LISTED)
        delays.append(under_test.after(Outcome.FAILED).delay_s)
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6])


@pytest.mark.parametrize(("asked_s", "delay_s"), [(7.0, 7.0), (0.01, 0.2)])
def test_schedule_retry_after_is_waited_for_at_least(asked_s: float, delay_s: float) -> None:
    """The server may ask for more time than the backoff gives, not for less."""
    assert schedule().after(Outcome.FAILED, retry_after_s=asked_s).delay_s == delay_s

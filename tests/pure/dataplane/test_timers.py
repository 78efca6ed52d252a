"""Timers: each runs once, not before its time, in the order of deadlines of one length."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.dataplane.timers import Deadlines, Timers

delays = st.sampled_from([0.25, 0.5, 1.75, 2.0, 60.0])


@given(steps=st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0, 100.0]), st.lists(delays, max_size=4))))
def test_timers_run_once_at_the_first_look_after_their_deadline(steps: list[tuple[float, list[float]]]) -> None:
    """At any time exactly those have run whose deadline has come, whatever was added in which order."""
    timers = Timers()
    now_s = 0.0
    ran: list[tuple[float, int]] = []
    added: list[tuple[float, int]] = []
    for passed_s, lengths in steps:
        now_s += passed_s
        assert timers.next_s == min((deadline for deadline in added if deadline not in ran), default=(inf,))[0]
        for callback in timers.take_due(now_s):
            callback()
        assert sorted(ran) == sorted(deadline for deadline in added if deadline[0] <= now_s)
        for length in lengths:
            deadline = (now_s + length, len(added))
            added.append(deadline)
            timers.add(now_s, length, lambda deadline=deadline: ran.append(deadline))  # type: ignore[misc]


def test_timers_of_one_length_run_in_the_order_they_were_added() -> None:
    """Who came first is looked after first."""
    timers = Timers()
    ran: list[int] = []
    for number in range(5):
        timers.add(0.0, 1.0, lambda number=number: ran.append(number))  # type: ignore[misc]
    for callback in timers.take_due(1.0):
        callback()
    assert ran == [0, 1, 2, 3, 4]


def test_timers_keep_nothing_for_lengths_that_are_not_in_use() -> None:
    """Lengths that are computed, each used once, leave nothing behind."""
    timers = Timers()
    for number in range(1000):
        timers.add(0.0, 1.0 + number / 7, lambda: None)
    assert len(timers.take_due(1e6)) == 1000
    assert not timers._queues
    assert timers.next_s == inf


@given(steps=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 1.0, 7.7]), st.booleans(), st.integers(0, 9))))
def test_deadlines_owners_are_due_once_unless_they_have_left(steps: list[tuple[float, bool, int]]) -> None:
    """Whoever is there is due at the first look after its time, and a timer is set for whoever is next."""
    timers = Timers()
    due: list[int] = []
    now_s = 0.0
    deadlines: Deadlines[int] = Deadlines(timers, 0.7, lambda: due.extend(deadlines.take_due(now_s)))
    expected: dict[int, float] = {}
    for passed_s, adds, owner in steps:
        now_s += passed_s
        for callback in timers.take_due(now_s):
            callback()
        assert due == [each for each, due_s in expected.items() if due_s <= now_s]
        for each in due:
            del expected[each]
        due.clear()
        if not adds:
            deadlines.discard(owner)
            expected.pop(owner, None)
        elif owner not in expected:
            deadlines.add(owner, now_s)
            expected[owner] = now_s + 0.7
        assert timers.next_s <= min(expected.values(), default=inf)


def test_deadlines_without_owners_set_no_timer_again() -> None:
    """When all have left, one look finds nobody, and then there is peace."""
    timers = Timers()
    now_s = 0.0
    deadlines: Deadlines[str] = Deadlines(timers, 1.0, lambda: looks.append(deadlines.take_due(now_s)))
    looks: list[list[str]] = []
    deadlines.add("early", now_s)
    deadlines.discard("early")
    now_s = 1.0
    for callback in timers.take_due(now_s):
        callback()
    assert looks == [[]]
    assert timers.next_s == inf


def test_deadlines_look_again_when_the_next_owner_is_due() -> None:
    """One timer is set at a time, always for whoever is next."""
    timers = Timers()
    now_s = 0.0
    due: list[str] = []
    deadlines: Deadlines[str] = Deadlines(timers, 1.0, lambda: due.extend(deadlines.take_due(now_s)))
    deadlines.add("first", 0.0)
    deadlines.add("second", 0.25)
    for now_s in (1.0, 1.25):
        assert timers.next_s == now_s
        for callback in timers.take_due(now_s):
            callback()
    assert due == ["first", "second"]
    assert timers.next_s == inf

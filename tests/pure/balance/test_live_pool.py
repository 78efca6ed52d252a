"""Whose turn it is: shares that are exactly even, places that survive changes, choices by load."""

from collections import Counter
from collections.abc import Collection
from random import Random

import pytest
from builders import backend, pool
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.balance.live_pool import LivePool, Member
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import Pool

NAMES = [f"10.0.0.{number}:80" for number in range(1, 13)]
"""As texts they sort otherwise than as addresses: 10.0.0.10 stands before 10.0.0.2."""

some_names = st.sets(st.sampled_from(NAMES), min_size=1).map(sorted)


def no_draw() -> float:
    """Stand for randomness where none may be drawn."""
    pytest.fail("drew on randomness")


def round_robin(*names: str) -> LivePool:
    """Return a LivePool that needs no randomness."""
    return LivePool(pool(*names), no_draw)


def least_connections(*names: str) -> Pool:
    """Return a Pool that balances by load."""
    return pool(*names, balance=Balance.LEAST_CONNECTIONS)


def pick(live: LivePool, tried: Collection[Member] = ()) -> str:
    """Return the name of the Member that is picked."""
    member = live.pick(tried)
    assert member is not None
    return str(member.backend)


def pick_alive(live: LivePool, dead: Collection[str]) -> str:
    """Return where a connection ends up that goes on when a dial fails."""
    tried: tuple[Member, ...] = ()
    while True:
        member = live.pick(tried)
        assert member is not None
        if str(member.backend) not in dead:
            return str(member.backend)
        tried += (member,)


def spread(picks: Collection[str], names: Collection[str]) -> int:
    """Return by how much the shares of those names differ."""
    counts = Counter(picks)
    assert set(counts) <= set(names)
    return max(counts[name] for name in names) - min(counts[name] for name in names)


def test_live_pool_without_backends_picks_nobody() -> None:
    """An empty Pool has no turn, however it balances."""
    assert round_robin().pick(()) is None
    assert LivePool(least_connections(), no_draw).pick(()) is None


def test_member_knows_its_address_as_connect_wants_it() -> None:
    """Text and number, with the family, so that no dial has to convert anything."""
    assert [(member.address, member.is_ipv6) for member in round_robin("10.0.0.1:80").members] == [
        (("10.0.0.1", 80), False)
    ]
    assert [(member.address, member.is_ipv6) for member in round_robin("[fd00::1]:443").members] == [
        (("fd00::1", 443), True)
    ]


@given(names=some_names, skipped=st.integers(0, 30), count=st.integers(1, 100))
def test_round_robin_over_any_stretch_is_even(names: list[str], skipped: int, count: int) -> None:
    """From wherever one begins to count, the shares differ by at most one."""
    live = round_robin(*names)
    for _ in range(skipped):
        pick(live)
    assert spread([pick(live) for _ in range(count)], names) <= 1


@given(before=some_names, after=some_names, skipped=st.integers(0, 30))
def test_round_robin_after_a_change_goes_on_behind_its_place(before: list[str], after: list[str], skipped: int) -> None:
    """The next pick is the first of the new order that is not before the one whose turn it was."""
    live = round_robin(*before)
    for _ in range(skipped):
        pick(live)
    turn = sorted(map(backend, before))[skipped % len(before)]
    live.replace(pool(*after))
    ordered = sorted(map(backend, after))
    assert pick(live) == str(next((one for one in ordered if one >= turn), ordered[0]))


@given(
    kept=st.sets(st.sampled_from(NAMES[:6]), min_size=1).map(sorted),
    changes=st.lists(st.tuples(st.integers(0, 7), st.sets(st.sampled_from(NAMES[6:]))), max_size=20),
)
def test_round_robin_with_backends_that_come_and_go_stays_even_for_those_that_stay(
    kept: list[str], changes: list[tuple[int, set[str]]]
) -> None:
    """However often the Pool changes around them, the shares of the Backends that stay differ by at most one."""
    live = round_robin(*kept)
    picks = []
    for count, guests in changes:
        live.replace(pool(*kept, *guests))
        picks += [pick(live) for _ in range(count)]
    assert spread([name for name in picks if name in kept], kept) <= 1


@given(names=some_names, data=st.data(), count=st.integers(1, 60))
def test_round_robin_with_dead_backends_is_even_among_the_others(
    names: list[str], data: st.DataObject, count: int
) -> None:
    """Connections that go on to the next Backend after a failed dial do not pile up on the neighbour of a dead one."""
    alive = data.draw(st.sets(st.sampled_from(names), min_size=1))
    live = round_robin(*names)
    picks = [pick_alive(live, dead=set(names) - alive) for _ in range(count)]
    assert spread(picks, alive) <= 1


@given(names=some_names, balance=st.sampled_from(Balance), seed=st.integers(0, 1000))
def test_pick_of_one_connection_tries_each_member_once(names: list[str], balance: Balance, seed: int) -> None:
    """A connection whose dials all fail dials every Backend, none twice, and then there is nobody left."""
    live = LivePool(pool(*names, balance=balance), Random(seed).random)  # noqa: S311
    tried: tuple[Member, ...] = ()
    while (member := live.pick(tried)) is not None:
        assert member not in tried
        tried += (member,)
    assert sorted(str(member.backend) for member in tried) == names


@given(before=some_names, after=some_names)
def test_replace_keeps_what_is_known_of_backends_that_stay(before: list[str], after: list[str]) -> None:
    """Open connections stay counted for a Backend that stays; one that comes, or comes back, starts from zero."""
    live = round_robin(*before)
    for member in live.members:
        member.open = member.connections = 7
    live.replace(pool(*after))
    assert [str(member.backend) for member in live.members] == [str(one) for one in sorted(map(backend, after))]
    assert {str(member.backend): (member.open, member.connections) for member in live.members} == {
        name: (7, 7) if name in before else (0, 0) for name in after
    }


def test_round_robin_of_a_pool_that_is_empty_now_and_then_goes_on_behind_its_place() -> None:
    """Else the first Backend would get a connection more than the others each time."""
    live = round_robin(*NAMES[:3])
    picks = []
    for _ in range(6):
        picks.append(pick(live))
        for _ in range(2):
            live.replace(pool())
            assert live.pick(()) is None
        live.replace(pool(*NAMES[:3]))
    assert picks == NAMES[:3] * 2


def test_replace_can_change_the_balance() -> None:
    """The annotation of a Service that is in use may change; counts and Backends stay."""
    live = round_robin(*NAMES[:2])
    live.members[0].open = 1
    live.replace(least_connections(*NAMES[:2]))
    live_by_load = LivePool(least_connections(*NAMES[:2]), lambda: 0.0)
    live_by_load.replace(pool(*NAMES[:2]))
    assert [pick(live_by_load) for _ in range(4)] == NAMES[:2] * 2
    with pytest.raises(pytest.fail.Exception, match="drew"):
        live.pick(())


@given(
    loads=st.lists(st.integers(0, 5), min_size=2, max_size=8),
    first=st.floats(0, 1, exclude_max=True),
    second=st.floats(0, 1, exclude_max=True),
)
def test_least_connections_picks_the_less_loaded_of_two_different_draws(
    loads: list[int], first: float, second: float
) -> None:
    """The one picked is among two different Members that were drawn, and the other was not less loaded."""
    draws = iter([first, second])
    live = LivePool(least_connections(*NAMES[: len(loads)]), lambda: next(draws))
    for member, load in zip(live.members, loads, strict=True):
        member.open = load
    one = int(first * len(loads))
    other = [index for index in range(len(loads)) if index != one][int(second * (len(loads) - 1))]
    picked = live.pick(())
    assert picked in (live.members[one], live.members[other])
    assert picked is not None
    assert picked.open == min(loads[one], loads[other])


def test_least_connections_draws_every_pair_alike() -> None:
    """Over a grid of draws each Member wins as many of the 12 ordered pairs as there are with a more loaded one."""
    grid = [step / 12 for step in range(12)]
    draws = iter([draw for first in grid for second in grid for draw in (first, second)])
    live = LivePool(least_connections(*NAMES[:4]), lambda: next(draws))
    for load, member in enumerate(live.members):
        member.open = load
    wins = Counter(pick(live) for _ in range(12 * 12))
    assert [wins[str(member.backend)] for member in live.members] == [6 * 12, 4 * 12, 2 * 12, 0]


def test_least_connections_with_one_choice_draws_nothing() -> None:
    """One Backend, or one that is untried, is no choice."""
    live = LivePool(least_connections(*NAMES[:2]), no_draw)
    assert pick(live, live.members[:1]) == NAMES[1]
    assert pick(live, live.members[1:]) == NAMES[0]


@pytest.mark.parametrize("seed", range(5))
def test_least_connections_with_random_draws_keeps_loads_close(seed: int) -> None:
    """1,000 connections that stay open over ten Backends: the loads differ by a handful, not by tens."""
    live = LivePool(least_connections(*NAMES[:10]), Random(seed).random)  # noqa: S311
    for _ in range(1000):
        member = live.pick(())
        assert member is not None
        member.open += 1
    loads = [member.open for member in live.members]
    assert sum(loads) == 1000
    assert max(loads) - min(loads) <= 6


@pytest.mark.parametrize("balance", [*Balance])
def test_backend_that_comes_back_still_has_its_open_connections(balance: Balance) -> None:
    """A Backend that leaves the Pool with open connections and comes back counts them, one without starts anew."""
    live = LivePool(pool("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", balance=balance), no_draw)
    busy, idle = live.members[1], live.members[2]
    busy.open = 50
    live.replace(pool("10.0.0.1:80", balance=balance))
    live.replace(pool("10.0.0.1:80", balance=balance))
    live.replace(pool("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", balance=balance))
    assert live.members[1] is busy
    assert live.members[2] is not idle

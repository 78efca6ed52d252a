"""Session affinity ClientIP, as a LivePool keeps it; the numbers are those of the rules it follows."""

import pytest
from builders import backend, pool

from userspace_proxy.balance.affinity import AffinityTable
from userspace_proxy.balance.live_pool import LivePool, Member
from userspace_proxy.model.service_port import Balance

FIRST, SECOND, THIRD = NAMES = [f"10.0.0.{number}:80" for number in (1, 2, 3)]
CLIENT, OTHER = "192.0.2.1", "192.0.2.2"
TIMEOUT_S = 10


def never() -> None:
    """Stand for what is called at an eviction where none may happen."""
    pytest.fail("evicted")


class Affine:
    """A LivePool with affinity, and the time."""

    def __init__(self, *names: str, timeout_s: int = TIMEOUT_S, balance: Balance = Balance.ROUND_ROBIN) -> None:
        self.balance = balance
        self.table = AffinityTable(100, never)
        self.live = LivePool(pool(*names, balance=balance, affinity_timeout_s=timeout_s), lambda: 0.0, self.table)
        self.now_s = 1000.0

    def replace(self, *names: str, timeout_s: int = TIMEOUT_S) -> None:
        """Put another value of the Pool in force."""
        self.live.replace(pool(*names, balance=self.balance, affinity_timeout_s=timeout_s), self.table)

    def member(self, name: str) -> Member:
        """Return the Member of a Backend."""
        (found,) = (one for one in self.live.members if one.backend == backend(name))
        return found

    def pick(self, client: str = CLIENT, *tried: str) -> str | None:
        """Return the name of the Member for the next dial of a connection."""
        member = self.live.pick_for(client, [self.member(name) for name in tried], self.now_s)
        return None if member is None else str(member.backend)

    def connected(self, name: str, *tried: str, client: str = CLIENT) -> None:
        """Have a dial connect after these were tried."""
        members = [self.member(one) for one in tried]
        self.live.note_connected(client, self.member(name), members, self.now_s)


@pytest.mark.parametrize("balance", Balance)
def test_c_1_client_comes_back_to_the_backend_it_had(balance: Balance) -> None:
    """Connections of one client go to one Backend, however the Pool balances; other clients are balanced."""
    affine = Affine(*NAMES, balance=balance)
    first = affine.pick()
    for _ in range(5):
        affine.pick(OTHER)
        assert affine.pick() == first
    affine = Affine(*NAMES)
    assert [affine.pick(f"192.0.2.{number}") for number in range(6)] == NAMES * 2


def test_c_1_affinity_picks_take_no_turn_from_other_clients() -> None:
    """A client that comes back often leaves the round of the others as it was."""
    affine = Affine(*NAMES)
    picks = []
    for number in range(6):
        for _ in range(4):
            affine.pick()
        picks.append(affine.pick(f"198.51.100.{number}"))
    assert picks == [SECOND, THIRD, FIRST, SECOND, THIRD, FIRST]


def test_c_3_each_new_connection_renews_the_record() -> None:
    """The time-out runs from the last connection on, not from the first."""
    affine = Affine(*NAMES)
    assert affine.pick() == FIRST
    for _ in range(5):
        affine.now_s += TIMEOUT_S - 0.25
        assert affine.pick() == FIRST


@pytest.mark.parametrize(
    ("passed_s", "expected"),
    [
        pytest.param(TIMEOUT_S - 0.125, FIRST, id="just within"),
        pytest.param(TIMEOUT_S, SECOND, id="at the time-out"),
        pytest.param(TIMEOUT_S + 0.5, SECOND, id="fractions of a second after it"),
    ],
)
def test_c_3_record_expires_at_the_time_out(passed_s: float, expected: str) -> None:
    """A client that stays away for the time-out is balanced afresh; seconds are not cut to whole ones (c.6)."""
    affine = Affine(*NAMES)
    assert affine.pick() == FIRST
    affine.now_s += passed_s
    assert affine.pick() == expected


def test_c_4_record_of_a_backend_that_left_the_pool_is_not_used() -> None:
    """The client is balanced afresh, and stays at its new Backend when the old one returns."""
    affine = Affine(*NAMES)
    assert affine.pick() == FIRST
    affine.replace(SECOND, THIRD)
    assert affine.pick() == SECOND
    affine.replace(*NAMES)
    assert affine.pick() == SECOND


def test_c_4_record_of_a_backend_that_was_gone_while_nobody_asked_is_used() -> None:
    """A Backend that leaves and returns between two connections of a client keeps it."""
    affine = Affine(*NAMES)
    assert [affine.pick(), affine.pick(OTHER)] == [FIRST, SECOND]
    affine.replace(FIRST)
    affine.replace(*NAMES)
    assert [affine.pick(OTHER), affine.pick()] == [SECOND, FIRST]


def test_c_4_pool_that_is_empty_for_a_while_keeps_its_clients() -> None:
    """Without any Backend there is nothing to write down."""
    affine = Affine(*NAMES)
    assert [affine.pick(OTHER), affine.pick()] == [FIRST, SECOND]
    affine.replace()
    assert affine.pick() is None
    affine.replace(*NAMES)
    assert affine.pick() == SECOND


def test_c_5_backend_that_fails_is_replaced_by_the_one_that_connects() -> None:
    """The record is rewritten when another dial connects."""
    affine = Affine(*NAMES)
    assert affine.pick() == FIRST
    assert affine.pick(CLIENT, FIRST) == SECOND
    affine.connected(SECOND, FIRST, SECOND)
    assert affine.pick() == SECOND


def test_c_5_record_is_not_rewritten_before_a_dial_is_known_to_work() -> None:
    """While the next Backends are being dialled, or when all fail, the client's own stays the first to be tried."""
    affine = Affine(*NAMES)
    assert affine.pick() == FIRST
    assert affine.pick(CLIENT, FIRST) == SECOND
    assert affine.pick() == FIRST
    assert affine.pick(CLIENT, FIRST, SECOND) == THIRD
    assert affine.pick(CLIENT, *NAMES) is None
    assert affine.pick() == FIRST


def test_c_5_dials_that_fail_do_not_renew_the_record() -> None:
    """Only the first dial of a connection counts as the client's return."""
    affine = Affine(*NAMES)
    assert affine.pick() == FIRST
    affine.now_s += TIMEOUT_S - 1
    affine.pick(CLIENT, FIRST)
    affine.now_s += 1
    assert affine.pick() != FIRST


def test_c_5_backend_that_answers_late_after_all_keeps_its_client() -> None:
    """Where a second dial was made beside the first and the first has won, nothing changes."""
    affine = Affine(*NAMES)
    assert affine.pick() == FIRST
    assert affine.pick(CLIENT, FIRST) == SECOND
    affine.connected(FIRST, FIRST, SECOND)
    assert affine.pick() == FIRST


def test_c_5_burst_whose_backend_fails_meets_again_at_the_first_that_connects() -> None:
    """A connection goes where another one of its client has found an answer, and does not take that away."""
    affine = Affine(*NAMES)
    assert [affine.pick(), affine.pick(), affine.pick()] == [FIRST] * 3
    assert [affine.pick(CLIENT, FIRST), affine.pick(CLIENT, FIRST)] == [SECOND, THIRD]
    affine.connected(SECOND, FIRST, SECOND)
    affine.connected(THIRD, FIRST, THIRD)
    assert affine.pick(CLIENT, FIRST) == SECOND
    assert affine.pick() == SECOND


def test_c_5_connection_that_connects_after_its_record_has_gone_writes_one() -> None:
    """The Backend that failed has left the Pool: the one that answered is where the client returns."""
    affine = Affine(*NAMES)
    assert [affine.pick(), affine.pick(CLIENT, FIRST)] == [FIRST, SECOND]
    tried = [affine.member(FIRST), affine.member(SECOND)]
    affine.replace(SECOND, THIRD)
    affine.live.note_connected(CLIENT, tried[1], tried, affine.now_s)
    assert [affine.pick(), affine.pick(OTHER)] == [SECOND, THIRD]


def test_c_6_edited_time_out_holds_at_once_for_records_that_are_there() -> None:
    """A shorter one ends old records, a longer one extends them."""
    affine = Affine(*NAMES, timeout_s=10)
    assert [affine.pick(), affine.pick(OTHER)] == [FIRST, SECOND]
    affine.now_s += 15
    affine.replace(*NAMES, timeout_s=16)
    assert affine.pick() == FIRST
    affine.replace(*NAMES, timeout_s=15)
    assert [affine.pick(OTHER), affine.pick()] == [THIRD, FIRST]


def test_pool_without_affinity_picks_for_everybody_in_turn() -> None:
    """Without affinity it does not matter who asks, and nothing is remembered."""
    live = LivePool(pool(*NAMES), lambda: 0.0)
    picked = [live.pick_for(CLIENT, (), 0.0) for _ in NAMES]
    assert picked == live.members
    live.note_connected(CLIENT, live.members[0], live.members, 0.0)
    assert live.pick_for(CLIENT, (), 0.0) is live.members[0]

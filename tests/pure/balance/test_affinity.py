"""AffinityTable: what is remembered, for how long, and what goes when there is no room."""

import pytest
from builders import backend
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.balance.affinity import AffinityTable
from userspace_proxy.plan.state import Backend

TIMEOUT_S = 10.0
BACKENDS = [backend(f"10.0.0.{number}:80") for number in range(1, 4)]
CLIENTS = [f"192.0.2.{number}" for number in range(1, 7)]


def never() -> None:
    """Stand for what is called at an eviction where none may happen."""
    pytest.fail("evicted")


class NaiveTable:
    """The same promise, kept by looking at all records every time."""

    def __init__(self, max_clients: int) -> None:
        self.max_clients = max_clients
        self.records: list[tuple[str, float, Backend]] = []
        self.evictions = 0

    def find(self, client: str, now_s: float) -> Backend | None:
        """Return the Backend of the valid record of a client."""
        valid = [kept for name, used_s, kept in self.records if name == client and now_s - used_s < TIMEOUT_S]
        return valid[0] if valid else None

    def write(self, client: str, given_now: Backend, now_s: float) -> None:
        """Keep the valid ones and the new one, as many as there is room for."""
        self.records = [one for one in self.records if one[0] != client and now_s - one[1] < TIMEOUT_S]
        self.records.append((client, now_s, given_now))
        if len(self.records) > self.max_clients:
            del self.records[0]
            self.evictions += 1


@given(
    max_clients=st.integers(1, 5),
    steps=st.lists(
        st.tuples(st.sampled_from(CLIENTS), st.sampled_from(BACKENDS), st.sampled_from([0.0, 0.25, 3.0, 9.75, 10.0])),
        max_size=60,
    ),
)
def test_affinity_table_finds_what_a_naive_one_finds(max_clients: int, steps: list[tuple[str, Backend, float]]) -> None:
    """Whatever is written when, it finds and evicts the clients that a table which looks at everything does."""
    evictions: list[None] = []
    table = AffinityTable(max_clients, lambda: evictions.append(None))
    naive = NaiveTable(max_clients)
    now_s = 0.0
    for client, given_now, passed_s in steps:
        now_s += passed_s
        table.write(client, given_now, now_s, TIMEOUT_S)
        naive.write(client, given_now, now_s)
        for later_s in (now_s, now_s + 5.0):
            found = [table.find(one, later_s, TIMEOUT_S) for one in CLIENTS]
            assert found == [naive.find(one, later_s) for one in CLIENTS]
        assert len(table._records) <= max_clients
        assert len(evictions) == naive.evictions


def test_affinity_table_that_is_full_forgets_the_client_that_was_longest_away() -> None:
    """A client that comes often stays, however long ago it came first; each one forgotten is counted."""
    evicted: list[None] = []
    table = AffinityTable(2, lambda: evicted.append(None))
    for now_s, client in enumerate(["faithful", "passing", "faithful", "new"]):
        table.write(client, BACKENDS[0], now_s, TIMEOUT_S)
    found = [table.find(client, 4.0, TIMEOUT_S) for client in ("faithful", "passing", "new")]
    assert found == [BACKENDS[0], None, BACKENDS[0]]
    assert len(evicted) == 1


def test_affinity_table_drops_expired_records_two_at_each_write() -> None:
    """However many expire at once, no write has much to do, and soon none of them is left."""
    table = AffinityTable(1000, never)
    for number in range(1000):
        table.write(f"client {number}", BACKENDS[0], 0.0, TIMEOUT_S)
    for writes in range(1, 501):
        table.write("the only one left", BACKENDS[0], TIMEOUT_S, TIMEOUT_S)
        assert len(table._records) == 1000 - 2 * writes + 1
    table.write("the only one left", BACKENDS[0], TIMEOUT_S, TIMEOUT_S)
    assert len(table._records) == 1


def test_affinity_table_with_expired_records_evicts_nobody() -> None:
    """Room that an expired record takes is free."""
    table = AffinityTable(1, never)
    table.write("old", BACKENDS[0], 0.0, TIMEOUT_S)
    table.write("new", BACKENDS[1], TIMEOUT_S, TIMEOUT_S)
    assert table.find("new", TIMEOUT_S, TIMEOUT_S) == BACKENDS[1]


@given(
    written=st.lists(st.tuples(st.sampled_from(CLIENTS), st.sampled_from([0.0, 1.0, 2.0])), max_size=20),
    since_s=st.integers(0, 12),
)
def test_affinity_table_tells_the_records_of_a_moment_and_later_ones(
    written: list[tuple[str, float]], since_s: int
) -> None:
    """Each client is told of once, with its last Backend, the oldest record first."""
    table = AffinityTable(1000, never)
    last: dict[str, float] = {}
    now_s = 0.0
    for client, passed_s in written:
        now_s += passed_s
        table.write(client, BACKENDS[0], now_s, 1000.0)
        last.pop(client, None)
        last[client] = now_s
    expected = [(client, given_s, BACKENDS[0]) for client, given_s in last.items() if given_s >= since_s]
    assert table.written_since(since_s) == expected


@given(
    known=st.lists(st.tuples(st.sampled_from(CLIENTS), st.integers(0, 9)), unique_by=lambda one: one[0]),
    taken=st.lists(st.tuples(st.sampled_from(CLIENTS), st.integers(0, 9)), unique_by=lambda one: one[0]),
    max_clients=st.integers(1, 6),
)
def test_affinity_table_that_takes_over_records_has_the_last_of_each_client(
    known: list[tuple[str, int]], taken: list[tuple[str, int]], max_clients: int
) -> None:
    """Whichever table has it from, in the order of time; where there is no room, the oldest go and are counted."""
    evictions: list[None] = []
    table = AffinityTable(max_clients, lambda: evictions.append(None))
    own = sorted(known, key=lambda one: one[1])[-max_clients:]
    others = sorted(taken, key=lambda one: one[1])
    for client, given_s in own:
        table.write(client, BACKENDS[0], given_s, 1000.0)
    table.take_over([(client, float(given_s), BACKENDS[1]) for client, given_s in others])
    last = {client: (given_s, BACKENDS[0]) for client, given_s in own}
    last |= {
        client: (given_s, BACKENDS[1]) for client, given_s in others if client not in last or last[client][0] < given_s
    }
    told = table.written_since(0.0)
    assert {client: (given_s, given_backend) for client, given_s, given_backend in told}.items() <= last.items()
    assert [given_s for _, given_s, _ in told] == sorted(given_s for given_s, _ in last.values())[-max_clients:]
    assert len(evictions) == max(0, len(last) - max_clients)

"""Several engines that accept from one socket: each gets its share, and none is left with what is not its own."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address
from threading import Event, Thread

import pytest
from deadline import wait_until
from engine_driver import FullEpoll
from group_driver import Group, Member, open_group, spec_of
from peers import descriptors_left, nothing_left_open, own_host
from udp_peers import flush_loopback, own_port

from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.tcp_listener import PAUSE_S
from userspace_proxy.plan.state import Backend

HOST = own_host(38)
SPEC = spec_of(HOST, own_port(2))
CONNECTIONS = 200


@pytest.fixture
def backend() -> Iterator[Backend]:
    """Yield a Backend that takes every connection, and says nothing."""
    with socket.create_server((own_host(39), 0), backlog=1024) as server:
        address, port = server.getsockname()
        yield Backend(ip_address(address), port)


@pytest.fixture
def pair() -> Iterator[Group]:
    """Yield two engines."""
    flush_loopback()
    with nothing_left_open(), open_group(2) as made:
        yield made


def connect_slowly(group: Group, count: int) -> None:
    """Have clients come one after the other, each when the one before is served."""
    for number in range(1, count + 1):
        group.connect(SPEC)
        wait_until(partial(has_relays, group, number))


def has_relays(group: Group, count: int) -> bool:
    """Return whether all engines together have so many connections."""
    return sum(member.served.open_relays for member in group.all) == count


@contextmanager
def waiting(group: Group) -> Iterator[None]:
    """Have each engine wait for events in a thread of its own, as workers do."""
    end = Event()

    def run(member: Member) -> None:
        while not end.is_set():
            member.engine.poll(0.05)

    threads = [Thread(target=run, args=(member,)) for member in group.all]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_long_connections_that_come_slowly_are_spread_over_idle_engines(pair: Group, backend: Backend) -> None:
    """The kernel wakes the first of those that wait, and would so give nearly all of them to one."""
    pair.serve_all(SPEC, backend)
    with waiting(pair):
        connect_slowly(pair, CONNECTIONS)
    shares = [member.served.open_relays for member in pair.all]
    assert max(shares) <= 0.65 * CONNECTIONS, shares


def test_client_is_served_by_an_idle_engine_while_another_one_has_all_connections_it_may_have(
    backend: Backend,
) -> None:
    """One that is full is not woken: nobody else would be, and the client would wait for the next one to come."""
    cap = 20
    flush_loopback()
    with nothing_left_open(), open_group(2, RelayLimits(max_connections=cap)) as pair:
        pair.serve_all(SPEC, backend)
        with waiting(pair):
            connect_slowly(pair, 2 * cap)
        assert [member.served.open_relays for member in pair.all] == [cap, cap]


@pytest.mark.parametrize("is_group", [False, True], ids=["shared", "group"])
@pytest.mark.parametrize("change", ["closed", "retired", "stopped", "given another socket"])
def test_engine_without_a_socket_hears_no_more_of_it_though_others_have_it(
    change: str,
    is_group: bool,  # noqa: FBT001
    pair: Group,
    backend: Backend,
) -> None:
    """A descriptor that is closed while watched would be reported for ever, as the socket lives on (epoll(7))."""
    pair.serve_all(SPEC, backend, affinity=is_group)
    member = pair.all[0]
    others = pair.all[0].sockets[SPEC.key].dup()
    with others:
        if change == "closed":
            member.close_listener(SPEC.key)
        elif change == "retired":
            member.retire(SPEC.key)
        elif change == "stopped":
            member.served.stop()
            member.sockets.pop(SPEC.key).close()
        else:
            with socket.create_server((own_host(37), 0)) as other:
                copy = other.dup()
                copy.settimeout(0)
                member.serve(SPEC, next(iter(pair.listeners._wanted.values())).route, copy, is_shared=False)
        clients = [pair.connect(SPEC) for _ in range(10)]
        assert clients
        assert member.engine._epoll.poll(0) == []


def test_engine_that_finds_no_room_to_watch_a_shared_socket_again_rests(pair: Group, backend: Backend) -> None:
    """Others of the same user may have taken its place in epoll; another engine serves, and it tries again."""
    pair.serve_all(SPEC, backend)
    first, second = pair.all
    for _ in range(3):
        pair.settle()  # it has been idle
    full = FullEpoll(first.engine._epoll, room=0)
    first.engine._epoll = full  # type: ignore[assignment]
    client = pair.connect(SPEC)
    first.engine.poll(0)
    assert first.engine.counters.accept_pauses == {"ENOSPC": 1}
    assert not first.engine.handlers
    assert pair.owner(client) == 1
    pair.advance(PAUSE_S)  # still no room
    assert not first.engine.handlers
    full.room = 10
    pair.advance(PAUSE_S)
    second.close_listener(SPEC.key)
    assert pair.owner_of(SPEC, "127.0.0.1") == 0


def test_engine_without_a_descriptor_is_not_woken_until_it_has_one(pair: Group, backend: Backend) -> None:
    """A client that it cannot accept wakes another engine, instead of waiting for the next client to come."""
    pair.serve_all(SPEC, backend)
    first, second = pair.all
    client = pair.connect(SPEC)
    with descriptors_left(0):
        first.engine.poll(0)
        assert first.engine.counters.accept_pauses == {"EMFILE": 1}
        pair.clock.now_s += PAUSE_S
        first.engine.poll(0)
        assert not first.engine.handlers
    assert pair.owner(client) == 1
    pair.advance(PAUSE_S)
    second.close_listener(SPEC.key)
    assert pair.owner_of(SPEC, "127.0.0.1") == 0

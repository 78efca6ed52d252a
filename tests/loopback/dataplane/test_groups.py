"""TCP listeners of several engines: one socket for all, or a group where clients come back to the same engine."""

import os
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from group_driver import Group, open_group, spec_of
from peers import count_descriptors, descriptors_left, destroy, is_taken, nothing_left_open, own_host
from udp_peers import flush_loopback, own_port

from userspace_proxy.dataplane.tcp_listener import PAUSE_S
from userspace_proxy.plan.state import Backend, ListenerSpec

HOST = own_host(31)
PORT, OTHER_PORT = own_port(5), own_port(6)
SPEC = spec_of(HOST, PORT)
SIZE = 3
SOURCES = [f"127.0.{1 + one // 100}.{1 + one % 100}" for one in range(400)]
"""Pods of four nodes, say."""


@pytest.fixture
def backend() -> Iterator[Backend]:
    """Yield a Backend that takes every connection, and says nothing."""
    with socket.create_server((own_host(32), 0), backlog=4096) as server:
        address, port = server.getsockname()
        yield Backend(SPEC.address.__class__(address), port)


@pytest.fixture
def group() -> Iterator[Group]:
    """Yield a group of engines, which leaves no descriptor open."""
    flush_loopback()
    with nothing_left_open(), open_group(SIZE) as made:
        yield made


def is_refused(host: str = HOST, port: int = PORT) -> bool:
    """Return whether nobody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) != 0


def owners(group: Group, sources: list[str]) -> list[int]:
    """Return the engine that serves a new client from each source."""
    clients = [group.connect(SPEC, source) for source in sources]
    group.settle()
    return [group.owner(client) for client in clients]


def connections(group: Group, spec: ListenerSpec) -> int:
    """Return how many connections of a listener all engines have accepted."""
    name = spec.key.service_port
    return sum(member.engine.counters.services[str(name), name.protocol].connections for member in group.all)


def test_listener_without_affinity_has_one_socket_for_all(group: Group, backend: Backend) -> None:
    """One queue: whoever is free takes the next client."""
    group.serve_all(SPEC, backend)
    assert len(set(group.sockets(SPEC))) == 1
    assert not group.listeners._sockets[SPEC.key][0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    assert is_taken(HOST, PORT)


def test_d_5_client_with_affinity_is_always_served_by_the_same_engine(group: Group, backend: Backend) -> None:
    """Each engine has its own table of affinity, which is right only if it gets all connections of a client."""
    group.serve_all(SPEC, backend, affinity=True)
    assert len(set(group.sockets(SPEC))) == SIZE
    first = owners(group, SOURCES)
    assert owners(group, SOURCES[:50]) == owners(group, SOURCES[:50]) == first[:50]
    counts = Counter(first)
    assert len(counts) == SIZE
    even = len(SOURCES) / SIZE
    assert 0.75 * even < min(counts.values()) <= max(counts.values()) < 1.25 * even, counts


def test_listener_that_gets_affinity_keeps_its_port_its_connections_and_its_queue(
    group: Group, backend: Backend
) -> None:
    """None to ClientIP: who is served goes on, who waits is served, who comes is served by its own engine."""
    group.serve_all(SPEC, backend)
    before = [group.connect(SPEC, source) for source in SOURCES[:30]]
    group.settle()
    served = [group.owner(client) for client in before]
    waiting = [group.connect(SPEC, source) for source in SOURCES[:30]]
    group.serve_all(SPEC, backend, affinity=True)
    assert [group.owner(client) for client in before] == served
    assert {group.owner(client) for client in waiting} == {0}
    assert owners(group, SOURCES[:30]) == owners(group, SOURCES[:30])
    assert len(set(owners(group, SOURCES[:30]))) == SIZE


def test_listener_that_gets_affinity_while_engines_are_busy_loses_nobody(group: Group, backend: Backend) -> None:
    """Those that come before the engines know of their sockets wait in them."""
    group.serve_all(SPEC, backend)
    group.lags = True
    group.serve_all(SPEC, backend, affinity=True)
    clients = [group.connect(SPEC, source) for source in SOURCES[:60]]
    group.settle()
    assert sum(len(member.clients) for member in group.all) < len(clients)
    group.catch_up()
    assert {group.owner(client) for client in clients} == set(range(SIZE))


def test_listener_that_loses_affinity_serves_by_all_again_and_keeps_its_sockets(group: Group, backend: Backend) -> None:
    """ClientIP to None: clients of one address are spread over all engines; back again they are not."""
    group.serve_all(SPEC, backend, affinity=True)
    sockets = group.sockets(SPEC)
    for _ in range(2):
        assert len(set(owners(group, SOURCES[:1] * 30))) == 1
        group.serve_all(SPEC, backend)
        assert set(owners(group, SOURCES[:1] * 60)) == set(range(SIZE))
        group.serve_all(SPEC, backend, affinity=True)
    assert group.sockets(SPEC) == sockets


@pytest.mark.parametrize("lags", [False, True], ids=["at once", "engines busy"])
def test_group_without_backends_refuses_at_once_holds_its_port_and_returns(
    group: Group,
    backend: Backend,
    lags: bool,  # noqa: FBT001
) -> None:
    """1-0-1 Backends: also while engines have the sockets still; afterwards each client finds its engine again."""
    group.serve_all(SPEC, backend, affinity=True)
    first = owners(group, SOURCES[:60])
    for _ in range(2):
        group.lags = lags
        waiting = group.connect(SPEC)
        group.serve_all(SPEC, affinity=True)
        assert group.listeners.open_listeners == 0
        assert is_refused()
        assert is_taken(HOST, PORT)
        with pytest.raises(ConnectionResetError):
            waiting.recv(1)
        group.serve_all(SPEC, backend, affinity=True)
        assert group.listeners.open_listeners == 1
        client = group.connect(SPEC, SOURCES[0])
        group.settle()
        group.catch_up()
        group.advance(PAUSE_S)  # an engine that has met the stopped socket rests
        assert group.owner(client) == first[0]
        assert owners(group, SOURCES[:60]) == first


def test_group_without_backends_has_one_descriptor_that_shares_its_port_with_nobody(
    group: Group, backend: Backend
) -> None:
    """It only holds its port, as any other listener."""
    group.serve_all(SPEC)
    descriptors = count_descriptors()
    group.serve_all(SPEC, backend, affinity=True)
    group.serve_all(SPEC, affinity=True)
    assert count_descriptors() == descriptors
    (sock,) = group.listeners._sockets[SPEC.key]
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


def test_groups_share_a_port_at_the_wildcard_address_and_at_a_single_one(group: Group, backend: Backend) -> None:
    """A NodePort and a cluster address of the same number: each client is served by its listener, and by its engine."""
    node_port = spec_of("0.0.0.0", PORT, "shop/node:http")
    group.serve_all(node_port, backend, affinity=True)
    group.serve_all(SPEC, backend, affinity=True)
    for count, (spec, host) in enumerate(((node_port, own_host(33)), (SPEC, HOST))):
        found = [group.owner_of(spec, source, host=host) for source in SOURCES[:20] * 2]
        assert found[:20] == found[20:]
        assert set(found) == set(range(SIZE))
        assert connections(group, node_port) == 40
        assert connections(group, SPEC) == 40 * count
    first = owners(group, SOURCES[:20])
    group.listeners.remove_listener(node_port.key)
    assert is_refused(own_host(33))
    assert owners(group, SOURCES[:20]) == first


@pytest.mark.parametrize("left", range(2 * SIZE))
def test_group_that_finds_no_descriptor_holds_its_port_and_is_retried(
    left: int, group: Group, backend: Backend
) -> None:
    """Whichever member it is; nothing leaks."""
    group.serve_all(SPEC)
    descriptors = count_descriptors()
    group.want(SPEC, backend, affinity=True)
    if left < SIZE - 1:
        with descriptors_left(left):
            assert "no file descriptor is left" in group.failure()
        assert count_descriptors() == descriptors
        assert list(group.listeners.failed) == [SPEC.key]
        assert is_refused()
        assert is_taken(HOST, PORT)
        assert group.listeners.open_missing(retry=True) == {SPEC.key: None}
    else:
        assert group.listeners.open_missing(retry=False) == {}
    assert owners(group, SOURCES[:30]) == owners(group, SOURCES[:30])


def test_listener_that_gets_affinity_and_finds_no_descriptor_goes_on_as_it_was(group: Group, backend: Backend) -> None:
    """It is told and retried; meanwhile all engines serve from the one socket, which shares its port with nobody."""
    group.serve_all(SPEC, backend)
    sockets = group.sockets(SPEC)
    descriptors = count_descriptors()
    group.want(SPEC, backend, affinity=True)
    for left in range(SIZE - 1):
        with descriptors_left(left):
            assert "no file descriptor is left" in group.failure(retry=True)
        assert count_descriptors() == descriptors
        assert group.sockets(SPEC) == sockets
        assert not group.listeners._sockets[SPEC.key][0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert group.listeners.open_listeners == 1
    clients = [group.connect(SPEC, SOURCES[0]) for _ in range(10)]
    for client in clients:
        group.owner(client)
    assert group.listeners.open_missing(retry=True) == {SPEC.key: None}
    assert len(set(owners(group, SOURCES[:1] * 20))) == 1


@pytest.mark.parametrize("serves_before", [False, True])
def test_group_that_engines_cannot_watch_leaves_all_as_it_was(
    serves_before: bool,  # noqa: FBT001
    group: Group,
    backend: Backend,
) -> None:
    """The sentence says which limit it is; a retry opens it."""
    group.serve_all(SPEC, *([backend] if serves_before else []))
    descriptors = count_descriptors()
    group.is_full = True
    group.want(SPEC, backend, affinity=True)
    assert "raise fs.epoll.max_user_watches" in group.failure()
    assert count_descriptors() == descriptors
    assert is_taken(HOST, PORT)
    assert is_refused() is not serves_before
    assert group.listeners.open_listeners == serves_before
    group.is_full = False
    assert group.listeners.open_missing(retry=True) == {SPEC.key: None}
    assert owners(group, SOURCES[:30]) == owners(group, SOURCES[:30])


def test_group_at_a_port_in_use_names_the_holder_and_is_retried(group: Group, backend: Backend) -> None:
    """Also where it is one of ours that would share the port, as a group does."""
    group.serve_all(SPEC, backend, affinity=True)
    twin = spec_of(HOST, PORT, "shop/twin:http")
    descriptors = count_descriptors()
    group.want(twin, backend, affinity=True)
    assert f"in use by pid {os.getpid()} (" in group.failure()
    assert count_descriptors() == descriptors
    assert owners(group, SOURCES[:30]) == owners(group, SOURCES[:30])
    group.listeners.remove_listener(SPEC.key)
    assert group.listeners.open_missing(retry=True) == {twin.key: None}
    assert owners(group, SOURCES[:30]) == owners(group, SOURCES[:30])


@pytest.mark.parametrize("affinity", [False, True], ids=["shared", "group"])
def test_port_of_a_listener_that_was_closed_is_free_though_engines_have_its_sockets(
    group: Group,
    backend: Backend,
    affinity: bool,  # noqa: FBT001
) -> None:
    """For the next listener of ours at once, and for others; clients are refused meanwhile."""
    group.serve_all(SPEC, backend, affinity=affinity)
    group.lags = True
    group.listeners.remove_listener(SPEC.key)
    assert is_refused()
    assert not is_taken(HOST, PORT)
    successor = spec_of(HOST, PORT, "shop/next:http")
    for backends in ((), (backend,), (), (backend,)):
        group.serve_all(successor, *backends, affinity=affinity)
        assert is_taken(HOST, PORT)
    client = group.connect(SPEC)
    group.catch_up()
    group.owner(client)
    assert successor.key in group.all[0].sockets
    assert SPEC.key not in group.all[0].sockets


def test_group_that_retired_while_engines_were_busy_is_free_when_it_is_closed(group: Group, backend: Backend) -> None:
    """The sockets that only the engines have left are in nobody's way either."""
    group.serve_all(SPEC, backend, affinity=True)
    group.lags = True
    group.serve_all(SPEC, affinity=True)
    assert is_taken(HOST, PORT)
    group.listeners.remove_listener(SPEC.key)
    assert not is_taken(HOST, PORT)


def test_engine_that_meets_a_stopped_socket_before_it_is_told_neither_spins_nor_has_it_listen(
    group: Group, backend: Backend
) -> None:
    """It looks again each 0.1 s at most, until it is told that the listener has retired."""
    group.serve_all(SPEC, backend)
    group.lags = True
    group.connect(SPEC)
    group.serve_all(SPEC)
    for _ in range(10):
        group.advance(PAUSE_S / 4)
        for member in group.all:
            assert not member.engine.poll(0)
    assert is_refused()
    times = [at_s for at_s, _ in group.stopped]
    assert SIZE <= len(times) <= 4 * SIZE
    group.catch_up()
    group.advance(10 * PAUSE_S)
    assert len(group.stopped) == len(times)
    assert not any(member.engine.handlers for member in group.all)


@pytest.mark.parametrize("affinity", [False, True], ids=["shared", "group"])
def test_listener_that_somebody_has_had_stop_listens_again_and_one_line_says_so(
    group: Group,
    backend: Backend,
    affinity: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All engines say so; a group chooses its members as before."""
    group.serve_all(SPEC, backend, affinity=affinity)
    first = owners(group, SOURCES[:30])
    for sock in group.listeners._sockets[SPEC.key]:
        destroy(sock)
    assert is_refused()
    group.settle()
    assert {key for _, key in group.stopped} == {SPEC.key}
    group.listeners.listen_again(SPEC.key)  # a busy engine had met it, too
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    group.advance(PAUSE_S)
    again = owners(group, SOURCES[:30])
    assert not affinity or again == first


def test_listener_that_somebody_has_had_stop_and_cannot_listen_again_has_failed_and_is_retried(
    group: Group, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program was quicker: one line says so, and it serves again when that has gone."""
    group.serve_all(SPEC, backend)
    group.listens_again = False
    destroy(group.listeners._sockets[SPEC.key][0])
    with socket.create_server((HOST, PORT)):
        group.listens_again = True
        group.settle()
        group.advance(5 * PAUSE_S)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert f"cannot listen on {HOST}:{PORT}" in caplog.text
        assert list(group.listeners.failed) == [SPEC.key]
        assert group.listeners.open_listeners == 0
        assert "in use by" in group.failure(retry=True)
    assert group.listeners.open_missing(retry=True) == {SPEC.key: None}
    group.advance(PAUSE_S)
    group.owner(group.connect(SPEC))

"""Tests of worker_view and worker_store: what a worker is told, whatever changes in whatever order."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest
from builders import backend, listener_key, pool, pool_key, route, service_port_name

from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.control.worker_store import WorkerStore
from userspace_proxy.control.worker_view import MAX_KEYS, WorkerView
from userspace_proxy.errors import WorkerError
from userspace_proxy.ipc.commands import (
    Ask,
    Close,
    Command,
    Forget,
    Lead,
    Remember,
    RemovePool,
    Retire,
    Serve,
    SetPool,
    Start,
    Stop,
)
from userspace_proxy.ipc.frames import MAX_FDS
from userspace_proxy.ipc.reports import Applied
from userspace_proxy.model.names import ServicePortName
from userspace_proxy.plan.state import ListenerSpec, Verdict

START = Start("0", RelayLimits(), FlowLimits(), "info", "text")
NAMES = ("shop/a:http", "shop/b:http", "shop/c:http")


@pytest.fixture
def sockets() -> Iterator[Callable[[], socket.socket]]:
    """Return what opens sockets, which are closed at the end."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(socket.socket())


def _store(members: int = 1) -> WorkerStore:
    return WorkerStore(members, lambda: None, lambda _: None)


def _spec(name: str = NAMES[0], port: int = 80) -> ListenerSpec:
    return ListenerSpec(listener_key(name), ip_address("127.0.0.1"), port)


def _started(store: WorkerStore, *seeds: Remember, worker: int = 0) -> WorkerView:
    """Return the view of a worker that has got its first command."""
    view = WorkerView(store, worker)
    view.restart(START, seeds)
    _confirm(view)
    return view


def _confirm(view: WorkerView, *lost: int) -> tuple[Command, ...]:
    """Have the worker take and confirm its next batch; return its commands."""
    work = view.take_batch()
    assert work is not None
    view.confirm(Applied(work[0].generation, lost))
    return work[0].commands


def test_view_many_changes_in_one_value_cost_one_command(sockets: Callable[[], socket.socket]) -> None:
    """What follows each other is told once, as it is at last; a listener that has come and gone is not told at all."""
    store = _store()
    view = _started(store)
    for number in range(1, 10):
        store.apply_pool(pool(f"10.0.0.{number}:80"))
    store.serve(_spec(NAMES[1]), route(), (sockets(),))
    store.close(_spec(NAMES[1]).key)
    assert _confirm(view) == (SetPool(pool("10.0.0.9:80")),)
    assert view.take_batch() is None
    assert view.is_settled


def test_view_listener_never_comes_before_its_pool_however_often_that_changes(
    sockets: Callable[[], socket.socket],
) -> None:
    """A worker never serves clients whose Pool it does not have, and does not lose a Pool before the listener."""
    store = _store()
    view = _started(store)
    store.apply_pool(pool("10.0.0.1:80"))
    store.serve(_spec(), route(), (sockets(),))
    store.apply_pool(pool("10.0.0.2:80"))
    assert [type(one) for one in _confirm(view)] == [SetPool, Serve]
    store.remove_pool(pool_key())
    store.lead(_spec().key, route(Verdict.REJECT))
    assert [type(one) for one in _confirm(view)] == [Lead, RemovePool]


def test_view_more_descriptors_wait_until_the_ones_before_are_confirmed(sockets: Callable[[], socket.socket]) -> None:
    """A frame has at most as many as the kernel takes, and other commands do not overtake what waits."""
    store = _store()
    view = _started(store)
    sock = sockets()
    for number in range(MAX_FDS + 50):
        store.serve(_spec(f"shop/s{number}:http"), route(), (sock,))
    first = view.take_batch()
    assert first is not None
    assert len(first[1]) == MAX_FDS
    assert view.take_batch() is None
    view.say(Ask(1))
    asked = view.take_batch()
    assert asked is not None
    assert asked[0].commands == (Ask(1),)
    view.confirm(Applied(first[0].generation))
    assert not view.is_settled
    second = view.take_batch()
    assert second is not None
    assert len(second[1]) == 50


def test_view_batch_of_pools_is_bounded_and_complete() -> None:
    """The event loop is not kept from other work by ten thousand Services at once."""
    store = _store()
    view = _started(store)
    for number in range(2 * MAX_KEYS + 1):
        store.apply_pool(pool(key=pool_key(f"shop/s{number}:http")))
    assert [len(_confirm(view)) for _ in range(3)] == [MAX_KEYS, MAX_KEYS, 1]


def test_view_what_is_undone_before_it_was_told_is_not_told(sockets: Callable[[], socket.socket]) -> None:
    """A Pool that has come and gone, and a listener that has served for a moment between two retirements."""
    store = _store()
    view = _started(store)
    store.apply_pool(pool())
    store.remove_pool(pool_key())
    assert _confirm(view) == (RemovePool(pool_key()),)
    store.remove_pool(pool_key())
    store.apply_pool(pool())
    assert _confirm(view) == (SetPool(pool()),)
    store.serve(_spec(), route(), (sockets(),))
    _confirm(view)
    store.retire(_spec().key)
    assert _confirm(view) == (Retire(_spec().key),)
    store.serve(_spec(), route(), (sockets(),))
    store.retire(_spec().key)
    assert view.take_batch() is None
    assert view.is_settled


def test_view_batch_of_listeners_that_are_elsewhere_is_bounded_too(sockets: Callable[[], socket.socket]) -> None:
    """Each of them is closed and served again."""
    store = _store()
    view = _started(store)
    sock = sockets()
    specs = [_spec(f"shop/s{number}:http") for number in range(MAX_FDS + 1)]
    for spec in specs:
        store.serve(spec, route(), (sock,))
    assert [len(_confirm(view)) for _ in range(2)] == [MAX_FDS, 1]
    for spec in specs:
        store.close(spec.key)
        store.serve(spec, route(), (sock,))
    assert [len(_confirm(view)) for _ in range(2)] == [2 * MAX_FDS, 2]


def test_view_of_each_worker_gets_its_own_socket_of_a_group_and_the_shared_one_else(
    sockets: Callable[[], socket.socket],
) -> None:
    """Member i belongs to worker i; a single socket is everybody's, and is said to be."""
    store = _store(2)
    group = sockets(), sockets()
    single = sockets()
    store.serve(_spec(NAMES[0]), route(), group)
    store.serve(_spec(NAMES[1]), route(), (single,))
    for worker in range(2):
        view = WorkerView(store, worker)
        view.restart(START, ())
        _confirm(view)
        work = view.take_batch()
        assert work is not None
        assert work[1] == [group[worker].fileno(), single.fileno()]
        assert [one.is_shared for one in work[0].commands if isinstance(one, Serve)] == [False, True]


def test_view_listener_that_grows_into_a_group_is_served_anew_by_all(sockets: Callable[[], socket.socket]) -> None:
    """The first worker keeps its socket, but has to know that it is the only one now."""
    store = _store(2)
    view = _started(store)
    first = sockets()
    store.serve(_spec(), route(), (first,))
    _confirm(view)
    store.serve(_spec(), route(), (first, sockets()))
    (command,) = _confirm(view)
    assert isinstance(command, Serve)
    assert not command.is_shared


def test_view_lost_listeners_are_served_again_when_it_is_time(sockets: Callable[[], socket.socket]) -> None:
    """No room for a descriptor is said, and does not last for ever."""
    store = _store()
    view = _started(store)
    store.serve(_spec(NAMES[0]), route(), (sockets(),))
    store.serve(_spec(NAMES[1]), route(), (sockets(),))
    _confirm(view, store.listeners[_spec(NAMES[1]).key].command.number)
    assert (view.lost, view.is_settled) == (1, False)
    assert view.take_batch() is None
    view.retry_lost()
    assert _confirm(view) == (store.listeners[_spec(NAMES[1]).key].command,)
    assert (view.lost, view.is_settled) == (0, True)


def test_view_with_a_lost_listener_is_settled_by_stop(sockets: Callable[[], socket.socket]) -> None:
    """It is wanted no more: the end of the proxy does not wait until it would be tried again."""
    store = _store()
    view = _started(store)
    store.serve(_spec(), route(), (sockets(),))
    _confirm(view, store.listeners[_spec().key].command.number)
    assert view.has_confirmed_all
    store.stop()
    assert not view.has_confirmed_all
    assert _confirm(view) == (Stop(),)
    assert (view.lost, view.is_settled) == (0, True)


def test_view_lost_listener_that_retires_is_closed(sockets: Callable[[], socket.socket]) -> None:
    """What the worker has of it is not known: an old socket perhaps, or nothing."""
    store = _store()
    view = _started(store)
    store.serve(_spec(), route(), (sockets(),))
    _confirm(view, store.listeners[_spec().key].command.number)
    store.retire(_spec().key)
    assert _confirm(view) == (Close(_spec().key),)
    assert (view.lost, view.is_settled) == (0, True)


def test_view_stopped_listener_counts_only_if_the_worker_can_know(sockets: Callable[[], socket.socket]) -> None:
    """A socket that control itself has had stop is no news, nor one that was replaced meanwhile."""
    store = _store()
    view = _started(store)
    key = _spec().key
    store.serve(_spec(), route(), (sockets(),))
    number = store.listeners[key].command.number
    work = view.take_batch()
    assert work is not None
    assert view.stopped_listener(number) is None
    view.confirm(Applied(work[0].generation))
    assert view.stopped_listener(number) == key
    store.retire(key)
    assert view.stopped_listener(number) is None
    _confirm(view)
    assert view.stopped_listener(number) is None
    store.serve(_spec(), route(), (sockets(),))
    assert view.stopped_listener(number) is None
    _confirm(view)
    assert view.stopped_listener(number) == key
    store.close(key)
    assert view.stopped_listener(number) is None


def test_view_report_is_late_until_the_worker_has_forgotten(sockets: Callable[[], socket.socket]) -> None:
    """What was counted of a ServicePort that is gone is not that of one which has come with the same name."""
    store = _store()
    view = _started(store)
    name = service_port_name(NAMES[0])
    store.serve(_spec(), route(), (sockets(),))
    _confirm(view)
    assert view.has_forgotten(name)
    store.close(_spec().key)
    store.forget(name)
    store.serve(_spec(port=81), route(), (sockets(),))
    assert not view.has_forgotten(name)
    work = view.take_batch()
    assert work is not None
    assert [type(one) for one in work[0].commands] == [Forget, Close, Serve]
    assert not view.has_forgotten(name)
    view.confirm(Applied(work[0].generation))
    assert view.has_forgotten(name)


def test_view_successor_is_told_all_and_what_clients_had_before_any_listener(
    sockets: Callable[[], socket.socket],
) -> None:
    """Pools first, as they say for how long that counts; a listener that serves before would send clients elsewhere."""
    store = _store()
    store.apply_pool(pool("10.0.0.1:80", affinity_timeout_s=60))
    store.serve(_spec(), route(), (sockets(),))
    seed = Remember(service_port_name(), (("10.9.9.9", 1.0, backend("10.0.0.1:80")),))
    view = _started(store, seed)
    assert [type(one) for one in (*_confirm(view), *_confirm(view))] == [SetPool, Remember, Serve]
    assert view.is_settled


def test_view_is_not_settled_before_all_seeds_have_come() -> None:
    """Who waits for a successor waits for what clients had, too."""
    seed = Remember(service_port_name(), (("10.9.9.9", 1.0, backend("10.0.0.1:80")),))
    view = _started(_store(), seed, seed)
    for _ in range(2):
        assert not view.is_settled
        assert _confirm(view) == (seed,)
    assert view.is_settled


def test_view_after_stop_only_that_is_told(sockets: Callable[[], socket.socket]) -> None:
    """The sockets may be closed by then: none of them is passed on."""
    store = _store()
    view = _started(store)
    store.serve(_spec(NAMES[0]), route(), (sockets(),))
    _confirm(view)
    store.lead(_spec(NAMES[0]).key, route(Verdict.REJECT))
    store.serve(_spec(NAMES[1]), route(), (sockets(),))
    store.stop()
    store.stop()
    assert _confirm(view) == (Stop(),)
    assert view.is_settled


@pytest.mark.parametrize("generation", [0, 3])
def test_view_confirmation_of_what_was_not_said_is_an_error(generation: int) -> None:
    """A worker that says so is not one."""
    store = _store()
    view = _started(store)
    store.apply_pool(pool())
    view.take_batch()
    with pytest.raises(WorkerError, match="batch"):
        view.confirm(Applied(generation))


def test_view_without_a_worker_sends_nothing_and_keeps_nothing_to_say() -> None:
    """Questions to a worker that is gone are not put to the next one."""
    store = _store()
    view = _started(store)
    view.end()
    store.apply_pool(pool())
    view.say(Ask(1))
    assert view.take_batch() is None
    view.restart(START, ())
    assert _confirm(view) == (START,)
    assert _confirm(view) == (SetPool(pool()),)


def test_store_forgets_what_was_served_and_says_so_once(sockets: Callable[[], socket.socket]) -> None:
    """Whoever counts for a ServicePort is told when it is gone; one that never was served is nobody's business."""
    forgotten: list[ServicePortName] = []
    store = WorkerStore(1, lambda: None, forgotten.append)
    store.forget(service_port_name(NAMES[1]))
    store.serve(_spec(), route(), (sockets(),))
    store.close(_spec().key)
    store.forget(service_port_name(NAMES[0]))
    assert forgotten == [service_port_name(NAMES[0])]
    assert not store.names


def test_store_knows_for_how_long_clients_come_back() -> None:
    """Any Pool of the ServicePort says so."""
    store = _store()
    name = service_port_name()
    store.apply_pool(pool())
    assert store.affinity_timeout_s(name) is None
    store.apply_pool(pool(affinity_timeout_s=60))
    assert store.affinity_timeout_s(name) == 60

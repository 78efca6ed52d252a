"""A property of worker_view and worker_store: whatever happens in what order, a worker gets what is to be served."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address

from attrs import define, field
from builders import backend, listener_key, pool, pool_key, route
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.control.worker_store import WorkerStore
from userspace_proxy.control.worker_view import WorkerView
from userspace_proxy.ipc.commands import (
    Close,
    Command,
    Lead,
    RemovePool,
    Retire,
    Serve,
    SetPool,
    SetSources,
    Start,
    Stop,
)
from userspace_proxy.ipc.frames import MAX_FDS
from userspace_proxy.ipc.reports import Applied
from userspace_proxy.plan.state import ListenerKey, ListenerSpec, Pool, PoolKey, Route, SourceAddresses

START = Start("0", RelayLimits(), FlowLimits(), "info", "text")
NAMES = ("shop/a:http", "shop/b:http", "shop/c:http")


@define
class _Model:
    """What a worker has, as the commands say; it knows nothing of how they are made."""

    sources: SourceAddresses | None = None
    pools: dict[PoolKey, Pool] = field(factory=dict)
    listeners: dict[ListenerKey, tuple[int, ListenerSpec, Route, int]] = field(factory=dict)
    retired: set[ListenerKey] = field(factory=set)
    is_stopped: bool = False

    def apply(self, commands: tuple[Command, ...], fds: list[int]) -> None:
        """Do as told; what makes no sense fails."""
        rest = iter(fds)
        for command in commands:
            match command:
                case SetSources(sources):
                    self.sources = sources
                case SetPool(value):
                    self.pools[value.key] = value
                case RemovePool(key):
                    self.pools.pop(key, None)
                case Serve(number, spec, led, _):
                    known = self.listeners.get(spec.key)
                    assert known is None or known[:2] == (number, spec), "another listener of this key is there still"
                    self.listeners[spec.key] = (number, spec, led, next(rest))
                    self.retired.discard(spec.key)
                case Lead(key, led):
                    assert key not in self.retired
                    number, spec, _, fd = self.listeners[key]
                    self.listeners[key] = (number, spec, led, fd)
                case Retire(key):
                    assert key in self.listeners
                    self.retired.add(key)
                case Close(key):
                    del self.listeners[key]
                    self.retired.discard(key)
                case Stop():
                    self.is_stopped = True
        assert next(rest, None) is None

    def serving(self) -> dict[ListenerKey, tuple[int, ListenerSpec, Route, int]]:
        """Return the listeners that take clients."""
        return {key: value for key, value in self.listeners.items() if key not in self.retired}


class _Control:
    """Changes a store as a ListenerSet does, each change under the number of its kind."""

    def __init__(self, store: WorkerStore, open_socket: Callable[[], socket.socket]) -> None:
        self._store = store
        self._open = open_socket
        self._ports = iter(range(1, 1000))
        self.expected: dict[ListenerKey, tuple[ListenerSpec, Route, int]] = {}
        self._retired: dict[ListenerKey, tuple[ListenerSpec, socket.socket]] = {}
        self._sockets: dict[ListenerKey, socket.socket] = {}

    def change(self, kind: int, name: str) -> None:
        """Do one thing, if it can be done now."""
        key = listener_key(name)
        store = self._store
        self._change_value(kind, name)
        if kind == 2 and key in self.expected:
            spec, _, fd = self.expected[key]
            led = route(pool_key(name), source_ranges=(f"10.{next(self._ports) % 250}.0.0/16",))
            self.expected[key] = spec, led, fd
            store.lead(key, led)
        elif kind == 3 and key in self.expected:
            self._retired[key] = self.expected.pop(key)[0], self._sockets[key]
            store.retire(key)
        elif kind in {4, 5} and key not in self.expected:
            spec, sock = (ListenerSpec(key, ip_address("127.0.0.1"), next(self._ports)), self._open())
            if key in self._retired:
                spec, sock = self._retired.pop(key)
            self._serve(spec, sock if kind == 4 else self._open())
        elif kind == 6 and key in self.expected:
            self._serve(self.expected[key][0], self._open())
        elif kind == 7:
            self.expected.pop(key, None)
            self._retired.pop(key, None)
            store.close(key)
            store.forget(key.service_port)

    def _change_value(self, kind: int, name: str) -> None:
        if kind == 0:
            self._store.apply_pool(pool(f"10.0.0.{next(self._ports) % 250}:80", key=pool_key(name)))
        elif kind == 1:
            self._store.remove_pool(pool_key(name))
        elif kind == 8:
            address = backend(f"10.0.0.{next(self._ports) % 250}:1").address
            self._store.apply_sources(SourceAddresses(local_addresses=frozenset([address])))

    def _serve(self, spec: ListenerSpec, sock: socket.socket) -> None:
        led = route(pool_key(str(spec.key.service_port)))
        self._sockets[spec.key] = sock
        self.expected[spec.key] = spec, led, sock.fileno()
        self._store.serve(spec, led, (sock,))


STEPS = st.lists(st.tuples(st.integers(0, 13), st.sampled_from(NAMES)), min_size=40, max_size=80)
"""Kinds of changes and events, and of what. With fewer, hardly anything that was sent is ever changed again."""


@given(STEPS)
def test_view_any_changes_and_deaths_leave_the_worker_with_what_the_store_has(steps: list[tuple[int, str]]) -> None:
    """Whatever is said, sent, confirmed and lost in whatever order: in the end the worker serves what it should."""
    with ExitStack() as stack:
        store = WorkerStore(1, lambda: None, lambda _: None)
        control = _Control(store, lambda: stack.enter_context(socket.socket()))
        view, model = WorkerView(store, 0), _Model()
        under_way: list[Callable[[], None]] = []

        def send() -> bool:
            work = view.take_batch()
            if work is not None:
                batch, fds = work
                assert len(fds) <= MAX_FDS
                model.apply(batch.commands, fds)
                under_way.append(partial(view.confirm, Applied(batch.generation)))
            return work is not None

        view.restart(START, ())
        for kind, name in steps:
            if kind <= 8:
                control.change(kind, name)
            elif kind <= 10:
                send()
            elif kind <= 12 and under_way:
                under_way.pop(0)()
            elif kind == 13:
                model = _Model()
                under_way.clear()
                view.end()
                view.restart(START, ())
        while send() or under_way:
            if under_way:
                under_way.pop(0)()
        assert view.is_settled
        assert model.pools == {key: command.pool for key, command in store.pools.items()}
        assert model.sources == (None if store.sources is None else store.sources.sources)
        assert {key: value[1:] for key, value in model.serving().items()} == control.expected

"""Engine: events, timers and further turns reach their handlers; stale events and bugs reach nobody else."""

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from engine_driver import VirtualClock, raise_bug
from peers import nothing_left_open

from userspace_proxy.dataplane.engine import EVENTS_PER_POLL, LISTENER_EVENTS, Engine


class Recorder:
    """A handler that writes down what it is called for, and then does what it is told."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.masks: list[int] = []
        self.bugs = 0
        self._then = then

    def on_event(self, mask: int) -> None:
        """Write down the mask."""
        self.masks.append(mask)
        self._then()

    def on_bug(self) -> None:
        """Count."""
        self.bugs += 1


class BugError(Exception):
    """Stands for any exception that should not have been."""


def fail() -> None:
    """Be a bug."""
    raise BugError


@pytest.fixture
def clock() -> VirtualClock:
    """Return a clock that stands still."""
    return VirtualClock()


@pytest.fixture
def bugs() -> list[Exception]:
    """Return where bugs are reported that are meant to happen."""
    return []


@pytest.fixture
def engine(clock: VirtualClock, bugs: list[Exception]) -> Iterator[Engine]:
    """Yield an engine that reports to ``bugs``."""
    with nothing_left_open(), closing(Engine(clock, bugs.append)) as engine:
        yield engine


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Yield pairs of connected sockets of which the first is readable."""
    pairs = [socket.socketpair() for _ in range(4)]
    for _, far in pairs:
        far.send(b"x")
    yield pairs
    for pair in pairs:
        for sock in pair:
            sock.close()


def add(engine: Engine, sock: socket.socket, handler: Recorder) -> None:
    """Watch a socket for being readable."""
    engine.add(sock.fileno(), handler, LISTENER_EVENTS)


def test_engine_with_nothing_to_do_does_nothing(engine: Engine) -> None:
    """An idle engine may be left alone for ever, and says so."""
    assert engine.poll(0) is False
    assert engine.wait_s() is None
    assert select.select([engine], [], [], 0)[0] == []


def test_engine_is_readable_while_there_are_events(
    engine: Engine, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """The engine's own descriptor says when to call it; each handler gets the events of its own socket."""
    handlers = [Recorder() for _ in pairs]
    for (near, _), handler in zip(pairs, handlers, strict=True):
        add(engine, near, handler)
    assert select.select([engine], [], [], 1)[0] == [engine]
    assert engine.poll(0) is True
    assert [handler.masks for handler in handlers] == [[select.EPOLLIN]] * len(pairs)
    engine.remove(pairs[0][0].fileno())
    engine.poll(0)
    assert [len(handler.masks) for handler in handlers] == [1, 2, 2, 2]


def test_engine_drops_stale_events_of_a_batch(engine: Engine, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Events of sockets closed earlier in the batch reach nobody, and their numbers are not given to new ones."""
    numbers = {near.fileno() for near, _ in pairs}
    fresh: list[socket.socket] = []
    late = Recorder()

    def close_all() -> None:
        assert not fresh, "an event of a closed socket was delivered"
        for near, _ in pairs:
            engine.close_later(near)
        engine.close_waiting()  # as is done for a listener that a worker is told to close
        pair = socket.socketpair()
        fresh.extend(pair)
        assert not numbers & {sock.fileno() for sock in pair}
        add(engine, fresh[0], late)

    for near, _ in pairs:
        add(engine, near, Recorder(close_all))
    assert engine.poll(0)
    assert late.masks == []
    assert [near.fileno() for near, _ in pairs] == [-1] * 4
    fresh[1].send(b"x")
    engine.poll(0)
    assert late.masks == [select.EPOLLIN]
    for sock in fresh:
        sock.close()


def test_engine_closes_what_was_handed_over_outside_a_batch(engine: Engine) -> None:
    """A caller that ends connections by itself has their sockets closed at once."""
    near, far = socket.socketpair()
    engine.close_later(near)
    assert near.fileno() != -1
    engine.close_waiting()
    assert near.fileno() == -1
    far.close()


def test_engine_closes_at_the_end_what_still_waits_to_be_closed(clock: VirtualClock) -> None:
    """Nothing stays open when the engine goes: neither its own descriptors nor sockets left to it."""
    with nothing_left_open():
        engine = Engine(clock, raise_bug)
        near, far = socket.socketpair()
        pipe = engine.pipes.take()
        assert pipe is not None
        engine.pipes.give_back(pipe)
        engine.close_later(near)
        engine.close()
        far.close()


def test_engine_takes_a_bounded_batch(engine: Engine) -> None:
    """However many sockets are ready, one poll takes a bounded number of events; the others follow."""
    pairs = [socket.socketpair() for _ in range(EVENTS_PER_POLL + 10)]
    handlers = [Recorder() for _ in pairs]
    for (near, far), handler in zip(pairs, handlers, strict=True):
        far.send(b"x")
        engine.add(near.fileno(), handler, select.EPOLLIN | select.EPOLLET)
    engine.poll(0)
    assert sum(len(handler.masks) for handler in handlers) == EVENTS_PER_POLL
    engine.poll(0)
    assert [len(handler.masks) for handler in handlers] == [1] * len(pairs)
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_engine_gives_another_turn_after_everybody_else(engine: Engine) -> None:
    """Who asks for another turn gets one per poll, in order, and keeps the engine awake meanwhile."""
    order: list[str] = []
    handlers = {name: Recorder(lambda name=name: order.append(name)) for name in ("one", "two")}  # type: ignore[misc]
    engine.again(handlers["one"])
    engine.again(handlers["two"])
    assert engine.wait_s() == 0
    assert engine.poll(0) is True
    assert order == ["one", "two"]
    assert handlers["one"].masks == [0]
    assert engine.wait_s() is None
    assert engine.poll(0) is False


def test_engine_asked_for_a_turn_in_a_turn_gives_it_in_the_next_poll(engine: Engine) -> None:
    """Endless work is cut into polls: one that always asks for more does not keep the others out."""
    busy = Recorder(lambda: engine.again(busy))
    engine.again(busy)
    for turns in range(1, 4):
        assert engine.poll(0) is True
        assert busy.masks == [0] * turns
        assert engine.wait_s() == 0


def test_engine_runs_timers_when_they_are_due(engine: Engine, clock: VirtualClock) -> None:
    """Not before their time; all that are due in one poll, and it says how long it may be left alone."""
    ran: list[str] = []
    engine.timers.add(clock.now_s, 2.0, lambda: ran.append("late"))
    engine.timers.add(clock.now_s, 1.0, lambda: ran.append("early"))
    assert engine.wait_s() == 1.0
    clock.now_s += 0.5
    assert engine.poll(0) is False
    assert (ran, engine.wait_s()) == ([], 0.5)
    clock.now_s += 0.5
    assert engine.wait_s() == 0
    assert engine.poll(0) is True
    assert (ran, engine.wait_s()) == (["early"], 1.0)
    clock.now_s += 10
    assert engine.wait_s() == 0
    assert engine.poll(0) is True
    assert (ran, engine.wait_s()) == (["early", "late"], None)


def test_engine_time_of_a_batch_is_that_of_its_beginning(
    engine: Engine, clock: VirtualClock, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """All handlers of a batch see one time, so that durations do not depend on their order."""
    seen: list[float] = []

    def look() -> None:
        seen.append(engine.now_s)
        clock.now_s += 1

    start_s = clock.now_s = 5000.0
    for near, _ in pairs:
        add(engine, near, Recorder(look))
    engine.poll(0)
    assert seen == [start_s] * len(pairs)


def test_engine_bug_in_an_event_stops_nobody_else(
    engine: Engine, bugs: list[Exception], pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """An exception is counted and reported, its handler is told to give up, and all other handlers are called."""
    handlers = [Recorder(), Recorder(fail), Recorder(), Recorder(fail)]
    for (near, _), handler in zip(pairs, handlers, strict=True):
        add(engine, near, handler)
    engine.poll(0)
    assert [len(handler.masks) for handler in handlers] == [1, 1, 1, 1]
    assert [handler.bugs for handler in handlers] == [0, 1, 0, 1]
    assert [type(bug) for bug in bugs] == [BugError, BugError]
    assert engine.counters.unexpected_errors == 2


def test_engine_bug_in_another_turn_stops_nobody_else(engine: Engine, bugs: list[Exception]) -> None:
    """The same for turns that were asked for."""
    handlers = [Recorder(fail), Recorder()]
    for handler in handlers:
        engine.again(handler)
    engine.poll(0)
    assert [(len(handler.masks), handler.bugs) for handler in handlers] == [(1, 1), (1, 0)]
    assert engine.counters.unexpected_errors == len(bugs) == 1


def test_engine_bug_in_a_timer_stops_nobody_else(engine: Engine, bugs: list[Exception], clock: VirtualClock) -> None:
    """The same for timers; one that belongs to no handler is only counted and reported."""
    ran: list[bool] = []

    class Owner(Recorder):
        def on_timer(self) -> None:
            raise BugError

    owner = Owner()
    engine.timers.add(clock.now_s, 1.0, owner.on_timer)
    engine.timers.add(clock.now_s, 1.0, fail)
    engine.timers.add(clock.now_s, 1.0, lambda: ran.append(True))
    clock.now_s += 1
    engine.poll(0)
    assert ran == [True]
    assert owner.bugs == 1
    assert engine.counters.unexpected_errors == len(bugs) == 2

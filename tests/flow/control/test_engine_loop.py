"""The engine driven by trio: events, timers and work cut short, each in its time, and nobody else kept waiting."""

import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from userspace_proxy.control.engine_loop import POLLS_PER_TURN, TIMER_GRANULARITY_S, run_engine
from userspace_proxy.dataplane.engine import LISTENER_EVENTS, Engine


class Recorder:
    """A handler that notes when it is called, and then does what it is told."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.called_at: list[float] = []
        self._then = then

    def on_event(self, mask: int) -> None:  # noqa: ARG002 - the engine's
        """Note the time."""
        self.called_at.append(trio.current_time())
        self._then()

    def on_bug(self) -> None:
        """Do nothing."""


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def _raise(error: Exception) -> None:
    raise error


async def driven(test: Callable[[Engine, trio.lowlevel.ParkingLot], Awaitable[None]]) -> None:
    """Run a test beside the loop, on trio's clock; afterwards end the loop by cancellation."""
    engine = Engine(trio.current_time, _raise)
    after_turn = trio.lowlevel.ParkingLot()
    try:
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_engine, engine, after_turn)
                await trio.testing.wait_all_tasks_blocked()
                await test(engine, after_turn)
                nursery.cancel_scope.cancel()
    finally:
        engine.close()


async def test_engine_loop_delivers_events_and_wakes_who_is_parked(
    autojump_clock: MockClock, pair: tuple[socket.socket, socket.socket]
) -> None:
    """An event is handled without any time passing, and whoever waits for a turn looks after it."""

    async def test(engine: Engine, after_turn: trio.lowlevel.ParkingLot) -> None:
        recorder = Recorder(partial(pair[0].recv, 1))
        engine.add(pair[0].fileno(), recorder, LISTENER_EVENTS)
        pair[1].send(b"x")
        await after_turn.park()
        assert recorder.called_at == [trio.current_time()] == [0]

    await driven(test)


async def test_engine_loop_runs_a_timer_in_time(autojump_clock: MockClock) -> None:
    """Also one that was added when there was none, by an event long after the start."""

    async def test(engine: Engine, after_turn: trio.lowlevel.ParkingLot) -> None:
        fired_at: list[float] = []
        await trio.sleep(10)
        _add_timer_by_event(engine, 0.25, fired_at)
        await trio.sleep(1)
        assert fired_at == [pytest.approx(10.25, abs=TIMER_GRANULARITY_S)]

    await driven(test)


async def test_engine_loop_runs_a_timer_in_time_though_it_waits_for_a_later_one(autojump_clock: MockClock) -> None:
    """A connection's dial timer must not wait for the idle time-out of another connection."""

    async def test(engine: Engine, after_turn: trio.lowlevel.ParkingLot) -> None:
        fired_at: list[float] = []
        _add_timer_by_event(engine, 60, fired_at)
        await trio.sleep(1)
        _add_timer_by_event(engine, 0.25, fired_at)
        await trio.sleep(0.1)
        _add_timer_by_event(engine, 0.25, fired_at)
        await trio.sleep(100)
        assert fired_at == [pytest.approx(due, abs=TIMER_GRANULARITY_S) for due in (1.25, 1.35, 60)]

    await driven(test)


async def test_engine_loop_wakes_who_is_parked_after_a_timer(autojump_clock: MockClock) -> None:
    """A connection that ends by a time-out ends a drain that waits for it."""

    async def test(engine: Engine, after_turn: trio.lowlevel.ParkingLot) -> None:
        fired_at: list[float] = []
        _add_timer_by_event(engine, 0.25, fired_at)
        while not fired_at:
            await after_turn.park()
        assert trio.current_time() == pytest.approx(0.25, abs=TIMER_GRANULARITY_S)

    await driven(test)


@pytest.mark.parametrize("begins_by", ["event", "timer"])
async def test_engine_loop_goes_on_with_work_that_was_cut_short(
    autojump_clock: MockClock, pair: tuple[socket.socket, socket.socket], begins_by: str
) -> None:
    """No event tells of it and no time passes until it is done, whoever polled when it was begun."""

    async def test(engine: Engine, after_turn: trio.lowlevel.ParkingLot) -> None:
        def work_on() -> None:
            if begins_by == "event" and len(work.called_at) == 1:
                pair[0].recv(1)
            if len(work.called_at) < 100:
                engine.again(work)

        work = Recorder(work_on)
        if begins_by == "event":
            engine.add(pair[0].fileno(), work, LISTENER_EVENTS)
            pair[1].send(b"x")
        else:
            _add_timer_by_event(engine, 1, [], then=lambda: engine.again(work))
        await trio.sleep(2)
        assert len(work.called_at) == 100
        assert work.called_at[0] == work.called_at[-1]

    await driven(test)


async def test_engine_loop_under_load_lets_other_tasks_run(
    autojump_clock: MockClock, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Events that never end get so many polls in a row, then everybody else has a turn."""

    async def test(engine: Engine, after_turn: trio.lowlevel.ParkingLot) -> None:
        endless = Recorder()
        engine.add(pair[0].fileno(), endless, LISTENER_EVENTS)
        pair[1].send(b"x")
        await after_turn.park()
        before = len(endless.called_at)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert 1 <= len(endless.called_at) - before <= 11 * POLLS_PER_TURN
        pair[0].recv(1)

    await driven(test)


def _add_timer_by_event(
    engine: Engine, delay_s: float, fired_at: list[float], *, then: Callable[[], None] = lambda: None
) -> None:
    """Have the engine handle an event, and add a timer when it does, as an accepted connection does."""
    ours, theirs = socket.socketpair()

    def fire() -> None:
        fired_at.append(trio.current_time())
        then()

    def on_event() -> None:
        engine.timers.add(engine.now_s, delay_s, fire)
        engine.remove(ours.fileno())
        ours.close()
        theirs.close()

    engine.add(ours.fileno(), Recorder(on_event), LISTENER_EVENTS)
    theirs.send(b"x")

"""Drives the engine from trio, in the process that has both (``--workers 0``)."""

from math import inf

import trio

from userspace_proxy.dataplane.engine import Engine

POLLS_PER_TURN = 16
"""Polls in a row before other tasks get their turn. A turn through trio costs as much as a connection, a poll that
finds nothing some microseconds; arbitrary, bounds a turn under load to some tens of milliseconds."""
TIMER_GRANULARITY_S = 0.005
"""How late a timer may be when nothing else happens; arbitrary, small against every time-out there is."""


async def run_engine(engine: Engine, after_turn: trio.lowlevel.ParkingLot) -> None:
    """Do what the engine has to do, for ever.

    Args:
        engine: Is driven by nobody else.
        after_turn: Whoever is parked here is woken after each turn in which something was done.
    """
    alarm = _Alarm(engine, after_turn)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        while True:
            if engine.wait_s() == 0:
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(engine.fileno())
            for _ in range(POLLS_PER_TURN):
                if not engine.poll(0):
                    break
            after_turn.unpark_all()
            alarm.set()


class _Alarm:
    """Polls when a timer is due. A task of its own, as a time-out around every wait would cost more than the wait."""

    def __init__(self, engine: Engine, after_turn: trio.lowlevel.ParkingLot) -> None:
        self._engine = engine
        self._after_turn = after_turn
        self._sleep = trio.CancelScope()
        self._timer_s = inf
        """The timer that the sleep is to end for, on the clock of the engine."""

    def set(self) -> None:
        """Wake in time for the next timer; it may have been added since the sleep began."""
        timer_s = self._engine.timers.next_s
        if timer_s < self._timer_s:
            self._timer_s = timer_s
            self._sleep.deadline = trio.current_time() + max(self._engine.wait_s() or 0.0, TIMER_GRANULARITY_S)

    async def run(self) -> None:
        """Sleep and poll, for ever."""
        while True:
            with trio.CancelScope() as self._sleep:
                self._timer_s = inf
                self.set()
                await trio.sleep_forever()
            self._turn()
            while self._engine.wait_s() == 0:  # the descriptor says nothing of work that was cut short
                await trio.lowlevel.checkpoint()
                self._turn()

    def _turn(self) -> None:
        self._engine.poll(0)
        self._after_turn.unpark_all()

"""LocalEngine: the one engine that serves in this very process (``--workers 0``).

Entry point: ``LocalEngine``.
"""

import time
from collections.abc import Callable, Mapping
from random import Random

import trio

from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.control.cooperate import cooperate
from userspace_proxy.control.engine_loop import run_engine
from userspace_proxy.control.engines import Engines
from userspace_proxy.dataplane.counters import EngineCounters
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.engine_listeners import EngineListeners
from userspace_proxy.dataplane.engine_log import log_engine_state, report_bug
from userspace_proxy.plan.state import ListenerKey

NAME = "control"
"""Of the engine, where those of workers have the numbers of their workers."""


class LocalEngine(Engines):
    """See ``Engines``; what is said to it is in force at once."""

    failures = ()
    serves = True

    def __init__(self, limits: RelayLimits, flow_limits: FlowLimits, on_stopped: Callable[[ListenerKey], None]) -> None:
        """Create the engine.

        Args:
            limits: Bounds each connection.
            flow_limits: Bounds the flows.
            on_stopped: See ``EngineListeners``.
        """
        self._engine = Engine(time.monotonic, report_bug)
        self._after_turn = trio.lowlevel.ParkingLot()
        self._listeners = EngineListeners(
            self._engine,
            limits,
            flow_limits,
            Random().random,  # noqa: S311 - no secret
            on_stopped,
        )

    @property
    def plane(self) -> EngineListeners:
        """See ``Engines``."""
        return self._listeners

    @property
    def open_now(self) -> tuple[int, int]:
        """See ``Engines``."""
        return self._listeners.open_relays, self._listeners.open_flows

    async def run(self) -> None:
        """See ``Engines``."""
        await run_engine(self._engine, self._after_turn)

    async def settle(self) -> Mapping[str, bool]:
        """See ``Engines``."""
        return {NAME: True}

    async def counters(self) -> Mapping[str, EngineCounters]:
        """See ``Engines``."""
        self._listeners.report()
        return {NAME: self._engine.counters}

    async def wait_empty(self) -> None:
        """See ``Engines``."""
        while any(self.open_now):
            await self._after_turn.park()

    async def log_state(self) -> None:
        """See ``Engines``."""
        await cooperate(log_engine_state(self._engine, self._listeners))

    def abort(self) -> None:
        """See ``Engines``."""
        self._listeners.abort()
        self._engine.close()

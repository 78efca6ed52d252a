"""Workers: the engines of worker processes, started and supervised.

What they are to serve is in one WorkerStore; each place for a worker has a WorkerSupervisor. Entry point: ``Workers``.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from math import ceil

import trio
from attrs import evolve

from userspace_proxy.config import Config, FlowLimits, RelayLimits
from userspace_proxy.control.batch_encoder import BatchEncoder
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.engines import Engines
from userspace_proxy.control.worker_process import end_processes, start_worker_process
from userspace_proxy.control.worker_store import WorkerStore
from userspace_proxy.control.worker_supervisor import WorkerSupervisor
from userspace_proxy.control.worker_user import find_worker_user
from userspace_proxy.dataplane.counters import EngineCounters
from userspace_proxy.ipc.commands import Start
from userspace_proxy.model.names import ServicePortName
from userspace_proxy.plan.state import ListenerKey
from userspace_proxy.telemetry.log_format import CONNECTION_LOGGER, logging_in_force

PATIENCE_S = 1.0
"""For all workers to have something in force, or to say what they have counted; one that hangs keeps nobody waiting."""
ASK_OPEN_EVERY_S = 0.1
_BATCHES_KEPT = 8
"""For workers that are behind others (see ``BatchEncoder``); arbitrary, half a megabyte."""


class Workers(Engines):
    """See ``Engines``."""

    def __init__(self, config: Config, counters: ControlCounters, on_stopped: Callable[[ListenerKey], None]) -> None:
        """Have none yet.

        Args:
            config: Has their number, their user and the limits of all of them together.
            counters: Gets the replacements.
            on_stopped: See ``EngineListeners``.

        Raises:
            ConfigError: workers cannot run as the user asked for.
        """
        count = config.workers or 1
        level, log_format = logging_in_force()
        start = Start(
            name="",
            limits=_relay_share(config.limits, count),
            flow_limits=_flow_share(config.flow_limits, count),
            log_level=level,
            log_format=log_format,
            user=find_worker_user(config.worker_user),
            logs_connections=logging.getLogger(CONNECTION_LOGGER).isEnabledFor(logging.INFO),
        )
        self._store = WorkerStore(count, self._wake, self._forget)
        encoder = BatchEncoder(_BATCHES_KEPT)
        self._supervisors = [
            WorkerSupervisor(
                worker=number,
                store=self._store,
                start=evolve(start, name=str(number)),
                start_process=start_worker_process,
                encoder=encoder,
                control_counters=counters,
                on_stopped=on_stopped,
            )
            for number in range(count)
        ]

    @property
    def plane(self) -> WorkerStore:
        """See ``Engines``."""
        return self._store

    @property
    def failures(self) -> tuple[str, ...]:
        """See ``Engines``."""
        return tuple(one.failure for one in self._supervisors if one.failure)

    @property
    def serves(self) -> bool:
        """See ``Engines``."""
        return any(one.serves for one in self._supervisors) and not any(one.is_failing for one in self._supervisors)

    @property
    def open_now(self) -> tuple[int, int]:
        """See ``Engines``."""
        each = [one.open_now for one in self._supervisors]
        return sum(relays for relays, _ in each), sum(flows for _, flows in each)

    async def run(self) -> None:
        """See ``Engines``; workers outlive a run that is cancelled, until ``abort``."""
        async with trio.open_nursery() as nursery:
            for one in self._supervisors:
                nursery.start_soon(one.run)
            await trio.sleep_forever()

    async def settle(self) -> Mapping[str, bool]:
        """See ``Engines``; a worker that is being replaced is not waited for."""
        await self._for_a_while(one.wait_settled for one in self._supervisors)
        return {one.name: one.is_settled for one in self._supervisors}

    async def counters(self) -> Mapping[str, EngineCounters]:
        """See ``Engines``."""
        await self._for_a_while(one.wait_report for one in self._supervisors)
        return {one.name: one.counters.total for one in self._supervisors}

    async def wait_empty(self) -> None:
        """See ``Engines``; a worker that dies meanwhile is not replaced."""
        while True:
            await self.settle()
            await self.counters()
            if all(one.is_settled or one.process is None for one in self._supervisors) and not any(self.open_now):
                return
            await trio.sleep(ASK_OPEN_EVERY_S)

    async def log_state(self) -> None:
        """See ``Engines``; workers do it a moment later."""
        for one in self._supervisors:
            one.say_log_state()

    def abort(self) -> None:
        """See ``Engines``; to be called after ``run``, as it waits for their ends, and lets nothing else happen."""
        end_processes(one.process for one in self._supervisors if one.process is not None)

    async def _for_a_while(self, waits: Iterable[Callable[[], Awaitable[None]]]) -> None:
        with trio.move_on_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for wait in waits:
                    nursery.start_soon(wait)

    def _wake(self) -> None:
        for one in self._supervisors:
            one.wake()

    def _forget(self, name: ServicePortName) -> None:
        for one in self._supervisors:
            one.forget(name)


def _relay_share(limits: RelayLimits, count: int) -> RelayLimits:
    """Return what one of so many workers may have."""
    most = limits.max_connections
    return limits if most is None else evolve(limits, max_connections=ceil(most / count))


def _flow_share(limits: FlowLimits, count: int) -> FlowLimits:
    """Return what one of so many workers may have."""
    total = limits.max_total_flows
    return evolve(
        limits,
        max_flows=ceil(limits.max_flows / count),
        max_total_flows=None if total is None else max(total // count, 1),
    )

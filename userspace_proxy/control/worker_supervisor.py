"""WorkerSupervisor: keeps one worker alive, tells it what has changed and hears what it has to say.

A worker that dies is replaced at once; one whose successors die again and again soon after their start, later and
later. One that says nothing for some seconds is killed, and so is one that says what no worker would. The worker and
the line to it outlive a ``run`` that is cancelled: the next one goes on with them. Entry point: ``WorkerSupervisor``.
"""

import logging
import signal
import time
from collections.abc import Awaitable, Callable, Iterator

import msgspec
import trio
from attrs import define

from userspace_proxy.control.batch_encoder import BatchEncoder
from userspace_proxy.control.cooperate import cooperate
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.worker_affinity import WorkerAffinity
from userspace_proxy.control.worker_counters import WorkerCounters
from userspace_proxy.control.worker_process import END_PATIENCE_S, Process, WorkerChannel
from userspace_proxy.control.worker_store import WorkerStore
from userspace_proxy.control.worker_view import WorkerView
from userspace_proxy.errors import WorkerError
from userspace_proxy.ipc.commands import Ask, LogState, Start
from userspace_proxy.ipc.reports import AffinityReport, Applied, Report, Stopped, WorkerMessage, decode_message
from userspace_proxy.model.names import Protocol, ServicePortName
from userspace_proxy.plan.state import ListenerKey

LOG = logging.getLogger(__name__)

ASK_EVERY_S = 1.0
MAX_SILENCES = 3
"""Seconds in a row in which a worker that was asked has said nothing; then it hangs."""
MAX_SILENCES_AT_START = 15
"""The same before it has said anything: Python has to start, perhaps on a busy node. Arbitrary."""
RETRY_LOST_S = 5.0
"""Between two attempts to give a worker descriptors it had no room for; as often as all else that has failed."""
YOUNG_S = 5.0
"""A worker that dies before it is so old may do so for a reason that its successor will meet, too."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
FAILING_FROM = 3
"""Young deaths in a row from which on this worker counts as failing."""


@define(eq=False)
class _Life:
    """One worker from its start to its end."""

    process: Process
    started_s: float
    heard: int = 0
    """Messages from it."""
    verdict: tuple[str, str] | None = None
    """Why it has to be ended: the reason that metrics have, and a text."""
    open_now: tuple[int, int] = (0, 0)
    watched: int = 0


class WorkerSupervisor:
    """One place for a worker, and the worker that is in it, if there is one."""

    def __init__(
        self,
        *,
        worker: int,
        store: WorkerStore,
        start: Start,
        start_process: Callable[[], Awaitable[Process]],
        encoder: BatchEncoder,
        control_counters: ControlCounters,
        on_stopped: Callable[[ListenerKey], None],
    ) -> None:
        """Start without a worker.

        Args:
            worker: Its place among all.
            store: What it is to serve.
            start: What it is told first.
            start_process: Starts one, and raises OSError if it cannot.
            encoder: For its batches.
            control_counters: Gets the replacements.
            on_stopped: See ``EngineListeners``.
        """
        self.name = start.name
        self._store = store
        self._start = start
        self._start_process = start_process
        self._encoder = encoder
        self._control_counters = control_counters
        self._on_stopped = on_stopped
        self._view = WorkerView(store, worker)
        self._affinity = WorkerAffinity(store.affinity_timeout_s)
        self._counters = WorkerCounters()
        self._life: _Life | None = None
        self._young_deaths = 0
        """In a row."""
        self._failure = ""
        """How the last one has died, if there is no other yet."""
        self._start_at_s = 0.0
        """When the next one may be started."""
        self._changed = trio.Event()
        """Set when there may be something to be sent."""
        self._news = trio.lowlevel.ParkingLot()
        """Who waits here is woken when something was heard, and when the worker dies."""
        self._asked = 0
        self._answered = 0

    @property
    def counters(self) -> WorkerCounters:
        """What the workers in this place have counted, as last reported."""
        return self._counters

    @property
    def process(self) -> Process | None:
        """The worker there is."""
        return self._life.process if self._life else None

    @property
    def serves(self) -> bool:
        """Whether there is a worker that does what it is told."""
        return self._life is not None and self._view.has_confirmed

    @property
    def is_failing(self) -> bool:
        """Whether workers have died here again and again, and none has lived for a while since."""
        return self._young_deaths >= FAILING_FROM

    @property
    def is_settled(self) -> bool:
        """Whether all that the store has is in force there."""
        return self.serves and self._view.is_settled

    @property
    def open_now(self) -> tuple[int, int]:
        """Connections and flows that are open, as last reported."""
        return self._life.open_now if self._life else (0, 0)

    @property
    def failure(self) -> str:
        """Why not all is served here that should be, in a sentence; empty when it is."""
        if not self.serves:
            return f"worker {self.name} is being started" + (
                f"; the one before: {self._failure}" if self._failure else ""
            )
        if self._view.lost:
            return (
                f"worker {self.name} does not serve {self._view.lost} listeners, as it may not have so many files "
                "open; raise the limit of open files (RLIMIT_NOFILE)"
            )
        return ""

    def wake(self) -> None:
        """Have the worker told what has changed."""
        self._changed.set()

    def forget(self, name: ServicePortName) -> None:
        """Drop what was counted and remembered of a ServicePort."""
        self._counters.forget(name)
        self._affinity.forget(name)

    def say_log_state(self) -> None:
        """Have the worker write to the log what is open, and write what is known of it here."""
        life = self._life
        if life is None:
            LOG.info("state: no worker", extra={"worker": self.name, "reason": self._failure or None})
            return
        age_s = trio.current_time() - life.started_s
        force = "all is in force" if self.is_settled else "not all is in force"
        text = f"pid {life.process.pid}, {age_s:.0f} s old, {life.watched} descriptors watched, {force}"
        LOG.info("state: worker", extra={"worker": self.name, "reason": text})
        self._view.say(LogState())
        self.wake()

    async def wait_settled(self) -> None:
        """Wait until all is in force here that can be; not for a worker that is to replace another one."""
        while (self._life is not None or not self._failure) and not self._view.has_confirmed_all:
            await self._news.park()

    async def wait_report(self) -> None:
        """Ask the worker what it has counted, and wait until it has said, or has died; at once if it does not serve."""
        if not self.serves:
            return
        life, number = self._life, self._ask()
        while self._life is life and self._answered < number:
            await self._news.park()

    async def run(self) -> None:
        """Have a worker, until the store is stopped and the last one has ended."""
        while self._life or not self._store.is_stopped:
            if self._life is None:
                await trio.sleep_until(self._start_at_s)
                if not self._store.is_stopped:
                    await self._begin()
            else:
                await self._attend(self._life)

    async def _begin(self) -> None:
        try:
            process = await self._start_process()
        except OSError as error:
            self._note_death("exit", f"it could not be started: {error.strerror}", 0.0)
            return
        self._life = _Life(process, trio.current_time())
        self._failure = ""
        self._view.restart(self._start, self._affinity.seeds())
        LOG.info("worker started", extra={"worker": self.name, "reason": f"pid {process.pid}"})

    async def _attend(self, life: _Life) -> None:
        """Talk to a worker until it ends, and note that."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, life.process.channel)
            nursery.start_soon(self._watch, life)
            try:
                await self._receive(life)
            except WorkerError as error:
                life.verdict = "protocol", f"{error}; it was killed"
            except msgspec.MsgspecError as error:
                life.verdict = "protocol", f"it sends no message of a worker ({error}); it was killed"
            nursery.cancel_scope.cancel()
        if life.verdict is None:  # one that cuts its line is about to end, and says by its status why
            with trio.move_on_after(END_PATIENCE_S):
                await life.process.wait()
        life.process.kill()
        status = await life.process.wait()
        life.process.channel.close()
        self._life = None
        self._failure = "it has ended"
        self._view.end()
        self._counters.end_worker()
        self._news.unpark_all()
        if not self._store.is_stopped:
            reason, text = life.verdict or _describe(status)
            self._note_death(reason, text, trio.current_time() - life.started_s)

    async def _send(self, channel: WorkerChannel) -> None:
        while await channel.wait_sendable():
            self._changed = trio.Event()
            work = self._view.take_batch()
            if work is None:
                await self._changed.wait()
            else:
                batch, fds = work
                channel.send(self._encoder.encode(batch), fds)

    async def _receive(self, life: _Life) -> None:
        """Take in what it says, until it says no more.

        Raises:
            WorkerError: no worker says this.
            msgspec.MsgspecError: as above.
        """
        while (payloads := await life.process.channel.receive()) is not None:
            with trio.CancelScope(shield=True):  # a report has only what has changed: half of it would be lost for good
                for payload in payloads:
                    await self._take(life, decode_message(payload))
            if payloads:
                life.heard += 1
                self._news.unpark_all()

    async def _take(self, life: _Life, message: WorkerMessage) -> None:
        match message:
            case Applied():
                self._view.confirm(message)
                self.wake()
            case Stopped(number):
                key = self._view.stopped_listener(number)
                if key is not None:
                    self._on_stopped(key)
            case Report():
                if message.number > self._asked:
                    raise WorkerError(f"it answers question {message.number} of {self._asked}")
                await cooperate(self._counters.take(message, self._knows))
                await cooperate(self._affinity.take(self._known_clients(message.affinity), time.monotonic()))
                life.open_now = message.open_relays, message.open_flows
                life.watched = message.watched
                self._answered = message.number

    async def _watch(self, life: _Life) -> None:
        """Kill a worker that does not answer, note that one has lived long enough, retry what it had no room for."""
        silences = 0
        next_retry_s = trio.current_time() + RETRY_LOST_S
        while True:
            heard = life.heard
            await trio.sleep(ASK_EVERY_S)
            silences = silences + 1 if life.heard == heard else 0
            if silences >= (MAX_SILENCES if heard else MAX_SILENCES_AT_START):
                life.verdict = "hang", f"it has not answered for {silences * ASK_EVERY_S:.0f} s; it was killed"
                life.process.kill()
                return
            self._ask()
            now_s = trio.current_time()
            if now_s - life.started_s >= YOUNG_S:
                self._young_deaths = 0
            if now_s >= next_retry_s:
                next_retry_s = now_s + RETRY_LOST_S
                self._view.retry_lost()
                self.wake()

    def _ask(self) -> int:
        self._asked += 1
        self._view.say(Ask(self._asked))
        self.wake()
        return self._asked

    def _knows(self, service: str, protocol: Protocol) -> bool:
        name = self._store.names.get((service, protocol))
        return name is not None and self._view.has_forgotten(name)

    def _known_clients(self, reports: tuple[AffinityReport, ...]) -> Iterator[tuple[ServicePortName, AffinityReport]]:
        """Yield the reports of clients of ServicePorts there are."""
        for report in reports:
            name = self._store.names.get((report.service, _PROTOCOLS.get(report.protocol, Protocol.SCTP)))
            if name is not None and self._view.has_forgotten(name):
                yield name, report

    def _note_death(self, reason: str, text: str, age_s: float) -> None:
        """Count and log the end of a worker, and decide when to start the next one."""
        self._control_counters.worker_restarts[self.name, reason] += 1
        self._young_deaths = self._young_deaths + 1 if age_s < YOUNG_S else 0
        pause_s = 0.0
        if self._young_deaths > 1:
            pause_s = min(FIRST_PAUSE_S * 2 ** (self._young_deaths - 2), LONGEST_PAUSE_S)
        self._start_at_s = trio.current_time() + pause_s
        self._failure = text
        LOG.log(
            logging.ERROR if self.is_failing else logging.WARNING,
            "a worker has ended after %.1f s; its open connections have ended with it, and another one is started %s",
            age_s,
            f"in {pause_s:.1f} s" if pause_s else "at once",
            extra={"worker": self.name, "reason": text},
        )


_PROTOCOLS = {protocol.value: protocol for protocol in Protocol}


def _describe(status: int) -> tuple[str, str]:
    """Return why a process has ended: the reason that metrics have, and a text."""
    if status >= 0:
        return "exit", f"it has exited with status {status}"
    try:
        return "signal", f"it was ended by {signal.Signals(-status).name}"
    except ValueError:
        return "signal", f"it was ended by signal {-status}"

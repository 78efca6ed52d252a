"""A worker process from start to end: one engine, and the control process at the other end of a socket.

It does what it is told (``ipc.commands``), says what it has done (``ipc.reports``), and ends with the control process,
whose listening sockets it uses: so it can be killed at any time, and the next one goes on with the same queues. Entry
point: ``run_worker``.
"""

import ctypes
import gc
import logging
import select
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from random import Random
from typing import TextIO, cast

from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.engine_log import log_engine_state, report_bug
from userspace_proxy.ipc.commands import Ask, Batch, LogState, Serve, Start, decode_batch
from userspace_proxy.ipc.reports import Applied, Stopped
from userspace_proxy.telemetry.log_format import CONNECTION_LOGGER, LogFormat, configure_logging
from userspace_proxy.worker.channel import Channel
from userspace_proxy.worker.log_stream import LogStream
from userspace_proxy.worker.privileges import drop_privileges
from userspace_proxy.worker.report import Reporter
from userspace_proxy.worker.served import Served

LOG = logging.getLogger(__name__)

GC_THRESHOLDS = (50_000, 20, 100)
"""See ``gc.set_threshold``; as in the control process: there are few cycles, as relays cut theirs."""
TURN_S = 0.001
"""Seconds of long work between two batches of events, as in the control process; a single step may be longer."""
_CHANNEL_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


def run_worker(fd: int) -> None:
    """Serve until the control process ends, or ends this one.

    Args:
        fd: A socket that is connected with it (``ipc.frames``).
    """
    gc.set_threshold(*GC_THRESHOLDS)
    channel = Channel(socket.socket(fileno=fd))
    frame = channel.wait()
    if frame is None:
        return
    batch = decode_batch(frame.payload)
    start = batch.commands[0]
    if not isinstance(start, Start):
        raise TypeError(f"the first command is not Start, but {type(start).__name__}")
    _name_records(start.name)
    log_stream = LogStream(sys.stderr.fileno())
    sys.stderr = cast("TextIO", log_stream)
    configure_logging(start.log_level, LogFormat(start.log_format))
    logging.getLogger(CONNECTION_LOGGER).setLevel(logging.INFO if start.logs_connections else logging.WARNING)
    try:
        drop_privileges(start.user)
    except OSError as error:
        LOG.error(  # noqa: TRY400 - a known failure
            "cannot give up privileges, so this worker does not serve; --worker-user needs CAP_SETUID and CAP_SETGID",
            extra={"reason": error.strerror},
        )
        sys.exit(1)
    engine = Engine(time.monotonic, report_bug)
    worker = _Worker(engine, channel, start, log_stream)
    worker.apply(batch, frame.fds)
    worker.run()


def _name_records(worker: str) -> None:
    """Have each record of the log say which worker has written it."""
    make_record = logging.getLogRecordFactory()

    def make_named_record(*args: object, **values: object) -> logging.LogRecord:
        record = make_record(*args, **values)
        record.worker = worker
        return record

    logging.setLogRecordFactory(make_named_record)


def _settle_down() -> None:
    """Make the best of the memory that is in use once there is what stays."""
    gc.freeze()  # the collector need not walk over it again and again
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)  # imports leave 0.6 MB of holes behind, with Python 3.12 1.5 MB (VmRSS)


class _Worker:
    """Does what comes by the channel; a handler of the engine."""

    def __init__(self, engine: Engine, channel: Channel, start: Start, log_stream: LogStream) -> None:
        self._engine = engine
        self._log_stream = log_stream
        self._channel = channel
        self._served = Served(engine, start, Random().random, self._tell_stopped)  # noqa: S311 - no secret
        self._reporter = Reporter(engine, self._served.listeners)
        self._question: int | None = None
        """To be answered as soon as the channel is silent: a control process that is slow gets one answer to all."""
        self._has_turn = False
        """Whether the engine will call again."""
        self._has_started = False
        """Whether a question has come: by then what there is at the start was sent."""

    def run(self) -> None:
        """Serve until the channel is closed."""
        engine, channel = self._engine, self._channel
        engine.add(channel.fileno(), self, _CHANNEL_EVENTS)
        while channel.is_open:
            wait_s = engine.wait_s()
            engine.poll(-1 if wait_s is None else wait_s)
        self._served.listeners.abort()
        engine.close()

    def on_event(self, mask: int) -> None:
        """Do what has come, up to a turn's worth."""
        if not mask:
            self._has_turn = False
        self._channel.flush()
        frames, is_more = self._channel.receive()
        for frame in frames:
            self.apply(decode_batch(frame.payload), frame.fds)
        self._answer()
        lost = self._log_stream.take_lost()
        if lost:
            LOG.warning("%d records of the log were lost, as nobody has read them in time", lost)
        if is_more and not self._has_turn:
            self._has_turn = True
            self._engine.again(self)

    def on_bug(self) -> None:
        """End: what was said may have been done in part, and a successor gets everything."""
        self._channel.close()

    def apply(self, batch: Batch, fds: Iterable[int]) -> None:
        """Do what a batch says, and say so.

        Args:
            batch: In its order.
            fds: Those that came with it; owned from here on.
        """
        sockets = iter(fds)
        lost = []
        for command in batch.commands:
            match command:
                case Serve():
                    if not self._served.serve(command, sockets):
                        lost.append(command.number)
                case Ask():
                    self._question = command.number
                case LogState():
                    _LongWork(self._engine, log_engine_state(self._engine, self._served.listeners)).on_event(0)
                case Start():
                    pass  # it was heeded before all others
                case _:
                    self._served.apply(command)
        self._channel.send(Applied(batch.generation, tuple(lost)))

    def _answer(self) -> None:
        if self._question is None or not self._channel.is_silent:
            return
        if not self._has_started:
            self._has_started = True
            _settle_down()
        self._channel.send(self._reporter.report(self._question))
        self._question = None

    def _tell_stopped(self, number: int) -> None:
        if self._channel.is_silent:  # else later: it is said again and again
            self._channel.send(Stopped(number))


class _LongWork:
    """Does something step by step, between which clients are served and questions answered; a handler of the engine."""

    def __init__(self, engine: Engine, steps: Iterator[None]) -> None:
        self._engine = engine
        self._steps = steps

    def on_event(self, mask: int) -> None:  # noqa: ARG002
        """Do a turn's worth."""
        pause_at_s = time.monotonic() + TURN_S
        for _ in self._steps:
            if time.monotonic() >= pause_at_s:
                self._engine.again(self)
                return

    def on_bug(self) -> None:
        """Leave it at that."""

"""A worker without a process: the other end of the line, under trio, which says what a test wants said.

It confirms each batch and answers each question, unless it is told not to. Entry point: ``FakeWorkers``.
"""

import array
import os
import socket
from typing import Any

import trio

from userspace_proxy.control.worker_process import WorkerChannel
from userspace_proxy.dataplane.counters import DIAL_DURATION_BOUNDS_S
from userspace_proxy.ipc.commands import Ask, Command, decode_batch
from userspace_proxy.ipc.frames import FrameReader, encode_frame
from userspace_proxy.ipc.reports import Applied, Report, ServiceReport, WorkerMessage, encode_message

ANCILLARY_BYTES = 4096


class FakeWorker:
    """One of them; for control it is a Process."""

    def __init__(self, pid: int) -> None:
        """Live, and wait for commands."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.pid = pid
        self.channel = WorkerChannel(ours)
        self._sock = trio.socket.from_stdlib_socket(its)
        self.commands: list[Command] = []
        """All it was told."""
        self.descriptors = 0
        """That it was sent."""
        self.counts: dict[str, Any] = {}
        """What it says in reports, besides nothing."""
        self.is_mute = False
        self.confirms = True
        self._has_hung_up = False
        self._status: int | None = None
        self._ended = trio.Event()

    def kill(self) -> None:
        """End it as SIGKILL does."""
        self.end(-9)

    def end(self, status: int) -> None:
        """End it, unless it has ended."""
        if self._status is None:
            self._status = status
            self._sock.close()
            self._ended.set()

    def hang_up(self) -> None:
        """Cut the line, and live on."""
        self._has_hung_up = True
        self._sock.close()

    def has_ended(self) -> bool:
        """Return whether it has."""
        return self._status is not None

    async def wait(self) -> int:
        """Return how it has ended."""
        await self._ended.wait()
        assert self._status is not None
        return self._status

    async def say(self, message: WorkerMessage) -> None:
        """Say something."""
        await self.send(encode_frame(encode_message(message), 0))

    async def send(self, data: bytes, *fds: int) -> None:
        """Send anything at all."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        await self._sock.sendmsg([data], rights)

    async def run(self) -> None:
        """Do what a worker does, until it ends."""
        reader = FrameReader()
        try:
            while not self._has_hung_up:
                data, ancillary, _, _ = await self._sock.recvmsg(1 << 16, ANCILLARY_BYTES)
                if not data:
                    break
                fds = array.array("i")
                for _, _, content in ancillary:
                    fds.frombytes(content)
                for frame in reader.feed(data, fds):
                    for fd in frame.fds:
                        os.close(fd)
                    self.descriptors += len(frame.fds)
                    await self._take(frame.payload)
        except (trio.ClosedResourceError, OSError):
            pass
        if not self._has_hung_up:
            self.end(0)

    async def _take(self, payload: bytes) -> None:
        batch = decode_batch(payload)
        self.commands += batch.commands
        if self.is_mute:
            return
        if self.confirms:
            await self.say(Applied(batch.generation))
        for command in batch.commands:
            if isinstance(command, Ask):
                await self.say(report(command.number, **self.counts))


class FakeWorkers:
    """Starts them, in a nursery."""

    def __init__(self, nursery: trio.Nursery) -> None:
        """Have none yet."""
        self._nursery = nursery
        self.all: list[FakeWorker] = []
        """In the order of their starts."""
        self.started_s: list[float] = []
        self.fails = False
        """Whether there is no process to be had."""
        self.dies = False
        """Whether each ends as soon as it has started."""
        self.are_mute = False
        """Whether none says anything."""

    @property
    def last(self) -> FakeWorker:
        """The one that was started last."""
        return self.all[-1]

    async def start(self) -> FakeWorker:
        """Start one."""
        self.started_s.append(trio.current_time())
        if self.fails:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        worker = FakeWorker(1000 + len(self.all))
        worker.is_mute = self.are_mute
        self.all.append(worker)
        if self.dies:
            worker.end(1)
        else:
            self._nursery.start_soon(worker.run)
        return worker


def report(number: int, **values: Any) -> Report:
    """Return a Report in which everything that is not given is nothing."""
    nothing: dict[str, Any] = {
        "services": (),
        "udp_services": (),
        "affinity": (),
        "accept_pauses": {},
        "dial_duration": (0,) * (len(DIAL_DURATION_BOUNDS_S) + 1),
        "dial_duration_sum_s": 0.0,
        "affinity_evictions": 0,
        "unexpected_errors": 0,
        "open_relays": 0,
        "open_flows": 0,
        "watched": 0,
    }
    return Report(number, **nothing | values)


def service_report(connections: int, active: int = 0, service: str = "shop/web:http") -> ServiceReport:
    """Return what a worker says of a ServicePort of TCP."""
    return ServiceReport(service, "TCP", connections, active, 0, 0, (), ())

"""ListenerFlows: the UDP flows of one listener, made and ended.

A flow that is not to get any more datagrams is *detached*: it delivers late answers for ``LINGER_S``, and ends. Idle
flows end by a timer that looks for them now and then; where there are too many, the one that was silent for longest
gives way, be it that of another listener. Which flow a datagram belongs to is the listener's business. Entry point:
``ListenerFlows``.
"""

import logging
import select
import socket
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.balance.live_pool import Member
from userspace_proxy.config import FlowLimits
from userspace_proxy.dataplane.counters import FlowCounters
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.flow_table import FlowTable
from userspace_proxy.dataplane.udp_flow import TOUCH_S, UdpFlow
from userspace_proxy.dataplane.udp_sockets import NO_FLOW_CAPACITY, read_drops
from userspace_proxy.model.names import ServicePortName
from userspace_proxy.telemetry.log_format import CONNECTION_LOGGER

CONNECTION_LOG = logging.getLogger(CONNECTION_LOGGER)

LINGER_S = 5.0
"""How long late answers are delivered."""
FLOW_EVENTS = select.EPOLLIN
_DATAGRAM = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_IDLE_LOOKS = 16
_LONGEST_LOOK_S = 5.0
"""Idle flows are looked for so often within an idle time-out, and at least at this interval: how late they may go."""


class ListenerFlows:
    """Owns the sockets of the flows of one listener."""

    __slots__ = (
        "_counters",
        "_engine",
        "_is_looking",
        "_limits",
        "_lingering",
        "_service_port",
        "_table",
        "current",
        "idle_timeout_s",
    )

    def __init__(
        self,
        engine: Engine,
        service_port: ServicePortName,
        limits: FlowLimits,
        counters: FlowCounters,
        table: FlowTable,
    ) -> None:
        """Start without flows.

        Args:
            engine: Watches the sockets.
            service_port: What they are flows of.
            limits: Bounds them.
            counters: Where they are counted.
            table: The flows of all listeners; this one adds and removes its own.
        """
        self._engine = engine
        self._service_port = service_port
        self._limits = limits
        self._counters = counters
        self._table = table
        self.current: OrderedDict[object, UdpFlow] = OrderedDict()
        """Those that get datagrams, by their keys, the one that was silent for longest first."""
        self._lingering: dict[UdpFlow, FlowEnd] = {}
        """Those that only deliver answers, in the order in which they were detached, and why they end."""
        self.idle_timeout_s: float | None = None
        """Seconds without a datagram after which a flow ends; None: as ``limits`` say."""
        self._is_looking = False
        """Whether a timer will look for idle flows."""

    def __iter__(self) -> Iterator[UdpFlow]:
        """Iterate over all flows; none may come or go meanwhile."""
        yield from self.current.values()
        yield from self._lingering

    def make_room(self) -> None:
        """End the flows that are too many if there is to be one more."""
        if len(self.current) >= self._limits.max_flows:
            self.end(next(iter(self.current.values())), FlowEnd.EVICTED)
        oldest = self._table.oldest
        if oldest is not None and len(self._table) >= self._table.max_flows:
            oldest.listener.flows.end(oldest, FlowEnd.EVICTED)

    def connect(self, member: Member) -> socket.SocketType:
        """Return a socket connected to a Member, for a flow; where nothing is left for one, the oldest gives way.

        Raises:
            OSError: see socket(2) and connect(2).
        """
        try:
            return _connected_socket(member)
        except OSError as error:
            oldest = self._table.oldest
            if error.errno not in NO_FLOW_CAPACITY or oldest is None:
                raise
            oldest.listener.flows.end(oldest, FlowEnd.EVICTED)
            self._engine.close_now(oldest.sock)
            return _connected_socket(member)

    def add(self, flow: UdpFlow) -> None:
        """Take a new flow, and have the engine watch its socket.

        Raises:
            OSError: the kernel watches no more; the socket is closed.
        """
        engine = self._engine
        try:
            engine.add(flow.sock.fileno(), flow, FLOW_EVENTS)
        except OSError:
            flow.sock.close()
            raise
        self.current[flow.key] = flow
        self._table.add(flow)
        flow.member.open += 1
        flow.member.connections += 1
        self._counters.flows += 1
        self._counters.active += 1
        if not self._is_looking:
            self._is_looking = True
            engine.timers.add(engine.now_s, self._look_s(), self._end_idle)

    def touch(self, flow: UdpFlow) -> None:
        """Note that a flow is being used."""
        flow.active_s = self._engine.now_s
        self._table.touch(flow)
        if flow.detached_s is None:
            self.current.move_to_end(flow.key)

    def detach(self, flows: Iterable[UdpFlow], reason: FlowEnd) -> None:
        """Have some of the current flows only deliver answers, and end after a while.

        Args:
            flows: Not the live view of the current ones.
            reason: Why they end.
        """
        engine = self._engine
        engine.look_at_clock()
        for flow in flows:
            del self.current[flow.key]
            flow.detached_s = engine.now_s
            self._lingering[flow] = reason
        if self._lingering:
            engine.timers.add(engine.now_s, LINGER_S, self._end_lingering)

    def end(self, flow: UdpFlow, reason: FlowEnd) -> None:
        """End a flow, if it has not ended yet."""
        if not self._table.remove(flow):
            return
        if flow.detached_s is None:
            del self.current[flow.key]
        else:
            del self._lingering[flow]
        flow.member.open -= 1
        self.report(flow)
        counters = self._counters
        counters.active -= 1
        counters.ended[reason] += 1
        if flow.datagrams_to_client > 1:  # the first one found room for sure
            counters.dropped[DropReason.BUFFER_FULL] += read_drops(flow.sock)
        self._engine.close_later(flow.sock)
        if CONNECTION_LOG.isEnabledFor(logging.INFO):
            self._log_flow(flow, reason)

    def end_silent(self, reason: FlowEnd) -> None:
        """End the flows that were silent for so long that no answer is to be expected."""
        self._engine.look_at_clock()
        for flow in list(self):
            if self._engine.now_s - flow.active_s >= LINGER_S + TOUCH_S:
                self.end(flow, reason)

    def end_all(self, reason: FlowEnd) -> None:
        """End all flows at once; nothing leaves any more."""
        for flow in list(self):
            self.end(flow, reason)

    def report(self, flow: UdpFlow) -> None:
        """Add to the counters what a flow has passed on since the last time."""
        counters = self._counters
        before = flow.reported
        flow.reported = now = (
            flow.datagrams_to_backend,
            flow.bytes_to_backend,
            flow.datagrams_to_client,
            flow.bytes_to_client,
        )
        counters.datagrams_to_backend += now[0] - before[0]
        counters.bytes_to_backend += now[1] - before[1]
        counters.datagrams_to_client += now[2] - before[2]
        counters.bytes_to_client += now[3] - before[3]

    def _end_idle(self) -> None:
        """End the flows that were silent for too long, and look again later if there are others."""
        engine = self._engine
        while self.current:
            flow = next(iter(self.current.values()))
            if engine.now_s - flow.active_s < self._timeout_s() + TOUCH_S:
                engine.timers.add(engine.now_s, self._look_s(), self._end_idle)
                return
            self.end(flow, FlowEnd.IDLE)
        self._is_looking = False

    def _timeout_s(self) -> float:
        return self.idle_timeout_s or self._limits.idle_timeout_s

    def _look_s(self) -> float:
        return min(max(self._timeout_s() / _IDLE_LOOKS, TOUCH_S), _LONGEST_LOOK_S)

    def _end_lingering(self) -> None:
        now_s = self._engine.now_s
        for flow, reason in list(self._lingering.items()):
            if flow.detached_s is None or flow.detached_s + LINGER_S > now_s:  # as Timers counts: it must not be early
                return
            self.end(flow, reason)

    def _log_flow(self, flow: UdpFlow, reason: FlowEnd) -> None:
        CONNECTION_LOG.info(
            "flow ended",
            extra={
                "service": str(self._service_port),
                "client": "{} port {}".format(*flow.client),
                "backend": str(flow.member.backend),
                "reason": str(reason),
                "duration_s": round(self._engine.now_s - flow.created_s, 6),
                "datagrams_to_backend": flow.datagrams_to_backend,
                "datagrams_to_client": flow.datagrams_to_client,
                "bytes_to_backend": flow.bytes_to_backend,
                "bytes_to_client": flow.bytes_to_client,
            },
        )


def _connected_socket(member: Member) -> socket.SocketType:
    family = socket.AF_INET6 if member.is_ipv6 else socket.AF_INET
    sock = socket.SocketType(family, _DATAGRAM, 0)
    try:
        sock.connect(member.address)
    except OSError:
        sock.close()
        raise
    return sock

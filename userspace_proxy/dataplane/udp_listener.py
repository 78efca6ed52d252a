"""UdpListener: passes on what clients send to one UDP socket, and makes and ends their flows.

A flow is found by the client's address and the address it sent to, and made with its first datagram; with balancing by
datagram there is one for each Backend. A flow whose Backend is not to be used any more is *detached*: the client's next
datagram makes another one, while this one delivers late answers for a while. So does a listener that is *retired*
for want of Backends: the kernel refuses what is sent to it, but it can still send from its address, and holds its port.

Everything happens within the event that brought it about: nothing waits, and no datagram is queued.
"""

import errno
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.balance.live_pool import LivePool, Member
from userspace_proxy.balance.live_pools import LivePools
from userspace_proxy.config import FlowLimits
from userspace_proxy.dataplane.counters import FlowCounters
from userspace_proxy.dataplane.datagram_buffers import DatagramBuffers
from userspace_proxy.dataplane.datagram_memory import BATCH
from userspace_proxy.dataplane.engine import LISTENER_EVENTS, Engine
from userspace_proxy.dataplane.flow_table import FlowTable
from userspace_proxy.dataplane.listener_flows import ListenerFlows
from userspace_proxy.dataplane.sockets import AF, OUT_OF_CAPACITY, errno_name
from userspace_proxy.dataplane.udp_addresses import address_layout
from userspace_proxy.dataplane.udp_flow import TOUCH_S, UdpFlow
from userspace_proxy.dataplane.udp_sockets import (
    BACKEND_UNUSABLE,
    CLIENT_UNREACHABLE,
    NO_BUFFER,
    NO_FLOW_CAPACITY,
    NO_WAY,
    REFUSALS,
    read_drops,
)
from userspace_proxy.model.names import family_of
from userspace_proxy.model.service_port import UdpBalance
from userspace_proxy.plan.state import ListenerSpec, Route

LOG = logging.getLogger(__name__)

BATCHES_PER_EVENT = 2
"""Batches of datagrams passed on before others get their turn: about half a millisecond. Arbitrary."""
PAUSE_S = 0.1
"""Rest after a bug, so that it cannot spin; arbitrary."""


class UdpListener:
    """One listener while it is wanted, and its flows; the socket is lent."""

    __slots__ = (
        "_balance",
        "_dialled",
        "_drops",
        "_has_received",
        "_is_short",
        "_only_pool",
        "_place",
        "_pools",
        "_reader",
        "_route",
        "answers",
        "counters",
        "engine",
        "fd",
        "flows",
        "is_retired",
        "layout",
        "sock",
        "spec",
    )

    def __init__(
        self,
        *,
        engine: Engine,
        spec: ListenerSpec,
        pools: LivePools,
        route: Route,
        limits: FlowLimits,
        counters: FlowCounters,
        table: FlowTable,
        buffers: DatagramBuffers,
    ) -> None:
        """Start without a socket (see ``open``).

        Args:
            engine: Watches the sockets.
            spec: Says what it serves.
            pools: The Backends.
            route: Says for whom they are.
            limits: Bounds the flows.
            counters: Where flows and datagrams are counted.
            table: The flows of all listeners; this one adds and removes its own.
            buffers: Those of the engine.
        """
        self.engine = engine
        self.spec = spec
        self._pools = pools
        self.counters = counters
        self.flows = ListenerFlows(engine, spec.key.service_port, limits, counters, table)
        self._is_short = False
        """Whether nothing was left for the last flow."""
        frontend = spec.key.frontend
        self._dialled = None if frontend is None or frontend.address is None else str(frontend.address)
        """The address that all clients have sent to; None: there are several."""
        self.layout = address_layout(AF[family_of(spec.address)], is_wildcard=spec.address.is_unspecified)
        self._reader = buffers.reader(self.layout)
        self.answers = buffers.answers
        self._route = route
        self._only_pool: LivePool | None = None
        self._balance = UdpBalance.FLOW
        self.sock: socket.socket | None = None
        """None: it was not opened yet, or is closed."""
        self.fd = -1
        self._drops = 0
        """What the kernel has told of dropped datagrams, as far as it is counted."""
        self._has_received = False
        """Since that was asked for: only where there are datagrams to be received, there is no room for more."""
        self._place = ("", 0)
        self.is_retired = False
        self.lead(route)

    def open(self, sock: socket.socket) -> None:
        """Receive from a socket, at first or after ``retire``, instead of the one before if there is one.

        Args:
            sock: From ``open_datagram_sockets``; remains the caller's, who does not close it before ``close`` or the
                next ``open``.

        Raises:
            OSError: the kernel does not watch the socket; nothing has changed.
        """
        if sock is self.sock and not self.is_retired:
            return
        self.engine.add(sock.fileno(), self, LISTENER_EVENTS)
        if not self.is_retired:
            self._drop_queued()
        self._let_go()
        self.sock = sock
        self.fd = sock.fileno()
        self._drops = 0
        self._place = sock.getsockname()[:2]
        self.is_retired = False

    @property
    def place(self) -> tuple[str, int]:
        """The address and port that it is bound to."""
        return self._place

    # Datagrams

    def on_event(self, mask: int) -> None:  # noqa: ARG002
        """Pass on what clients have sent, up to a turn's worth."""
        self._has_received = True
        for _ in range(BATCHES_PER_EVENT):
            batch = self._reader.receive(self.fd)
            self._pass_on(iter(batch))
            if len(batch) < BATCH:
                return

    def _pass_on(self, batch: Iterator[tuple[bytes, memoryview]]) -> None:
        """Pass on what was received; all the rest too, where there is a bug with one."""
        now_s = self.engine.now_s
        flows = self.flows.current
        try:
            for origin, datagram in batch:
                flow = flows.get(origin)
                if flow is None:
                    found = self._flow_for(origin, ())
                    if isinstance(found, DropReason):
                        self._drop(found)
                        continue
                    flow = found
                try:
                    length = flow.send(datagram)
                except OSError as error:
                    sent_by = self._send_after(error, flow, datagram)
                    if sent_by is None:
                        continue
                    flow, length = sent_by, len(datagram)
                flow.datagrams_to_backend += 1
                flow.bytes_to_backend += length
                if not flow.is_answered:
                    flow.keep(datagram)
                if now_s - flow.active_s >= TOUCH_S:
                    self.flows.touch(flow)
        except Exception:
            self._pass_on(batch)
            raise

    def _send_after(self, error: OSError, flow: UdpFlow, datagram: memoryview) -> UdpFlow | None:
        """Send a datagram that could not be sent at first; return the flow by which it was, None if it was dropped.

        Most errors are those of an earlier datagram: the kernel tells them when it gets the next one (udp(7)).
        """
        if error.errno in NO_BUFFER:
            self._drop(DropReason.BUFFER_FULL)
            return None
        if error.errno == errno.EMSGSIZE:
            if not self._send(flow, datagram):
                return None
            self._drop(DropReason.TOO_BIG)
            return flow
        if error.errno not in BACKEND_UNUSABLE:
            self.flows.end(flow, FlowEnd.BUG)
            raise error
        self._forget_kept(flow, error)
        successor = self._replace(flow, error)
        if isinstance(successor, DropReason):
            self._drop(successor)
            return None
        if error.errno not in NO_WAY:
            self._send_kept(flow, successor)
        return successor if self._send(successor, datagram) else None

    def on_backend_failed(self, flow: UdpFlow, error: OSError) -> None:
        """Handle what the kernel has to tell of datagrams that were sent to a Backend."""
        if error.errno == errno.EMSGSIZE:  # it knows now in what pieces to send the next one
            self._drop(DropReason.TOO_BIG)
            return
        if error.errno not in BACKEND_UNUSABLE:
            raise error
        self._forget_kept(flow, error)
        if flow.kept is None:
            self._give_up(flow)
            return
        successor = self._replace(flow, error)
        if isinstance(successor, DropReason):
            self._drop(successor)
        else:
            self._send_kept(flow, successor)

    def _forget_kept(self, flow: UdpFlow, error: OSError) -> None:
        """Keep what was refused no longer if it is too old to be sent once more; count what is lost by that."""
        flow.forget_kept_if_old()
        if flow.kept is None and flow.datagrams_to_backend and error.errno in REFUSALS:
            self._drop(DropReason.REFUSED)

    def _replace(self, flow: UdpFlow, error: OSError) -> UdpFlow | DropReason:
        """Return the flow for what a client sends whose Backend cannot be used: to another one, if there is one."""
        pool = self._choose(flow.origin)
        is_only_one = isinstance(pool, LivePool) and pool.members == [flow.member]
        if is_only_one and flow.detached_s is None and error.errno in REFUSALS:
            return flow  # a new socket would reach the same
        self._give_up(flow)
        if self.is_retired:
            return DropReason.NO_ENDPOINT
        return self.flows.current.get(flow.origin) or self._flow_for(flow.origin, (*flow.tried, flow.member))

    def _give_up(self, flow: UdpFlow) -> None:
        flow.take_rest()
        self.flows.end(flow, FlowEnd.REFUSED)

    def _send_kept(self, flow: UdpFlow, successor: UdpFlow) -> None:
        """Send once more what was kept, if anything was."""
        kept, flow.kept = flow.kept, None
        if kept is not None and self._send(successor, kept):
            successor.kept = None
            successor.datagrams_to_backend += 1
            successor.bytes_to_backend += len(kept)
            self.counters.resent += 1

    def _send(self, flow: UdpFlow, datagram: memoryview | bytes) -> bool:
        """Send a datagram that has no further chance; return whether it was sent, and count what is lost."""
        try:
            try:
                flow.send(datagram)
            except OSError as error:
                if error.errno not in REFUSALS or not flow.datagrams_to_backend:
                    raise
                self._drop(DropReason.REFUSED)  # what was sent before, and is not kept
                flow.send(datagram)
        except OSError as error:
            if not self._count_lost(error, BACKEND_UNUSABLE):
                raise
            return False
        return True

    def on_answer_failed(self, error: OSError) -> bool:
        """Count an answer that could not be delivered; return whether it is known what the error means."""
        return self._count_lost(error, CLIENT_UNREACHABLE)

    def _count_lost(self, error: OSError, unreachable: frozenset[int]) -> bool:
        """Count a datagram that could not be sent, if it is known what the error means; return whether it is."""
        if error.errno in NO_BUFFER:
            self._drop(DropReason.BUFFER_FULL)
        elif error.errno == errno.EMSGSIZE:
            self._drop(DropReason.TOO_BIG)
        elif error.errno in unreachable:
            self._drop(DropReason.UNREACHABLE)
        else:
            return False
        return True

    def _drop(self, reason: DropReason) -> None:
        self.counters.dropped[reason] += 1

    # Flows

    def _flow_for(self, origin: bytes, tried: tuple[Member, ...]) -> UdpFlow | DropReason:
        """Return a flow for a datagram that has none, or why there can be none.

        Args:
            origin: Who has sent it, and where to.
            tried: The Members that the datagram was sent to in vain; again their turn only if there are no others.
        """
        pool = self._choose(origin)
        if isinstance(pool, DropReason):
            return pool
        client = self.layout.client(origin)
        name, now_s = client[0], self.engine.now_s
        reason = DropReason.NO_ENDPOINT
        member = pool.pick_for(name, tried, now_s)
        if member is None:
            tried = ()
            member = pool.pick_for(name, tried, now_s)
        while member is not None:
            key = (origin, member) if self._balance is UdpBalance.DATAGRAM else origin
            flow = self.flows.current.get(key)
            if flow is not None:
                return flow
            self.flows.make_room()
            try:
                sock = self.flows.connect(member)
                flow = UdpFlow(
                    listener=self,
                    origin=origin,
                    key=key,
                    client=client,
                    answer=self.layout.answer(origin),
                    pool=pool,
                    tried=tried,
                    member=member,
                    sock=sock,
                )
                self.flows.add(flow)
            except OSError as error:
                if error.errno in NO_FLOW_CAPACITY:
                    self._tell_short(error.errno)
                    return DropReason.NO_DESCRIPTOR
                if error.errno not in BACKEND_UNUSABLE:
                    raise
                reason = DropReason.UNREACHABLE
                tried = (*tried, member)
                member = pool.pick_for(name, tried, now_s)
            else:
                self._is_short = False
                return flow
        return reason

    def _choose(self, origin: bytes) -> LivePool | DropReason:
        """Return the Pool to which the Route leads who has sent a datagram, or why none."""
        name, port = self.layout.client(origin)
        arrived_at = self.layout.local_address(origin) if self.layout.is_wildcard else self._place[0]
        if port == self._place[1] and (name == arrived_at or (self.layout.is_wildcard and self._pools.is_local(name))):
            return DropReason.DENIED  # answers would come back here and be passed on again, for ever
        if self._only_pool is not None:
            return self._only_pool
        pool = self._pools.choose(self._route, name, self._dialled or arrived_at)
        if isinstance(pool, CloseReason):
            return DropReason.DENIED if pool is CloseReason.DENIED else DropReason.NO_ENDPOINT
        return pool

    def _tell_short(self, error_number: int) -> None:
        if not self._is_short:
            self._is_short = True
            LOG.warning(
                "no descriptor, local port or memory for another flow; datagrams of new clients are dropped",
                extra={"service": str(self.spec.key.service_port), "errno": errno_name(error_number)},
            )

    # What is wanted

    def lead_again(self) -> None:
        """Look again at the Pools that the Route leads to: one of them has changed, comes or goes."""
        self.lead(self._route)

    def lead(self, route: Route) -> None:
        """Put a Route in force.

        Flows whose Backend serves stay with it, unless the new Route keeps their client out.
        """
        is_new = route != self._route
        self._route = route
        self._only_pool = self._pools.only_pool(route)
        balance = self._balance
        settings = self._pools.udp_settings(route)
        if settings is not None:
            self._balance = settings.balance
            self.flows.idle_timeout_s = settings.idle_timeout_s
        stale = [
            flow
            for flow in self.flows.current.values()
            if not flow.member.is_serving
            or balance is not self._balance
            or (is_new and isinstance(self._choose(flow.origin), DropReason))
        ]
        if stale:
            self.flows.detach(stale, FlowEnd.ENDPOINT_GONE)

    def retire(self, reason: FlowEnd) -> None:
        """Take no more datagrams, which the kernel refuses by now, and deliver answers for a while by the same socket.

        Args:
            reason: Why the flows end.
        """
        if self.sock is None or self.is_retired:
            return
        self.is_retired = True
        self._drop_queued()
        self._unwatch()
        self.flows.detach(list(self.flows.current.values()), reason)

    def _drop_queued(self) -> None:
        """Drop what has come for nobody, as there were no Backends: no more comes by the socket that it has."""
        with suppress(OSError):  # somebody may have destroyed the socket (ss -K)
            while self.sock is not None and (batch := self._reader.receive(self.fd)):
                self.counters.dropped[DropReason.NO_ENDPOINT] += len(batch)

    def stop(self) -> None:
        """Retire as the proxy stops; flows that were silent for a while are not waited for."""
        self.flows.end_silent(FlowEnd.STOPPED)
        self.retire(FlowEnd.STOPPED)

    def close(self, reason: FlowEnd) -> None:
        """Take no more datagrams and end all flows at once; nothing leaves any more."""
        self.flows.end_all(reason)
        self._let_go()

    def _let_go(self) -> None:
        sock = self.sock
        if sock is not None:
            self.answers.send_all()  # what has come in this batch of events would meet a closed socket
            self._count_drops(sock)
            self._unwatch()
            self.sock = None
            self.fd = -1  # whoever should use it by mistake must not meet another socket

    def _unwatch(self) -> None:
        if self.fd in self.engine.handlers:
            self.engine.remove(self.fd)

    def on_bug(self) -> None:
        """Rest a little, so that what went wrong cannot spin."""
        if self.sock is not None and not self.is_retired:
            self._unwatch()
            self.engine.timers.add(self.engine.now_s, PAUSE_S, self._watch_again)

    def _watch_again(self) -> None:
        if self.sock is not None and not self.is_retired and self.fd not in self.engine.handlers:
            try:
                self.engine.add(self.fd, self, LISTENER_EVENTS)
            except OSError as error:
                if error.errno not in OUT_OF_CAPACITY:
                    raise
                self.on_bug()

    # Figures

    def report(self) -> None:
        """Bring the counters up to date."""
        if self.counters.active:
            for flow in self.flows:
                self.flows.report(flow)
        if self.sock is not None and self._has_received:
            self._count_drops(self.sock)

    def _count_drops(self, sock: socket.socket) -> None:
        self._has_received = False
        drops = read_drops(sock)
        self.counters.dropped[DropReason.BUFFER_FULL] += drops - self._drops
        self._drops = drops

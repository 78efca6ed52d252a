"""TcpListener: accepts the connections of a listening socket it is lent, and starts a relay for each.

Its Route says to which Pool a client is led; a client that there is none for is reset at once, and where only steered
clients are served, so is one that dialled the very place of the listener. It never waits for a Backend. Out of
descriptors, or at the cap of connections, it stops accepting for a while: clients queue in the kernel, nothing spins
and nothing is lost.
"""

import errno
import logging
import select
import socket
from collections.abc import Callable

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.balance.live_pool import LivePool, Member
from userspace_proxy.balance.live_pools import LivePools
from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.counters import ServiceCounters
from userspace_proxy.dataplane.engine import LISTENER_EVENTS, Engine
from userspace_proxy.dataplane.sockets import (
    ACCEPT_LOST,
    AF,
    OUT_OF_CAPACITY,
    errno_name,
    set_reset_on_close,
    was_steered,
)
from userspace_proxy.dataplane.tcp_relay import TcpRelay
from userspace_proxy.dataplane.timers import Deadlines
from userspace_proxy.model.names import family_of
from userspace_proxy.plan.state import ListenerKey, ListenerSpec, Route
from userspace_proxy.telemetry.log_format import CONNECTION_LOGGER

LOG = logging.getLogger(__name__)
CONNECTION_LOG = logging.getLogger(CONNECTION_LOGGER)

ACCEPTS_PER_EVENT = 32
"""Connections accepted before others get their turn; arbitrary."""
PAUSE_S = 0.1
"""Rest after running out of descriptors; what trio's serve_listeners uses."""
SHARED_LISTENER_EVENTS = LISTENER_EVENTS | select.EPOLLEXCLUSIVE
"""Of a socket from which several engines accept: one client is to wake one of them (epoll_ctl(2))."""


class TcpListener:
    """One listener while it is wanted; its relays live on after that."""

    __slots__ = (
        "_burst",
        "_dialled",
        "_events",
        "_family",
        "_full",
        "_last_poll",
        "_on_stopped",
        "_only_pool",
        "_paused",
        "_pools",
        "_route",
        "connections",
        "counters",
        "engine",
        "limits",
        "relays",
        "sock",
        "spec",
        "young",
    )

    def __init__(
        self,
        *,
        engine: Engine,
        spec: ListenerSpec,
        pools: LivePools,
        route: Route,
        limits: RelayLimits,
        counters: ServiceCounters,
        relays: dict[TcpRelay, None],
        on_stopped: Callable[[ListenerKey], None],
    ) -> None:
        """Start without a socket (see ``open``).

        Args:
            engine: Watches the socket.
            spec: Says what it serves.
            pools: The Backends.
            route: Says for whom they are.
            limits: Bounds each connection.
            counters: Where connections are counted.
            relays: The live relays of all listeners; this one adds and removes its own.
            on_stopped: See ``EngineListeners``.
        """
        self.engine = engine
        self.spec = spec
        self.sock: socket.socket | None = None
        """None: it has retired, or was not opened yet."""
        self._pools = pools
        self.limits = limits
        self.counters = counters
        self.relays = relays
        self.connections = 0
        """Open ones."""
        self._on_stopped = on_stopped
        self.young: Deadlines[TcpRelay] = Deadlines(
            engine.timers, min(limits.dial_next_after_s, limits.dial_timeout_s), self._look_at_young
        )
        """Connections that have not been looked after yet."""
        self._family = int(AF[family_of(spec.address)])
        self._events = LISTENER_EVENTS
        self._burst = 1
        """Accepts at the last event."""
        self._last_poll = 0
        """When that was (``Engine.polls``)."""
        self._paused = False
        self._full = False
        frontend = spec.key.frontend
        self._dialled = None if frontend is None or frontend.address is None else str(frontend.address)
        """The address that all clients have dialled; None: there are several."""
        self.lead(route)

    def open(self, sock: socket.socket, *, is_shared: bool) -> None:
        """Accept from a socket, instead of the one before if there is one.

        Args:
            sock: Remains the caller's; not to be closed before ``stop`` or the next ``open``.
            is_shared: Other engines accept from it, too.

        Raises:
            OSError: the kernel does not watch the socket; nothing has changed.
        """
        events = SHARED_LISTENER_EVENTS if is_shared else LISTENER_EVENTS
        is_watched = sock is not self.sock and not (self._paused or self._full)
        if is_watched:
            self.engine.add(sock.fileno(), self, events)
            self._unwatch()
        self.sock = sock
        self._events = events

    def lead_again(self) -> None:
        """Look again at the Pools that the Route leads to: one of them has changed, comes or goes."""
        self.lead(self._route)

    def lead(self, route: Route) -> None:
        """Put a Route in force for new connections."""
        self._route = route
        self._only_pool = None if self.spec.only_steered else self._pools.only_pool(route)

    def on_event(self, mask: int) -> None:  # noqa: ARG002
        """Accept what is queued, up to a turn's worth."""
        sock = self.sock
        cap = self.limits.max_connections
        counters = self.counters
        # One accept, and no second one only to learn that nobody else waits; but if the next poll says again that
        # clients wait, twice as many.
        polls = self.engine.polls
        self._burst = min(2 * self._burst, ACCEPTS_PER_EVENT) if polls == self._last_poll + 1 else 1
        self._last_poll = polls
        if self._burst == 1:
            self._requeue()
        for _ in range(self._burst):
            if self._paused or sock is None:
                return
            try:
                # What socket.accept does, less the class written in Python around it (about 2 us).
                fd, address = sock._accept()  # type: ignore[attr-defined] # noqa: SLF001
            except BlockingIOError:
                self._last_poll = 0  # nobody else waits: the next event starts with one accept again
                self._requeue()
                return
            except OSError as error:
                self._accept_failed(error)
                continue
            accepted = socket.SocketType(self._family, socket.SOCK_STREAM, 0, fd)
            pool = self._only_pool or self._choose(accepted, address[:2])
            if pool is None:
                continue
            counters.connections += 1
            counters.active += 1
            self.connections += 1
            try:
                TcpRelay(self, pool, accepted, address)
            except OSError as error:
                if error.errno not in OUT_OF_CAPACITY:
                    raise
                counters.active -= 1
                self.connections -= 1
                self._refuse(accepted, address[:2], CloseReason.RESOURCE)
                self.pause(error.errno)
                return
            if self.connections == cap:  # now, not with the next client: it would wake this engine and no other one
                self._full = True
                self._unwatch()
                return

    def _requeue(self) -> None:
        """Leave the next client to the other engines that accept from the same socket, if they are idle."""
        if self._events is not SHARED_LISTENER_EVENTS or self.sock is None:
            return
        try:
            self.engine.requeue(self.sock.fileno(), self._events)
        except OSError as error:
            if error.errno not in OUT_OF_CAPACITY:
                raise
            self.pause(error.errno)

    def _accept_failed(self, error: OSError) -> None:
        """Pause where there is no room for another connection; raise what is unexpected."""
        if error.errno in OUT_OF_CAPACITY:
            self.pause(error.errno)
        elif error.errno == errno.EINVAL:  # accept(2): it does not listen
            self._rest()
            self._on_stopped(self.spec.key)
        elif error.errno not in ACCEPT_LOST:
            raise error

    def _choose(self, accepted: socket.SocketType, client_address: tuple[str, int]) -> LivePool | None:
        """Return the Pool to which the Route leads a client; without one, reset it."""
        pool: LivePool | CloseReason
        if self.spec.only_steered and not was_steered(accepted):
            pool = CloseReason.NOT_STEERED
        else:
            dialled = self._dialled or accepted.getsockname()[0]
            pool = self._pools.choose(self._route, client_address[0], dialled)
        if isinstance(pool, LivePool):
            return pool
        self.counters.connections += 1
        self._refuse(accepted, client_address, pool)
        return None

    def _refuse(self, accepted: socket.SocketType, client_address: tuple[str, int], reason: CloseReason) -> None:
        """Reset a client that has no relay."""
        set_reset_on_close(accepted)
        accepted.close()
        self.counters.closed[reason.who, reason.phase] += 1
        if CONNECTION_LOG.isEnabledFor(logging.INFO):
            self._log_connection(client_address, reason)

    def on_bug(self) -> None:
        """Rest a little, so that what went wrong cannot spin."""
        self._rest()

    def pause(self, error_number: int) -> None:
        """Stop accepting for a moment: there are no descriptors, or no memory, for another connection."""
        name = errno_name(error_number)
        self.engine.counters.accept_pauses[name] += 1
        if not self._paused:
            LOG.warning(
                "no descriptor or memory for another connection; accepting pauses, clients queue",
                extra={"service": str(self.spec.key.service_port), "errno": name},
            )
            self._rest()

    def _rest(self) -> None:
        if self.sock is not None and not self._paused:
            self._paused = True
            self._unwatch()
            self.engine.timers.add(self.engine.now_s, PAUSE_S, self._resume)

    def _resume(self) -> None:
        """Accept again if there is a descriptor: else a client would wake this engine in vain, and no other one."""
        self._paused = False
        if self.sock is not None:
            try:
                self.sock.dup().close()
            except OSError as error:
                if error.errno not in OUT_OF_CAPACITY:
                    raise
                self.pause(error.errno)
            else:
                self._watch_again()

    def _watch_again(self) -> None:
        if self.sock is not None and not self._paused and not self._full:
            try:
                self.engine.add(self.sock.fileno(), self, self._events)
            except OSError as error:
                if error.errno not in OUT_OF_CAPACITY:
                    raise
                self._rest()

    def _look_at_young(self) -> None:
        engine = self.engine
        engine.run([relay.on_first_look for relay in self.young.take_due(engine.now_s)])

    def _unwatch(self) -> None:
        """Have the engine forget the socket: it must before that is closed, as others have the same one."""
        if self.sock is not None and self.sock.fileno() in self.engine.handlers:
            self.engine.remove(self.sock.fileno())

    def count_dial(self, outcome: str) -> None:
        """Count a dial that did not connect."""
        self.counters.dials[outcome] += 1

    def count_connected(self, member: Member, duration_s: float) -> None:
        """Count a dial that connected."""
        member.connections += 1
        self.counters.dials["connected"] += 1
        self.engine.counters.dial_duration.observe(duration_s)

    def on_closed(self, relay: TcpRelay, reason: CloseReason) -> None:
        """Account for a relay that has just ended."""
        self.relays.pop(relay, None)
        self.connections -= 1
        self.report_bytes(relay)
        counters = self.counters
        counters.active -= 1
        counters.closed[reason.who, reason.phase] += 1
        if CONNECTION_LOG.isEnabledFor(logging.INFO):
            self._log_connection(relay.client_address, reason, relay)
        if self._full:
            self._full = False
            self._watch_again()

    def report_bytes(self, relay: TcpRelay) -> None:
        """Add to the counters what a relay has moved since the last time."""
        client, backend = relay.client, relay.backend
        self.counters.bytes_to_backend += client.byte_count - client.reported_byte_count
        client.reported_byte_count = client.byte_count
        if backend is not None:
            self.counters.bytes_to_client += backend.byte_count - backend.reported_byte_count
            backend.reported_byte_count = backend.byte_count

    def stop(self) -> None:
        """Accept no more, until it is opened again."""
        self._unwatch()
        self.sock = None

    def _log_connection(
        self, client_address: tuple[str, int], reason: CloseReason, relay: TcpRelay | None = None
    ) -> None:
        now_s = self.engine.now_s
        member = None if relay is None else relay.member
        backend = None if relay is None else relay.backend
        CONNECTION_LOG.info(
            "connection ended",
            extra={
                "service": str(self.spec.key.service_port),
                "client": "{} port {}".format(*client_address),
                "backend": None if member is None else str(member.backend),
                "reason": str(reason),
                "dial_duration_s": 0.0 if relay is None else round((relay.connected_s or now_s) - relay.accepted_s, 6),
                "duration_s": 0.0 if relay is None else round(now_s - relay.accepted_s, 6),
                "bytes_to_backend": 0 if relay is None else relay.client.byte_count,
                "bytes_to_client": 0 if backend is None else backend.byte_count,
            },
        )

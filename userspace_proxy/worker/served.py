"""Served: the sockets that a worker was sent, and what its engine does with them.

Each command takes effect as it comes, and may come again. The sockets are this process's copies of what control holds:
they are closed as soon as nobody here uses them. Entry point: ``Served``.
"""

import logging
import socket
from collections.abc import Callable, Iterator

from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.engine_listeners import EngineListeners
from userspace_proxy.dataplane.sockets import AF
from userspace_proxy.ipc.commands import (
    Close,
    Command,
    Forget,
    Lead,
    Remember,
    RemovePool,
    Retire,
    Serve,
    SetPool,
    SetSources,
    Start,
    Stop,
)
from userspace_proxy.model.names import Protocol, family_of
from userspace_proxy.plan.state import ListenerKey, ListenerSpec

LOG = logging.getLogger(__name__)


class Served:
    """Owns the sockets of the listeners."""

    def __init__(
        self, engine: Engine, start: Start, random: Callable[[], float], on_stopped: Callable[[int], None]
    ) -> None:
        """Start without any.

        Args:
            engine: Serves them.
            start: Has the limits.
            random: See ``EngineListeners``.
            on_stopped: Called with the number of a listener where ``EngineListeners`` says its key.
        """
        self._engine = engine
        self._on_stopped = on_stopped
        self.listeners = EngineListeners(engine, start.limits, start.flow_limits, random, self._tell_stopped)
        self._numbers: dict[ListenerKey, int] = {}
        """Of the listeners that are known here (see ``Serve``)."""
        self._sockets: dict[ListenerKey, socket.socket] = {}
        """Those that are still of use."""
        self._has_told = False
        """Whether the log says already that there is no room."""

    def serve(self, command: Serve, fds: Iterator[int]) -> bool:
        """Serve the clients of a socket; return whether there was room for it."""
        spec = command.spec
        fd = next(fds, None)
        if fd is None:
            self._tell_no_room("too few file descriptors are allowed (ulimit -n)")
            return False
        sock = _socket_of(spec, fd)
        try:
            self.listeners.serve(spec, command.route, (sock,), is_shared=command.is_shared)
        except OSError as error:  # ENOSPC, ENOMEM of epoll_ctl(2)
            sock.close()
            self._tell_no_room(f"the kernel watches no more file descriptors: {error.strerror}")
            return False
        self._let_go(spec.key)
        self._sockets[spec.key] = sock
        self._numbers[spec.key] = command.number
        self._has_told = False
        return True

    def apply(self, command: Command) -> None:
        """Do what a command says about listeners or Pools; of listeners only if there was room for them."""
        match command:
            case SetPool(pool):
                self.listeners.apply_pool(pool)
            case RemovePool(key):
                self.listeners.remove_pool(key)
            case Lead(key, route) if key in self._numbers:
                self.listeners.lead(key, route)
            case Retire(key) if key in self._numbers:
                self.listeners.retire(key)
                self._let_go_unless_late(key)
            case Close(key):
                self._close(key)
            case Forget(name):
                self.listeners.forget(name)
            case Remember(name, records):
                self.listeners.live_pools.take_over(name, records)
            case SetSources(sources):
                self.listeners.apply_sources(sources)
            case Stop():
                self._stop()

    def _close(self, key: ListenerKey) -> None:
        self.listeners.close(key)
        self._let_go(key)
        self._numbers.pop(key, None)

    def _stop(self) -> None:
        self.listeners.stop()
        for key in list(self._sockets):
            self._let_go_unless_late(key)

    def _tell_stopped(self, key: ListenerKey) -> None:
        self._on_stopped(self._numbers[key])

    def _let_go_unless_late(self, key: ListenerKey) -> None:
        """Close the socket of a listener that has retired, but not where late answers are sent by it."""
        if key.service_port.protocol is not Protocol.UDP:
            self._let_go(key)

    def _let_go(self, key: ListenerKey) -> None:
        """Close the socket of a listener, if there is one; nobody watches it by now."""
        sock = self._sockets.pop(key, None)
        if sock is not None:
            self._engine.close_later(sock)

    def _tell_no_room(self, reason: str) -> None:
        if not self._has_told:
            self._has_told = True
            LOG.error("listeners are not served by this worker, the others go on", extra={"reason": reason})


def _socket_of(spec: ListenerSpec, fd: int) -> socket.socket:
    """Return the socket of a descriptor, which it owns from here on."""
    kind = socket.SOCK_DGRAM if spec.key.service_port.protocol is Protocol.UDP else socket.SOCK_STREAM
    return socket.socket(AF[family_of(spec.address)], kind, 0, fd)

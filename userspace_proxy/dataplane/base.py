"""DataPlane: what a ListenerSet tells to serve clients, be it the engine of this process or those of workers.

Values are replaced whole by their key, so that everything may be said again. Entry point: ``DataPlane``.
"""

import socket
from typing import Protocol

from userspace_proxy.model.names import ServicePortName
from userspace_proxy.plan.state import ListenerKey, ListenerSpec, Pool, PoolKey, Route, SourceAddresses


class DataPlane(Protocol):
    """Moves bytes between the clients of some sockets and the Backends of some Pools. It owns no socket."""

    @property
    def members(self) -> int:
        """Engines that serve, at least 1; it does not change."""

    def apply_sources(self, sources: SourceAddresses) -> None:
        """Tell the class of clients by this from now on."""

    def apply_pool(self, pool: Pool) -> None:
        """Put a Pool in force for all listeners whose Route leads to it."""

    def remove_pool(self, key: PoolKey) -> None:
        """Forget a Pool; Routes that lead to it lead nowhere."""

    def serve(self, spec: ListenerSpec, route: Route, sockets: tuple[socket.socket, ...]) -> None:
        """Serve the clients of sockets by a Route, from now on or again, instead of those of its sockets before.

        Args:
            spec: What is served, and where. A listener of the same key elsewhere was closed before.
            route: Says for whom the Backends are.
            sockets: Non-blocking ones that listen, or receive: one for all members, or one for each. They remain the
                caller's, who keeps them open until ``close``, or until the listener has got others: so that what is in
                their queues survives the engine that serves them.

        Raises:
            OSError: the kernel does not watch the sockets (epoll_ctl(2)); nothing has changed.
        """

    def lead(self, key: ListenerKey, route: Route) -> None:
        """Put another Route in force for new clients of a listener that serves."""

    def retire(self, key: ListenerKey) -> None:
        """Take no more clients of a listener, if it is known, whose sockets refuse them by now; it may serve again.

        Flows end as there are no Backends, and their late answers are delivered by the sockets it has.
        """

    def close(self, key: ListenerKey) -> None:
        """Take no more clients of a listener, if it is known; its connections live on, its flows end at once."""

    def forget(self, name: ServicePortName) -> None:
        """Drop the counters of a ServicePort whose last listener was closed."""

    def stop(self) -> None:
        """Take no more clients at all; connections go on, and late answers of flows are delivered."""

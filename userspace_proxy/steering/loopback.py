"""Steering without any right: each Service has a 127.x.y.z of its own, and its Listeners are bound there.

Nothing leads from a cluster address to it, so users dial the loopback address instead; it is the same after a restart.
Entry point: ``open_loopback``.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import trio

from userspace_proxy.config import SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from userspace_proxy.plan.state import Frontend, FrontendKind, ListenerSpec
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.base import (
    Placement,
    ServiceSteering,
    Steering,
    Surroundings,
    listener_key,
    node_port_placement,
)
from userspace_proxy.steering.low_ports import find_first_port

PORT_OFFSET = 10000
"""Added to a port that may not be bound, again if the Service has a port of that number itself. Arbitrary, but easy
to do in one's head: 80 is at 10080."""

_LAST_PORT = 65535


def open_loopback(assignments: Assignments) -> "LoopbackSteering":
    """Return steering by loopback addresses, tried by a connection to one.

    Raises:
        SteeringError: they cannot be bound here; one clause says why.
    """
    try:
        return LoopbackSteering(assignments, find_first_port(assignments.loopback_range))
    except OSError as error:
        raise SteeringError(f"loopback addresses cannot be used: {error.strerror or error}; is lo up?") from error


class LoopbackSteering(Steering):
    """Loopback addresses of Services.

    Args:
        assignments: Who has which address.
        first_port: The lowest port that may be bound; Services' ports below it are moved up.
    """

    kind: ClassVar[SteeringKind] = SteeringKind.LOOPBACK
    clients_dial_listener: ClassVar[bool] = True

    def __init__(self, assignments: Assignments, first_port: int) -> None:
        super().__init__()
        self._assignments = assignments
        self._first_port = first_port

    def place(self, frontends: Iterable[Frontend]) -> tuple[Placement, ...]:
        """Return one Listener for each ServicePort at the Service's loopback address, one for each NodePort.

        IPv4 and IPv6 would meet at the same address and port: IPv6 is served there if there is no IPv4. An external or
        load balancer address has no place of its own: its policy would meet that of the cluster address.
        """
        frontends = tuple(frontends)
        served = {frontend.service_port: frontend for frontend in _cluster_frontends(frontends)}
        ports = self._bindable_ports(served.values())
        placements = []
        for frontend in frontends:
            if (placement := node_port_placement(frontend)) is not None:
                placements.append(placement)
            elif served.get(frontend.service_port) is frontend:
                address = self._assignments.loopback_address(str(frontend.service_port.service))
                key = listener_key(frontend, is_shared=False)
                placements.append(Placement(frontend, ListenerSpec(key, address, ports[frontend.service_port])))
        return tuple(placements)

    async def apply(self, changed: Mapping[NamespacedName, ServiceSteering], surroundings: Surroundings) -> None:  # noqa: ARG002 - see base
        """Keep the addresses of the Services for a restart (see ``Steering``)."""
        asked = self._assignments.asked
        gone = [str(name) for name, service in changed.items() if not service.placements]
        await trio.lowlevel.checkpoint()
        self._assignments.release(gone, asked)
        self._assignments.save()

    async def refresh(self) -> None:
        """Do nothing: loopback addresses do not change (see ``Steering``)."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Do nothing: nothing outlives the Listeners (see ``Steering``)."""
        await trio.lowlevel.checkpoint()

    def _bindable_ports(self, frontends: Iterable[Frontend]) -> dict[ServicePortName, int]:
        """Return the port of each ServicePort, for all those of one Service.

        Raises:
            SteeringError: one cannot be moved to where it may be bound.
        """
        ports: dict[ServicePortName, int] = {}
        taken: set[tuple[Protocol, int]] = set()
        low = []
        for frontend in frontends:
            if frontend.port < self._first_port:
                low.append(frontend)
            else:
                ports[frontend.service_port] = frontend.port
                taken.add((frontend.protocol, frontend.port))
        for frontend in sorted(low, key=lambda each: each.port):
            for port in range(frontend.port + PORT_OFFSET, _LAST_PORT + 1, PORT_OFFSET):
                if port >= self._first_port and (frontend.protocol, port) not in taken:
                    ports[frontend.service_port] = port
                    taken.add((frontend.protocol, port))
                    break
            else:
                raise SteeringError(
                    f"port {frontend.port} of {frontend.service_port} may not be bound, nor may any port that is a "
                    f"multiple of {PORT_OFFSET} above it; lower net.ipv4.ip_unprivileged_port_start"
                )
        return ports


def _cluster_frontends(frontends: Iterable[Frontend]) -> list[Frontend]:
    """Return the Frontends at cluster addresses, IPv4 last."""
    found = [frontend for frontend in frontends if frontend.kind is FrontendKind.CLUSTER_IP]
    return sorted(found, key=lambda frontend: frontend.family is Family.IPV4)

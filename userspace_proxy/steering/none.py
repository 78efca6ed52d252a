"""No steering: NodePorts only. Entry point: ``NoSteering``."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

import trio

from userspace_proxy.config import SteeringKind
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.plan.state import Frontend
from userspace_proxy.steering.base import Placement, ServiceSteering, Steering, Surroundings, node_port_placement


class NoSteering(Steering):
    """Leads nothing anywhere; what is bound directly works all the same."""

    kind: ClassVar[SteeringKind] = SteeringKind.NONE

    def place(self, frontends: Iterable[Frontend]) -> tuple[Placement, ...]:
        """Return the NodePorts (see ``Steering``)."""
        placements = (node_port_placement(frontend) for frontend in frontends)
        return tuple(placement for placement in placements if placement is not None)

    async def apply(self, changed: Mapping[NamespacedName, ServiceSteering], surroundings: Surroundings) -> None:  # noqa: ARG002 - see base
        """Do nothing (see ``Steering``)."""
        await trio.lowlevel.checkpoint()

    async def refresh(self) -> None:
        """Do nothing (see ``Steering``)."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Do nothing (see ``Steering``)."""
        await trio.lowlevel.checkpoint()

"""FlowTable: the UDP flows of all listeners together, the one that was silent for longest first.

It ends none: it only says which one is to go. Entry point: ``FlowTable``.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from userspace_proxy.dataplane.udp_flow import UdpFlow


class FlowTable:
    """All flows of an engine in the order in which they were used last."""

    __slots__ = ("_flows", "max_flows")

    def __init__(self, max_flows: int) -> None:
        """Start empty.

        Args:
            max_flows: How many there may be, at least 1; whoever adds one sees to it.
        """
        self.max_flows = max_flows
        self._flows: OrderedDict[UdpFlow, None] = OrderedDict()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._flows)

    def __iter__(self) -> Iterator["UdpFlow"]:
        """Iterate over them; none may come or go meanwhile."""
        return iter(self._flows)

    @property
    def oldest(self) -> "UdpFlow | None":
        """The one that was silent for longest."""
        return next(iter(self._flows), None)

    def add(self, flow: "UdpFlow") -> None:
        """Add a flow that is being used."""
        self._flows[flow] = None

    def touch(self, flow: "UdpFlow") -> None:
        """Note that a flow is being used."""
        self._flows.move_to_end(flow)

    def remove(self, flow: "UdpFlow") -> bool:
        """Forget a flow that ends; return whether it had not ended before."""
        if flow not in self._flows:
            return False
        del self._flows[flow]
        return True

"""Hands on what the watches of the API server say, and tells when all of it is known.

Entry points: ``Sync``, ``hand_on``.

Source: kube-proxy's ``pkg/proxy/iptables/proxier.go`` (nothing is done before both lists are complete) and
``cmd/kube-proxy/app/server.go`` (how long it waits for the Node).
"""

import math

import trio
from attrs import define, field

from userspace_proxy.sources.api_handover import Handover
from userspace_proxy.sources.api_watch import Listed, ListRefused, Report
from userspace_proxy.sources.base import Synced, WatchEvent, WatchEvents

NODE_WAIT_S = 30.0
"""For the Node, once all else is known; as long as kube-proxy waits."""
_NODES = "nodes"


@define(eq=False)
class Sync:
    """Whether all is known."""

    _missing: set[str]
    """Names of resources that were not listed yet."""
    deadline_s: float = field(default=math.inf, init=False)
    """When to go on without the Node, by the clock of trio; infinite: not yet, or not any more."""
    _is_told: bool = field(default=False, init=False)

    def take(self, report: Listed | ListRefused) -> None:
        """Take in that a resource was listed; the Node may also be withheld."""
        if isinstance(report, Listed) or report.resource == _NODES:
            self._missing.discard(report.resource)
        if self._missing == {_NODES}:
            self.deadline_s = min(self.deadline_s, trio.current_time() + NODE_WAIT_S)

    def is_complete(self) -> bool:
        """Return True once, when all is known."""
        is_late = trio.current_time() >= self.deadline_s
        if self._is_told or (self._missing and not is_late):
            return False
        self._is_told = True
        self._missing.clear()
        self.deadline_s = math.inf
        return True


async def hand_on(handover: Handover[Report], send: trio.MemorySendChannel[WatchEvents], sync: Sync) -> None:
    """Send the next batch, and whether all is known with it."""
    events: list[WatchEvent] = []
    with trio.move_on_at(sync.deadline_s):
        for report in await handover.take():
            if isinstance(report, Listed | ListRefused):
                sync.take(report)
            else:
                events.append(report)
    if events:
        await send.send(events)
    if sync.is_complete():
        await send.send([Synced()])

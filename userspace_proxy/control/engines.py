"""Engines: what serves the clients, be it one engine in this process or one in each worker.

The rest of the control process knows only this. Entry point: ``Engines``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from userspace_proxy.dataplane.base import DataPlane
from userspace_proxy.dataplane.counters import EngineCounters


class Engines(ABC):
    """All engines of this proxy, until ``abort``."""

    @property
    @abstractmethod
    def plane(self) -> DataPlane:
        """What they serve; it may be told before ``run``, and while they do not run."""

    @property
    @abstractmethod
    def failures(self) -> tuple[str, ...]:
        """Why some do not serve, a sentence each; empty when all do."""

    @property
    @abstractmethod
    def serves(self) -> bool:
        """Whether there is at least one that serves, and they do not fail again and again."""

    @abstractmethod
    async def run(self) -> None:
        """Have them serve, for ever."""

    @abstractmethod
    async def settle(self) -> Mapping[str, bool]:
        """Wait until what ``plane`` was told is in force in all engines, for a short time at most.

        Returns:
            By the name of each engine, whether it is.
        """

    @abstractmethod
    async def counters(self) -> Mapping[str, EngineCounters]:
        """Return the counters by the name of each engine, as they are now where it answers in time, else as last known.

        What engines have counted that are gone is in those of their successors: no sum ever goes down.
        """

    @abstractmethod
    async def wait_empty(self) -> None:
        """Wait until no connection and no flow is open; to be called after ``plane.stop``."""

    @property
    @abstractmethod
    def open_now(self) -> tuple[int, int]:
        """Connections and flows that are open, as last known."""

    @abstractmethod
    async def log_state(self) -> None:
        """Write what is open to the log."""

    @abstractmethod
    def abort(self) -> None:
        """End all connections and flows at once; nothing is served any more."""

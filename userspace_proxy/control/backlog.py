"""Backlog: the changes that are not in force yet: since when, how many, and what set them off.

A change is queued, then being reconciled, and where rules have to follow it waits for steering; then it is in force.
What cannot be brought into force stays where it is and ages. Decides nothing and knows no clock. Entry point:
``Backlog``.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from attrs import define, field

from userspace_proxy.model.names import Family, NamespacedName

Trigger = tuple[Family, float]
"""The family of an EndpointSlice that has changed, and ``EndpointSlice.triggered_at_s``."""


@define(eq=False)
class Batch:
    """Changes that come into force together."""

    since_s: float | None = None
    """When the oldest of them came, in seconds since the epoch; None: there are none."""
    begun_s: float | None = None
    """When the first reconcile for one of them began, on trio's clock; None: there was none yet."""
    service_changes: int = 0
    """Of Services."""
    endpoint_changes: int = 0
    """Of EndpointSlices."""
    triggers: dict[NamespacedName, list[Trigger]] = field(factory=lambda: defaultdict(list))
    """By Service."""

    def merge(self, other: "Batch") -> None:
        """Take over the changes of another batch."""
        self.since_s = _earlier(self.since_s, other.since_s)
        self.begun_s = _earlier(self.begun_s, other.begun_s)
        self.service_changes += other.service_changes
        self.endpoint_changes += other.endpoint_changes
        for service, triggers in other.triggers.items():
            self.triggers[service] += triggers

    def all_triggers(self) -> Iterator[Trigger]:
        """Iterate over what set its changes off."""
        for triggers in self.triggers.values():
            yield from triggers


class Backlog:
    """The changes on their way, by how far they have come."""

    def __init__(self) -> None:
        """Start without any."""
        self.queued = Batch()
        self._reconciling = Batch()
        self._unsteered = Batch()
        """Reconciled, and steering has not been told yet."""
        self._steering = Batch()
        """Steering is busy with them."""

    @property
    def pending_since_s(self) -> float | None:
        """When the oldest change came that is not in force, in seconds since the epoch; None: all are."""
        oldest = None
        for batch in self._batches():
            oldest = _earlier(oldest, batch.since_s)
        return oldest

    @property
    def service_changes(self) -> int:
        """The changes of Services that are not in force."""
        return sum(batch.service_changes for batch in self._batches())

    @property
    def endpoint_changes(self) -> int:
        """The changes of EndpointSlices that are not in force."""
        return sum(batch.endpoint_changes for batch in self._batches())

    def queue(self, now_s: float) -> None:
        """Note that something has changed.

        Args:
            now_s: In seconds since the epoch.
        """
        self.queued.since_s = _earlier(self.queued.since_s, now_s)

    def start_reconcile(self, started_s: float) -> None:
        """Move what is queued on: it is being reconciled from here on, with what a bug has left from the last time.

        Args:
            started_s: On trio's clock.
        """
        if self.queued.since_s is not None:
            self.queued.begun_s = started_s
        self._reconciling.merge(self.queued)
        self.queued = Batch()

    def end_reconcile(self, replanned: Collection[NamespacedName], unsteered: Collection[NamespacedName]) -> Batch:
        """Return what is in force now; what rules have to follow for waits for steering.

        Args:
            replanned: The Services that were reconciled.
            unsteered: The Services that steering has not been told of.
        """
        done, self._reconciling = self._reconciling, Batch()
        if unsteered and any(name in unsteered for name in replanned):
            waiting = Batch(done.since_s, done.begun_s, done.service_changes, done.endpoint_changes)
            for name in done.triggers.keys() & unsteered:
                waiting.triggers[name] = done.triggers.pop(name)
            self._unsteered.merge(waiting)
            done = Batch(triggers=done.triggers)
        return done

    def start_steering(self) -> None:
        """Move on what waits for steering."""
        self._steering.merge(self._unsteered)
        self._unsteered = Batch()

    def end_steering(self) -> Batch:
        """Return what is in force now that steering is."""
        done, self._steering = self._steering, Batch()
        return done

    def fail_steering(self, now_s: float) -> None:
        """Note that steering is not as it should be; what it was busy with waits again.

        Args:
            now_s: In seconds since the epoch.
        """
        self._unsteered.merge(self.end_steering())
        self._unsteered.since_s = _earlier(self._unsteered.since_s, now_s)

    def _batches(self) -> Iterable[Batch]:
        return (self.queued, self._reconciling, self._unsteered, self._steering)


def _earlier(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)

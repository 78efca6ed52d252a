"""Plain counters of the engine: integers on slotted objects, bumped in the hot path, read at a scrape.

No metric names, no labels, no locks: one thread writes, and whoever reads in another process gets a copy.
A counter never goes down; ``active`` is the one gauge.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

from attrs import define, field

from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.model.names import Protocol

DIAL_DURATION_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""From a Backend on the same node to the dial time-out of 2 s and a little more."""


class Histogram:
    """Counts of observed durations between fixed bounds, with their sum."""

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        """Start empty.

        Args:
            bounds_s: Upper bounds of the buckets in seconds, rising; a value equal to a bound belongs to its bucket.
        """
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        """Observations by bucket, not cumulative; the last bucket is for all above the last bound."""
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    def add(self, other: "Histogram") -> None:
        """Add what another one with the same bounds has counted."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum_s += other.sum_s


@define(eq=False)
class ServiceCounters:
    """What happened to the connections of one ServicePort."""

    connections: int = 0
    """Accepted."""
    active: int = 0
    """Open now."""
    bytes_to_backend: int = 0
    bytes_to_client: int = 0
    closed: dict[tuple[str, str], int] = field(factory=lambda: defaultdict(int))
    """By (reason, phase) of the CloseReason."""
    dials: dict[str, int] = field(factory=lambda: defaultdict(int))
    """By outcome."""


@define(eq=False)
class FlowCounters:
    """What happened to the flows and datagrams of one UDP ServicePort."""

    flows: int = 0
    """Created."""
    active: int = 0
    """Open now, those too that only wait for late answers."""
    ended: dict[FlowEnd, int] = field(factory=lambda: defaultdict(int))
    datagrams_to_backend: int = 0
    datagrams_to_client: int = 0
    bytes_to_backend: int = 0
    bytes_to_client: int = 0
    resent: int = 0
    """Datagrams sent once more, to another Backend, as the first one refused them."""
    dropped: dict[DropReason, int] = field(factory=lambda: defaultdict(int))
    """Datagrams of either direction that were not delivered."""


@define(eq=False)
class EngineCounters:
    """All counters of one engine."""

    services: dict[tuple[str, Protocol], ServiceCounters] = field(factory=lambda: defaultdict(ServiceCounters))
    """By (``namespace/name:port``, protocol). Delete an entry when its last Listener is gone: its series end then."""
    udp_services: dict[str, FlowCounters] = field(factory=lambda: defaultdict(FlowCounters))
    """By ``namespace/name:port``; as ``services``, for UDP."""
    accept_pauses: dict[str, int] = field(factory=lambda: defaultdict(int))
    """By symbolic name of the errno, as ``EMFILE``."""
    dial_duration: Histogram = field(factory=lambda: Histogram(DIAL_DURATION_BOUNDS_S))
    """Of dials that succeeded."""
    affinity_evictions: int = 0
    """Clients that may come to another Backend, as there were more clients than are remembered."""
    unexpected_errors: int = 0
    """Errors that ended a connection and are bugs."""

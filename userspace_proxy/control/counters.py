"""Plain counters of the control process, read at a scrape. One thread writes and reads them."""

from collections import defaultdict

from attrs import define, field

from userspace_proxy.dataplane.counters import Histogram

RECONCILE_DURATION_BOUNDS_S = tuple(0.001 * 2**exponent for exponent in range(15))
"""1 ms to 16 s: the buckets of kube-proxy's ``sync_proxy_rules_duration_seconds``, so that both can share a panel."""


@define(eq=False)
class ControlCounters:
    """What the control process has done, and where it stands."""

    reconcile_duration: Histogram = field(factory=lambda: Histogram(RECONCILE_DURATION_BOUNDS_S))
    reconcile_failures: dict[str, int] = field(factory=lambda: defaultdict(int))
    """By step."""
    listen_failures: int = 0
    """Failed attempts to open a listening socket, retries included."""
    applied_generation: dict[str, int] = field(factory=dict)
    """By worker; empty until something is in force."""
    oldest_unapplied_change: float | None = None
    """Seconds since the epoch; None when all changes are in force."""
    unexpected_errors: int = 0
    """Errors that were survived and are bugs."""

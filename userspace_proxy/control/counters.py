"""Plain counters of the control process, read at a scrape. One thread writes and reads them."""

from collections import defaultdict
from collections.abc import Mapping

from attrs import define, field

from userspace_proxy.dataplane.counters import Histogram
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import PolicyClass

RECONCILE_DURATION_BOUNDS_S = tuple(0.001 * 2**exponent for exponent in range(15))
"""1 ms to 16 s: the buckets of kube-proxy's ``sync_proxy_rules_duration_seconds``, so that both can share a panel."""
NETWORK_PROGRAMMING_BOUNDS_S = (
    *(0.25, 0.5),
    *map(float, range(1, 60)),
    *map(float, range(60, 120, 5)),
    *map(float, range(120, 301, 30)),
)
"""The buckets of kube-proxy's ``network_programming_duration_seconds``."""


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
    sync_duration: Histogram = field(factory=lambda: Histogram(RECONCILE_DURATION_BOUNDS_S))
    """From the beginning of a reconcile until its changes are in force, rules included."""
    network_programming_duration: dict[Family, Histogram] = field(
        factory=lambda: {family: Histogram(NETWORK_PROGRAMMING_BOUNDS_S) for family in Family}
    )
    """From what has led to a change of an EndpointSlice until that is in force."""
    queued_at_s: float | None = None
    """When the last change came, in seconds since the epoch; None: none did."""
    updated_at_s: float | None = None
    """When a change last came into force, in seconds since the epoch; None: none did."""
    service_changes: int = 0
    """Of Services."""
    service_changes_pending: int = 0
    """Of these those that are not in force."""
    endpoint_changes: int = 0
    """Of EndpointSlices."""
    endpoint_changes_pending: int = 0
    """Of these those that are not in force."""
    no_local_endpoints: dict[tuple[PolicyClass, Family], int] = field(
        factory=lambda: {(policy, family): 0 for policy in PolicyClass for family in Family}
    )
    """ServicePorts with endpoints, of which a traffic policy lets none be reached here."""
    unserved_ports: dict[Protocol, int] = field(factory=lambda: dict.fromkeys(Protocol, 0))
    """ServicePorts that are not served, by their protocol."""
    healthz: dict[str, int] = field(factory=lambda: defaultdict(int))
    """Answers of /healthz by status code."""
    livez: dict[str, int] = field(factory=lambda: defaultdict(int))
    """Answers of /livez of the same server by status code."""
    steering_kind: str = ""
    """The one that is used; empty: none has been chosen."""
    steering_repairs: Mapping[str, int] = field(factory=dict)
    """See ``Steering``; a live view."""
    worker_restarts: dict[tuple[str, str], int] = field(factory=lambda: defaultdict(int))
    """By worker and why the one before has ended."""
    unexpected_errors: int = 0
    """Errors that were survived and are bugs."""

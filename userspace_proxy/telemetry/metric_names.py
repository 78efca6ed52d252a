"""The metrics of this program: names, types, help texts and labels. Nothing is counted here.

House rules, after https://prometheus.io/docs/practices/naming/: one prefix; base units; ``_total`` on every counter and
on nothing else; no label name inside a metric name; no address of a client or Backend as a label; a sum over all
labels makes sense.
"""

from enum import StrEnum

from attrs import frozen


class MetricType(StrEnum):
    """What a metric is; the values are those of the exposition format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@frozen
class MetricName:
    """One metric as it is exposed."""

    type: MetricType
    name: str
    help: str
    labels: tuple[str, ...] = ()


CONNECTIONS = MetricName(
    MetricType.COUNTER, "userspace_proxy_connections_total", "Accepted client connections.", ("service", "protocol")
)
CONNECTIONS_ACTIVE = MetricName(
    MetricType.GAUGE, "userspace_proxy_connections_active", "Client connections open now.", ("service", "worker")
)
CONNECTIONS_CLOSED = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_connections_closed_total",
    "Ended client connections, by who or what ended them and in which phase.",
    ("service", "reason", "phase"),
)
RELAYED_BYTES = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_relayed_bytes_total",
    "Bytes relayed, by direction (to_backend, to_client).",
    ("service", "direction"),
)
DIALS = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_dials_total",
    "Attempts to connect to a backend, by outcome.",
    ("service", "outcome"),
)
DIAL_DURATION = MetricName(
    MetricType.HISTOGRAM,
    "userspace_proxy_dial_duration_seconds",
    "Time until a backend accepted a connection.",
)
ACCEPT_PAUSES = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_accept_pauses_total",
    "Pauses in accepting connections because descriptors or memory ran out.",
    ("errno",),
)
LISTEN_FAILURES = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_listen_failures_total",
    "Failed attempts to open a listening socket for a Service.",
)
RECONCILE_DURATION = MetricName(
    MetricType.HISTOGRAM,
    "userspace_proxy_reconcile_duration_seconds",
    "Time to compute a change and apply it.",
)
RECONCILE_FAILURES = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_reconcile_failures_total",
    "Changes that could not be applied, by the step that failed; they are retried.",
    ("step",),
)
APPLIED_GENERATION = MetricName(
    MetricType.GAUGE,
    "userspace_proxy_applied_generation",
    "Number of the newest state in force.",
    ("worker",),
)
OLDEST_UNAPPLIED_CHANGE = MetricName(
    MetricType.GAUGE,
    "userspace_proxy_oldest_unapplied_change_timestamp_seconds",
    "Unix time of the oldest change that is not in force yet; absent when all are.",
)
UNEXPECTED_ERRORS = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_unexpected_errors_total",
    "Errors that are bugs of this program, logged with a traceback, by the process part they hit (engine, control).",
    ("part",),
)
BUILD_INFO = MetricName(
    MetricType.GAUGE,
    "userspace_proxy_build_info",
    "Always 1; the version of this program and of Python.",
    ("version", "python"),
)

ALL = (
    CONNECTIONS,
    CONNECTIONS_ACTIVE,
    CONNECTIONS_CLOSED,
    RELAYED_BYTES,
    DIALS,
    DIAL_DURATION,
    ACCEPT_PAUSES,
    LISTEN_FAILURES,
    RECONCILE_DURATION,
    RECONCILE_FAILURES,
    APPLIED_GENERATION,
    OLDEST_UNAPPLIED_CHANGE,
    UNEXPECTED_ERRORS,
    BUILD_INFO,
)
"""Every metric above."""

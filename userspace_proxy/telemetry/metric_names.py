"""The metrics of this program: names, types, help texts and labels. Nothing is counted here.

House rules, after https://prometheus.io/docs/practices/naming/: one prefix; base units; ``_total`` on every counter and
on nothing else; no label name inside a metric name; no address of a client or Backend as a label; a sum over all
labels makes sense.

Those that begin with ``kubeproxy_`` are kube-proxy's own (``pkg/proxy/metrics/metrics.go``), with its names and labels
however they agree with these rules, so that dashboards made for it go on to work.
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
UDP_FLOWS_ACTIVE = MetricName(
    MetricType.GAUGE, "userspace_proxy_udp_flows_active", "UDP flows open now.", ("service", "worker")
)
UDP_FLOWS = MetricName(MetricType.COUNTER, "userspace_proxy_udp_flows_total", "UDP flows created.", ("service",))
UDP_FLOWS_ENDED = MetricName(
    MetricType.COUNTER, "userspace_proxy_udp_flows_ended_total", "Ended UDP flows, by reason.", ("service", "reason")
)
UDP_DATAGRAMS = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_udp_datagrams_total",
    "Datagrams relayed, by direction (to_backend, to_client).",
    ("service", "direction"),
)
UDP_DATAGRAMS_DROPPED = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_udp_datagrams_dropped_total",
    "Datagrams of either direction that were not delivered, by reason.",
    ("service", "reason"),
)
UDP_DATAGRAMS_RESENT = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_udp_datagrams_resent_total",
    "Datagrams sent once more, to another backend, as the first one refused them.",
    ("service",),
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
STEERING_INFO = MetricName(
    MetricType.GAUGE,
    "userspace_proxy_steering_info",
    "Always 1; the kind of steering that is used.",
    ("kind",),
)
STEERING_REPAIRS = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_steering_repairs_total",
    "Times that rules or routes of ours were put back, as others had removed or changed them, by where they were.",
    ("where",),
)
UNEXPECTED_ERRORS = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_unexpected_errors_total",
    "Errors that are bugs of this program, logged with a traceback, by the process part they hit (engine, control).",
    ("part",),
)
UNSERVED_PORTS = MetricName(
    MetricType.GAUGE,
    "userspace_proxy_unserved_ports",
    "Ports of Services that are not served, by their protocol.",
    ("protocol",),
)
AFFINITY_EVICTIONS = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_affinity_evictions_total",
    "Clients whose session affinity was forgotten before its time because there were too many.",
)
WORKER_RESTARTS = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_worker_restarts_total",
    "Workers that were replaced, by why they ended (exit, signal, hang, protocol).",
    ("worker", "reason"),
)
API_WATCH_UP = MetricName(
    MetricType.GAUGE,
    "userspace_proxy_api_watch_up",
    "Whether a resource of the API server is being followed (1) or not (0).",
    ("resource",),
)
API_STATE_TIMESTAMP = MetricName(
    MetricType.GAUGE,
    "userspace_proxy_api_state_timestamp_seconds",
    "Unix time at which a resource was last known to be current; time() minus this is the age of the state.",
    ("resource",),
)
API_LAST_EVENT_TIMESTAMP = MetricName(
    MetricType.GAUGE,
    "userspace_proxy_api_last_event_timestamp_seconds",
    "Unix time of the last event of a resource.",
    ("resource",),
)
API_EVENTS = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_api_events_total",
    "Events received from the API server.",
    ("resource",),
)
API_LISTS = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_api_lists_total",
    "Complete lists received from the API server.",
    ("resource",),
)
API_FAILURES = MetricName(
    MetricType.COUNTER,
    "userspace_proxy_api_failures_total",
    "Failed requests to the API server and broken watches, by reason.",
    ("resource", "reason"),
)
KUBEPROXY_SYNC_DURATION = MetricName(
    MetricType.HISTOGRAM,
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "Time from the beginning of a reconcile until its changes are in force; both families share one.",
    ("ip_family",),
)
KUBEPROXY_SYNC_TIMESTAMP = MetricName(
    MetricType.GAUGE,
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "Unix time at which a change last came into force.",
    ("ip_family",),
)
KUBEPROXY_QUEUED_TIMESTAMP = MetricName(
    MetricType.GAUGE,
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    "Unix time of the last change.",
    ("ip_family",),
)
KUBEPROXY_NETWORK_PROGRAMMING = MetricName(
    MetricType.HISTOGRAM,
    "kubeproxy_network_programming_duration_seconds",
    "Time from what led to a change of endpoints until it is in force.",
    ("ip_family",),
)
KUBEPROXY_ENDPOINT_CHANGES_PENDING = MetricName(
    MetricType.GAUGE,
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "Changes of EndpointSlices that are not in force.",
)
KUBEPROXY_ENDPOINT_CHANGES = MetricName(
    MetricType.COUNTER,
    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    "Changes of EndpointSlices.",
)
KUBEPROXY_SERVICE_CHANGES_PENDING = MetricName(
    MetricType.GAUGE,
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    "Changes of Services that are not in force.",
)
KUBEPROXY_SERVICE_CHANGES = MetricName(
    MetricType.COUNTER,
    "kubeproxy_sync_proxy_rules_service_changes_total",
    "Changes of Services.",
)
KUBEPROXY_NO_LOCAL_ENDPOINTS = MetricName(
    MetricType.GAUGE,
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "Ports of Services whose traffic policy is Local, that have endpoints and none of them here.",
    ("traffic_policy", "ip_family"),
)
KUBEPROXY_HEALTHZ = MetricName(
    MetricType.COUNTER,
    "kubeproxy_proxy_healthz_total",
    "Answers of /healthz by status code.",
    ("code",),
)
KUBEPROXY_LIVEZ = MetricName(
    MetricType.COUNTER,
    "kubeproxy_proxy_livez_total",
    "Answers of /livez by status code.",
    ("code",),
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
    UDP_FLOWS_ACTIVE,
    UDP_FLOWS,
    UDP_FLOWS_ENDED,
    UDP_DATAGRAMS,
    UDP_DATAGRAMS_DROPPED,
    UDP_DATAGRAMS_RESENT,
    ACCEPT_PAUSES,
    LISTEN_FAILURES,
    RECONCILE_DURATION,
    RECONCILE_FAILURES,
    APPLIED_GENERATION,
    OLDEST_UNAPPLIED_CHANGE,
    STEERING_INFO,
    STEERING_REPAIRS,
    UNEXPECTED_ERRORS,
    UNSERVED_PORTS,
    AFFINITY_EVICTIONS,
    WORKER_RESTARTS,
    API_WATCH_UP,
    API_STATE_TIMESTAMP,
    API_LAST_EVENT_TIMESTAMP,
    API_EVENTS,
    API_LISTS,
    API_FAILURES,
    KUBEPROXY_SYNC_DURATION,
    KUBEPROXY_SYNC_TIMESTAMP,
    KUBEPROXY_QUEUED_TIMESTAMP,
    KUBEPROXY_NETWORK_PROGRAMMING,
    KUBEPROXY_ENDPOINT_CHANGES_PENDING,
    KUBEPROXY_ENDPOINT_CHANGES,
    KUBEPROXY_SERVICE_CHANGES_PENDING,
    KUBEPROXY_SERVICE_CHANGES,
    KUBEPROXY_NO_LOCAL_ENDPOINTS,
    KUBEPROXY_HEALTHZ,
    KUBEPROXY_LIVEZ,
    BUILD_INFO,
)
"""Every metric above."""

"""What /metrics says: plain counters in, Prometheus families out.

Nothing is kept here: each scrape reads the counters as they stand, so the series of a Service end when its counters do.
Entry points: ``build_registry``, ``metrics_page``.
"""

import platform
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import userspace_proxy
from userspace_proxy.control.admin_http import Response
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.dataplane.counters import (
    DIAL_DURATION_BOUNDS_S,
    EngineCounters,
    FlowCounters,
    Histogram,
    ServiceCounters,
)
from userspace_proxy.model.names import Family
from userspace_proxy.sources.base import ApiState
from userspace_proxy.telemetry import metric_names
from userspace_proxy.telemetry.metric_names import MetricName, MetricType

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The text format that every Prometheus reads; newer ones only add characters that our names do not have."""

_STEP_SAMPLES = 500
"""Samples written in one step, about a millisecond's work."""

CountersByWorker = Callable[[], Mapping[str, EngineCounters]]
"""Returns the counters of each running engine by the name of its worker; asked at each scrape."""


def build_registry(engines: CountersByWorker, control: ControlCounters, api: ApiState | None) -> CollectorRegistry:
    """Return a registry of our own with the metrics of this program, of its process and of Python.

    Args:
        engines: Counters of the data plane.
        control: Those of the control process.
        api: What is known of the API server's objects; None: they come from elsewhere.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(MetricsCollector(engines, control, api))
    return registry


def metrics_page(registry: CollectorRegistry) -> Generator[None, None, Response]:
    """Return, in steps, all metrics of a registry in the Prometheus text format.

    With thousands of Services the whole takes a tenth of a second or more. What is counted meanwhile appears or not.
    """
    parts = []
    for family in registry.collect():
        yield
        for start in range(0, max(len(family.samples), 1), _STEP_SAMPLES):
            text = generate_latest(_Slice(family, start))
            parts.append(text if start == 0 else text.split(b"\n", 2)[2])  # HELP and TYPE lines stand once
            yield
    return Response(200, CONTENT_TYPE, b"".join(parts))


class _Slice(Collector):
    """Some of the samples of one family."""

    def __init__(self, family: Metric, start: int) -> None:
        self._metric = Metric(family.name, family.documentation, family.type)
        self._metric.samples = family.samples[start : start + _STEP_SAMPLES]

    def collect(self) -> Iterator[Metric]:
        yield self._metric


class MetricsCollector(Collector):
    """All metrics of ``telemetry.metric_names``, from the counters of the engines and of control."""

    def __init__(self, engines: CountersByWorker, control: ControlCounters, api: ApiState | None) -> None:
        """Read from these at each scrape (see ``build_registry``); nothing is read before."""
        self._engines = engines
        self._control = control
        self._api = api or ApiState()

    def collect(self) -> Iterator[Metric]:
        """Yield the families; a label set appears at most once in each, whatever the engines hold."""
        engines = self._engines()
        yield from _service_families(engines)
        yield from _flow_families(engines)
        yield _family(metric_names.RELAYED_BYTES, _relayed_bytes(engines))
        yield from _engine_families(engines, self._control)
        yield from _control_families(self._control)
        yield from _api_families(self._api)
        yield from _kubeproxy_families(self._control)


def _service_families(engines: Mapping[str, EngineCounters]) -> Iterator[Metric]:
    rows = [
        (worker, service, protocol, counters)
        for worker, engine in engines.items()
        for (service, protocol), counters in engine.services.items()
    ]
    yield _family(
        metric_names.CONNECTIONS, (((service, protocol), it.connections) for _, service, protocol, it in rows)
    )
    yield _family(metric_names.CONNECTIONS_ACTIVE, (((service, worker), it.active) for worker, service, _, it in rows))
    yield _family(
        metric_names.CONNECTIONS_CLOSED,
        (
            ((service, reason, phase), count)
            for _, service, _, it in rows
            for (reason, phase), count in it.closed.items()
        ),
    )
    yield _family(
        metric_names.DIALS,
        (((service, outcome), count) for _, service, _, it in rows for outcome, count in it.dials.items()),
    )


def _flow_families(engines: Mapping[str, EngineCounters]) -> Iterator[Metric]:
    rows = [
        (worker, service, counters)
        for worker, engine in engines.items()
        for service, counters in engine.udp_services.items()
    ]
    yield _family(metric_names.UDP_FLOWS_ACTIVE, (((service, worker), it.active) for worker, service, it in rows))
    yield _family(metric_names.UDP_FLOWS, (((service,), it.flows) for _, service, it in rows))
    yield _family(
        metric_names.UDP_FLOWS_ENDED,
        (((service, reason), count) for _, service, it in rows for reason, count in it.ended.items()),
    )
    yield _family(
        metric_names.UDP_DATAGRAMS,
        (
            ((service, direction), count)
            for _, service, it in rows
            for direction, count in (("to_backend", it.datagrams_to_backend), ("to_client", it.datagrams_to_client))
        ),
    )
    yield _family(
        metric_names.UDP_DATAGRAMS_DROPPED,
        (((service, reason), count) for _, service, it in rows for reason, count in it.dropped.items()),
    )
    yield _family(metric_names.UDP_DATAGRAMS_RESENT, (((service,), it.resent) for _, service, it in rows))


def _relayed_bytes(engines: Mapping[str, EngineCounters]) -> Iterator[tuple[tuple[str, str], int]]:
    for engine in engines.values():
        rows: list[tuple[str, ServiceCounters | FlowCounters]] = [
            (service, counters) for (service, _), counters in engine.services.items()
        ]
        rows += engine.udp_services.items()
        for service, it in rows:
            yield (service, "to_backend"), it.bytes_to_backend
            yield (service, "to_client"), it.bytes_to_client


def _engine_families(engines: Mapping[str, EngineCounters], control: ControlCounters) -> Iterator[Metric]:
    yield _family(
        metric_names.ACCEPT_PAUSES,
        (((errno_name,), count) for engine in engines.values() for errno_name, count in engine.accept_pauses.items()),
    )
    bugs = [("engine", engine.unexpected_errors) for engine in engines.values()]
    yield _family(
        metric_names.UNEXPECTED_ERRORS,
        (((part,), count) for part, count in [*bugs, ("control", control.unexpected_errors)]),
    )
    evictions = sum(engine.affinity_evictions for engine in engines.values())
    yield _family(metric_names.AFFINITY_EVICTIONS, [((), evictions)])
    dial_duration = Histogram(DIAL_DURATION_BOUNDS_S)
    for engine in engines.values():
        dial_duration.add(engine.dial_duration)
    yield _histogram_family(metric_names.DIAL_DURATION, dial_duration)


def _control_families(control: ControlCounters) -> Iterator[Metric]:
    yield _family(metric_names.LISTEN_FAILURES, [((), control.listen_failures)])
    yield _histogram_family(metric_names.RECONCILE_DURATION, control.reconcile_duration)
    failures = control.reconcile_failures.items()
    yield _family(metric_names.RECONCILE_FAILURES, (((step,), count) for step, count in failures))
    generations = control.applied_generation.items()
    yield _family(metric_names.APPLIED_GENERATION, (((worker,), number) for worker, number in generations))
    oldest = control.oldest_unapplied_change
    yield _family(metric_names.OLDEST_UNAPPLIED_CHANGE, [] if oldest is None else [((), oldest)])
    kinds = [((control.steering_kind,), 1)] if control.steering_kind else []
    yield _family(metric_names.STEERING_INFO, kinds)
    repairs = control.steering_repairs.items()
    yield _family(metric_names.STEERING_REPAIRS, (((where,), count) for where, count in repairs))
    yield _family(metric_names.WORKER_RESTARTS, control.worker_restarts.items())
    unserved = control.unserved_ports.items()
    yield _family(metric_names.UNSERVED_PORTS, (((protocol,), count) for protocol, count in unserved))
    yield _family(metric_names.BUILD_INFO, [((userspace_proxy.__version__, platform.python_version()), 1)])


def _api_families(api: ApiState) -> Iterator[Metric]:
    states = list(api.resources.items())
    ups = (((resource,), float(state.is_listed and not state.failure)) for resource, state in states)
    yield _family(metric_names.API_WATCH_UP, ups)
    yield _time_family(metric_names.API_STATE_TIMESTAMP, ((name, state.current_at_s) for name, state in states))
    yield _time_family(metric_names.API_LAST_EVENT_TIMESTAMP, ((name, state.last_event_at_s) for name, state in states))
    yield _family(metric_names.API_EVENTS, (((resource,), state.events) for resource, state in states))
    yield _family(metric_names.API_LISTS, (((resource,), state.lists) for resource, state in states))
    yield _family(
        metric_names.API_FAILURES,
        (((resource, reason), count) for resource, state in states for reason, count in state.failures.items()),
    )


def _kubeproxy_families(control: ControlCounters) -> Iterator[Metric]:
    # kube-proxy works family by family; here one reconcile serves both
    yield _histogram_families(metric_names.KUBEPROXY_SYNC_DURATION, dict.fromkeys(Family, control.sync_duration))
    updated, queued = dict.fromkeys(Family, control.updated_at_s), dict.fromkeys(Family, control.queued_at_s)
    yield _time_family(metric_names.KUBEPROXY_SYNC_TIMESTAMP, updated.items())
    yield _time_family(metric_names.KUBEPROXY_QUEUED_TIMESTAMP, queued.items())
    yield _histogram_families(metric_names.KUBEPROXY_NETWORK_PROGRAMMING, control.network_programming_duration)
    yield _family(metric_names.KUBEPROXY_ENDPOINT_CHANGES_PENDING, [((), control.endpoint_changes_pending)])
    yield _family(metric_names.KUBEPROXY_ENDPOINT_CHANGES, [((), control.endpoint_changes)])
    yield _family(metric_names.KUBEPROXY_SERVICE_CHANGES_PENDING, [((), control.service_changes_pending)])
    yield _family(metric_names.KUBEPROXY_SERVICE_CHANGES, [((), control.service_changes)])
    yield _family(metric_names.KUBEPROXY_NO_LOCAL_ENDPOINTS, control.no_local_endpoints.items())
    yield _family(metric_names.KUBEPROXY_HEALTHZ, (((code,), count) for code, count in control.healthz.items()))
    yield _family(metric_names.KUBEPROXY_LIVEZ, (((code,), count) for code, count in control.livez.items()))


def _time_family(name: MetricName, times: Iterable[tuple[str, float | None]]) -> Metric:
    """Return a gauge of times by their one label; those that are not known have no series."""
    return _family(name, (((label,), seconds) for label, seconds in times if seconds is not None))


def _family(name: MetricName, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    """Return a counter or gauge from label values and values.

    Values with the same labels are added up: several engines, and a port that moves from one protocol to another, meet
    in one series. A series that stands twice would make a scraper refuse the whole page.
    """
    sums: dict[tuple[str, ...], float] = {}
    for labels, value in samples:
        sums[labels] = sums.get(labels, 0) + value
    of_type = CounterMetricFamily if name.type is MetricType.COUNTER else GaugeMetricFamily
    family = of_type(name.name, name.help, labels=name.labels)
    for labels, value in sums.items():
        family.add_metric(labels, value)
    return family


def _histogram_family(name: MetricName, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name.name, name.help, buckets=_buckets(histogram), sum_value=histogram.sum_s)


def _histogram_families(name: MetricName, histograms: Mapping[Family, Histogram]) -> Metric:
    family = HistogramMetricFamily(name.name, name.help, labels=name.labels)
    for label, histogram in histograms.items():
        family.add_metric([label], _buckets(histogram), histogram.sum_s)
    return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the cumulative buckets that the exposition format wants."""
    bounds = (*map(str, histogram.bounds_s), "+Inf")
    return list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))

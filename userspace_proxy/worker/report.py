"""Reporter: what a worker has to report, which is what has changed since its last report.

A look at each ServicePort must cost next to nothing: there may be ten thousand, and hardly any has changed. Entry
point: ``Reporter``.
"""

from collections.abc import Iterator

from userspace_proxy.dataplane.counters import FlowCounters, ServiceCounters
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.engine_listeners import EngineListeners
from userspace_proxy.ipc.reports import AffinityReport, FlowReport, Report, ServiceReport
from userspace_proxy.model.names import Protocol


class Reporter:
    """Remembers what was reported."""

    def __init__(self, engine: Engine, listeners: EngineListeners) -> None:
        """Start with nothing reported.

        Args:
            engine: Has the counters.
            listeners: Those of the engine.
        """
        self._engine = engine
        self._listeners = listeners
        self._services: dict[ServiceCounters, ServiceReport] = {}
        """As they were in the last report in which each was."""
        self._open: dict[tuple[str, Protocol], ServiceCounters] = {}
        """Those that had open connections at the last report."""
        self._seen: tuple[int, ServiceCounters | None, int] = (0, None, 0)
        """By what it is seen at the next report that nothing is new: the number of ServicePorts, the counters of the
        last one, and the connections of all."""
        self._flows: dict[FlowCounters, FlowReport] = {}
        """As ``_services``."""
        self._reported_s = engine.now_s
        """When there was something to report for the last time."""

    def report(self, number: int) -> Report:
        """Return what there is to report.

        Args:
            number: Of the question.
        """
        listeners, engine = self._listeners, self._engine
        counters = engine.counters
        listeners.report()
        services = tuple(self._changed_services())
        udp_services = tuple(self._changed_flows())
        return Report(
            number=number,
            services=services,
            udp_services=udp_services,
            affinity=tuple(self._affinity()) if services or udp_services else (),
            accept_pauses=counters.accept_pauses,
            dial_duration=tuple(counters.dial_duration.counts),
            dial_duration_sum_s=counters.dial_duration.sum_s,
            affinity_evictions=counters.affinity_evictions,
            unexpected_errors=counters.unexpected_errors,
            open_relays=listeners.open_relays,
            open_flows=listeners.open_flows,
            watched=len(engine.handlers),
        )

    def _affinity(self) -> Iterator[AffinityReport]:
        """Iterate over the records that were written since the last time; only connections and flows write any."""
        since_s, self._reported_s = self._reported_s, self._engine.now_s
        for name, records in self._listeners.live_pools.affinity_since(since_s):
            service, protocol = str(name), name.protocol.value
            for client, given_s, backend in records:
                yield AffinityReport(service, protocol, client, str(backend.address), backend.port, given_s)

    def _changed_services(self) -> Iterator[ServiceReport]:
        services = self._engine.counters.services
        # Whatever happens, happens to a connection: a new one, or one that was open. So it is enough to look at those
        # that had open ones, unless there are new ones (their numbers only grow) or other ServicePorts.
        seen = (
            len(services),
            next(reversed(services.values()), None),
            sum([counters.connections for counters in services.values()]),
        )
        candidates = self._open if seen == self._seen else services
        self._seen = seen
        self._open = {}
        last_reports = self._services
        for key, counters in candidates.items():
            last = last_reports.get(counters)
            if last is not None and last.connections == counters.connections and not last.active:
                continue
            if counters.active:
                self._open[key] = counters
            report = _service_report(*key, counters)
            if report != last:
                last_reports[counters] = report
                yield report
        if len(last_reports) > len(services):
            self._services = {counters: last_reports[counters] for counters in services.values()}

    def _changed_flows(self) -> Iterator[FlowReport]:
        services = self._engine.counters.udp_services
        last_reports = self._flows
        # There are few ServicePorts of UDP: each is looked at. Datagrams may be dropped without a flow.
        for name, counters in services.items():
            last = last_reports.get(counters)
            if (
                last is not None
                and last.flows == counters.flows
                and not last.active
                and last.dropped == tuple(counters.dropped.items())
            ):
                continue
            report = _flow_report(name, counters)
            if report != last:
                last_reports[counters] = report
                yield report
        if len(last_reports) > len(services):
            self._flows = {counters: last_reports[counters] for counters in services.values()}


def _service_report(name: str, protocol: Protocol, counters: ServiceCounters) -> ServiceReport:
    return ServiceReport(
        service=name,
        protocol=protocol.value,
        connections=counters.connections,
        active=counters.active,
        bytes_to_backend=counters.bytes_to_backend,
        bytes_to_client=counters.bytes_to_client,
        closed=tuple((who, phase, count) for (who, phase), count in counters.closed.items()),
        dials=tuple(counters.dials.items()),
    )


def _flow_report(name: str, counters: FlowCounters) -> FlowReport:
    return FlowReport(
        service=name,
        flows=counters.flows,
        active=counters.active,
        ended=tuple(counters.ended.items()),
        datagrams_to_backend=counters.datagrams_to_backend,
        datagrams_to_client=counters.datagrams_to_client,
        bytes_to_backend=counters.bytes_to_backend,
        bytes_to_client=counters.bytes_to_client,
        resent=counters.resent,
        dropped=tuple(counters.dropped.items()),
    )

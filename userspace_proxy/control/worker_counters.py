"""WorkerCounters: what the worker in one place and all its predecessors have counted. Pure.

A worker reports totals since it started. They are added to what was counted before it, so that no sum goes down when it
is replaced; only gauges do. Reports are checked: a worker faces clients. Entry point: ``WorkerCounters``.
"""

import errno
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TypeVar

from attrs import evolve

from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.dataplane.counters import EngineCounters, FlowCounters, ServiceCounters
from userspace_proxy.errors import WorkerError
from userspace_proxy.ipc.reports import FlowReport, Report, ServiceReport
from userspace_proxy.model.names import Protocol, ServicePortName

_Key = TypeVar("_Key")

_MAX_COUNT = 1 << 63
"""Beyond what any worker counts, and each such number is of use as a float, as metrics have it."""
_MAX_OUTCOMES = 32
"""Of dials: several times those there are. Arbitrary, as the next one."""
_MAX_OUTCOME_LENGTH = 32
_CLOSE_REASONS = frozenset((reason.who, reason.phase) for reason in CloseReason)
_ERRNO_NAMES = frozenset(errno.errorcode.values())


class WorkerCounters:
    """Sums over the workers that have had one place."""

    def __init__(self) -> None:
        """Start with zeros."""
        self.total = EngineCounters()
        self._before = EngineCounters()
        """What those have counted that are gone."""

    def take(self, report: Report, knows: Callable[[str, Protocol], bool]) -> Generator[None, None, None]:
        """Take in, step by step, what the worker has counted.

        Args:
            report: Its last one.
            knows: Whether there is a ServicePort of this name, and it is the one the report is about.

        Raises:
            WorkerError: no worker counts this.
        """
        total, before = self.total, self._before
        if len(report.dial_duration) != len(total.dial_duration.counts):
            raise WorkerError(f"it reports {len(report.dial_duration)} classes of durations")
        if not _ERRNO_NAMES.issuperset(report.accept_pauses):
            raise WorkerError("it reports an error number that does not exist")
        _check(
            report.affinity_evictions,
            report.unexpected_errors,
            report.open_relays,
            report.open_flows,
            report.watched,
            *report.dial_duration,
        )
        counts = zip(before.dial_duration.counts, report.dial_duration, strict=True)
        total.dial_duration.counts = [earlier + now for earlier, now in counts]
        total.dial_duration.sum_s = before.dial_duration.sum_s + report.dial_duration_sum_s
        total.accept_pauses = _sums(before.accept_pauses, report.accept_pauses.items())
        total.affinity_evictions = before.affinity_evictions + report.affinity_evictions
        total.unexpected_errors = before.unexpected_errors + report.unexpected_errors
        for service in report.services:
            key = service.service, _protocol(service.protocol)
            if knows(*key):
                total.services[key] = _sum_of_service(before.services.get(key) or ServiceCounters(), service)
            yield
        for flows in report.udp_services:
            if knows(flows.service, Protocol.UDP):
                earlier = before.udp_services.get(flows.service) or FlowCounters()
                total.udp_services[flows.service] = _sum_of_flows(earlier, flows)
            yield

    def end_worker(self) -> None:
        """Go on from the counts as they are, for a successor that starts with zeros; nothing is open any more."""
        total, before = self.total, self._before
        before.dial_duration.counts = total.dial_duration.counts
        before.dial_duration.sum_s = total.dial_duration.sum_s
        before.accept_pauses = total.accept_pauses
        before.affinity_evictions = total.affinity_evictions
        before.unexpected_errors = total.unexpected_errors
        for key, service in total.services.items():
            before.services[key] = total.services[key] = evolve(service, active=0)
        for name, flows in total.udp_services.items():
            before.udp_services[name] = total.udp_services[name] = evolve(flows, active=0)

    def forget(self, name: ServicePortName) -> None:
        """Drop what was counted of a ServicePort."""
        for counters in (self.total, self._before):
            if name.protocol is Protocol.UDP:
                counters.udp_services.pop(str(name), None)
            counters.services.pop((str(name), name.protocol), None)


def _protocol(text: str) -> Protocol:
    try:
        return Protocol(text)
    except ValueError:
        raise WorkerError(f"it reports connections of the protocol {text!r}") from None


def _check(*counts: int) -> None:
    if min(counts) < 0 or max(counts) > _MAX_COUNT:
        raise WorkerError("it reports a number that no worker counts")


def _sum_of_service(before: ServiceCounters, now: ServiceReport) -> ServiceCounters:
    _check(now.connections, now.active, now.bytes_to_backend, now.bytes_to_client)
    if any((reason, phase) not in _CLOSE_REASONS for reason, phase, _ in now.closed):
        raise WorkerError("it reports connections that ended for no reason there is")
    if len(now.dials) > _MAX_OUTCOMES or any(len(outcome) > _MAX_OUTCOME_LENGTH for outcome, _ in now.dials):
        raise WorkerError("it reports outcomes of dials that no worker has")
    return ServiceCounters(
        connections=before.connections + now.connections,
        active=now.active,
        bytes_to_backend=before.bytes_to_backend + now.bytes_to_backend,
        bytes_to_client=before.bytes_to_client + now.bytes_to_client,
        closed=_sums(before.closed, (((reason, phase), count) for reason, phase, count in now.closed)),
        dials=_sums(before.dials, now.dials),
    )


def _sum_of_flows(before: FlowCounters, now: FlowReport) -> FlowCounters:
    try:
        ended = [(FlowEnd(reason), count) for reason, count in now.ended]
        dropped = [(DropReason(reason), count) for reason, count in now.dropped]
    except ValueError as error:
        raise WorkerError(f"it reports of flows: {error}") from None
    _check(
        now.flows,
        now.active,
        now.datagrams_to_backend,
        now.datagrams_to_client,
        now.bytes_to_backend,
        now.bytes_to_client,
        now.resent,
    )
    return FlowCounters(
        flows=before.flows + now.flows,
        active=now.active,
        ended=_sums(before.ended, ended),
        datagrams_to_backend=before.datagrams_to_backend + now.datagrams_to_backend,
        datagrams_to_client=before.datagrams_to_client + now.datagrams_to_client,
        bytes_to_backend=before.bytes_to_backend + now.bytes_to_backend,
        bytes_to_client=before.bytes_to_client + now.bytes_to_client,
        resent=before.resent + now.resent,
        dropped=_sums(before.dropped, dropped),
    )


def _sums(before: Mapping[_Key, int], now: Iterable[tuple[_Key, int]]) -> dict[_Key, int]:
    sums: dict[_Key, int] = defaultdict(int, before)
    for key, count in now:
        _check(count)
        sums[key] += count
    return sums

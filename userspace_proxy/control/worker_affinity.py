"""WorkerAffinity: which Backends the clients of one worker were given, for its successor.

As long as a worker lives nobody reads this; so that its clients keep their Backends when it dies, it reports each
second what it has given. Bounded as in the worker itself (see ``balance.affinity``). Pure. Entry point:
``WorkerAffinity``.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from ipaddress import ip_address
from itertools import islice
from math import inf

from attrs import define

from userspace_proxy.balance.affinity import MAX_CLIENTS, AffinityTable
from userspace_proxy.errors import WorkerError
from userspace_proxy.ipc.commands import Remember
from userspace_proxy.ipc.reports import AffinityReport
from userspace_proxy.model.names import ServicePortName
from userspace_proxy.plan.state import Backend

MAX_RECORDS = 1000
"""In one command: some milliseconds' work at either end. Arbitrary."""


@define(eq=False)
class _Records:
    table: AffinityTable
    newest_s: float = -inf


class WorkerAffinity:
    """The records of the worker in one place."""

    def __init__(self, timeout_s: Callable[[ServicePortName], int | None]) -> None:
        """Start empty.

        Args:
            timeout_s: Returns for how long records of a ServicePort count; None: it has no affinity (any more).
        """
        self._timeout_s = timeout_s
        self._records: dict[ServicePortName, _Records] = {}

    def take(
        self, reports: Iterable[tuple[ServicePortName, AffinityReport]], now_s: float
    ) -> Generator[None, None, None]:
        """Take in records step by step.

        Args:
            reports: What was given, of each ServicePort the oldest first; what was told before may come again.
            now_s: The time on the clock of the records: a later one would outlive all others.

        Raises:
            WorkerError: no worker gives this.
        """
        for name, report in reports:
            timeout_s = self._timeout_s(name)
            if timeout_s is None:
                self._records.pop(name, None)
                continue
            try:
                ip_address(report.client)
                backend = Backend(ip_address(report.backend_address), report.backend_port)
            except ValueError as error:
                raise WorkerError(f"it reports of a client: {error}") from None
            if report.given_s > now_s:
                raise WorkerError("it reports what a client is given in the future")
            records = self._records.get(name)
            if records is None:
                records = self._records[name] = _Records(AffinityTable(MAX_CLIENTS, _ignore_eviction))
            if report.given_s >= records.newest_s:
                records.newest_s = report.given_s
                records.table.write(report.client, backend, report.given_s, timeout_s)
            yield

    def forget(self, name: ServicePortName) -> None:
        """Drop the records of a ServicePort."""
        self._records.pop(name, None)

    def seeds(self) -> Iterator[Remember]:
        """Yield what a successor has to be told."""
        for name, records in self._records.items():
            if self._timeout_s(name) is None:
                continue
            rest = iter(records.table.written_since(-inf))
            while some := tuple(islice(rest, MAX_RECORDS)):
                yield Remember(name, some)


def _ignore_eviction() -> None:
    """Count nothing: the worker has counted it."""

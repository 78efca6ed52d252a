"""Tests of worker_counters and worker_affinity: what is kept of a worker that has gone."""

from collections.abc import Iterable

import pytest
from builders import backend, service_port_name
from fake_worker import report

from userspace_proxy.balance.affinity import MAX_CLIENTS
from userspace_proxy.balance.flow_outcome import FlowEnd
from userspace_proxy.control.worker_affinity import MAX_RECORDS, WorkerAffinity
from userspace_proxy.control.worker_counters import WorkerCounters
from userspace_proxy.dataplane.counters import DIAL_DURATION_BOUNDS_S
from userspace_proxy.errors import WorkerError
from userspace_proxy.ipc.commands import Remember
from userspace_proxy.ipc.reports import AffinityReport, FlowReport, Report, ServiceReport
from userspace_proxy.model.names import Protocol, ServicePortName

WEB = ("shop/web:http", Protocol.TCP)
NOW_S = 1000.0
BUCKETS = len(DIAL_DURATION_BOUNDS_S) + 1


def _service(connections: int, active: int = 0, **closed: int) -> ServiceReport:
    ends = tuple((reason, "O", count) for reason, count in closed.items())
    return ServiceReport(*WEB, connections, active, 10 * connections, connections, ends, (("connected", connections),))


def _flows(flows: int, ended: str = "idle") -> FlowReport:
    return FlowReport("shop/dns", flows, flows, ((ended, 1),), 2, 3, 4, 5, 6, ())


def _take(counters: WorkerCounters, said: Report, knows: bool = True) -> None:  # noqa: FBT001, FBT002
    for _ in counters.take(said, lambda *_: knows):
        pass


def test_counters_of_a_successor_are_added_to_those_before_it() -> None:
    """No total goes down when a worker is replaced, twice too; what was open is not any more."""
    counters = WorkerCounters()
    buckets = (1, 2, *(0,) * (BUCKETS - 2))
    for generation in (1, 2, 3):
        first = report(
            1,
            services=(_service(3, active=2, C=1),),
            udp_services=(_flows(4),),
            accept_pauses={"EMFILE": 2},
            dial_duration=buckets,
            dial_duration_sum_s=0.5,
            affinity_evictions=7,
            unexpected_errors=1,
        )
        for _ in range(2):  # the same totals once more change nothing
            _take(counters, first)
        total = counters.total
        web, dns = total.services[WEB], total.udp_services["shop/dns"]
        assert (web.connections, web.active, web.bytes_to_backend) == (3 * generation, 2, 30 * generation)
        assert (web.closed, web.dials) == ({("C", "O"): generation}, {"connected": 3 * generation})
        assert (dns.flows, dns.active, dns.ended) == (4 * generation, 4, {FlowEnd.IDLE: generation})
        assert (dns.resent, dns.bytes_to_client) == (6 * generation, 5 * generation)
        assert total.dial_duration.counts == [generation * count for count in buckets]
        assert (total.dial_duration.sum_s, total.affinity_evictions) == (0.5 * generation, 7 * generation)
        assert (total.accept_pauses, total.unexpected_errors) == ({"EMFILE": 2 * generation}, generation)
        counters.end_worker()
        assert (total.services[WEB].connections, total.services[WEB].active) == (3 * generation, 0)
        assert (total.udp_services["shop/dns"].flows, total.udp_services["shop/dns"].active) == (4 * generation, 0)


def test_counters_of_what_was_forgotten_do_not_come_back() -> None:
    """Neither with a late report nor with the worker's successor."""
    counters = WorkerCounters()
    _take(counters, report(1, services=(_service(3),), udp_services=(_flows(4),)))
    counters.end_worker()
    counters.forget(service_port_name("shop/web:http"))
    counters.forget(service_port_name("shop/dns", Protocol.UDP))
    _take(counters, report(1, services=(_service(3),), udp_services=(_flows(4),)), knows=False)
    assert not counters.total.services
    assert not counters.total.udp_services
    _take(counters, report(1, services=(_service(1),), udp_services=(_flows(2),)))
    assert counters.total.services[WEB].connections == 1
    assert counters.total.udp_services["shop/dns"].flows == 2


def test_counters_of_a_port_of_tcp_outlive_one_of_udp_of_the_same_name() -> None:
    """They are two ServicePorts."""
    counters = WorkerCounters()
    _take(counters, report(1, services=(_service(3),)))
    counters.forget(service_port_name("shop/web:http", Protocol.UDP))
    assert counters.total.services[WEB].connections == 3
    _take(counters, report(1, udp_services=(_flows(4),)))
    counters.forget(service_port_name("shop/dns"))
    assert counters.total.udp_services["shop/dns"].flows == 4


@pytest.mark.parametrize(
    "said",
    [
        report(1, dial_duration=(1, 2)),
        report(1, services=(_service(1)._replace(protocol="QUIC"),)),
        report(1, udp_services=(_flows(1, ended="by magic"),)),
        report(1, services=(_service(-1),)),
        report(1, services=(_service(10**400),)),
        report(1, open_relays=-1),
        report(1, accept_pauses={"EMAGIC": 1}),
        report(1, accept_pauses={"EMFILE": 10**400}),
        report(1, services=(_service(1, magic=1),)),
        report(1, services=(_service(1)._replace(dials=tuple((f"magic {number}", 1) for number in range(100))),)),
        report(1, services=(_service(1, C=-1),)),
        report(1, udp_services=(_flows(1)._replace(resent=-1),)),
    ],
    ids=[
        "buckets",
        "protocol",
        "reason",
        "below zero",
        "infinite",
        "gauge",
        "errno",
        "errors",
        "close reason",
        "outcomes",
        "closed",
        "datagrams",
    ],
)
def test_counters_that_no_worker_has_are_an_error(said: Report) -> None:
    """A worker faces clients: what it says is not believed whatever it is."""
    with pytest.raises(WorkerError, match="it reports"):
        _take(WorkerCounters(), said)


NAME = service_port_name()


def _given(*clients: tuple[str, float], port: int = 80) -> Iterable[tuple[ServicePortName, AffinityReport]]:
    for client, given_s in clients:
        yield NAME, AffinityReport(str(NAME), "TCP", client, "10.0.0.1", port, given_s)


def test_affinity_seeds_are_the_newest_records_the_oldest_first() -> None:
    """A successor gives clients what they had last; what is told twice counts once."""
    affinity = WorkerAffinity(lambda _: 60)
    list(affinity.take(_given(("10.9.0.1", 1.0), ("10.9.0.2", 2.0)), NOW_S))
    list(affinity.take(_given(("10.9.0.2", 2.0), ("10.9.0.1", 3.0), port=81), NOW_S))
    (seed,) = affinity.seeds()
    assert seed == Remember(
        NAME, (("10.9.0.2", 2.0, backend("10.0.0.1:81")), ("10.9.0.1", 3.0, backend("10.0.0.1:81")))
    )


def test_affinity_records_that_run_backwards_are_not_believed() -> None:
    """The order says which record goes first when there are too many."""
    affinity = WorkerAffinity(lambda _: 60)
    list(affinity.take(_given(("10.9.0.1", 5.0), ("10.9.0.2", 4.0)), NOW_S))
    (seed,) = affinity.seeds()
    assert [client for client, _, _ in seed.records] == ["10.9.0.1"]


def test_affinity_seeds_come_in_pieces() -> None:
    """Neither end is kept from other work for long by a Service with many clients."""
    affinity = WorkerAffinity(lambda _: 60)
    clients = [(f"10.9.{number // 250}.{number % 250}", number / 1000) for number in range(MAX_RECORDS + 1)]
    list(affinity.take(_given(*clients), NOW_S))
    assert [len(seed.records) for seed in affinity.seeds()] == [MAX_RECORDS, 1]


def test_affinity_is_bounded_whatever_a_worker_says() -> None:
    """It cannot have control remember more than it may remember itself."""
    affinity = WorkerAffinity(lambda _: 60)
    clients = ((f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0) for number in range(MAX_CLIENTS + 10))
    list(affinity.take(_given(*clients), NOW_S))
    assert sum(len(seed.records) for seed in affinity.seeds()) == MAX_CLIENTS


def test_affinity_that_is_switched_off_or_forgotten_leaves_no_seeds() -> None:
    """Nor do its records come back when it is switched on again."""
    timeouts: list[int | None] = [60]
    affinity = WorkerAffinity(lambda _: timeouts[-1])
    list(affinity.take(_given(("10.9.0.1", 1.0)), NOW_S))
    timeouts.append(None)
    assert not list(affinity.seeds())
    list(affinity.take(_given(("10.9.0.1", 2.0)), NOW_S))
    timeouts.append(60)
    assert not list(affinity.seeds())
    list(affinity.take(_given(("10.9.0.1", 3.0)), NOW_S))
    affinity.forget(NAME)
    assert not list(affinity.seeds())


def test_affinity_of_what_is_no_address_is_an_error() -> None:
    """No worker has such a client."""
    with pytest.raises(WorkerError, match="nobody"):
        list(WorkerAffinity(lambda _: 60).take(_given(("nobody", 1.0)), NOW_S))


def test_affinity_of_the_future_is_an_error() -> None:
    """Nothing that comes later would be newer, of successors either."""
    with pytest.raises(WorkerError, match="future"):
        list(WorkerAffinity(lambda _: 60).take(_given(("10.9.0.1", NOW_S + 1)), NOW_S))

"""What /metrics says, read back with the parser that scrapers use."""

import platform
from collections.abc import Generator, Mapping

import pytest
import trio
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

import userspace_proxy
from userspace_proxy.balance.flow_outcome import DropReason, FlowEnd
from userspace_proxy.control.admin_http import Response
from userspace_proxy.control.collector import build_registry, metrics_page
from userspace_proxy.control.cooperate import cooperate
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.dataplane.counters import EngineCounters
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import PolicyClass
from userspace_proxy.sources.base import ApiState, ResourceState
from userspace_proxy.telemetry import metric_names
from userspace_proxy.telemetry.metric_names import MetricName, MetricType

WEB = ("shop/web:http", Protocol.TCP)
DNS = "shop/dns:dns"


def in_one_go(page: Generator[None, None, Response]) -> Response:
    """Return what a page in steps comes to."""
    return trio.run(cooperate, page)


def scrape(
    engines: Mapping[str, EngineCounters], control: ControlCounters | None = None, api: ApiState | None = None
) -> dict[str, Metric]:
    """Return the families of one scrape by name, as Prometheus would read them."""
    registry = build_registry(lambda: engines, control or ControlCounters(), api)
    page = in_one_go(metrics_page(registry))
    assert (page.status, page.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = list(text_string_to_metric_families(page.body.decode()))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}


def values(family: Metric) -> dict[tuple[str, ...], float]:
    """Return the values of a counter or gauge by label values, in the order of the label names' alphabet."""
    found = {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in family.samples}
    assert len(found) == len(family.samples), "a label set stands twice: Prometheus refuses the whole page"
    return found


def busy_engine() -> EngineCounters:
    """Return counters with a value in every place."""
    engine = EngineCounters()
    web = engine.services[WEB]
    web.connections, web.active, web.bytes_to_backend, web.bytes_to_client = 10, 3, 1000, 20000
    web.closed["C", "O"] += 2
    web.closed["-", "-"] += 5
    web.dials["ok"] += 9
    web.dials["refused"] += 1
    dns = engine.udp_services[DNS]
    dns.flows, dns.active, dns.resent = 30, 8, 1
    dns.datagrams_to_backend, dns.datagrams_to_client = 100, 90
    dns.bytes_to_backend, dns.bytes_to_client = 4000, 30000
    dns.ended[FlowEnd.IDLE] += 20
    dns.ended[FlowEnd.EVICTED] += 2
    dns.dropped[DropReason.TOO_BIG] += 5
    dns.dropped[DropReason.NO_ENDPOINT] += 4
    engine.accept_pauses["EMFILE"] += 4
    engine.affinity_evictions += 7
    engine.unexpected_errors += 1
    for seconds in (0.0005, 0.003, 0.003, 9.0):
        engine.dial_duration.observe(seconds)
    return engine


def busy_control() -> ControlCounters:
    """Return counters with a value in every place."""
    control = ControlCounters(listen_failures=6, oldest_unapplied_change=1795296600.5, unexpected_errors=2)
    control.reconcile_duration.observe(0.0015)
    control.reconcile_failures["steering"] += 3
    control.applied_generation["control"] = 42
    control.sync_duration.observe(0.5)
    control.network_programming_duration[Family.IPV6].observe(61.0)
    control.queued_at_s, control.updated_at_s = 1795296700.5, 1795296600.5
    control.service_changes, control.service_changes_pending = 12, 2
    control.endpoint_changes, control.endpoint_changes_pending = 34, 4
    control.no_local_endpoints[PolicyClass.EXTERNAL, Family.IPV4] = 8
    control.unserved_ports[Protocol.SCTP] = 9
    control.steering_kind, control.steering_repairs = "iptables", {"IPv4 nat": 7, "IPv6 filter": 1}
    control.worker_restarts["1", "hang"] += 2
    control.healthz["503"] += 5
    control.livez["200"] += 6
    return control


def busy_api() -> ApiState:
    """Return a state with a value in every place, of one resource that is followed and one that is not."""
    services = ResourceState(
        is_listed=True,
        current_at_s=1795296600.5,
        last_event_at_s=1795296500.5,
        events=21,
        lists=2,
        failures={"expired": 1},
    )
    slices = ResourceState(
        is_listed=True, current_at_s=1795296300.5, failure="no answer", lists=1, failures={"refused": 3}
    )
    return ApiState({"services": services, "endpointslices": slices})


def test_scrape_of_one_engine_has_its_values_under_the_right_labels() -> None:
    """Each counter comes out under its name with its labels."""
    families = scrape({"control": busy_engine()}, busy_control())
    assert values(families["userspace_proxy_connections"]) == {("TCP", "shop/web:http"): 10}
    assert values(families["userspace_proxy_connections_active"]) == {("shop/web:http", "control"): 3}
    assert values(families["userspace_proxy_connections_closed"]) == {
        ("O", "C", "shop/web:http"): 2,
        ("-", "-", "shop/web:http"): 5,
    }
    assert values(families["userspace_proxy_relayed_bytes"]) == {
        ("to_backend", "shop/web:http"): 1000,
        ("to_client", "shop/web:http"): 20000,
        ("to_backend", DNS): 4000,
        ("to_client", DNS): 30000,
    }
    assert values(families["userspace_proxy_dials"]) == {("ok", "shop/web:http"): 9, ("refused", "shop/web:http"): 1}
    assert values(families["userspace_proxy_accept_pauses"]) == {("EMFILE",): 4}
    assert values(families["userspace_proxy_unexpected_errors"]) == {("engine",): 1, ("control",): 2}
    assert values(families["userspace_proxy_affinity_evictions"]) == {(): 7}
    assert values(families["userspace_proxy_steering_info"]) == {("iptables",): 1}
    assert values(families["userspace_proxy_worker_restarts"]) == {("hang", "1"): 2}
    assert values(families["userspace_proxy_steering_repairs"]) == {("IPv4 nat",): 7, ("IPv6 filter",): 1}
    assert values(families["userspace_proxy_unserved_ports"]) == {("SCTP",): 9, ("TCP",): 0, ("UDP",): 0}
    assert values(families["userspace_proxy_listen_failures"]) == {(): 6}
    assert values(families["userspace_proxy_reconcile_failures"]) == {("steering",): 3}
    assert values(families["userspace_proxy_applied_generation"]) == {("control",): 42}
    assert values(families["userspace_proxy_oldest_unapplied_change_timestamp_seconds"]) == {(): 1795296600.5}
    assert values(families["userspace_proxy_build_info"]) == {
        (platform.python_version(), userspace_proxy.__version__): 1
    }


def test_scrape_says_what_became_of_flows_and_datagrams() -> None:
    """By Service; each end and each drop by its reason."""
    families = scrape({"control": busy_engine()})
    assert values(families["userspace_proxy_udp_flows_active"]) == {(DNS, "control"): 8}
    assert values(families["userspace_proxy_udp_flows"]) == {(DNS,): 30}
    assert values(families["userspace_proxy_udp_flows_ended"]) == {("idle", DNS): 20, ("evicted", DNS): 2}
    assert values(families["userspace_proxy_udp_datagrams"]) == {("to_backend", DNS): 100, ("to_client", DNS): 90}
    assert values(families["userspace_proxy_udp_datagrams_dropped"]) == {("too_big", DNS): 5, ("no_endpoint", DNS): 4}
    assert values(families["userspace_proxy_udp_datagrams_resent"]) == {(DNS,): 1}


def test_scrape_of_a_udp_service_without_traffic_has_zeroes() -> None:
    """A rate over them begins with the first datagram, not with the second; ends and drops come with their reasons."""
    engine = EngineCounters()
    assert engine.udp_services[DNS].flows == 0
    families = scrape({"control": engine})
    directions = {("to_backend", DNS): 0, ("to_client", DNS): 0}
    assert values(families["userspace_proxy_udp_datagrams"]) == directions
    assert values(families["userspace_proxy_relayed_bytes"]) == directions
    assert values(families["userspace_proxy_udp_flows_active"]) == {(DNS, "control"): 0}
    assert values(families["userspace_proxy_udp_flows"]) == {(DNS,): 0}
    assert values(families["userspace_proxy_udp_datagrams_resent"]) == {(DNS,): 0}


def test_scrape_of_one_name_with_connections_and_flows_has_their_bytes_in_one_series() -> None:
    """A Service may have a port of the same name for both protocols, as DNS often has."""
    engine = EngineCounters()
    tcp, udp = engine.services[DNS, Protocol.TCP], engine.udp_services[DNS]
    tcp.connections, tcp.bytes_to_backend, tcp.bytes_to_client = 1, 10, 200
    udp.flows, udp.bytes_to_backend, udp.bytes_to_client = 3, 4000, 50000
    families = scrape({"control": engine})
    assert values(families["userspace_proxy_relayed_bytes"]) == {("to_backend", DNS): 4010, ("to_client", DNS): 50200}
    assert values(families["userspace_proxy_connections"]) == {("TCP", DNS): 1}
    assert values(families["userspace_proxy_udp_flows"]) == {(DNS,): 3}


def test_scrape_says_how_well_the_api_server_is_known() -> None:
    """By resource: whether it is followed, how old what is known is, and what went wrong how often."""
    families = scrape({}, api=busy_api())
    assert values(families["userspace_proxy_api_watch_up"]) == {("services",): 1, ("endpointslices",): 0}
    assert values(families["userspace_proxy_api_state_timestamp_seconds"]) == {
        ("services",): 1795296600.5,
        ("endpointslices",): 1795296300.5,
    }
    assert values(families["userspace_proxy_api_last_event_timestamp_seconds"]) == {("services",): 1795296500.5}
    assert values(families["userspace_proxy_api_events"]) == {("services",): 21, ("endpointslices",): 0}
    assert values(families["userspace_proxy_api_lists"]) == {("services",): 2, ("endpointslices",): 1}
    assert values(families["userspace_proxy_api_failures"]) == {
        ("expired", "services"): 1,
        ("refused", "endpointslices"): 3,
    }


def test_scrape_has_the_metrics_of_kube_proxy_under_their_names() -> None:
    """Dashboards made for kube-proxy find what they look for: names, labels, label values and buckets."""
    families = scrape({}, busy_control())
    assert values(families["kubeproxy_sync_proxy_rules_last_timestamp_seconds"]) == {
        ("IPv4",): 1795296600.5,
        ("IPv6",): 1795296600.5,
    }
    assert values(families["kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds"])["IPv4",] == 1795296700.5
    assert values(families["kubeproxy_sync_proxy_rules_service_changes"]) == {(): 12}
    assert values(families["kubeproxy_sync_proxy_rules_service_changes_pending"]) == {(): 2}
    assert values(families["kubeproxy_sync_proxy_rules_endpoint_changes"]) == {(): 34}
    assert values(families["kubeproxy_sync_proxy_rules_endpoint_changes_pending"]) == {(): 4}
    assert values(families["kubeproxy_sync_proxy_rules_no_local_endpoints_total"]) == {
        ("IPv4", "internal"): 0,
        ("IPv6", "internal"): 0,
        ("IPv4", "external"): 8,
        ("IPv6", "external"): 0,
    }
    assert values(families["kubeproxy_proxy_healthz"]) == {("503",): 5}
    assert values(families["kubeproxy_proxy_livez"]) == {("200",): 6}
    programming = {
        (sample.labels["ip_family"], sample.labels["le"]): sample.value
        for sample in families["kubeproxy_network_programming_duration_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert [le for family, le in programming if family == "IPv4"] == [
        *("0.25", "0.5"),
        *(f"{bound}.0" for bound in (*range(1, 60), *range(60, 120, 5), *range(120, 301, 30))),
        "+Inf",
    ]
    assert (programming["IPv6", "60.0"], programming["IPv6", "65.0"], programming["IPv4", "+Inf"]) == (0, 1, 0)
    sync = families["kubeproxy_sync_proxy_rules_duration_seconds"].samples
    assert {sample.labels["ip_family"] for sample in sync} == {"IPv4", "IPv6"}
    assert [sample.value for sample in sync if sample.name.endswith("_count")] == [1, 1]


def exposed_name(metric: MetricName) -> str:
    """Return the name of a family as a parser tells it: without the suffix of counters."""
    return metric.name.removesuffix("_total") if metric.type is MetricType.COUNTER else metric.name


def test_scrape_every_family_has_the_declared_type_help_and_labels() -> None:
    """What is declared is exposed, all of it and nothing else under our prefix and kube-proxy's."""
    families = scrape({"control": busy_engine()}, busy_control(), busy_api())
    ours = {name for name in families if name.startswith(("userspace_proxy", "kubeproxy"))}
    assert ours == {exposed_name(metric) for metric in metric_names.ALL}
    for metric in metric_names.ALL:
        family = families[exposed_name(metric)]
        assert (family.type, family.documentation) == (metric.type, metric.help)
        assert family.samples, metric.name
        assert {tuple(sorted(sample.labels.keys() - {"le"})) for sample in family.samples} == {
            tuple(sorted(metric.labels))
        }


def test_scrape_histograms_are_cumulative_with_inf_sum_and_count() -> None:
    """Buckets count all observations up to their bound; the last one, +Inf, equals the count."""
    families = scrape({"control": busy_engine()}, busy_control())
    dial = {
        (sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value
        for sample in families["userspace_proxy_dial_duration_seconds"].samples
    }
    assert dial["bucket", "0.0005"] == 1
    assert dial["bucket", "0.0025"] == 1
    assert dial["bucket", "0.005"] == 3
    assert dial["bucket", "2.5"] == 3
    assert dial["bucket", "+Inf"] == dial["count", None] == 4
    assert dial["sum", None] == pytest.approx(9.0065)
    bounds = [
        sample.labels["le"]
        for sample in families["userspace_proxy_reconcile_duration_seconds"].samples
        if sample.name.endswith("_bucket")
    ]
    assert bounds[:3] == ["0.001", "0.002", "0.004"]
    assert bounds[-2:] == ["16.384", "+Inf"]


def test_scrape_of_several_engines_adds_counters_and_keeps_gauges_apart() -> None:
    """A counter is one series for all workers; what is open now is told for each."""
    families = scrape({"0": busy_engine(), "1": busy_engine()})
    assert values(families["userspace_proxy_connections"]) == {("TCP", "shop/web:http"): 20}
    assert values(families["userspace_proxy_connections_active"]) == {
        ("shop/web:http", "0"): 3,
        ("shop/web:http", "1"): 3,
    }
    assert values(families["userspace_proxy_udp_flows_ended"]) == {("idle", DNS): 40, ("evicted", DNS): 4}
    assert values(families["userspace_proxy_udp_flows_active"]) == {(DNS, "0"): 8, (DNS, "1"): 8}
    assert values(families["userspace_proxy_accept_pauses"]) == {("EMFILE",): 8}
    assert values(families["userspace_proxy_unexpected_errors"])["engine",] == 2
    assert families["userspace_proxy_dial_duration_seconds"].samples[-2].value == 8


def test_scrape_of_one_name_with_two_protocols_has_no_series_twice() -> None:
    """A port that changes its protocol while connections drain meets itself in one series."""
    engine = busy_engine()
    engine.services[WEB[0], Protocol.UDP].connections = 1
    families = scrape({"control": engine})
    assert values(families["userspace_proxy_connections"]) == {("TCP", WEB[0]): 10, ("UDP", WEB[0]): 1}
    assert values(families["userspace_proxy_relayed_bytes"])["to_client", WEB[0]] == 20000


def test_scrape_after_a_service_is_dropped_has_no_series_of_it() -> None:
    """The series of a removed Service end with its counters, on the same registry."""
    engine = busy_engine()
    registry = build_registry(lambda: {"control": engine}, ControlCounters(), None)
    assert b"shop/web" in in_one_go(metrics_page(registry)).body
    assert b"shop/dns" in in_one_go(metrics_page(registry)).body
    del engine.services[WEB]
    del engine.udp_services[DNS]
    page = in_one_go(metrics_page(registry)).body
    assert b"shop/web" not in page
    assert b"shop/dns" not in page


def test_metrics_page_of_many_services_is_the_same_in_many_steps() -> None:
    """A large page is written in steps; it reads as if written at once, and Services may come and go meanwhile."""
    engine = EngineCounters()
    for number in range(1200):
        engine.services[f"shop/web-{number}", Protocol.TCP].connections = number
    registry = build_registry(lambda: {"control": engine}, ControlCounters(), None)
    in_steps = in_one_go(metrics_page(registry)).body.splitlines()
    at_once = generate_latest(registry).splitlines()
    assert our_lines(in_steps) == our_lines(at_once)
    assert len(our_lines(in_steps)) > 1200 * 4
    assert len(list(metrics_page(registry))) > 20
    for number, _ in enumerate(metrics_page(registry)):
        del engine.services[f"shop/web-{number}", Protocol.TCP]
        engine.services[f"shop/db-{number}", Protocol.TCP].connections = 1


def our_lines(page: list[bytes]) -> list[bytes]:
    """Return the lines about metrics of this program, comments too: the others change between two scrapes."""
    return [line for line in page if b"userspace_proxy_" in line]


def test_scrape_with_nothing_pending_has_no_oldest_change() -> None:
    """An age computed from the oldest change cannot raise an alarm when there is none."""
    families = scrape({})
    assert families["userspace_proxy_oldest_unapplied_change_timestamp_seconds"].samples == []


def test_scrape_has_the_process_and_python_metrics() -> None:
    """CPU, memory, descriptors, garbage collection and the interpreter are told as everywhere else."""
    assert {"process_cpu_seconds", "process_open_fds", "python_info", "python_gc_collections"} <= scrape({}).keys()

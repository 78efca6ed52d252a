"""Tests of model.parse_policies: one field of a Service, or a few that belong together, at a time."""

from collections.abc import Callable

import pytest

from userspace_proxy.model.api_types import ClientIPConfig, ServiceSpec, SessionAffinityConfig
from userspace_proxy.model.findings import Findings
from userspace_proxy.model.parse_policies import (
    parse_affinity_timeout,
    parse_external_policy,
    parse_health_check_node_port,
    parse_internal_policy,
)
from userspace_proxy.model.service_port import TrafficPolicy

_ORIGIN = "shop.yaml, document 1, line 1"


def _affinity(text: str | None, timeout_s: int | None = None) -> ServiceSpec:
    """Return a spec with session affinity."""
    config = SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=timeout_s))
    return ServiceSpec(session_affinity=text, session_affinity_config=config)


def _places(findings: Findings) -> list[str]:
    return [f"{one.severity} {one.field}" for one in findings.problems()]


@pytest.mark.parametrize(
    ("spec", "timeout_s"),
    [
        (ServiceSpec(), None),
        (_affinity(""), None),
        (_affinity("None"), None),
        (_affinity("None", 60), None),
        (_affinity("None", 0), None),
        (_affinity("ClientIP"), 10800),
        (_affinity("ClientIP", 1), 1),
        (_affinity("ClientIP", 86400), 86400),
        (ServiceSpec(session_affinity="ClientIP"), 10800),
        (ServiceSpec(session_affinity="ClientIP", session_affinity_config=SessionAffinityConfig()), 10800),
    ],
)
def test_c_1_session_affinity_is_client_ip_for_a_time_or_none(spec: ServiceSpec, timeout_s: int | None) -> None:
    """Three hours unless said otherwise; a time without affinity means nothing."""
    findings = Findings("")
    assert parse_affinity_timeout(spec, findings) == timeout_s
    assert findings.problems() == ()


@pytest.mark.parametrize("timeout_s", [0, -1, 86401, 10**30])
def test_c_1_time_out_of_bounds_warns_and_is_the_default(timeout_s: int) -> None:
    """Affinity was asked for, so the client gets it, for the usual time."""
    findings = Findings("")
    assert parse_affinity_timeout(_affinity("ClientIP", timeout_s), findings) == 10800
    assert _places(findings) == ["warning spec.sessionAffinityConfig.clientIP.timeoutSeconds"]
    text = f"{timeout_s} cannot be used, so it is 10800; write a number from 1 to 86400"
    assert findings.problems()[0].text == text


def test_c_1_unknown_affinity_warns_and_is_none() -> None:
    """The values there are are named."""
    findings = Findings("")
    assert parse_affinity_timeout(_affinity("clientip", 60), findings) is None
    assert _places(findings) == ["warning spec.sessionAffinity"]
    assert findings.problems()[0].text == "'clientip' is unknown, so clients keep no endpoint; write None or ClientIP"


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (None, TrafficPolicy.CLUSTER),
        ("", TrafficPolicy.CLUSTER),
        ("Cluster", TrafficPolicy.CLUSTER),
        ("Local", TrafficPolicy.LOCAL),
    ],
)
def test_d_2_internal_policy_is_cluster_unless_local(text: str | None, policy: TrafficPolicy) -> None:
    """Any Service has a policy for its cluster addresses."""
    findings = Findings("")
    assert parse_internal_policy(ServiceSpec(internal_traffic_policy=text), findings) is policy
    assert findings.problems() == ()


@pytest.mark.parametrize(
    ("type_", "external_ips", "policy"),
    [
        ("NodePort", None, TrafficPolicy.LOCAL),
        ("LoadBalancer", None, TrafficPolicy.LOCAL),
        ("ClusterIP", ["192.0.2.1"], TrafficPolicy.LOCAL),
        (None, ["192.0.2.1"], TrafficPolicy.LOCAL),
        ("ClusterIP", None, TrafficPolicy.CLUSTER),
        ("ClusterIP", [], TrafficPolicy.CLUSTER),
        (None, None, TrafficPolicy.CLUSTER),
        ("SomethingNew", ["192.0.2.1"], TrafficPolicy.CLUSTER),
    ],
)
def test_d_3_external_policy_counts_where_the_service_can_be_reached_from_outside(
    type_: str | None, external_ips: list[str] | None, policy: TrafficPolicy
) -> None:
    """Local is kept for NodePort, LoadBalancer and external addresses; elsewhere it is as good as Cluster."""
    findings = Findings("")
    spec = ServiceSpec(type=type_, external_ips=external_ips, external_traffic_policy="Local")
    assert parse_external_policy(spec, findings) is policy
    assert findings.problems() == ()


@pytest.mark.parametrize("text", [None, "", "Cluster"])
def test_d_3_external_policy_is_cluster_unless_local(text: str | None) -> None:
    """As the API fills it in."""
    findings = Findings("")
    spec = ServiceSpec(type="LoadBalancer", external_traffic_policy=text)
    assert parse_external_policy(spec, findings) is TrafficPolicy.CLUSTER
    assert findings.problems() == ()


@pytest.mark.parametrize(
    ("parse", "field"),
    [
        (parse_internal_policy, "spec.internalTrafficPolicy"),
        (parse_external_policy, "spec.externalTrafficPolicy"),
    ],
)
def test_parse_policy_unknown_word_warns_and_is_cluster(
    parse: Callable[[ServiceSpec, Findings], TrafficPolicy], field: str
) -> None:
    """Traffic goes on, and the values there are are named."""
    findings = Findings("")
    spec = ServiceSpec(type="NodePort", internal_traffic_policy="local", external_traffic_policy="local")
    assert parse(spec, findings) is TrafficPolicy.CLUSTER
    assert _places(findings) == [f"warning {field}"]
    assert findings.problems()[0].text == "'local' is unknown, so Cluster holds; write Cluster or Local"


@pytest.mark.parametrize(
    ("type_", "policy", "expected"),
    [
        ("LoadBalancer", TrafficPolicy.LOCAL, 31000),
        ("LoadBalancer", TrafficPolicy.CLUSTER, None),
        ("NodePort", TrafficPolicy.LOCAL, None),
        ("ClusterIP", TrafficPolicy.LOCAL, None),
        (None, TrafficPolicy.LOCAL, None),
    ],
)
def test_d_7_health_check_port_is_for_load_balancers_with_local_policy(
    type_: str | None, policy: TrafficPolicy, expected: int | None
) -> None:
    """Anywhere else the number means nothing."""
    findings = Findings("")
    spec = ServiceSpec(type=type_, health_check_node_port=31000)
    assert parse_health_check_node_port(spec, policy, findings) == expected
    assert findings.problems() == ()


@pytest.mark.parametrize(
    ("number", "origin", "places"),
    [
        (0, "", ["error spec.healthCheckNodePort"]),
        (None, "", ["error spec.healthCheckNodePort"]),
        (0, _ORIGIN, []),
        (None, _ORIGIN, []),
        (-1, "", ["error spec.healthCheckNodePort"]),
        (65536, _ORIGIN, ["error spec.healthCheckNodePort"]),
    ],
)
def test_d_7_health_check_port_that_cannot_be_used_is_none(number: int | None, origin: str, places: list[str]) -> None:
    """An API server always assigns one, so there its absence is said; by hand nobody may need it."""
    findings = Findings(origin)
    spec = ServiceSpec(type="LoadBalancer", health_check_node_port=number)
    assert parse_health_check_node_port(spec, TrafficPolicy.LOCAL, findings) is None
    assert _places(findings) == places

"""Tests of plan.problems: what is said of a Service, by way of its plan."""

import pytest
from builders import (
    endpoint_port,
    endpoint_slice,
    frontend,
    named,
    plan_settings,
    pool,
    pool_key,
    service,
    service_port,
    service_port_name,
)
from plan_driver import build, plan_of, problem_texts

from userspace_proxy.model.endpoint import EndpointPort, EndpointSlice
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import TrafficPolicy

_CLUSTER, _LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL


@pytest.mark.parametrize("origin", ["", "shop.yaml"])
def test_f_7_port_of_an_unserved_protocol_warns_and_leaves_the_others(origin: str) -> None:
    """It has no Frontend and no Pool; the sentence names the port, and a cluster gets it as an Event."""
    plan = plan_of(
        service("shop/web", service_port(), service_port("sig", 5060, protocol=Protocol.SCTP), origin=origin),
        endpoint_slice("shop/web-1", "10.0.1.1"),
    )
    assert plan.frontends == (frontend(),)
    assert list(plan.pools) == [pool_key()]
    assert plan.unserved == (service_port_name("shop/web:sig", Protocol.SCTP),)
    text = "port sig (5060/SCTP) is not served, as this release serves TCP and UDP only"
    assert plan.problems == (
        Problem(Severity.WARNING, "Service shop/web", "spec.ports", text, origin, "ProtocolNotServed"),
    )


def test_problem_unnamed_port_of_an_unserved_protocol_is_named_by_its_number() -> None:
    """A port without a name still has a number."""
    plan = plan_of(service("shop/web", service_port("", 5060, protocol=Protocol.SCTP)), endpoint_slice("shop/web-1"))
    assert problem_texts(plan) == [
        "warning spec.ports: port 5060/SCTP is not served, as this release serves TCP and UDP only"
    ]


def test_problem_service_without_slices_warns_with_the_label_that_is_missing() -> None:
    """The commonest first mistake; clients are refused meanwhile."""
    plan = plan_of(service("shop/web", origin="shop.yaml"))
    assert plan.pools == {pool_key(): pool()}
    assert plan.problems == (
        Problem(
            Severity.WARNING,
            "Service shop/web",
            "",
            "no EndpointSlice belongs to it, so nothing answers; an EndpointSlice in namespace shop does if it has the "
            "label kubernetes.io/service-name: web",
            "shop.yaml",
        ),
    )


def test_problem_port_that_no_slice_has_warns_with_the_ports_seen() -> None:
    """The other port works; the sentence shows what the EndpointSlices call theirs."""
    plan = plan_of(
        service("shop/web", service_port("http", 80), service_port("metrics", 9000), origin="shop.yaml"),
        endpoint_slice(
            "shop/web-1", "10.0.1.1", ports=[endpoint_port("http"), endpoint_port("metrics", 9000, Protocol.UDP)]
        ),
        endpoint_slice("shop/web-2", "10.0.1.2", ports=[endpoint_port("", 9000)]),
    )
    assert plan.pools[pool_key("shop/web:metrics")].backends == ()
    text = (
        "no EndpointSlice of it has a port with the name 'metrics' and protocol TCP, so nothing answers at port 9000; "
        "the ports they have are: 'http' (TCP), 'metrics' (UDP), '' (TCP)"
    )
    assert problem_texts(plan) == [f"warning spec.ports: {text}"]


@pytest.mark.parametrize(("count", "end"), [(0, "are: none"), (12, "'p9' (TCP)")])
def test_problem_port_that_no_slice_has_shows_at_most_ten_names(count: int, end: str) -> None:
    """The sentence stays readable."""
    ports = [endpoint_port(f"p{i}") for i in range(count)]
    plan = plan_of(service(origin="shop.yaml"), endpoint_slice("shop/web-1", "10.0.1.1", ports=ports))
    assert plan.problems[0].text.endswith(end)


@pytest.mark.parametrize("ports", [[], [endpoint_port("other")]])
def test_problem_slices_without_endpoints_are_no_problem(ports: list[EndpointPort]) -> None:
    """A cluster keeps an empty EndpointSlice for a Service whose pods are not there."""
    plan = plan_of(service(origin="shop.yaml"), endpoint_slice("shop/web-1", ports=ports))
    assert plan.pools == {pool_key(): pool()}
    assert plan.problems == ()


def test_problem_family_without_slices_warns() -> None:
    """An address to which no endpoint of its family belongs refuses all clients; the other one works."""
    asked = service(cluster_ips=["10.96.0.10", "fd00::a"], origin="shop.yaml")
    plan = plan_of(asked, endpoint_slice("shop/web-1", "10.0.1.1"))
    assert problem_texts(plan) == [
        "warning : no EndpointSlice of it has addressType IPv6, so nothing answers at fd00::a",
    ]


@pytest.mark.parametrize(
    "slices",
    [[], [endpoint_slice("shop/web-1", "fd00::1", family=Family.IPV6)], [endpoint_slice("shop/web-1", ports=[])]],
)
def test_problem_missing_endpoints_are_none_in_a_cluster(slices: list[EndpointSlice]) -> None:
    """A Service that came from an API server waits for its pods; nobody made a mistake."""
    assert plan_of(service(), *slices).problems == ()


@pytest.mark.parametrize(
    ("origin", "node_name", "internal", "external", "fields"),
    [
        ("shop.yaml", "", _LOCAL, _LOCAL, ["spec.internalTrafficPolicy", "spec.externalTrafficPolicy"]),
        ("shop.yaml", "", _CLUSTER, _LOCAL, ["spec.externalTrafficPolicy"]),
        ("shop.yaml", "", _LOCAL, _CLUSTER, ["spec.internalTrafficPolicy"]),
        ("shop.yaml", "", _CLUSTER, _CLUSTER, []),
        ("shop.yaml", "here", _LOCAL, _LOCAL, []),
        ("", "", _LOCAL, _LOCAL, []),
    ],
)
def test_problem_local_policy_without_a_node_name_warns_the_author(
    origin: str, node_name: str, internal: TrafficPolicy, external: TrafficPolicy, fields: list[str]
) -> None:
    """Nothing is local to a node without a name; the sentence says which option gives it one."""
    asked = service(origin=origin, internal_policy=internal, external_policy=external)
    found = plan_of(asked, endpoint_slice("shop/web-1", "10.0.1.1"), settings=plan_settings(node_name=node_name))
    assert [one.field for one in found.problems] == fields
    assert all("run it with --hostname-override NAME" in one.text for one in found.problems)


_PLACE = "192.0.2.99"


@pytest.mark.parametrize(
    ("loser", "owner", "field", "remedy"),
    [
        ({"cluster_ips": [_PLACE]}, {"cluster_ips": [_PLACE]}, "spec.clusterIP", "address"),
        ({"cluster_ips": ["fd00::b", _PLACE]}, {"cluster_ips": [_PLACE]}, "spec.clusterIPs", "address"),
        ({"external_ips": [_PLACE]}, {"external_ips": [_PLACE]}, "spec.externalIPs", "address or port"),
        ({"load_balancer_ips": [_PLACE]}, {"external_ips": [_PLACE]}, "status.loadBalancer", "address or port"),
    ],
)
def test_problem_place_of_another_service_names_owner_and_field(
    loser: dict[str, list[str]], owner: dict[str, list[str]], field: str, remedy: str
) -> None:
    """The one that does not get it is told so, also by an Event; the other one hears nothing."""
    state = build(
        service("shop/b", **({"cluster_ips": ["10.96.0.2"]} | loser)),  # type: ignore[arg-type]
        service("shop/a", **({"cluster_ips": ["10.96.0.1"]} | owner)),  # type: ignore[arg-type]
    )
    plan = state.services[named("shop/b")]
    assert [str(one) for one in plan.denied] == ["192.0.2.99:80/TCP"]
    text = f"192.0.2.99:80/TCP belongs to Service shop/a, so this Service does not get it; choose another {remedy}"
    assert plan.problems == (Problem(Severity.ERROR, "Service shop/b", field, text, "", "AddressConflict"),)
    assert state.services[named("shop/a")].problems == ()


def test_problem_node_port_of_another_service_names_the_owner() -> None:
    """NodePorts collide by number, protocol and family; each family goes to the first that asks in it."""
    state = build(
        service("shop/a", service_port(node_port=30080), cluster_ips=["10.96.0.1"]),
        service("shop/b", service_port(node_port=30080), cluster_ips=["10.96.0.2", "fd00::2"]),
    )
    plan = state.services[named("shop/b")]
    assert [str(one) for one in plan.frontends] == ["10.96.0.2:80/TCP", "[fd00::2]:80/TCP", "*:30080/TCP (IPv6)"]
    text = "nodePort *:30080/TCP (IPv4) belongs to Service shop/a, so this Service does not get it; choose another"
    assert problem_texts(plan) == [f"error spec.ports: {text}"]


def test_problem_node_port_of_the_other_protocol_is_no_conflict() -> None:
    """TCP and UDP each have all the numbers, for NodePorts and at a shared address alike."""
    state = build(
        service("shop/a", service_port(node_port=30080), cluster_ips=["10.96.0.1"], external_ips=["192.0.2.99"]),
        service(
            "shop/b",
            service_port(node_port=30080, protocol=Protocol.UDP),
            cluster_ips=["10.96.0.2"],
            external_ips=["192.0.2.99"],
        ),
    )
    assert [plan.problems for plan in state.services.values()] == [(), ()]
    assert [len(plan.frontends) for plan in state.services.values()] == [3, 3]


def test_problem_endpoint_that_is_a_frontend_names_the_service_there() -> None:
    """The sentence says why it is not used; a cluster gets it as an Event."""
    plan = plan_of(
        service("shop/web"),
        endpoint_slice("shop/web-1", "10.96.0.20", ports=[endpoint_port(port=80)]),
        service("shop/api", cluster_ips=["10.96.0.20"]),
    )
    text = (
        "the endpoint 10.96.0.20:80/TCP is where this proxy serves Service shop/api, so a connection to it would come "
        "back here; it is not used; name the address and port of the program that answers"
    )
    assert plan.problems == (Problem(Severity.ERROR, "Service shop/web", "", text, "", "EndpointLoop"),)


def test_problem_many_problems_of_one_service_are_folded() -> None:
    """Fifty ports of an unserved protocol are told in eleven Problems."""
    ports = [service_port(f"p{i}", 1000 + i, protocol=Protocol.SCTP) for i in range(50)]
    assert len(plan_of(service("shop/web", *ports)).problems) == 11

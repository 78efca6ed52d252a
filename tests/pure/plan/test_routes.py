"""Tests of plan.routes: who reaches which Endpoints at which address, by way of the plan of a Service."""

import pytest
from attrs import evolve
from builders import backend, endpoint, endpoint_port, endpoint_slice, plan_settings, service, service_port
from plan_driver import frontend_of, plan_of, problem_texts, reached

from userspace_proxy.model.endpoint import Endpoint
from userspace_proxy.model.names import Family
from userspace_proxy.model.service_port import Service, TrafficPolicy
from userspace_proxy.plan.state import ServicePlan, SourceClass

_POD, _HOST, _OUTSIDE = SourceClass
_CLUSTER, _LOCAL = TrafficPolicy
_CLUSTER_IP = "10.96.0.10:80/TCP"
_OUTER = ("203.0.113.7:80/TCP", "203.0.113.8:80/TCP", "*:30080/TCP (IPv4)")
"""An external address, one of the load balancer, and a NodePort."""


def _web(internal: TrafficPolicy = _CLUSTER, external: TrafficPolicy = _CLUSTER, **kwargs: object) -> Service:
    """Return a Service that is reachable at addresses of every kind."""
    return service(
        "shop/web",
        service_port(node_port=30080),
        external_ips=["203.0.113.7"],
        load_balancer_ips=["203.0.113.8"],
        internal_policy=internal,
        external_policy=external,
        **kwargs,  # type: ignore[arg-type]
    )


def _plan(asked: Service, *endpoints: Endpoint) -> ServicePlan:
    return plan_of(asked, endpoint_slice("shop/web-1", *endpoints))


def _here(host: int) -> Endpoint:
    return endpoint(f"10.0.1.{host}", node_name="here")


def _there(host: int) -> Endpoint:
    return endpoint(f"10.0.2.{host}", node_name="there")


def _ending(one: Endpoint) -> Endpoint:
    """Return an Endpoint as it is while it terminates and still serves."""
    return evolve(one, ready=False, terminating=True)


def _dead(one: Endpoint) -> Endpoint:
    """Return an Endpoint as it is when it serves no more."""
    return evolve(one, ready=False, serving=False, terminating=True)


@pytest.mark.parametrize(
    ("internal", "external", "inside", "from_outside"),
    [
        (_CLUSTER, _CLUSTER, "10.0.1.1 10.0.2.1", "10.0.1.1 10.0.2.1"),
        (_LOCAL, _CLUSTER, "10.0.1.1", "10.0.1.1 10.0.2.1"),
        (_CLUSTER, _LOCAL, "10.0.1.1 10.0.2.1", "10.0.1.1"),
        (_LOCAL, _LOCAL, "10.0.1.1", "10.0.1.1"),
    ],
)
def test_d_1_each_policy_counts_for_its_own_kind_of_address(
    internal: TrafficPolicy, external: TrafficPolicy, inside: str, from_outside: str
) -> None:
    """The internal one for the cluster address whoever dials it, the external one for all others."""
    plan = _plan(_web(internal, external), _here(1), _there(1))
    assert {reached(plan, _CLUSTER_IP, source) for source in SourceClass} == {inside}
    assert {reached(plan, one, _OUTSIDE) for one in _OUTER} == {from_outside}


@pytest.mark.parametrize(
    ("endpoints", "cluster", "local"),
    [
        ([_here(1), _there(1)], "10.0.1.1 10.0.2.1", "10.0.1.1"),
        ([_here(1), _here(2)], "10.0.1.1 10.0.1.2", "10.0.1.1 10.0.1.2"),
        # others could answer: dropped
        ([_there(1)], "10.0.2.1", "drop"),
        ([_dead(_here(1)), _there(1)], "10.0.2.1", "drop"),
        ([_ending(_there(1))], "10.0.2.1", "drop"),
        # nobody could
        ([], "reject", "reject"),
        ([_dead(_here(1)), _dead(_there(1))], "reject", "reject"),
        # the last ones here are ending
        ([_ending(_here(1)), _there(1)], "10.0.2.1", "10.0.1.1"),
        ([_ending(_here(1)), _ending(_there(1))], "10.0.1.1 10.0.2.1", "10.0.1.1"),
        ([_ending(_here(1)), _here(2)], "10.0.1.2", "10.0.1.2"),
    ],
)
def test_d_2_internal_traffic_policy(endpoints: list[Endpoint], cluster: str, local: str) -> None:
    """Cluster is all Endpoints that are usable; Local those here, whoever dials, and a drop where there are others."""
    for policy, expected in {_CLUSTER: cluster, _LOCAL: local}.items():
        plan = _plan(_web(internal=policy), *endpoints)
        assert {reached(plan, _CLUSTER_IP, source) for source in SourceClass} == {expected}
        assert plan.routes[frontend_of(plan, _CLUSTER_IP)].is_same_for_all


@pytest.mark.parametrize(
    ("endpoints", "pod", "host", "outside"),
    [
        ([_here(1), _there(1)], "10.0.1.1 10.0.2.1", "10.0.1.1 10.0.2.1", "10.0.1.1"),
        ([_there(1)], "10.0.2.1", "10.0.2.1", "drop"),
        ([_dead(_here(1)), _there(1)], "10.0.2.1", "10.0.2.1", "drop"),
        ([], "reject", "reject", "reject"),
        ([_dead(_here(1))], "reject", "reject", "reject"),
        # a ready one elsewhere, only ending ones here: each class falls back for itself
        ([_ending(_here(1)), _there(1)], "10.0.2.1", "10.0.2.1", "10.0.1.1"),
        ([_ending(_here(1)), _ending(_there(1))], "10.0.1.1 10.0.2.1", "10.0.1.1 10.0.2.1", "10.0.1.1"),
        ([_ending(_there(1))], "10.0.2.1", "10.0.2.1", "drop"),
    ],
)
def test_d_3_external_traffic_policy_local(endpoints: list[Endpoint], pod: str, host: str, outside: str) -> None:
    """Pods and this node itself reach the whole cluster, others what is here, at all kinds of outer address alike."""
    plan = _plan(_web(external=_LOCAL), *endpoints)
    for text in _OUTER:
        assert [reached(plan, text, source) for source in SourceClass] == [pod, host, outside]


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        ([_here(1), _there(1)], "10.0.1.1 10.0.2.1"),
        ([_there(1)], "10.0.2.1"),
        ([_ending(_here(1)), _there(1)], "10.0.2.1"),
        ([_ending(_here(1)), _dead(_there(1))], "10.0.1.1"),
        ([_dead(_here(1))], "reject"),
        ([], "reject"),
    ],
)
def test_d_3_external_traffic_policy_cluster(endpoints: list[Endpoint], expected: str) -> None:
    """Everybody reaches the whole cluster."""
    plan = _plan(_web(), *endpoints)
    for text in _OUTER:
        assert {reached(plan, text, source) for source in SourceClass} == {expected}


def test_d_3_policy_local_without_a_node_name_finds_nothing_local() -> None:
    """Whatever nodes the Endpoints name; pods and this node are served all the same."""
    settings = plan_settings(node_name="")
    plan = plan_of(
        _web(external=_LOCAL), endpoint_slice("shop/web-1", _here(1), endpoint("10.0.1.2")), settings=settings
    )
    assert [reached(plan, _OUTER[0], source) for source in SourceClass] == ["10.0.1.1 10.0.1.2"] * 2 + ["drop"]


@pytest.mark.parametrize(
    ("asked", "scopes"),
    [
        (_web(), "cluster"),
        (_web(_LOCAL, _CLUSTER), "cluster local"),
        (_web(_CLUSTER, _LOCAL), "cluster local"),
        (_web(_LOCAL, _LOCAL), "cluster local"),
        (service(internal_policy=_LOCAL), "local"),
        # nothing outer, so the external policy means nothing
        (service(external_policy=_LOCAL), "cluster"),
    ],
)
def test_b_11_pools_are_those_that_a_policy_may_ask_for(asked: Service, scopes: str) -> None:
    """No other one costs memory; they are there when they are empty too."""
    for plan in (_plan(asked, _here(1), _there(1)), _plan(asked)):
        assert sorted(key.scope for key in plan.pools) == scopes.split()


def test_b_11_backend_in_pools_of_both_scopes_is_one_object() -> None:
    """Where all Endpoints are on this node, the second Pool costs next to nothing."""
    for asked in (_web(_LOCAL, _CLUSTER), _web(_CLUSTER, _LOCAL)):
        one, other = _plan(asked, _here(1), _here(2)).pools.values()
        assert one.backends == other.backends
        assert all(a is b for a, b in zip(one.backends, other.backends, strict=True))


def test_b_12_hints_lead_clients_of_the_cluster_set_and_not_of_the_local_one() -> None:
    """From another zone than ours the Endpoint here is used by those whom the policy leads to it."""
    near = endpoint("10.0.2.1", node_name="there", hinted_zones=["near"])
    far = endpoint("10.0.1.1", node_name="here", hinted_zones=["far"])
    plan = _plan(_web(external=_LOCAL), near, far)
    assert reached(plan, _CLUSTER_IP, _POD) == "10.0.2.1"
    assert [reached(plan, _OUTER[2], source) for source in SourceClass] == ["10.0.2.1", "10.0.2.1", "10.0.1.1"]


def test_b_12_zone_of_the_node_is_that_of_the_settings() -> None:
    """When the Node moves, so does the choice."""
    slices = endpoint_slice(
        "shop/web-1", *(endpoint(f"10.0.1.{i}", hinted_zones=[zone]) for i, zone in enumerate(["near", "far"], 1))
    )
    for zone, expected in {"near": "10.0.1.1", "far": "10.0.1.2", "": "10.0.1.1 10.0.1.2"}.items():
        assert reached(plan_of(service(), slices, settings=plan_settings(zone=zone)), _CLUSTER_IP, _POD) == expected


@pytest.mark.parametrize("timeout_s", [None, 1, 10800])
def test_c_2_affinity_is_that_of_all_pools_of_the_service(timeout_s: int | None) -> None:
    """Whichever address a client dials, and whichever Pool it is led to."""
    plan = _plan(_web(external=_LOCAL, affinity_timeout_s=timeout_s), _here(1))
    assert [one.affinity_timeout_s for one in plan.pools.values()] == [timeout_s] * 2


def test_e_1_port_without_endpoints_rejects_all_though_another_port_has_some() -> None:
    """What is nowhere is refused at every address, for every policy; ports do not answer for each other."""
    asked = service(
        "shop/web",
        service_port("http", 80, node_port=30080),
        service_port("admin", 81, node_port=30081),
        internal_policy=_LOCAL,
        external_policy=_LOCAL,
    )
    plan = _plan(asked, _there(1))
    assert {
        reached(plan, text, source) for text in ("10.96.0.10:81/TCP", "*:30081/TCP (IPv4)") for source in SourceClass
    } == {"reject"}
    assert reached(plan, _CLUSTER_IP, _POD) == "drop"


def test_e_1_families_do_not_answer_for_each_other() -> None:
    """An IPv6 address leads to IPv6 Endpoints alone, and is refused without one, whatever the policy."""
    asked = service("shop/web", cluster_ips=["10.96.0.10", "fd00::a"], internal_policy=_LOCAL)
    plan = _plan(asked, _here(1))
    assert reached(plan, _CLUSTER_IP, _POD) == "10.0.1.1"
    assert reached(plan, "[fd00::a]:80/TCP", _POD) == "reject"


@pytest.mark.parametrize(
    ("text", "verdicts"), [(_CLUSTER_IP, ["drop"] * 3), (_OUTER[0], ["10.0.2.1", "10.0.2.1", "drop"])]
)
def test_e_2_class_without_local_endpoints_is_dropped_and_no_other(text: str, verdicts: list[str]) -> None:
    """Those whom the policy does not bind are served."""
    plan = _plan(_web(_LOCAL, _LOCAL), _there(1))
    assert [reached(plan, text, source) for source in SourceClass] == verdicts


_NODE_4, _NODE_6 = "192.0.2.1", "2001:db8::1"


@pytest.mark.parametrize(
    ("ranges", "ipv4", "ipv6"),
    [
        ([], [], []),
        (["203.0.113.0/25"], ["203.0.113.0/25"], []),
        (["2001:db8:9::/48"], [], ["2001:db8:9::/48"]),
        (["203.0.113.0/25", "198.51.100.0/24"], ["198.51.100.0/24", "203.0.113.0/25"], []),
        (["203.0.113.0/25", "2001:db8:9::/48"], ["203.0.113.0/25"], ["2001:db8:9::/48"]),
        # one that holds everything opens its family
        (["0.0.0.0/0", "203.0.113.0/25", "2001:db8:9::/48"], [], ["2001:db8:9::/48"]),
        (["::/0", "203.0.113.0/25"], ["203.0.113.0/25"], []),
        # the node is among those who may dial: so is the address itself
        (["192.0.2.0/24"], ["192.0.2.0/24", "203.0.113.8/32"], []),
        (["2001:db8::/64"], [], ["2001:db8::/64", "2001:db8:7::8/128"]),
        (["192.0.2.1/32", "203.0.113.0/24"], ["192.0.2.1/32", "203.0.113.0/24", "203.0.113.8/32"], []),
        (["203.0.113.8/32", "192.0.2.0/24"], ["192.0.2.0/24", "203.0.113.8/32"], []),
    ],
)
def test_d_6_load_balancer_source_ranges(ranges: list[str], ipv4: list[str], ipv6: list[str]) -> None:
    """Those of the family count, and none is no restriction."""
    asked = service(
        "shop/web",
        cluster_ips=["10.96.0.10", "fd00::a"],
        load_balancer_ips=["203.0.113.8", "2001:db8:7::8"],
        source_ranges=ranges,
    )
    slices = [
        endpoint_slice("shop/web-1", "10.0.1.1"),
        endpoint_slice("shop/web-2", "fd00:1::1", family=Family.IPV6),
    ]
    plan = plan_of(asked, *slices, settings=plan_settings(node_addresses=[_NODE_4, _NODE_6]))
    for text, expected in {"203.0.113.8:80/TCP": ipv4, "[2001:db8:7::8]:80/TCP": ipv6}.items():
        assert [str(one) for one in plan.routes[frontend_of(plan, text)].source_ranges] == expected


def test_d_6_source_ranges_bind_load_balancer_addresses_alone() -> None:
    """Never NodePorts, external addresses or the cluster address; all lead to the same Pool."""
    plan = _plan(_web(source_ranges=["203.0.113.0/25"]), _here(1))
    assert [frontend.kind for frontend, route in plan.routes.items() if route.source_ranges] == ["load-balancer"]
    assert len(plan.pools) == 1


def test_d_6_without_the_address_of_the_node_ranges_are_as_they_are() -> None:
    """Nobody knows whether the node is in one of them."""
    asked = _web(source_ranges=["192.0.2.0/24"])
    plan = plan_of(asked, endpoint_slice("shop/web-1", _here(1)), settings=plan_settings(node_name="here"))
    assert [str(one) for one in plan.routes[frontend_of(plan, _OUTER[1])].source_ranges] == ["192.0.2.0/24"]


@pytest.mark.parametrize(
    ("endpoints", "verdict", "is_restricted"),
    [([], "reject", False), ([_dead(_here(1))], "reject", False), ([_there(1)], "drop", True)],
)
def test_d_6_source_ranges_do_not_matter_where_nothing_answers(
    endpoints: list[Endpoint], verdict: str, *, is_restricted: bool
) -> None:
    """Without usable Endpoints everybody is refused; where others could answer, the ranges hold."""
    plan = _plan(_web(external=_LOCAL, source_ranges=["203.0.113.0/25"]), *endpoints)
    assert reached(plan, _OUTER[1], _OUTSIDE) == verdict
    assert bool(plan.routes[frontend_of(plan, _OUTER[1])].source_ranges) == is_restricted


def test_route_of_endpoints_that_all_loop_is_reject() -> None:
    """An Endpoint that is a Frontend of this proxy answers nobody."""
    plan = plan_of(service(), endpoint_slice("shop/web-1", "10.96.0.10", ports=[endpoint_port(port=80)]))
    assert reached(plan, _CLUSTER_IP, _POD) == "reject"
    assert plan.refused == (backend("10.96.0.10:80"),)
    assert len(problem_texts(plan)) == 1

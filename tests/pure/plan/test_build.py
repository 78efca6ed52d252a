"""Tests of plan.build: one build and many, and what of a Service is neither Route nor sentence."""

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve
from builders import (
    backend,
    endpoint,
    endpoint_port,
    endpoint_slice,
    frontend,
    named,
    node_port_frontend,
    plan_settings,
    pool,
    pool_key,
    route,
    service,
    service_port,
)
from plan_driver import SETTINGS, build, build_state, changes_of, plan_of, problem_texts

from userspace_proxy.model.endpoint import Endpoint, EndpointSlice
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.model.service_port import Balance, Service, TrafficPolicy
from userspace_proxy.plan.build import build_service_plan, build_steps, orphan_problems
from userspace_proxy.plan.claims import claim_of
from userspace_proxy.plan.state import DesiredState, HealthCheck, PlanSettings, ServicePlan


def test_build_service_with_endpoints_gives_routes_and_a_pool_for_each_family() -> None:
    """The Frontends of one port and family that may reach the same Endpoints share a Pool, whatever their kind."""
    plan = plan_of(
        service("shop/web", service_port(node_port=30080), cluster_ips=["10.96.0.10", "fd00::a"]),
        endpoint_slice("shop/web-1", "10.0.1.2", "10.0.1.1"),
        endpoint_slice("shop/web-2", "fd00::1", family=Family.IPV6),
    )
    ipv6 = pool_key(family=Family.IPV6)
    assert plan == ServicePlan(
        routes={
            frontend("10.96.0.10:80"): route(),
            node_port_frontend(30080): route(),
            frontend("[fd00::a]:80"): route(ipv6),
            node_port_frontend(30080, family=Family.IPV6): route(ipv6),
        },
        pools={pool_key(): pool("10.0.1.1:8080", "10.0.1.2:8080"), ipv6: pool("[fd00::1]:8080", key=ipv6)},
        problems=(),
    )
    assert [str(one) for one in plan.frontends] == [
        "10.96.0.10:80/TCP",
        "*:30080/TCP (IPv4)",
        "[fd00::a]:80/TCP",
        "*:30080/TCP (IPv6)",
    ]


def test_build_service_plan_of_one_service_needs_only_its_claims() -> None:
    """A plan can be made without a state."""
    claims = {claim_of(frontend()): ((0, named()),)}
    plan = build_service_plan(service(), [endpoint_slice("shop/web-1", "10.0.1.1")], claims, SETTINGS)
    assert plan == ServicePlan({frontend(): route()}, {pool_key(): pool("10.0.1.1:8080")}, ())


@pytest.mark.parametrize(
    ("asked", "used"),
    [(None, Balance.LEAST_CONNECTIONS), (Balance.ROUND_ROBIN, Balance.ROUND_ROBIN)],
)
def test_build_balance_is_the_default_unless_the_service_asks(asked: Balance | None, used: Balance) -> None:
    """The annotation of the Service wins over the setting."""
    settings = plan_settings(default_balance=Balance.LEAST_CONNECTIONS)
    plan = plan_of(service(balance=asked), endpoint_slice("shop/web-1", "10.0.1.1"), settings=settings)
    assert plan.pools[pool_key()].balance is used


def test_build_slice_of_another_namespace_does_not_count() -> None:
    """An EndpointSlice belongs to a Service of its own namespace."""
    plan = plan_of(service("shop/web"), endpoint_slice("default/web-1", "10.0.1.1", service="default/web"))
    assert plan.pools == {pool_key(): pool()}


def test_build_service_without_ports_asks_for_nothing() -> None:
    """A Service all of whose ports were bad is there, and empty."""
    bare = Service(named(), service().cluster_ips, (), None, "")
    assert plan_of(bare, endpoint_slice("shop/web-1", "10.0.1.1")) == ServicePlan({}, {}, ())


def test_build_when_the_owner_goes_the_other_gets_the_frontend_on_that_build() -> None:
    """No change of the loser itself is needed, neither to win nor to lose."""
    changes = changes_of(service("shop/a"), service("shop/b"), service("shop/z", cluster_ips=["10.96.0.99"]))
    before = build_state(DesiredState(), changes, changes.checkout(), SETTINGS)
    changes.remove(Service, named("shop/a"))
    state = build_state(before, changes, changes.checkout(), SETTINGS)
    assert state.services[named("shop/b")].frontends == (frontend("10.96.0.10:80", "shop/b:http"),)
    assert state.replanned == {named("shop/a"), named("shop/b")}
    changes.apply(service("shop/a"))
    state = build_state(state, changes, changes.checkout(), SETTINGS)
    assert state.services[named("shop/b")].frontends == ()
    assert state == before


@pytest.mark.parametrize(
    ("address", "port", "refused"),
    [
        ("10.96.0.20", 80, True),
        ("10.96.0.20", 81, False),
        ("203.0.113.7", 80, True),
        ("203.0.113.8", 80, True),
        ("203.0.113.8", 30080, False),
        ("192.0.2.1", 30080, True),
        ("127.0.0.1", 30080, True),
        ("127.0.0.1", 8080, False),
        ("10.0.1.1", 30080, False),
    ],
)
def test_build_backend_that_is_a_frontend_is_refused(address: str, port: int, refused: bool) -> None:  # noqa: FBT001
    """A connection to it would come back here for ever; the other Backends are used."""
    plan = plan_of(
        service("shop/web"),
        endpoint_slice("shop/web-1", address, "10.0.9.9", ports=[endpoint_port(port=port)]),
        service(
            "shop/api",
            service_port(node_port=30080),
            cluster_ips=["10.96.0.20"],
            external_ips=["203.0.113.7"],
            load_balancer_ips=["203.0.113.8"],
        ),
    )
    one = backend(f"{address}:{port}")
    assert plan.refused == ((one,) if refused else ())
    assert set(plan.pools[pool_key()].backends) == {one, backend(f"10.0.9.9:{port}")} - set(plan.refused)
    assert len(problem_texts(plan)) == len(plan.refused)


def test_build_backend_that_loops_is_told_once_for_all_pools() -> None:
    """One endpoint in the Pools of two scopes is one Problem."""
    plan = plan_of(
        service("shop/web", service_port(node_port=30080), external_policy=TrafficPolicy.LOCAL),
        endpoint_slice("shop/web-1", endpoint("10.96.0.10", node_name="here"), ports=[endpoint_port(port=80)]),
    )
    assert plan.refused == (backend("10.96.0.10:80"),)
    assert len(plan.problems) == 1
    assert len(plan.pools) == 2


@pytest.mark.parametrize("address", ["192.0.2.1", "192.0.2.2"], ids=["this node", "another node"])
@pytest.mark.parametrize("field", ["external_ips", "load_balancer_ips"])
@pytest.mark.parametrize("is_ready", [True, False])
def test_build_outer_address_where_an_own_endpoint_listens_gives_way(
    field: str,
    address: str,
    is_ready: bool,  # noqa: FBT001
) -> None:
    """A program in the host's network behind the address of its node is reached there, and by the cluster address."""
    at_node = endpoint_slice(
        "shop/web-1", endpoint(address, ready=is_ready), "10.0.1.1", ports=[endpoint_port(port=80)]
    )
    outer = {field: [address, "203.0.113.9"]}
    plan = plan_of(service("shop/web", service_port(), **outer), at_node)  # type: ignore[arg-type]
    assert [str(one) for one in plan.frontends] == ["10.96.0.10:80/TCP", "203.0.113.9:80/TCP"]
    assert plan.pools[pool_key()] == (pool("10.0.1.1:80", f"{address}:80") if is_ready else pool("10.0.1.1:80"))
    assert plan.problems == ()


def test_build_outer_address_of_another_service_at_an_endpoint_is_a_loop() -> None:
    """There another Service is served, so nothing gives way."""
    plan = plan_of(
        service("shop/web"),
        endpoint_slice("shop/web-1", "192.0.2.1", ports=[endpoint_port(port=80)]),
        service("shop/api", cluster_ips=["10.96.0.11"], external_ips=["192.0.2.1"]),
    )
    assert plan.refused == (backend("192.0.2.1:80"),)


@pytest.mark.parametrize(("address", "port"), [("10.96.0.20", 80), ("127.0.0.1", 30080), ("192.0.2.1", 30080)])
def test_build_backend_is_refused_when_its_frontend_appears_and_used_when_it_goes(address: str, port: int) -> None:
    """The order of arrival does not matter, and the Service with the Backend need not change itself."""
    looping = service("shop/api", service_port(node_port=30080), cluster_ips=["10.96.0.20"])
    changes = changes_of(
        service("shop/web"),
        endpoint_slice("shop/web-1", address, ports=[endpoint_port(port=port)]),
        service("shop/far", cluster_ips=["10.96.0.99"]),
        endpoint_slice("shop/far-1", "10.0.1.1", service="shop/far"),
    )
    before = build_state(DesiredState(), changes, changes.checkout(), SETTINGS)
    assert before.services[named()].pools[pool_key()] == pool(f"{address}:{port}")
    changes.apply(looping)
    state = build_state(before, changes, changes.checkout(), SETTINGS)
    assert state.services[named()].pools[pool_key()] == pool()
    assert state.replanned == {named("shop/web"), named("shop/api")}
    changes.remove(Service, looping.name)
    state = build_state(state, changes, changes.checkout(), SETTINGS)
    assert state == before


def test_build_change_of_endpoints_plans_that_service_alone_and_keeps_the_index() -> None:
    """All other plans are the same objects, and nothing that covers all Services is copied but the dict of plans."""
    changes = changes_of(
        *(service(f"shop/s{i}", cluster_ips=[f"10.96.0.{i + 1}"]) for i in range(20)),
        *(endpoint_slice(f"shop/s{i}-1", f"10.0.1.{i + 1}", service=f"shop/s{i}") for i in range(20)),
    )
    before = build_state(DesiredState(), changes, changes.checkout(), SETTINGS)
    changes.apply(endpoint_slice("shop/s7-1", "10.0.1.200", service="shop/s7"))
    state = build_state(before, changes, changes.checkout(), SETTINGS)
    assert state.replanned == {named("shop/s7")}
    assert {name for name, plan in state.services.items() if plan is not before.services[name]} == {named("shop/s7")}
    assert state.index.claims is before.index.claims
    assert state.index.neighbours is before.index.neighbours


def test_build_without_changes_is_the_same_state() -> None:
    """Nothing dirty, nothing planned."""
    changes = changes_of(service())
    before = build_state(DesiredState(), changes, changes.checkout(), SETTINGS)
    state = build_state(before, changes, changes.checkout(), SETTINGS)
    assert state == before
    assert state.replanned == frozenset()


@pytest.mark.parametrize(
    "settings",
    [
        plan_settings(node_name="there"),
        plan_settings(zone="far"),
        plan_settings(serves_external_ips=False),
        plan_settings(node_addresses=["192.0.2.7"]),
        plan_settings(node_port_addresses={Family.IPV4: ["192.0.2.1"]}),
        plan_settings(default_balance=Balance.LEAST_CONNECTIONS),
        plan_settings(pod_networks=["10.0.0.0/16"]),
        plan_settings(local_addresses=["192.0.2.7"], zone="far"),
    ],
)
def test_build_with_other_settings_plans_everything_anew(settings: PlanSettings) -> None:
    """The plan is that of a build from nothing; a Service removed at the same time is gone."""
    objects: list[Service | EndpointSlice] = [
        service("shop/web", service_port(node_port=30080), external_ips=["203.0.113.7"]),
        endpoint_slice("shop/web-1", "10.0.1.1"),
        service("shop/gone", cluster_ips=["10.96.0.99"]),
    ]
    changes = changes_of(*objects)
    before = build_state(DesiredState(), changes, changes.checkout(), plan_settings())
    changes.remove(Service, named("shop/gone"))
    state = build_state(before, changes, changes.checkout(), settings)
    assert state.replanned == {named("shop/web"), named("shop/gone")}
    assert state == build(*objects[:2], settings=settings)


def test_build_with_another_local_address_plans_those_alone_that_have_endpoints_there() -> None:
    """It makes NodePorts loops, and nothing else; a node gets an address with each pod that starts."""
    changes = changes_of(
        service("shop/web", service_port(node_port=30080)),
        endpoint_slice("shop/web-1", "192.0.2.7", ports=[endpoint_port(port=30080)]),
        service("shop/far", cluster_ips=["10.96.0.99"]),
        endpoint_slice("shop/far-1", "10.0.1.1", service="shop/far"),
    )
    before = build_state(DesiredState(), changes, changes.checkout(), plan_settings())
    assert before.services[named()].refused == ()
    moved = plan_settings(local_addresses=["192.0.2.7", "fe80::1"])
    state = build_state(before, changes, changes.checkout(), moved)
    assert state.services[named()].refused == (backend("192.0.2.7:30080"),)
    assert state.replanned == {named()}
    assert state.index == build_state(DesiredState(), changes, changes.services, moved).index
    changes.remove(Service, named())
    state = build_state(state, changes, changes.checkout(), moved)
    assert build_state(state, changes, (), plan_settings()).replanned == frozenset()


def test_build_steps_pause_after_each_service_and_end_with_the_state() -> None:
    """Whoever drives the steps can do other work between any two Services, and nothing is given out half-built."""
    objects = [service(f"shop/s{i}", cluster_ips=[f"10.96.0.{i + 1}"]) for i in range(5)]
    changes = changes_of(*objects)
    ends: list[DesiredState] = []

    def drive() -> Iterator[None]:
        ends.append((yield from build_steps(DesiredState(), changes, changes.checkout(), SETTINGS)))

    assert sum(1 for _ in drive()) == 2 * len(objects)  # each is asked what it wants, then planned
    assert ends == [build(*objects)]


def test_orphan_problems_name_each_slice_written_by_hand_whose_service_is_not_served() -> None:
    """They stand until the Service comes, in the order of their Services; nobody wants to hear of a cluster's."""
    changes = changes_of(
        service("shop/web"),
        endpoint_slice("shop/web-1", origin="shop.yaml"),
        endpoint_slice("shop/wbe-2", service="shop/wbe", origin="shop.yaml"),
        endpoint_slice("shop/x", service="shop/db", origin="shop.yaml"),
        endpoint_slice("shop/y", service="shop/none"),
    )
    problems = orphan_problems(changes)
    assert [one.subject for one in problems] == ["EndpointSlice shop/x", "EndpointSlice shop/wbe-2"]
    assert str(problems[1]) == (
        "shop.yaml: EndpointSlice shop/wbe-2: metadata.labels[kubernetes.io/service-name]: names Service shop/wbe, "
        "which is not served: it is missing, headless, of type ExternalName or refused; the EndpointSlice does nothing"
    )
    changes.apply(service("shop/wbe"))
    changes.remove(EndpointSlice, named("shop/x"))
    assert orphan_problems(changes) == ()


_UNREADY = endpoint("10.0.1.9", ready=False, node_name="here")
_ENDING = endpoint("10.0.1.9", ready=False, terminating=True, node_name="here")


@pytest.mark.parametrize(
    ("endpoints", "count"),
    [
        ([], 0),
        ([endpoint("10.0.1.1", node_name="here")], 1),
        ([endpoint("10.0.1.1", node_name="here"), endpoint("10.0.1.2", node_name="here")], 2),
        ([endpoint("10.0.1.1", node_name="here"), endpoint("10.0.1.2", node_name="there"), endpoint("10.0.1.3")], 1),
        ([endpoint("10.0.1.1", node_name="here"), _ENDING, _UNREADY], 1),
        # those that end still get traffic, but load balancers are to send no more
        ([_ENDING], 0),
    ],
)
def test_d_7_health_check_counts_ready_endpoints_on_this_node(endpoints: list[Endpoint], count: int) -> None:
    """Neither those elsewhere nor those that end are counted."""
    asked = service("shop/web", external_policy=TrafficPolicy.LOCAL, health_check_node_port=32000)
    assert plan_of(asked, endpoint_slice("shop/web-1", *endpoints)).health_check == HealthCheck(
        32000, {Family.IPV4: count}
    )


def test_d_7_health_check_counts_addresses_over_all_ports_once_in_each_family() -> None:
    """One pod behind two ports, or with two numbers of one, is one; each family has a count of its own."""
    asked = service(
        "shop/web",
        service_port("http", 80),
        service_port("dns", 53, protocol=Protocol.UDP),
        cluster_ips=["10.96.0.10", "fd00::a"],
        health_check_node_port=32000,
    )
    here = [endpoint(f"10.0.1.{i}", node_name="here") for i in (1, 2)]
    plan = plan_of(
        asked,
        endpoint_slice("shop/web-1", here[0], ports=[endpoint_port("http"), endpoint_port("other", 1)]),
        endpoint_slice("shop/web-2", here[0], ports=[endpoint_port("http", 81)]),
        endpoint_slice("shop/web-3", *here, ports=[endpoint_port("dns", 53, Protocol.UDP)]),
        endpoint_slice("shop/web-4", endpoint("fd00::1", node_name="here"), family=Family.IPV6),
    )
    assert plan.health_check == HealthCheck(32000, {Family.IPV4: 2, Family.IPV6: 1})


def test_d_7_service_without_a_health_check_port_has_none() -> None:
    """Load balancers do not ask for it."""
    assert plan_of(service(), endpoint_slice("shop/web-1", "10.0.1.1")).health_check is None


def test_build_bug_in_planning_a_service_costs_that_service_its_change_alone() -> None:
    """It stays as it was, also when everything is planned anew; one that was never planned has no plan."""
    changes = changes_of(service("shop/web"), endpoint_slice("shop/web-1", "10.0.1.1"), service("shop/new"))
    changes.remove(Service, named("shop/new"))
    before = build_state(DesiredState(), changes, changes.checkout(), SETTINGS)
    unplannable: Any = None  # what no parser lets through, for want of a bug
    changes.apply(endpoint_slice("shop/web-1", unplannable))
    changes.apply(service("shop/new", cluster_ips=["10.96.0.11"]))
    changes.apply(endpoint_slice("shop/new-1", unplannable, service="shop/new"))
    changes.apply(service("shop/api", cluster_ips=["10.96.0.12"]))
    for settings in (SETTINGS, evolve(SETTINGS, zone="far")):
        state = build_state(before, changes, changes.services, settings)
        assert state.failed.keys() == {named("shop/web"), named("shop/new")}
        assert state.services.keys() == {named("shop/web"), named("shop/api")}
        assert state.services[named("shop/web")] is before.services[named("shop/web")]
    changes.apply(endpoint_slice("shop/web-1", "10.0.1.2"))
    state = build_state(state, changes, changes.checkout(), settings)
    assert state.services[named("shop/web")].pools[pool_key()] == pool("10.0.1.2:8080")
    assert named("shop/web") not in state.failed

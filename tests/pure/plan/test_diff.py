"""Tests of plan.diff."""

import pytest
from attrs import evolve
from builders import (
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
from hypothesis import given
from hypothesis import strategies as st
from plan_driver import build_state

from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.service_port import Balance, Service, TrafficPolicy
from userspace_proxy.plan.diff import Diff, diff_states
from userspace_proxy.plan.state import DesiredState, EndpointScope, Frontend, FrontendKind, Pool, Route, Verdict

_SETTINGS = plan_settings(node_name="here")
_NOTHING = Diff((), (), (), (), ())
_WEB = service("shop/web", service_port(node_port=30080), external_policy=TrafficPolicy.LOCAL)
_HERE = endpoint("10.0.1.1", node_name="here")
_WEB_1 = endpoint_slice("shop/web-1", _HERE)
_LOCAL = pool_key(scope=EndpointScope.LOCAL)


def _state(*objects: Service | EndpointSlice) -> DesiredState:
    changes = Changes()
    for obj in objects:
        changes.apply(obj)
    return build_state(DesiredState(), changes, changes.checkout(), _SETTINGS)


def test_diff_of_equal_states_is_nothing() -> None:
    """Two states built apart from equal objects need no work."""
    diff = diff_states(_state(_WEB, _WEB_1), _state(_WEB, _WEB_1))
    assert diff == _NOTHING
    assert not diff


@pytest.mark.parametrize(
    "diff",
    [
        evolve(_NOTHING, frontends_removed=(frontend(),)),
        evolve(_NOTHING, pools_replaced=(pool(),)),
        evolve(_NOTHING, routes_replaced=((frontend(), route()),)),
        evolve(_NOTHING, frontends_added=(frontend(),)),
        evolve(_NOTHING, pools_removed=(pool_key(),)),
    ],
)
def test_diff_with_anything_in_it_is_true(diff: Diff) -> None:
    """Each part alone is something to do."""
    assert diff


def test_diff_from_nothing_adds_all_and_back_removes_all() -> None:
    """The first build, and the last one."""
    state = _state(_WEB, _WEB_1)
    assert diff_states(DesiredState(), state) == evolve(
        _NOTHING,
        pools_replaced=(pool("10.0.1.1:8080"), pool("10.0.1.1:8080", key=_LOCAL)),
        frontends_added=(frontend(), node_port_frontend()),
    )
    assert diff_states(state, DesiredState()) == evolve(
        _NOTHING,
        frontends_removed=(frontend(), node_port_frontend()),
        pools_removed=(pool_key(), _LOCAL),
    )


@pytest.mark.parametrize("hosts", [[2], [1, 2]])
def test_diff_of_endpoints_is_pools_only(hosts: list[int]) -> None:
    """No socket is opened and no rule changes when endpoints come and go."""
    after = _state(_WEB, endpoint_slice("shop/web-1", *(endpoint(f"10.0.1.{i}", node_name="here") for i in hosts)))
    backends = [f"10.0.1.{i}:8080" for i in hosts]
    assert diff_states(_state(_WEB, _WEB_1), after) == evolve(
        _NOTHING, pools_replaced=(pool(*backends), pool(*backends, key=_LOCAL))
    )


@pytest.mark.parametrize(
    ("endpoints", "routes"),
    [
        ([], {frontend(): route(Verdict.REJECT), node_port_frontend(): route(Verdict.REJECT)}),
        (["10.0.2.1"], {node_port_frontend(): Route(pool_key(), pool_key(), Verdict.DROP)}),
    ],
)
def test_diff_of_a_pool_that_becomes_empty_or_fills_again_is_a_route_too(
    endpoints: list[str], routes: dict[Frontend, Route]
) -> None:
    """Of the Frontends that lead there, and no others; they neither come nor go."""
    full, other = _state(_WEB, _WEB_1), _state(_WEB, endpoint_slice("shop/web-1", *endpoints))
    emptied, filled = diff_states(full, other), diff_states(other, full)
    assert dict(emptied.routes_replaced) == routes
    assert dict(filled.routes_replaced) == {one: full.services[named()].routes[one] for one in routes}
    for diff in (emptied, filled):
        assert {one.key for one in diff.pools_replaced} == {pool_key(), _LOCAL}
        assert not diff.frontends_added
        assert not diff.frontends_removed
        assert not diff.pools_removed


def test_diff_of_a_policy_is_routes_and_the_pools_they_need() -> None:
    """No Frontend comes or goes, so no connection is queued in vain."""
    web = service("shop/web", service_port(node_port=30080))
    assert diff_states(_state(_WEB, _WEB_1), _state(web, _WEB_1)) == evolve(
        _NOTHING, routes_replaced=((node_port_frontend(), route()),), pools_removed=(_LOCAL,)
    )


def test_diff_of_source_ranges_is_a_route_only() -> None:
    """It is told with the Frontend it is about."""
    before, after = (service(load_balancer_ips=["203.0.113.8"], source_ranges=one) for one in ([], ["192.0.2.0/24"]))
    restricted = frontend("203.0.113.8:80", kind=FrontendKind.LOAD_BALANCER)
    assert diff_states(_state(before, _WEB_1), _state(after, _WEB_1)) == evolve(
        _NOTHING, routes_replaced=((restricted, route(source_ranges=["192.0.2.0/24"])),)
    )


@pytest.mark.parametrize(
    ("asked", "changed"),
    [
        (service(balance=Balance.LEAST_CONNECTIONS), pool("10.0.1.1:8080", balance=Balance.LEAST_CONNECTIONS)),
        (service(affinity_timeout_s=5), pool("10.0.1.1:8080", affinity_timeout_s=5)),
    ],
)
def test_diff_of_how_connections_are_shared_is_pools_only(asked: Service, changed: Pool) -> None:
    """Neither an annotation nor a switch of session affinity touches a socket."""
    assert diff_states(_state(service(), _WEB_1), _state(asked, _WEB_1)) == evolve(_NOTHING, pools_replaced=(changed,))


def test_diff_of_problems_alone_is_nothing() -> None:
    """A Service that moves within its file needs no work."""
    before = _state(service(origin="shop.yaml, line 1"))
    after = _state(service(origin="shop.yaml, line 9"))
    assert before != after
    assert diff_states(before, after) == _NOTHING


def test_diff_of_a_node_port_that_goes_takes_its_pool_along() -> None:
    """What is left of the Service stays untouched."""
    assert diff_states(_state(_WEB, _WEB_1), _state(service(), _WEB_1)) == evolve(
        _NOTHING, frontends_removed=(node_port_frontend(),), pools_removed=(_LOCAL,)
    )


def test_diff_of_a_place_that_changes_hands_is_a_removal_and_an_addition() -> None:
    """The Frontend of the one Service goes before that of the other comes."""
    diff = diff_states(_state(service("shop/web")), _state(service("shop/api")))
    assert diff.frontends_removed == (frontend(service_port="shop/web:http"),)
    assert diff.frontends_added == (frontend(service_port="shop/api:http"),)


def test_diff_with_names_looks_at_those_alone() -> None:
    """What the names leave out is not seen, changed or not."""
    before = _state(service("shop/a", cluster_ips=["10.96.0.1"]), service("shop/b", cluster_ips=["10.96.0.2"]))
    diff = diff_states(before, DesiredState(), [named("shop/b"), named("shop/none")])
    assert diff.frontends_removed == (frontend("10.96.0.2:80", "shop/b:http"),)


def test_diff_is_ordered_by_service_whatever_the_order_of_names() -> None:
    """Two runs on the same manifests do the same things in the same order."""
    state = _state(*(service(f"shop/{x}", cluster_ips=[f"10.96.0.{i}"]) for i, x in enumerate("cab", 1)))
    diff = diff_states(DesiredState(), state)
    assert [one.service_port.service.name for one in diff.frontends_added] == ["a", "b", "c"]
    assert diff_states(DesiredState(), state, reversed(list(state.services))) == diff


_NAMES = st.sampled_from([named(f"shop/{x}") for x in "abc"])
_EVENTS: st.SearchStrategy[Service | EndpointSlice | NamespacedName] = st.one_of(
    st.builds(
        lambda name, address, port, node_port, balance, policy: service(
            str(name),
            service_port("http", port, node_port=node_port),
            cluster_ips=[address],
            balance=balance,
            external_policy=policy,
        ),
        _NAMES,
        st.sampled_from(["10.96.0.1", "10.96.0.2"]),
        st.sampled_from([80, 81]),
        st.sampled_from([None, 30080]),
        st.sampled_from([None, *Balance]),
        st.sampled_from(TrafficPolicy),
    ),
    st.builds(
        lambda owner, addresses, port: endpoint_slice(
            f"{owner}-1",
            *(endpoint(one, node_name="here") for one in addresses),
            service=str(owner),
            ports=[endpoint_port(port=port)],
        ),
        _NAMES,
        st.lists(st.sampled_from(["10.0.1.1", "10.0.1.2", "10.96.0.1"]), max_size=3),
        st.sampled_from([80, 8080]),
    ),
    _NAMES,
)


@given(batches=st.lists(st.lists(_EVENTS, max_size=4), max_size=10))
def test_diff_applied_to_the_previous_state_gives_the_desired_one(
    batches: list[list[Service | EndpointSlice | NamespacedName]],
) -> None:
    """In any sequence of builds; additions are new, removals were there, and nothing is replaced by an equal one."""
    changes = Changes()
    state = DesiredState()
    routes: dict[Frontend, Route] = {}
    pools: dict[object, object] = {}
    for batch in batches:
        for event in batch:
            if isinstance(event, NamespacedName):
                changes.remove(Service, event)
            else:
                changes.apply(event)
        before, state = state, build_state(state, changes, changes.checkout(), _SETTINGS)
        diff = diff_states(before, state, state.replanned)
        assert diff == diff_states(before, state)
        desired = {one: leads for plan in state.services.values() for one, leads in plan.routes.items()}
        for one in diff.frontends_removed:
            del routes[one]
        assert all(routes[one] != leads for one, leads in diff.routes_replaced)
        routes.update(diff.routes_replaced)
        assert routes.keys().isdisjoint(diff.frontends_added)
        routes.update({one: desired[one] for one in diff.frontends_added})
        assert all(pools.get(one.key) != one for one in diff.pools_replaced)
        pools.update({one.key: one for one in diff.pools_replaced})
        for key in diff.pools_removed:
            del pools[key]
        assert bool(diff) == (diff != _NOTHING)
        assert routes == desired
        assert pools == {key: one for plan in state.services.values() for key, one in plan.pools.items()}

"""Tests of plan.diff."""

import pytest
from builders import (
    endpoint_port,
    endpoint_slice,
    frontend,
    named,
    node_port_frontend,
    plan_settings,
    pool,
    pool_key,
    service,
    service_port,
)
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.service_port import Balance, Service
from userspace_proxy.plan.build import build_state
from userspace_proxy.plan.diff import Diff, diff_states
from userspace_proxy.plan.state import DesiredState, PolicyClass

_NOTHING = Diff((), (), (), ())
_WEB = service("shop/web", service_port(node_port=30080))
_WEB_1 = endpoint_slice("shop/web-1", "10.0.1.1")
_EXTERNAL = pool_key(policy=PolicyClass.EXTERNAL)


def _state(*objects: Service | EndpointSlice) -> DesiredState:
    changes = Changes()
    for obj in objects:
        changes.apply(obj)
    return build_state(DesiredState(), changes, changes.checkout(), plan_settings())


def test_diff_of_equal_states_is_nothing() -> None:
    """Two states built apart from equal objects need no work."""
    diff = diff_states(_state(_WEB, _WEB_1), _state(_WEB, _WEB_1))
    assert diff == _NOTHING
    assert not diff


@pytest.mark.parametrize(
    "diff",
    [
        Diff((frontend(),), (), (), ()),
        Diff((), (pool(),), (), ()),
        Diff((), (), (frontend(),), ()),
        Diff((), (), (), (pool_key(),)),
    ],
)
def test_diff_with_anything_in_it_is_true(diff: Diff) -> None:
    """Each part alone is something to do."""
    assert diff


def test_diff_from_nothing_adds_all_and_back_removes_all() -> None:
    """The first build, and the last one."""
    state = _state(_WEB, _WEB_1)
    assert diff_states(DesiredState(), state) == Diff(
        frontends_removed=(),
        pools_replaced=(pool("10.0.1.1:8080"), pool("10.0.1.1:8080", key=_EXTERNAL)),
        frontends_added=(frontend(), node_port_frontend()),
        pools_removed=(),
    )
    assert diff_states(state, DesiredState()) == Diff(
        frontends_removed=(frontend(), node_port_frontend()),
        pools_replaced=(),
        frontends_added=(),
        pools_removed=(pool_key(), _EXTERNAL),
    )


@pytest.mark.parametrize("addresses", [["10.0.1.2"], ["10.0.1.1", "10.0.1.2"], []])
def test_diff_of_endpoints_is_pools_only(addresses: list[str]) -> None:
    """No socket is opened and no rule changes when endpoints come and go."""
    after = _state(_WEB, endpoint_slice("shop/web-1", *addresses))
    backends = [f"{one}:8080" for one in addresses]
    assert diff_states(_state(_WEB, _WEB_1), after) == Diff(
        (), (pool(*backends), pool(*backends, key=_EXTERNAL)), (), ()
    )


def test_diff_of_balance_is_pools_only() -> None:
    """An annotation touches no socket."""
    web = service(balance=Balance.LEAST_CONNECTIONS)
    assert diff_states(_state(service(), _WEB_1), _state(web, _WEB_1)) == Diff(
        (), (pool("10.0.1.1:8080", balance=Balance.LEAST_CONNECTIONS),), (), ()
    )


def test_diff_of_problems_alone_is_nothing() -> None:
    """A Service that moves within its file needs no work."""
    before = _state(service(origin="shop.yaml, line 1"))
    after = _state(service(origin="shop.yaml, line 9"))
    assert before != after
    assert diff_states(before, after) == _NOTHING


def test_diff_of_a_node_port_that_goes_takes_its_pool_along() -> None:
    """What is left of the Service stays untouched."""
    assert diff_states(_state(_WEB, _WEB_1), _state(service(), _WEB_1)) == Diff(
        (node_port_frontend(),), (), (), (_EXTERNAL,)
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
        lambda name, address, port, node_port, balance: service(
            str(name), service_port("http", port, node_port=node_port), cluster_ips=[address], balance=balance
        ),
        _NAMES,
        st.sampled_from(["10.96.0.1", "10.96.0.2"]),
        st.sampled_from([80, 81]),
        st.sampled_from([None, 30080]),
        st.sampled_from([None, *Balance]),
    ),
    st.builds(
        lambda owner, addresses, port: endpoint_slice(
            f"{owner}-1", *addresses, service=str(owner), ports=[endpoint_port(port=port)]
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
    """In any sequence of builds; additions are new, removals were there, and no Pool is replaced by an equal one."""
    changes = Changes()
    state = DesiredState()
    frontends: set[object] = set()
    pools: dict[object, object] = {}
    for batch in batches:
        for event in batch:
            if isinstance(event, NamespacedName):
                changes.remove(Service, event)
            else:
                changes.apply(event)
        before, state = state, build_state(state, changes, changes.checkout(), plan_settings())
        diff = diff_states(before, state, state.replanned)
        assert diff == diff_states(before, state)
        assert frontends.issuperset(diff.frontends_removed)
        frontends.difference_update(diff.frontends_removed)
        assert frontends.isdisjoint(diff.frontends_added)
        frontends.update(diff.frontends_added)
        assert all(pools.get(one.key) != one for one in diff.pools_replaced)
        pools.update({one.key: one for one in diff.pools_replaced})
        for key in diff.pools_removed:
            del pools[key]
        assert bool(diff) == (diff != _NOTHING)
        assert frontends == {one for plan in state.services.values() for one in plan.frontends}
        assert pools == {key: one for plan in state.services.values() for key, one in plan.pools.items()}

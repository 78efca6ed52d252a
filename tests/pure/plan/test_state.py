"""Tests of plan.state: identities and how they print."""

import pytest
from attrs import evolve
from builders import backend, frontend, listener_key, named, node_port_frontend, pool_key, route, service_port_name
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.claims import claim_of
from userspace_proxy.plan.state import (
    DesiredState,
    EndpointScope,
    Frontend,
    FrontendKind,
    ListenerKey,
    PlanIndex,
    PolicyClass,
    Route,
    SourceClass,
    Verdict,
)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (frontend("10.96.0.10:80"), "10.96.0.10:80/TCP"),
        (frontend("[fd00::a]:80"), "[fd00::a]:80/TCP"),
        (node_port_frontend(30080), "*:30080/TCP (IPv4)"),
        (node_port_frontend(30080, family=Family.IPV6), "*:30080/TCP (IPv6)"),
        (evolve(frontend("10.96.0.10:53"), service_port=service_port_name(protocol=Protocol.UDP)), "10.96.0.10:53/UDP"),
    ],
)
def test_frontend_prints_address_port_and_protocol(one: Frontend, text: str) -> None:
    """An IPv6 address stands in brackets; a NodePort stands at every address of its family."""
    assert str(one) == text
    assert one.protocol is one.service_port.protocol


def test_frontend_policy_is_that_of_its_kind_of_address() -> None:
    """Cluster addresses follow the internal policy, all others the external one."""
    internal = [kind for kind in FrontendKind if frontend(kind=kind).policy is PolicyClass.INTERNAL]
    assert internal == [FrontendKind.CLUSTER_IP]


@pytest.mark.parametrize("text", ["10.0.1.1:8080", "[fd00::1]:8080"])
def test_backend_prints_as_it_is_dialled(text: str) -> None:
    """An IPv6 address stands in brackets."""
    assert str(backend(text)) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (listener_key(), "shop/web:http/TCP/internal/IPv4"),
        (listener_key("shop/web", frontend=frontend()), "shop/web:/TCP/internal/IPv4/cluster-ip/10.96.0.10:80/TCP"),
        (
            listener_key(policy=PolicyClass.EXTERNAL, frontend=node_port_frontend()),
            "shop/web:http/TCP/external/IPv4/node-port/*:30080/TCP (IPv4)",
        ),
    ],
)
def test_listener_key_prints_the_text_that_is_kept_on_disk(key: ListenerKey, text: str) -> None:
    """The exact text: releases to come look for it in the state directory."""
    assert str(key) == text


_NAMES = st.text(alphabet="ab-", min_size=1, max_size=3)
_KEYS: st.SearchStrategy[ListenerKey] = st.builds(
    lambda service, port, policy, family, shared, number: listener_key(
        f"{service[0]}/{service[1]}:{port}",
        policy,
        family,
        None if shared else frontend(f"10.96.0.{number}:80"),
    ),
    st.tuples(_NAMES, _NAMES),
    st.just("") | _NAMES,
    st.sampled_from(PolicyClass),
    st.sampled_from(Family),
    st.booleans(),
    st.integers(min_value=1, max_value=3),
)


@given(one=_KEYS, other=_KEYS)
def test_listener_key_texts_are_equal_only_for_equal_keys(one: ListenerKey, other: ListenerKey) -> None:
    """The text identifies the Listener (the ServicePort of a Frontend is that of the Pool)."""

    def identity(key: ListenerKey) -> object:
        at = key.frontend and (key.frontend.kind, key.frontend.address, key.frontend.port)
        return key.service_port, key.policy, key.family, at

    assert (str(one) == str(other)) == (identity(one) == identity(other))


def test_desired_state_equality_is_that_of_its_plans() -> None:
    """How a state was built says nothing about what it asks for."""
    built = DesiredState(
        replanned=frozenset({named()}), index=PlanIndex(claims={claim_of(frontend()): ((0, named()),)})
    )
    assert built == DesiredState()


_CLUSTER, _LOCAL = pool_key(), pool_key(scope=EndpointScope.LOCAL)


@pytest.mark.parametrize(
    ("one", "pools", "is_same_for_all"),
    [
        (route(), {_CLUSTER}, True),
        (route(Verdict.REJECT), set(), True),
        (Route(_CLUSTER, _CLUSTER, _LOCAL), {_CLUSTER, _LOCAL}, False),
        (Route(_CLUSTER, _CLUSTER, Verdict.DROP), {_CLUSTER}, False),
        (route(source_ranges=["203.0.113.0/24"]), {_CLUSTER}, False),
    ],
)
def test_route_says_where_it_leads_and_whom_it_asks(one: Route, pools: set[object], *, is_same_for_all: bool) -> None:
    """Ranges make a difference between clients, as classes do."""
    assert one.pools == pools
    assert one.is_same_for_all is is_same_for_all


def test_route_target_is_that_of_the_class() -> None:
    """Each class has its own."""
    one = Route(_CLUSTER, _LOCAL, Verdict.DROP)
    assert [one.target(source) for source in SourceClass] == [_CLUSTER, _LOCAL, Verdict.DROP]

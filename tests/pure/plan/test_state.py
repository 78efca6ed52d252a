"""Tests of plan.state: identities and how they print."""

import pytest
from attrs import evolve
from builders import backend, frontend, named, node_port_frontend, pool_key, service_port_name
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.claims import claim_of
from userspace_proxy.plan.state import DesiredState, Frontend, ListenerKey, PlanIndex, PolicyClass


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
    """Cluster addresses follow the internal policy, NodePorts the external one."""
    assert frontend().policy is PolicyClass.INTERNAL
    assert node_port_frontend().policy is PolicyClass.EXTERNAL


@pytest.mark.parametrize("text", ["10.0.1.1:8080", "[fd00::1]:8080"])
def test_backend_prints_as_it_is_dialled(text: str) -> None:
    """An IPv6 address stands in brackets."""
    assert str(backend(text)) == text


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (ListenerKey(pool_key(), None), "shop/web:http/TCP/internal/IPv4"),
        (ListenerKey(pool_key("shop/web"), frontend()), "shop/web:/TCP/internal/IPv4/cluster-ip/10.96.0.10:80/TCP"),
        (
            ListenerKey(pool_key(policy=PolicyClass.EXTERNAL), node_port_frontend()),
            "shop/web:http/TCP/external/IPv4/node-port/*:30080/TCP (IPv4)",
        ),
    ],
)
def test_listener_key_prints_the_text_that_is_kept_on_disk(key: ListenerKey, text: str) -> None:
    """The exact text: releases to come look for it in the state directory."""
    assert str(key) == text


_NAMES = st.text(alphabet="ab-", min_size=1, max_size=3)
_KEYS: st.SearchStrategy[ListenerKey] = st.builds(
    lambda service, port, policy, family, shared, number: ListenerKey(
        pool_key(f"{service[0]}/{service[1]}:{port}", policy, family),
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
        return key.pool, at

    assert (str(one) == str(other)) == (identity(one) == identity(other))


def test_desired_state_equality_is_that_of_its_plans() -> None:
    """How a state was built says nothing about what it asks for."""
    built = DesiredState(replanned=frozenset({named()}), index=PlanIndex(claims={claim_of(frontend()): (named(),)}))
    assert built == DesiredState()

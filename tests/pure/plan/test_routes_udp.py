"""Tests of plan.routes for UDP: what is said of flows, beside what holds for every protocol (``test_routes``)."""

from collections.abc import Sequence

import pytest
from builders import (
    backend,
    endpoint,
    endpoint_port,
    endpoint_slice,
    named,
    plan_settings,
    pool,
    pool_key,
    service,
    service_port,
    udp_settings,
)
from plan_driver import build, build_state, changes_of, plan_of, problem_texts, reached

from userspace_proxy.model.endpoint import Endpoint, EndpointSlice
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.model.service_port import Balance, Service, TrafficPolicy, UdpBalance
from userspace_proxy.plan.diff import Diff, diff_states
from userspace_proxy.plan.state import DesiredState, EndpointScope, Pool, ServicePlan, SourceClass

_POD, _HOST, _OUTSIDE = SourceClass
_UDP = Protocol.UDP
_DNS_PORT = service_port("dns", 53, node_port=30053, protocol=_UDP)
_DNS_TCP_PORT = service_port("dns-tcp", 53, node_port=30053)
_PORTS = (endpoint_port("dns", 5353, _UDP), endpoint_port("dns-tcp", 5353))
_CLUSTER = pool_key("shop/web:dns", protocol=_UDP)
_LOCAL = pool_key("shop/web:dns", EndpointScope.LOCAL, protocol=_UDP)
_TCP = pool_key("shop/web:dns-tcp")


def _dns(*ports: object, **kwargs: object) -> Service:
    """Return a Service with a DNS port of UDP, and more ports if they are given."""
    return service("shop/web", _DNS_PORT, *ports, **kwargs)  # type: ignore[arg-type]


def _slice(*endpoints: str | Endpoint) -> EndpointSlice:
    return endpoint_slice("shop/web-1", *endpoints, ports=_PORTS)


def _udp_pools(plan: ServicePlan) -> dict[EndpointScope, tuple[str, str]]:
    """Return for each scope the addresses of the Backends, and of those that serve still besides."""
    return {
        key.scope: (_hosts(one.backends), _hosts(sorted(one.udp.serving)))
        for key, one in plan.pools.items()
        if one.udp is not None
    }


def _hosts(backends: Sequence[object]) -> str:
    return " ".join(str(one) for one in backends)


def test_udp_port_is_served_as_one_of_tcp_is() -> None:
    """DNS: one number over both protocols, each with a Pool of its own, of Endpoints that differ."""
    plan = plan_of(
        _dns(_DNS_TCP_PORT),
        endpoint_slice("shop/web-1", "10.0.1.1", ports=_PORTS),
        endpoint_slice("shop/web-2", "10.0.1.2", ports=_PORTS[:1]),
        endpoint_slice("shop/web-3", "10.0.1.3", ports=_PORTS[1:]),
    )
    for text, hosts in {"UDP": "10.0.1.1 10.0.1.2", "TCP": "10.0.1.1 10.0.1.3"}.items():
        for place in (f"10.96.0.10:53/{text}", f"*:30053/{text} (IPv4)"):
            assert {reached(plan, place, source) for source in SourceClass} == {hosts}
    assert plan.pools == {
        _CLUSTER: pool("10.0.1.1:5353", "10.0.1.2:5353", key=_CLUSTER, udp=udp_settings()),
        _TCP: pool("10.0.1.1:5353", "10.0.1.3:5353", key=_TCP),
    }
    assert plan.unserved == ()
    assert plan.problems == ()


def test_udp_port_of_a_name_that_tcp_has_takes_no_endpoints_of_it() -> None:
    """EndpointSlices name ports by name and protocol."""
    plan = plan_of(_dns(), endpoint_slice("shop/web-1", "10.0.1.1", ports=[endpoint_port("dns", 5353)]))
    assert reached(plan, "10.96.0.10:53/UDP", _POD) == "reject"


def test_f_4_f_5_settings_of_the_service_are_those_of_its_udp_pools_alone() -> None:
    """In every scope and family; TCP has none."""
    asked = _dns(
        _DNS_TCP_PORT,
        cluster_ips=["10.96.0.10", "fd00::a"],
        external_policy=TrafficPolicy.LOCAL,
        udp_balance=UdpBalance.DATAGRAM,
        udp_idle_timeout_s=5.0,
        balance=Balance.LEAST_CONNECTIONS,
        affinity_timeout_s=60,
    )
    plan = plan_of(asked, _slice("10.0.1.1"))
    udp = [one for key, one in plan.pools.items() if key.service_port.protocol is _UDP]
    tcp = [one for key, one in plan.pools.items() if key.service_port.protocol is Protocol.TCP]
    assert len(udp) == len(tcp) == 4
    assert {(one.udp.balance, one.udp.idle_timeout_s) for one in udp if one.udp} == {(UdpBalance.DATAGRAM, 5.0)}
    assert [one.udp for one in tcp] == [None] * 4
    assert {(one.balance, one.affinity_timeout_s) for one in (*udp, *tcp)} == {(Balance.LEAST_CONNECTIONS, 60)}


def _ending(host: int, node_name: str = "here") -> Endpoint:
    """Return an Endpoint as it is while it terminates and still serves."""
    return endpoint(f"10.0.1.{host}", ready=False, terminating=True, node_name=node_name)


def _dead(host: int) -> Endpoint:
    """Return an Endpoint as it is when it serves no more."""
    return endpoint(f"10.0.1.{host}", ready=False, serving=False, terminating=True, node_name="here")


def _unready(host: int) -> Endpoint:
    """Return an Endpoint that does not pass its readiness check."""
    return endpoint(f"10.0.1.{host}", ready=False, serving=False, node_name="here")


def _ready(host: int, node_name: str = "here") -> Endpoint:
    return endpoint(f"10.0.1.{host}", node_name=node_name)


@pytest.mark.parametrize(
    ("endpoints", "backends", "serving"),
    [
        pytest.param([_ready(1), _ready(2)], "1 2", "", id="ready"),
        pytest.param([_ready(1), _ending(2)], "1", "2", id="terminating and serving: its flows stay"),
        pytest.param([_ending(1), _ending(2)], "1 2", "", id="all terminating: the fallback"),
        pytest.param([_ready(1), _dead(2)], "1", "", id="terminated"),
        pytest.param([_ready(1), _unready(2)], "1", "", id="not ready"),
        pytest.param([_ready(1)], "1", "", id="deleted"),
        pytest.param([_dead(1), _unready(2)], "", "", id="nobody"),
        pytest.param([], "", "", id="none"),
        pytest.param(
            [_ready(1), endpoint("10.0.1.2", ready=True, serving=False)], "1 2", "", id="publishNotReadyAddresses"
        ),
        pytest.param([_ready(1), endpoint("10.0.1.2", ready=False)], "1", "2", id="serving though not ready"),
    ],
)
def test_f_1_flows_may_stay_at_endpoints_that_serve(endpoints: list[Endpoint], backends: str, serving: str) -> None:
    """New flows go to Backends; those that are there may also go on where an Endpoint still answers."""
    plan = plan_of(_dns(), _slice(*endpoints))
    expected = tuple(" ".join(f"10.0.1.{host}:5353" for host in one.split()) for one in (backends, serving))
    assert _udp_pools(plan) == {EndpointScope.CLUSTER: expected}


def test_f_1_port_that_is_renumbered_serves_at_the_new_number_alone() -> None:
    """The same pod at another number is another Backend; nothing goes on at the old one."""
    changes = changes_of(_dns(), _slice("10.0.1.1"))
    before = build_state(DesiredState(), changes, changes.checkout(), plan_settings())
    changes.apply(endpoint_slice("shop/web-1", "10.0.1.1", ports=[endpoint_port("dns", 5354, _UDP)]))
    after = build_state(before, changes, changes.checkout(), plan_settings())
    assert after.services[named()].pools[_CLUSTER] == pool("10.0.1.1:5354", key=_CLUSTER, udp=udp_settings())


def test_f_1_number_that_one_slice_still_has_goes_on() -> None:
    """While a rollout changes the number, each Endpoint serves at its own."""
    slices = [
        endpoint_slice("shop/web-1", _ending(1), ports=[endpoint_port("dns", 5353, _UDP)]),
        endpoint_slice("shop/web-2", _ready(2), ports=[endpoint_port("dns", 5354, _UDP)]),
    ]
    assert _udp_pools(plan_of(_dns(), *slices)) == {EndpointScope.CLUSTER: ("10.0.1.2:5354", "10.0.1.1:5353")}


@pytest.mark.parametrize(
    ("internal", "expected"),
    [
        (TrafficPolicy.CLUSTER, {EndpointScope.CLUSTER: ("1 2", "3 4")}),
        (TrafficPolicy.LOCAL, {EndpointScope.LOCAL: ("1", "2 3 4")}),
    ],
)
def test_f_1_policy_does_not_matter_to_flows_that_are_there(
    internal: TrafficPolicy, expected: dict[EndpointScope, tuple[str, str]]
) -> None:
    """Whoever has a flow to an Endpoint elsewhere keeps it when the policy turns to Local."""
    asked = service("shop/web", service_port("dns", 53, protocol=_UDP), internal_policy=internal)
    endpoints = [_ready(1), _ready(2, "there"), _ending(3), _ending(4, "there"), _dead(5)]
    found = {
        scope: tuple(one.replace("10.0.1.", "").replace(":5353", "") for one in texts)
        for scope, texts in _udp_pools(plan_of(asked, _slice(*endpoints))).items()
    }
    assert found == expected


def test_f_1_both_scopes_together_name_all_that_serve() -> None:
    """Each Pool says it for its own flows; neither names one of its Backends as one that is left."""
    plan = plan_of(_dns(external_policy=TrafficPolicy.LOCAL), _slice(_ready(1), _ready(2, "there"), _ending(3)))
    assert _udp_pools(plan) == {
        EndpointScope.CLUSTER: ("10.0.1.1:5353 10.0.1.2:5353", "10.0.1.3:5353"),
        EndpointScope.LOCAL: ("10.0.1.1:5353", "10.0.1.2:5353 10.0.1.3:5353"),
    }


@pytest.mark.parametrize("hints", [{"hinted_zones": ["far"]}, {"hinted_nodes": ["there"]}])
def test_f_1_hints_do_not_matter_to_flows_that_are_there(hints: dict[str, list[str]]) -> None:
    """When hints come that lead elsewhere, new flows follow them."""
    near = endpoint("10.0.1.1", hinted_zones=["near"], hinted_nodes=["here"])
    far = endpoint("10.0.1.2", **({"hinted_zones": ["far"], "hinted_nodes": ["there"]} | hints))  # type: ignore[arg-type]
    plan = plan_of(_dns(), _slice(near, far))
    assert _udp_pools(plan) == {EndpointScope.CLUSTER: ("10.0.1.1:5353", "10.0.1.2:5353")}


def test_f_1_families_serve_for_themselves() -> None:
    """An IPv6 Endpoint has no IPv4 flow."""
    asked = service("shop/web", service_port("dns", 53, protocol=_UDP), cluster_ips=["10.96.0.10", "fd00::a"])
    ending = endpoint("fd00:1::2", ready=False, terminating=True)
    plan = plan_of(
        asked,
        _slice(_ready(1), _ending(2)),
        endpoint_slice("shop/web-2", "fd00:1::1", ending, family=Family.IPV6, ports=_PORTS),
    )
    assert {key.family: one.udp for key, one in plan.pools.items()} == {
        Family.IPV4: udp_settings("10.0.1.2:5353"),
        Family.IPV6: udp_settings("[fd00:1::2]:5353"),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"udp_balance": UdpBalance.DATAGRAM},
        {"udp_idle_timeout_s": 5.0},
        {"endpoints": [_ready(1), _ending(2)]},
    ],
    ids=str,
)
def test_f_1_change_that_concerns_flows_leaves_tcp_alone(change: dict[str, object]) -> None:
    """Of a Service with both protocols one Pool is replaced, and nothing else is to do."""
    before = {"endpoints": [_ready(1)]}
    states = []
    for kwargs in (before, before | change):
        endpoints = kwargs.pop("endpoints")
        assert isinstance(endpoints, list)
        states.append(build(_dns(_DNS_TCP_PORT, **kwargs), _slice(*endpoints)))
    diff = diff_states(states[0], states[1])
    assert diff == Diff((), (states[1].services[named()].pools[_CLUSTER],), (), (), ())


def test_udp_endpoint_that_is_a_frontend_of_that_protocol_alone_is_left_out() -> None:
    """Over TCP there is nobody else at the place."""
    other = service("shop/api", service_port("dns", 5353, protocol=_UDP), cluster_ips=["10.96.0.20"])
    plan = plan_of(_dns(_DNS_TCP_PORT), _slice("10.96.0.20"), other)
    assert plan.pools[_CLUSTER].backends == ()
    assert plan.pools[_TCP].backends == (backend("10.96.0.20:5353"),)
    assert plan.refused == (backend("10.96.0.20:5353"),)
    assert len(problem_texts(plan)) == 1


def test_udp_endpoint_that_is_a_frontend_of_two_services_is_told_for_each_protocol() -> None:
    """One of the two has the place over TCP, the other over UDP."""
    others = [
        service("shop/api", service_port("x", 5353, protocol=_UDP), cluster_ips=["10.96.0.20"]),
        service("shop/zoo", service_port("x", 5353), cluster_ips=["10.96.0.21"], external_ips=["10.96.0.20"]),
    ]
    plan = plan_of(_dns(_DNS_TCP_PORT), _slice("10.96.0.20"), *others)
    assert plan.refused == (backend("10.96.0.20:5353"),)
    assert [one.text.partition(", so")[0] for one in plan.problems] == [
        "the endpoint 10.96.0.20:5353/UDP is where this proxy serves Service shop/api",
        "the endpoint 10.96.0.20:5353/TCP is where this proxy serves Service shop/zoo",
    ]


def test_f_1_endpoint_that_comes_to_be_a_frontend_serves_no_more() -> None:
    """Flows that went there would come back here; when the Frontend goes, they may go there again."""
    other = service("shop/api", service_port("dns", 5353, protocol=_UDP), cluster_ips=["10.0.1.2"])
    slices = _slice(_ready(1), _ending(2))
    changes = changes_of(_dns(), slices)
    pools: list[Pool] = []
    state = DesiredState()
    for step in ("none", "came", "went"):
        if step == "came":
            changes.apply(other)
        elif step == "went":
            changes.remove(Service, other.name)
        state = build_state(state, changes, changes.checkout(), plan_settings())
        assert state == build_state(DesiredState(), changes, changes.services, plan_settings())
        assert bool(state.services[named()].refused) is bool(problem_texts(state.services[named()])) is (step == "came")
        pools.append(state.services[named()].pools[_CLUSTER])
    assert pools == [
        pool("10.0.1.1:5353", key=_CLUSTER, udp=udp_settings(*serving))
        for serving in (["10.0.1.2:5353"], [], ["10.0.1.2:5353"])
    ]


def test_f_1_node_port_takes_local_endpoints_of_its_own_protocol_from_those_that_serve() -> None:
    """A program at this node that terminates, and a NodePort that takes its number."""
    ending = endpoint("192.0.2.1", ready=False, terminating=True)
    for protocol, serving in {_UDP: (), Protocol.TCP: ("192.0.2.1:5353",)}.items():
        other = service("shop/api", service_port("x", 1, node_port=5353, protocol=protocol), cluster_ips=["10.96.0.20"])
        plan = plan_of(_dns(), _slice("10.0.1.1", ending), other)
        assert plan.pools[_CLUSTER].udp == udp_settings(*serving)


@pytest.mark.parametrize(
    ("endpoints", "pod", "outside"),
    [
        ([_ready(1), _ready(2, "there")], "10.0.1.1 10.0.1.2", "10.0.1.1"),
        ([_ready(2, "there")], "10.0.1.2", "drop"),
        ([_dead(1)], "reject", "reject"),
    ],
)
def test_d_3_e_1_policies_hold_for_udp_too(endpoints: list[Endpoint], pod: str, outside: str) -> None:
    """Who reaches what is no matter of the protocol."""
    plan = plan_of(_dns(external_policy=TrafficPolicy.LOCAL), _slice(*endpoints))
    assert [reached(plan, "*:30053/UDP (IPv4)", source) for source in SourceClass] == [pod, pod, outside]

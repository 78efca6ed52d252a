"""Tests of plan.build."""

from collections.abc import Iterator

import pytest
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
    service,
    service_port,
)
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointPort, EndpointSlice
from userspace_proxy.model.names import Family, NamespacedName, Protocol
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Balance, Service
from userspace_proxy.plan.build import build_service_plan, build_state, build_steps, orphan_problems
from userspace_proxy.plan.claims import claim_of
from userspace_proxy.plan.state import DesiredState, PlanSettings, PolicyClass, ServicePlan

_SETTINGS = plan_settings(local_addresses=["192.0.2.1"])


def _changes(*objects: Service | EndpointSlice) -> Changes:
    changes = Changes()
    for obj in objects:
        changes.apply(obj)
    return changes


def _build(*objects: Service | EndpointSlice, settings: PlanSettings = _SETTINGS) -> DesiredState:
    """Return the state built of objects, from nothing."""
    changes = _changes(*objects)
    return build_state(DesiredState(), changes, changes.checkout(), settings)


def _plan(*objects: Service | EndpointSlice, of: str = "shop/web", settings: PlanSettings = _SETTINGS) -> ServicePlan:
    return _build(*objects, settings=settings).services[named(of)]


def _texts(plan: ServicePlan) -> list[str]:
    return [f"{one.severity} {one.field}: {one.text}" for one in plan.problems]


def test_build_service_with_endpoints_gives_frontends_and_pools_of_each_policy_and_family() -> None:
    """Frontends of one port share the Backends of their family; each has the Pool of its policy class."""
    plan = _plan(
        service("shop/web", service_port(node_port=30080), cluster_ips=["10.96.0.10", "fd00::a"]),
        endpoint_slice("shop/web-1", "10.0.1.2", "10.0.1.1"),
        endpoint_slice("shop/web-2", "fd00::1", family=Family.IPV6),
    )
    assert plan == ServicePlan(
        frontends=(
            frontend("10.96.0.10:80"),
            node_port_frontend(30080),
            frontend("[fd00::a]:80"),
            node_port_frontend(30080, family=Family.IPV6),
        ),
        pools={
            one.key: one
            for one in (
                pool("10.0.1.1:8080", "10.0.1.2:8080"),
                pool("10.0.1.1:8080", "10.0.1.2:8080", key=pool_key(policy=PolicyClass.EXTERNAL)),
                pool("[fd00::1]:8080", key=pool_key(family=Family.IPV6)),
                pool("[fd00::1]:8080", key=pool_key(policy=PolicyClass.EXTERNAL, family=Family.IPV6)),
            )
        },
        problems=(),
    )


def test_build_service_plan_of_one_service_needs_only_its_claims() -> None:
    """A plan can be made without a state."""
    claims = {claim_of(frontend()): (named(),)}
    plan = build_service_plan(service(), [endpoint_slice("shop/web-1", "10.0.1.1")], claims, _SETTINGS)
    assert plan == ServicePlan((frontend(),), {pool_key(): pool("10.0.1.1:8080")}, ())


def test_build_prefers_ready_endpoints_and_falls_back_to_terminating_ones() -> None:
    """A Service whose last pods are ending still answers."""
    ending = endpoint("10.0.1.2", ready=False, terminating=True)
    assert _plan(service(), endpoint_slice("shop/web-1", "10.0.1.1", ending)).pools[pool_key()] == pool("10.0.1.1:8080")
    assert _plan(service(), endpoint_slice("shop/web-1", ending)).pools[pool_key()] == pool("10.0.1.2:8080")


@pytest.mark.parametrize(
    ("asked", "used"),
    [(None, Balance.LEAST_CONNECTIONS), (Balance.ROUND_ROBIN, Balance.ROUND_ROBIN)],
)
def test_build_balance_is_the_default_unless_the_service_asks(asked: Balance | None, used: Balance) -> None:
    """The annotation of the Service wins over the setting."""
    settings = plan_settings(default_balance=Balance.LEAST_CONNECTIONS)
    plan = _plan(service(balance=asked), endpoint_slice("shop/web-1", "10.0.1.1"), settings=settings)
    assert plan.pools[pool_key()].balance is used


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
def test_build_port_of_an_unserved_protocol_warns_and_leaves_the_others(protocol: Protocol) -> None:
    """It has no Frontend and no Pool; the sentence names the port."""
    plan = _plan(
        service("shop/web", service_port(), service_port("dns", 53, protocol=protocol)),
        endpoint_slice("shop/web-1", "10.0.1.1"),
    )
    assert plan.frontends == (frontend(),)
    assert list(plan.pools) == [pool_key()]
    assert _texts(plan) == [
        f"warning spec.ports: port dns (53/{protocol}) is not served, as this release serves TCP only"
    ]


def test_build_unnamed_port_of_an_unserved_protocol_is_named_by_its_number() -> None:
    """A port without a name still has a number."""
    plan = _plan(service("shop/web", service_port("", 53, protocol=Protocol.UDP)), endpoint_slice("shop/web-1"))
    assert _texts(plan) == ["warning spec.ports: port 53/UDP is not served, as this release serves TCP only"]


def test_build_service_without_slices_warns_with_the_label_that_is_missing() -> None:
    """The commonest first mistake; clients are refused meanwhile."""
    plan = _plan(service("shop/web", origin="shop.yaml"))
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


def test_build_slice_of_another_namespace_does_not_count() -> None:
    """An EndpointSlice belongs to a Service of its own namespace."""
    plan = _plan(service("shop/web"), endpoint_slice("default/web-1", "10.0.1.1", service="default/web"))
    assert [one.severity for one in plan.problems] == [Severity.WARNING]


def test_build_port_that_no_slice_has_warns_with_the_ports_seen() -> None:
    """The other port works; the sentence shows what the EndpointSlices call theirs."""
    plan = _plan(
        service("shop/web", service_port("http", 80), service_port("metrics", 9000)),
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
    assert _texts(plan) == [f"warning spec.ports: {text}"]


@pytest.mark.parametrize(("count", "end"), [(0, "are: none"), (12, "'p9' (TCP)")])
def test_build_port_that_no_slice_has_shows_at_most_ten_names(count: int, end: str) -> None:
    """The sentence stays readable."""
    ports = [endpoint_port(f"p{i}") for i in range(count)]
    plan = _plan(service(), endpoint_slice("shop/web-1", "10.0.1.1", ports=ports))
    assert plan.problems[0].text.endswith(end)


@pytest.mark.parametrize("ports", [[], [endpoint_port("other")]])
def test_build_slices_without_endpoints_are_no_problem(ports: list[EndpointPort]) -> None:
    """A cluster keeps an empty EndpointSlice for a Service whose pods are not there."""
    plan = _plan(service(), endpoint_slice("shop/web-1", ports=ports))
    assert plan.pools == {pool_key(): pool()}
    assert plan.problems == ()


def test_build_family_without_slices_warns() -> None:
    """An address to which no endpoint of its family belongs refuses all clients; the other one works."""
    plan = _plan(service(cluster_ips=["10.96.0.10", "fd00::a"]), endpoint_slice("shop/web-1", "10.0.1.1"))
    assert _texts(plan) == [
        "warning : no EndpointSlice of it has addressType IPv6, so nothing answers at fd00::a",
    ]


def test_build_service_without_ports_asks_for_nothing() -> None:
    """A Service all of whose ports were bad is there, and empty."""
    bare = Service(named(), service().cluster_ips, (), None, "")
    assert _plan(bare, endpoint_slice("shop/web-1", "10.0.1.1")) == ServicePlan((), {}, ())


def test_build_two_services_with_one_address_and_port_the_first_name_gets_it() -> None:
    """The other gets an error that names the owner, and keeps what is its own."""
    state = _build(
        service("shop/b", service_port("http", 80), service_port("alt", 81)),
        service("shop/a"),
        *(endpoint_slice(f"shop/{x}-1", "10.0.1.1", service=f"shop/{x}") for x in "ab"),
    )
    assert state.services[named("shop/a")].frontends == (frontend("10.96.0.10:80", "shop/a:http"),)
    loser = state.services[named("shop/b")]
    assert loser.frontends == (frontend("10.96.0.10:81", "shop/b:alt"),)
    assert loser.denied == (frontend("10.96.0.10:80", "shop/b:http"),)
    assert list(loser.pools) == [pool_key("shop/b:alt")]
    assert _texts(loser)[0] == (
        "error spec.clusterIP: 10.96.0.10:80/TCP belongs to Service shop/a, so this Service does not get it; "
        "choose another address"
    )


def test_build_second_address_in_use_names_its_field() -> None:
    """The path says which of the addresses it is."""
    plan = _plan(service("shop/web", cluster_ips=["10.96.0.10", "fd00::a"]), service("shop/a", cluster_ips=["fd00::a"]))
    assert _texts(plan)[0].startswith("error spec.clusterIPs: [fd00::a]:80/TCP belongs to Service shop/a")


def test_build_two_services_with_one_node_port_share_it_not() -> None:
    """NodePorts collide by number, protocol and family; each family goes to the first that asks in it."""
    state = _build(
        service("shop/a", service_port(node_port=30080), cluster_ips=["10.96.0.1"]),
        service("shop/b", service_port(node_port=30080), cluster_ips=["10.96.0.2", "fd00::2"]),
    )
    plan = state.services[named("shop/b")]
    assert [str(one) for one in plan.frontends] == ["10.96.0.2:80/TCP", "[fd00::2]:80/TCP", "*:30080/TCP (IPv6)"]
    assert _texts(plan)[0] == (
        "error spec.ports: nodePort *:30080/TCP (IPv4) belongs to Service shop/a, so this Service does not get it; "
        "choose another"
    )


def test_build_when_the_owner_goes_the_other_gets_the_frontend_on_that_build() -> None:
    """No change of the loser itself is needed, neither to win nor to lose."""
    changes = _changes(service("shop/a"), service("shop/b"), service("shop/z", cluster_ips=["10.96.0.99"]))
    before = build_state(DesiredState(), changes, changes.checkout(), _SETTINGS)
    changes.remove(Service, named("shop/a"))
    state = build_state(before, changes, changes.checkout(), _SETTINGS)
    assert state.services[named("shop/b")].frontends == (frontend("10.96.0.10:80", "shop/b:http"),)
    assert state.replanned == {named("shop/a"), named("shop/b")}
    changes.apply(service("shop/a"))
    state = build_state(state, changes, changes.checkout(), _SETTINGS)
    assert state.services[named("shop/b")].frontends == ()
    assert state == before


@pytest.mark.parametrize(
    ("address", "port", "refused"),
    [
        ("10.96.0.20", 80, True),
        ("10.96.0.20", 81, False),
        ("192.0.2.1", 30080, True),
        ("127.0.0.1", 30080, True),
        ("127.0.0.1", 8080, False),
        ("10.0.1.1", 30080, False),
    ],
)
def test_build_backend_that_is_a_frontend_is_refused(address: str, port: int, refused: bool) -> None:  # noqa: FBT001
    """A connection to it would come back here for ever; the other Backends are used."""
    plan = _plan(
        service("shop/web"),
        endpoint_slice("shop/web-1", address, "10.0.9.9", ports=[endpoint_port(port=port)]),
        service("shop/api", service_port(node_port=30080), cluster_ips=["10.96.0.20"]),
    )
    text = f"{address}:{port}"
    assert plan.refused == ((backend(text),) if refused else ())
    assert set(plan.pools[pool_key()].backends) == {backend(text), backend(f"10.0.9.9:{port}")} - set(plan.refused)
    loop = (
        f"error : the endpoint {text} is where this proxy serves Service shop/api, so a connection to it would come "
        f"back here; it is not used; name the address and port of the program that answers"
    )
    assert _texts(plan) == ([loop] if refused else [])


def test_build_backend_that_loops_is_told_once_for_all_pools() -> None:
    """One endpoint in the Pools of two policy classes is one Problem."""
    plan = _plan(
        service("shop/web", service_port(node_port=30080)),
        endpoint_slice("shop/web-1", "10.96.0.10", ports=[endpoint_port(port=80)]),
    )
    assert plan.refused == (backend("10.96.0.10:80"),)
    assert len(plan.problems) == 1
    assert len(plan.pools) == 2


@pytest.mark.parametrize(("address", "port"), [("10.96.0.20", 80), ("127.0.0.1", 30080), ("192.0.2.1", 30080)])
def test_build_backend_is_refused_when_its_frontend_appears_and_used_when_it_goes(address: str, port: int) -> None:
    """The order of arrival does not matter, and the Service with the Backend need not change itself."""
    looping = service("shop/api", service_port(node_port=30080), cluster_ips=["10.96.0.20"])
    changes = _changes(
        service("shop/web"),
        endpoint_slice("shop/web-1", address, ports=[endpoint_port(port=port)]),
        service("shop/far", cluster_ips=["10.96.0.99"]),
        endpoint_slice("shop/far-1", "10.0.1.1", service="shop/far"),
    )
    before = build_state(DesiredState(), changes, changes.checkout(), _SETTINGS)
    assert before.services[named()].pools[pool_key()] == pool(f"{address}:{port}")
    changes.apply(looping)
    state = build_state(before, changes, changes.checkout(), _SETTINGS)
    assert state.services[named()].pools[pool_key()] == pool()
    assert state.replanned == {named("shop/web"), named("shop/api")}
    changes.remove(Service, looping.name)
    state = build_state(state, changes, changes.checkout(), _SETTINGS)
    assert state == before


def test_build_change_of_endpoints_plans_that_service_alone_and_keeps_the_index() -> None:
    """All other plans are the same objects, and nothing that covers all Services is copied but the dict of plans."""
    changes = _changes(
        *(service(f"shop/s{i}", cluster_ips=[f"10.96.0.{i + 1}"]) for i in range(20)),
        *(endpoint_slice(f"shop/s{i}-1", f"10.0.1.{i + 1}", service=f"shop/s{i}") for i in range(20)),
    )
    before = build_state(DesiredState(), changes, changes.checkout(), _SETTINGS)
    changes.apply(endpoint_slice("shop/s7-1", "10.0.1.200", service="shop/s7"))
    state = build_state(before, changes, changes.checkout(), _SETTINGS)
    assert state.replanned == {named("shop/s7")}
    assert {name for name, plan in state.services.items() if plan is not before.services[name]} == {named("shop/s7")}
    assert state.index.claims is before.index.claims
    assert state.index.neighbours is before.index.neighbours


def test_build_without_changes_is_the_same_state() -> None:
    """Nothing dirty, nothing planned."""
    changes = _changes(service())
    before = build_state(DesiredState(), changes, changes.checkout(), _SETTINGS)
    state = build_state(before, changes, changes.checkout(), _SETTINGS)
    assert state == before
    assert state.replanned == frozenset()


def test_build_with_other_settings_plans_everything_anew() -> None:
    """A new address of the node makes its NodePort a loop; a Service removed at the same time is gone."""
    changes = _changes(
        service("shop/web", service_port(node_port=30080)),
        endpoint_slice("shop/web-1", "192.0.2.7", ports=[endpoint_port(port=30080)]),
        service("shop/gone", cluster_ips=["10.96.0.99"]),
    )
    before = build_state(DesiredState(), changes, changes.checkout(), _SETTINGS)
    assert before.services[named()].refused == ()
    changes.remove(Service, named("shop/gone"))
    moved = plan_settings(local_addresses=["192.0.2.7"])
    state = build_state(before, changes, changes.checkout(), moved)
    assert state.services[named()].refused == (backend("192.0.2.7:30080"),)
    assert state.replanned == {named("shop/web"), named("shop/gone")}
    assert state.services.keys() == {named("shop/web")}


def test_build_steps_pause_after_each_service_and_end_with_the_state() -> None:
    """Whoever drives the steps can do other work between any two Services, and nothing is given out half-built."""
    objects = [service(f"shop/s{i}", cluster_ips=[f"10.96.0.{i + 1}"]) for i in range(5)]
    changes = _changes(*objects)
    ends: list[DesiredState] = []

    def drive() -> Iterator[None]:
        ends.append((yield from build_steps(DesiredState(), changes, changes.checkout(), _SETTINGS)))

    assert sum(1 for _ in drive()) == 2 * len(objects)  # each is asked what it wants, then planned
    assert ends == [_build(*objects)]


def test_build_many_problems_of_one_service_are_folded() -> None:
    """Fifty ports of an unserved protocol are told in eleven Problems."""
    ports = [service_port(f"p{i}", 1000 + i, protocol=Protocol.UDP) for i in range(50)]
    assert len(_plan(service("shop/web", *ports)).problems) == 11


def test_orphan_problems_name_each_slice_whose_service_is_not_served() -> None:
    """They stand until the Service comes, in the order of their Services."""
    changes = _changes(
        service("shop/web"),
        endpoint_slice("shop/web-1"),
        endpoint_slice("shop/wbe-2", service="shop/wbe", origin="shop.yaml"),
        endpoint_slice("shop/x", service="shop/db"),
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


# Few names, addresses and ports, so that Services collide and endpoints are Frontends again and again.
_NAMES = st.sampled_from([named(f"shop/{x}") for x in "abc"])
_ADDRESSES = ["10.96.0.1", "10.96.0.2", "127.0.0.1", "192.0.2.1"]
_PORTS = [80, 81, 30080]
_SERVICES = st.builds(
    lambda name, addresses, number, node_port, balance: service(
        str(name), service_port("http", number, node_port=node_port), cluster_ips=addresses, balance=balance
    ),
    _NAMES,
    st.sampled_from([["10.96.0.1"], ["10.96.0.2"], ["fd00::1"], ["10.96.0.1", "fd00::1"]]),
    st.sampled_from(_PORTS),
    st.sampled_from([None, *_PORTS]),
    st.sampled_from([None, *Balance]),
)
_SLICES = st.builds(
    lambda i, owner, members, number: endpoint_slice(
        f"shop/s{i}",
        *(endpoint(address, ready=ready, terminating=not ready) for address, ready in members),
        service=str(owner),
        ports=[endpoint_port(port=number)],
    ),
    st.integers(min_value=0, max_value=3),
    _NAMES,
    st.lists(st.tuples(st.sampled_from(_ADDRESSES), st.booleans()), max_size=3),
    st.sampled_from(_PORTS),
)
_REMOVALS = st.one_of(
    st.tuples(st.just(Service), _NAMES),
    st.tuples(st.just(EndpointSlice), st.integers(0, 3).map(lambda i: named(f"shop/s{i}"))),
)
Event = Service | EndpointSlice | tuple[type[Service] | type[EndpointSlice], NamespacedName]
EVENTS: st.SearchStrategy[Event] = st.one_of(_SERVICES, _SLICES, _REMOVALS)


@given(batches=st.lists(st.tuples(st.lists(EVENTS, max_size=4), st.booleans()), max_size=10))
def test_build_step_by_step_equals_build_from_nothing(batches: list[tuple[list[Event], bool]]) -> None:
    """After any history the state, its index too, is what the objects alone give; unnamed plans have not changed."""
    changes = Changes()
    state = DesiredState()
    for events, moved in batches:
        for event in events:
            if isinstance(event, tuple):
                changes.remove(*event)
            else:
                changes.apply(event)
        settings = plan_settings(local_addresses=["192.0.2.1"] if moved else [])
        before, state = state, build_state(state, changes, changes.checkout(), settings)
        scratch = build_state(DesiredState(), changes, changes.services, settings)
        assert state == scratch
        assert state.index == scratch.index
        for name in before.services.keys() | state.services.keys():
            if name not in state.replanned:
                assert state.services[name] is before.services[name]


@given(objects=st.lists(st.one_of(_SERVICES, _SLICES), max_size=12))
def test_build_never_gives_one_place_twice_nor_dials_a_place_it_serves(objects: list[Service | EndpointSlice]) -> None:
    """No two Frontends are at one address, port and protocol, and no Backend is at any."""
    plans = _build(*objects).services.values()
    held = [claim_of(one) for plan in plans for one in plan.frontends]
    assert len(set(held)) == len(held)
    assert {claim_of(one) for plan in plans for one in plan.denied} <= set(held)
    for plan in plans:
        assert {(one.service_port, one.policy, one.family) for one in plan.frontends} == {
            (key.service_port, key.policy, key.family) for key in plan.pools
        }
        for one in (x for members in plan.pools.values() for x in members.backends):
            assert (one.address, one.port, Protocol.TCP) not in held
            if str(one.address) in {"127.0.0.1", "192.0.2.1"}:
                assert (Family.IPV4, one.port, Protocol.TCP) not in held

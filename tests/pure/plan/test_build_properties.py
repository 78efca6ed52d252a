"""Tests of plan.build: what holds for any objects and any history of them."""

from builders import endpoint, endpoint_port, endpoint_slice, named, plan_settings, service, service_port
from hypothesis import given
from hypothesis import strategies as st
from plan_driver import build, build_state, changes_of

from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.endpoint_slices import merge_endpoints
from userspace_proxy.model.names import Family, NamespacedName, Protocol
from userspace_proxy.model.service_port import Balance, Service, TrafficPolicy, UdpBalance
from userspace_proxy.plan.claims import claim_of, find_loop
from userspace_proxy.plan.state import Backend, DesiredState, FrontendKind, PlanSettings, SourceClass, Verdict

# Few names, addresses and ports, so that Services collide and endpoints are Frontends again and again.
_NAMES = st.sampled_from([named(f"shop/{x}") for x in "abc"])
_ADDRESSES = ["10.96.0.1", "10.96.0.2", "127.0.0.1", "192.0.2.1"]
_PORTS = [80, 81, 30080]
_OUTER = st.sampled_from([[], [], ["10.96.0.1"], ["192.0.2.1", "fd00::9"]])
_SERVED = st.sampled_from(["TCP", "UDP", "TCP UDP", "UDP TCP SCTP"])
_SERVICES = st.builds(
    lambda name, protocols, addresses, number, node_port, balance, outer, policies, udp: service(
        str(name),
        *(service_port(f"p-{one}", number, node_port=node_port, protocol=Protocol(one)) for one in protocols.split()),
        cluster_ips=addresses,
        balance=balance,
        external_ips=outer[0],
        load_balancer_ips=outer[1],
        internal_policy=policies[0],
        external_policy=policies[1],
        udp_balance=udp[0],
        udp_idle_timeout_s=udp[1],
    ),
    _NAMES,
    _SERVED,
    st.sampled_from([["10.96.0.1"], ["10.96.0.2"], ["fd00::1"], ["10.96.0.1", "fd00::1"]]),
    st.sampled_from(_PORTS),
    st.sampled_from([None, *_PORTS]),
    st.sampled_from([None, *Balance]),
    st.tuples(_OUTER, _OUTER),
    st.tuples(st.sampled_from(TrafficPolicy), st.sampled_from(TrafficPolicy)),
    st.tuples(st.sampled_from(UdpBalance), st.sampled_from([None, 5.0])),
)
_CONDITIONS = st.sampled_from(
    [
        {},
        {"ready": False, "terminating": True},
        {"ready": False},
        {"ready": False, "serving": False},
        {"serving": False},
    ]
)
_SLICES = st.builds(
    lambda i, owner, members, protocols, number: endpoint_slice(
        f"shop/s{i}",
        *(endpoint(address, node_name=node_name, **conditions) for address, conditions, node_name in members),
        service=str(owner),
        ports=[endpoint_port(f"p-{one}", number, Protocol(one)) for one in protocols.split()],
    ),
    st.integers(min_value=0, max_value=3),
    _NAMES,
    st.lists(st.tuples(st.sampled_from(_ADDRESSES), _CONDITIONS, st.sampled_from(["here", "there"])), max_size=3),
    _SERVED,
    st.sampled_from(_PORTS),
)
_REMOVALS = st.one_of(
    st.tuples(st.just(Service), _NAMES),
    st.tuples(st.just(EndpointSlice), st.integers(0, 3).map(lambda i: named(f"shop/s{i}"))),
)
Event = Service | EndpointSlice | tuple[type[Service] | type[EndpointSlice], NamespacedName]
_EVENTS: st.SearchStrategy[Event] = st.one_of(_SERVICES, _SLICES, _REMOVALS)
_SETTINGS = st.sampled_from(
    [
        plan_settings(node_name="here"),
        plan_settings(node_name="here", local_addresses=["192.0.2.1"]),
        plan_settings(node_name="here", local_addresses=["192.0.2.1", "10.96.0.2"]),
        plan_settings(
            node_name="there", local_addresses=["192.0.2.1"], node_port_addresses={Family.IPV4: ["192.0.2.1"]}
        ),
    ]
)


@given(batches=st.lists(st.tuples(st.lists(_EVENTS, max_size=4), _SETTINGS), max_size=10))
def test_build_step_by_step_equals_build_from_nothing(batches: list[tuple[list[Event], PlanSettings]]) -> None:
    """After any history the state, its index too, is what the objects alone give; unnamed plans have not changed."""
    changes = Changes()
    state = DesiredState()
    for events, settings in batches:
        for event in events:
            if isinstance(event, tuple):
                changes.remove(*event)
            else:
                changes.apply(event)
        before, state = state, build_state(state, changes, changes.checkout(), settings)
        scratch = build_state(DesiredState(), changes, changes.services, settings)
        assert state == scratch
        assert state.index == scratch.index
        for name in before.services.keys() | state.services.keys():
            if name not in state.replanned:
                assert state.services[name] is before.services[name]


@given(objects=st.lists(st.one_of(_SERVICES, _SLICES), max_size=12), settings=_SETTINGS)
def test_build_never_gives_one_place_twice_nor_dials_a_place_it_serves(
    objects: list[Service | EndpointSlice], settings: PlanSettings
) -> None:
    """No two Frontends are at one address, port and protocol, and no Backend is at any."""
    plans = build(*objects, settings=settings).services.values()
    held = [claim_of(one) for plan in plans for one in plan.frontends]
    assert len(set(held)) == len(held)
    assert {claim_of(one) for plan in plans for one in plan.denied} <= set(held)
    for key, members in (item for plan in plans for item in plan.pools.items()):
        protocol = key.service_port.protocol
        for one in (*members.backends, *(members.udp.serving if members.udp else ())):
            assert (one.address, one.port, protocol) not in held
            if one.address.is_loopback or one.address in settings.sources.local_addresses:
                assert (Family.IPV4, one.port, protocol) not in held


@given(objects=st.lists(st.one_of(_SERVICES, _SLICES), max_size=12), settings=_SETTINGS)
def test_f_1_all_pools_of_a_udp_port_have_the_same_endpoints_serving(
    objects: list[Service | EndpointSlice], settings: PlanSettings
) -> None:
    """Backends and those that serve besides: whatever Pool a flow is of, it goes on at the same places."""
    changes = changes_of(*objects)
    state = build(*objects, settings=settings)
    local_addresses = settings.sources.local_addresses
    for name, plan in state.services.items():
        for key, one in plan.pools.items():
            assert (one.udp is not None) is (key.service_port.protocol is Protocol.UDP)
            if one.udp is None:
                continue
            assert one.udp.serving.isdisjoint(one.backends)
            serving = {
                Backend(member.endpoint.address, member.port)
                for member in merge_endpoints(changes.slices_of(name), key.service_port, key.family)
                if member.endpoint.serving or member.endpoint.ready
            }
            loops = {found for found in serving if find_loop(found, Protocol.UDP, state.index.claims, local_addresses)}
            assert {*one.udp.serving, *one.backends} == serving - loops


@given(objects=st.lists(st.one_of(_SERVICES, _SLICES), max_size=12), settings=_SETTINGS)
def test_build_routes_lead_to_pools_of_their_own_that_have_backends(
    objects: list[Service | EndpointSlice], settings: PlanSettings
) -> None:
    """Pools are those a policy may ask for; pods and this node are never kept from what others outside may reach."""
    for plan in build(*objects, settings=settings).services.values():
        assert {(one.service_port, one.family) for one in plan.frontends} == {
            (key.service_port, key.family) for key in plan.pools
        }
        led_to = {key for one in plan.routes.values() for key in one.pools}
        assert led_to <= plan.pools.keys()
        assert all(plan.pools[key].backends for key in led_to)
        assert all(key in led_to for key, one in plan.pools.items() if one.backends)
        for frontend, route in plan.routes.items():
            assert {(key.service_port, key.family) for key in route.pools} <= {(frontend.service_port, frontend.family)}
            assert route.pod == route.host
            if frontend.kind is FrontendKind.CLUSTER_IP:
                assert route.is_same_for_all
            else:
                assert route.target(SourceClass.POD) is not Verdict.DROP

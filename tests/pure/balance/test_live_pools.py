"""LivePools: who is led to which Pool, and what the Pools of one ServicePort share."""

from ipaddress import ip_address, ip_network

import pytest
from attrs import evolve
from builders import backend, pool, pool_key, route

from userspace_proxy.balance.affinity import MAX_CLIENTS
from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.balance.live_pools import LivePools
from userspace_proxy.model.service_port import UdpBalance
from userspace_proxy.plan.state import EndpointScope, Pool, PoolKey, Route, SourceAddresses, UdpSettings, Verdict

FIRST, SECOND, THIRD = NAMES = [f"10.0.0.{number}:80" for number in (1, 2, 3)]
CLUSTER, LOCAL = pool_key(), pool_key(scope=EndpointScope.LOCAL)
POD, HOST, OUTSIDE = "10.244.3.7", "127.0.0.1", "203.0.113.5"
DIALLED = "192.0.2.10"
EXTERNAL_LOCAL = Route(CLUSTER, CLUSTER, LOCAL)


def live_pools(*pools: Pool) -> LivePools:
    """Return LivePools with these in force, where pods are known."""
    live = LivePools(lambda: 0.0, lambda: None)
    live.apply_sources(SourceAddresses((ip_network("10.244.0.0/16"),)))
    for one in pools:
        live.apply(one)
    return live


def affine(*names: str, key: PoolKey = CLUSTER, timeout_s: int | None = 10800) -> Pool:
    """Return a Pool with affinity."""
    return pool(*names, key=key, affinity_timeout_s=timeout_s)


def pick(live: LivePools, key: PoolKey = CLUSTER, client: str = OUTSIDE) -> str:
    """Return where a connection of a client to a Pool goes."""
    member = dict(live.items())[key].pick_for(client, (), 0.0)
    assert member is not None
    return str(member.backend)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param(EXTERNAL_LOCAL, [CLUSTER, CLUSTER, LOCAL], id="local"),
        pytest.param(evolve(EXTERNAL_LOCAL, outside=Verdict.DROP), [CLUSTER, CLUSTER, CloseReason.DENIED], id="drop"),
        pytest.param(route(Verdict.REJECT), [CloseReason.DENIED] * 3, id="reject"),
        pytest.param(route(CLUSTER), [CLUSTER] * 3, id="the same for all"),
        pytest.param(Route(LOCAL, CLUSTER, LOCAL), [LOCAL, CLUSTER, LOCAL], id="host apart"),
        pytest.param(
            route(CLUSTER, source_ranges=["203.0.113.0/24"]),
            [CloseReason.DENIED, CloseReason.DENIED, CLUSTER],
            id="source ranges",
        ),
        pytest.param(
            evolve(EXTERNAL_LOCAL, source_ranges=(ip_network("10.0.0.0/8"),)),
            [CLUSTER, CloseReason.DENIED, CloseReason.DENIED],
            id="source ranges before classes",
        ),
        pytest.param(route(pool_key("shop/gone")), [CloseReason.NO_BACKEND] * 3, id="no such pool"),
    ],
)
def test_d_3_choose_leads_each_client_by_its_class(wanted: Route, expected: list[PoolKey | CloseReason]) -> None:
    """Pods, the node and outsiders get the Pool of their class; who has none, or is out of range, is denied."""
    live = live_pools(pool(FIRST, key=CLUSTER), pool(SECOND, key=LOCAL))
    by_key = dict(live.items())
    chosen = [live.choose(wanted, client, DIALLED) for client in (POD, HOST, OUTSIDE)]
    assert chosen == [one if isinstance(one, CloseReason) else by_key[one] for one in expected]


def test_choose_follows_a_change_of_sources_at_once() -> None:
    """A pod network that becomes known makes pods of its clients."""
    live = live_pools(pool(FIRST, key=CLUSTER), pool(SECOND, key=LOCAL))
    by_key = dict(live.items())
    assert live.choose(EXTERNAL_LOCAL, OUTSIDE, DIALLED) is by_key[LOCAL]
    live.apply_sources(SourceAddresses((ip_network("203.0.113.0/24"),)))
    assert live.choose(EXTERNAL_LOCAL, OUTSIDE, DIALLED) is by_key[CLUSTER]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param(route(CLUSTER), CLUSTER, id="one pool"),
        pytest.param(EXTERNAL_LOCAL, None, id="two pools"),
        pytest.param(route(CLUSTER, source_ranges=["203.0.113.0/24"]), None, id="source ranges"),
        pytest.param(route(Verdict.DROP), None, id="verdict"),
        pytest.param(route(pool_key("shop/gone")), None, id="no such pool"),
    ],
)
def test_only_pool_is_that_to_which_all_are_led(wanted: Route, expected: PoolKey | None) -> None:
    """Where it matters who the client is, or there is no Pool, there is none."""
    live = live_pools(pool(FIRST, key=CLUSTER), pool(SECOND, key=LOCAL))
    assert live.only_pool(wanted) is (None if expected is None else dict(live.items())[expected])


@pytest.mark.parametrize(
    ("pools", "wanted", "expected"),
    [
        pytest.param([pool(FIRST)], route(), True, id="backends"),
        pytest.param([pool()], route(), False, id="no backends"),
        pytest.param([], route(), False, id="no pool"),
        pytest.param([pool(), pool(FIRST, key=LOCAL)], EXTERNAL_LOCAL, True, id="backends for outsiders"),
        pytest.param([pool(FIRST), pool(key=LOCAL)], EXTERNAL_LOCAL, True, id="backends for others"),
        pytest.param([pool(), pool(key=LOCAL)], EXTERNAL_LOCAL, False, id="backends for nobody"),
        pytest.param([pool(FIRST)], route(Verdict.REJECT), False, id="verdict"),
    ],
)
def test_route_serves_if_any_of_its_pools_has_backends(pools: list[Pool], wanted: Route, expected: bool) -> None:  # noqa: FBT001
    """One class of clients that can be served is enough."""
    assert live_pools(*pools).serves(wanted) is expected


def test_c_2_pools_of_one_service_port_share_their_records() -> None:
    """Whichever address a client dials, it comes to the Backend it had, if that may be used there."""
    live = live_pools(affine(*NAMES), affine(SECOND, THIRD, key=LOCAL))
    assert [pick(live, CLUSTER, POD), pick(live, CLUSTER, OUTSIDE)] == [FIRST, SECOND]
    assert pick(live, LOCAL, OUTSIDE) == SECOND
    assert pick(live, LOCAL, POD) == SECOND  # its own is not among the local ones
    assert pick(live, CLUSTER, POD) == SECOND


def test_c_2_records_are_those_of_one_service_port() -> None:
    """Another port of the Service, or another Service, knows nothing of them."""
    other = pool_key("shop/web:https")
    live = live_pools(affine(*NAMES), affine(*NAMES, key=other))
    assert [pick(live, CLUSTER, POD), pick(live, CLUSTER, OUTSIDE)] == [FIRST, SECOND]
    assert pick(live, other, OUTSIDE) == FIRST


def test_c_6_affinity_counts_from_whichever_value_comes_first() -> None:
    """A Pool that was empty at first has the time-out of the value in force, not a default."""
    live = live_pools(affine(timeout_s=5))
    live.apply(affine(*NAMES, timeout_s=5))
    assert pick(live) == FIRST
    member = dict(live.items())[CLUSTER].pick_for(OUTSIDE, (), 5.0)
    assert member is not None
    assert str(member.backend) == SECOND


def test_c_7_affinity_switched_on_holds_from_the_next_connection() -> None:
    """The same Members go on; new connections of a client stay together from now on."""
    live = live_pools(pool(*NAMES))
    members = dict(live.items())[CLUSTER].members
    assert [pick(live), pick(live)] == [FIRST, SECOND]
    live.apply(affine(*NAMES))
    assert [pick(live), pick(live)] == [THIRD, THIRD]
    assert all(one is other for one, other in zip(members, dict(live.items())[CLUSTER].members, strict=True))


@pytest.mark.parametrize("off", ["none", "removed"])
def test_c_6_affinity_switched_off_and_on_starts_with_no_records(off: str) -> None:
    """None, or a Service that is gone, ends what was remembered: nobody is sent where it was long ago."""
    live = live_pools(affine(*NAMES), affine(*NAMES, key=LOCAL))
    assert [pick(live), pick(live, client=POD)] == [FIRST, SECOND]
    for key in (CLUSTER, LOCAL):
        if off == "none":
            live.apply(pool(*NAMES, key=key))
        else:
            live.remove(key)
    live.apply(affine(*NAMES, key=LOCAL))
    assert [pick(live, LOCAL, POD), pick(live, LOCAL)] == [FIRST, SECOND]
    assert [pick(live, LOCAL, POD), pick(live, LOCAL)] == [FIRST, SECOND]


def test_affinity_outlives_a_pool_while_another_of_the_service_port_has_it() -> None:
    """A change of traffic policy adds one Pool and removes the other: clients keep their Backends."""
    live = live_pools(affine(*NAMES))
    assert [pick(live, client=POD), pick(live)] == [FIRST, SECOND]
    live.apply(affine(*NAMES, key=LOCAL))
    live.remove(CLUSTER)
    live.remove(CLUSTER)
    live.apply(affine(*NAMES, key=LOCAL))
    assert pick(live, LOCAL) == SECOND


def test_affinity_of_service_ports_that_have_none_takes_no_room() -> None:
    """Thousands of Services without affinity keep nothing for it."""
    live = live_pools(pool(*NAMES), affine(*NAMES, key=LOCAL), affine(FIRST, key=pool_key("shop/other")))
    live.apply(pool(*NAMES, key=LOCAL))
    live.remove(pool_key("shop/other"))
    live.remove(pool_key("shop/never"))
    assert not live._tables
    assert not live._affine


def test_clients_beyond_those_that_are_remembered_are_counted() -> None:
    """One client more than there is room for is one eviction."""
    evictions: list[None] = []
    live = LivePools(lambda: 0.0, lambda: evictions.append(None))
    live.apply(affine(*NAMES))
    for number in range(MAX_CLIENTS):
        pick(live, client=str(number))
    assert not evictions
    pick(live, client="one more")
    assert len(evictions) == 1


def test_is_local_is_true_of_loopback_and_of_the_addresses_of_this_node() -> None:
    """Both families; as long as the node has them."""
    live = live_pools()
    live.apply_sources(SourceAddresses(local_addresses=frozenset(map(ip_address, ("192.0.2.7", "2001:db8::7")))))
    asked = ("127.0.0.9", "::1", "192.0.2.7", "2001:db8::7", "192.0.2.8", "2001:db8::8")
    assert [live.is_local(address) for address in asked] == [True, True, True, True, False, False]
    live.apply_sources(SourceAddresses())
    assert not live.is_local("192.0.2.7")


def test_udp_settings_are_those_of_the_pools_a_route_leads_to() -> None:
    """None where it leads nowhere, or its Pools are not there."""
    settings = UdpSettings(UdpBalance.DATAGRAM, 5.0)
    live = live_pools(evolve(pool(FIRST), udp=settings))
    assert live.udp_settings(EXTERNAL_LOCAL) == settings
    assert live.udp_settings(Route(LOCAL, LOCAL, Verdict.DROP)) is None
    assert live.udp_settings(Route(Verdict.DROP, Verdict.DROP, Verdict.DROP)) is None


def test_records_of_a_service_port_that_are_taken_over_hold_as_its_own() -> None:
    """Clients that another process has served come to the Backends they had there, as far as these are in the Pool."""
    live = live_pools(affine(*NAMES))
    name = CLUSTER.service_port
    live.take_over(name, [(POD, -2.0, backend(THIRD)), (HOST, -1.0, backend("10.0.0.9:80"))])
    assert [pick(live, client=one) for one in (OUTSIDE, POD, HOST)] == [FIRST, THIRD, SECOND]
    assert list(live.affinity_since(-5.0)) == [
        (name, [(OUTSIDE, 0.0, backend(FIRST)), (POD, 0.0, backend(THIRD)), (HOST, 0.0, backend(SECOND))])
    ]


def test_records_of_a_service_port_without_affinity_are_not_taken_over() -> None:
    """Affinity that was switched off meanwhile stays off, and keeps nothing."""
    live = live_pools(pool(*NAMES))
    live.take_over(CLUSTER.service_port, [(POD, -2.0, backend(THIRD))])
    assert pick(live, client=POD) == FIRST
    assert list(live.affinity_since(-5.0)) == []


def test_service_ports_without_new_records_are_not_told_of() -> None:
    """What was told of before is not told of again."""
    live = live_pools(affine(*NAMES))
    assert pick(live) == FIRST
    assert list(live.affinity_since(0.5)) == []

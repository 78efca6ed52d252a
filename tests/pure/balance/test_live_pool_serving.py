"""Which UDP flows may go on: those to Backends of the Pool, and to those that serve still without being in it."""

from collections.abc import Mapping

import pytest
from builders import pool, pool_key, udp_settings

from userspace_proxy.balance.live_pool import LivePool, Member
from userspace_proxy.balance.live_pools import LivePools
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.model.service_port import UdpBalance
from userspace_proxy.plan.state import EndpointScope, Pool, PoolKey, UdpSettings

FIRST, SECOND, THIRD = NAMES = [f"10.0.0.{number}:53" for number in (1, 2, 3)]
CLUSTER = pool_key("shop/dns", protocol=Protocol.UDP)
LOCAL = pool_key("shop/dns", EndpointScope.LOCAL, protocol=Protocol.UDP)


def udp_pool(*names: str, serving: tuple[str, ...] = (), key: PoolKey = CLUSTER) -> Pool:
    """Return a Pool of Backends, and of those that serve still."""
    return pool(*names, key=key, udp=udp_settings(*serving))


def with_flows(live: LivePool) -> dict[str, Member]:
    """Return the Members by their names after a flow to each was created."""
    for member in live.members:
        member.open += 1
    return {str(member.backend): member for member in live.members}


def live_pool(*names: str) -> LivePool:
    """Return a LivePool that draws nothing."""
    return LivePool(udp_pool(*names), lambda: 0.0)


def live_pools(*pools: Pool) -> LivePools:
    """Return LivePools with these in force."""
    live = LivePools(lambda: 0.0, lambda: None)
    for one in pools:
        live.apply(one)
    return live


def serving(members: Mapping[str, Member]) -> list[str]:
    """Return the names of the Members at which flows may go on."""
    return [name for name, member in members.items() if member.is_serving]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param(udp_pool(*NAMES), NAMES, id="all stay"),
        pytest.param(udp_pool(FIRST, SECOND), [FIRST, SECOND], id="one is gone"),
        pytest.param(udp_pool(FIRST, serving=(THIRD,)), [FIRST, THIRD], id="one serves still"),
        pytest.param(udp_pool(serving=(THIRD,)), [THIRD], id="no backends, one serves still"),
        pytest.param(udp_pool(FIRST, serving=("10.0.0.2:54",)), [FIRST], id="another number"),
        pytest.param(udp_pool(), [], id="none"),
    ],
)
def test_f_3_flows_go_on_where_a_backend_is_or_serves_still(after: Pool, expected: list[str]) -> None:
    """Nowhere else."""
    live = live_pool(*NAMES)
    members = with_flows(live)
    assert serving(members) == NAMES
    live.replace(after)
    assert serving(members) == expected


def test_f_3_nothing_new_is_led_to_a_backend_that_only_serves_still() -> None:
    """It is no Member any more, but for the flows it has."""
    live = live_pool(FIRST, SECOND)
    with_flows(live)
    live.replace(udp_pool(FIRST, serving=(SECOND,)))
    assert [str(member.backend) for member in live.members] == [FIRST]
    assert {str(live.pick(()).backend) for _ in range(4)} == {FIRST}  # type: ignore[union-attr]


def test_f_3_backend_without_flows_that_leaves_serves_no_more() -> None:
    """Nothing is remembered of it, and nobody who still has it at hand would take it for one that serves."""
    live = live_pool(FIRST, SECOND)
    member = live.members[1]
    live.replace(udp_pool(FIRST))
    assert not member.is_serving
    assert live.known == tuple(live.members)


def test_f_3_backend_that_leaves_step_by_step_serves_as_long_as_it_is_said() -> None:
    """Ready, then terminating, then gone; and the Pool may change for another reason in between."""
    live = live_pool(FIRST, SECOND)
    members = with_flows(live)
    for after, expected in (
        (udp_pool(FIRST, serving=(SECOND,)), NAMES[:2]),
        (udp_pool(FIRST, THIRD, serving=(SECOND,)), NAMES[:2]),
        (udp_pool(FIRST, THIRD), [FIRST]),
    ):
        live.replace(after)
        assert serving(members) == expected


def test_f_3_backend_that_comes_back_serves_again() -> None:
    """Also flows that nobody has sent anything in meanwhile go on then; they are counted all the time."""
    live = live_pool(FIRST, SECOND)
    members = with_flows(live)
    live.replace(udp_pool(FIRST))
    assert serving(members) == [FIRST]
    live.replace(udp_pool(FIRST, SECOND))
    assert serving(members) == [FIRST, SECOND]
    assert live.members[1] is members[SECOND]
    assert members[SECOND].open == 1


def test_f_3_backend_that_only_serves_still_and_comes_back_is_the_same_member() -> None:
    """A pod that terminates was thought to be gone, and another one is at its address at once."""
    live = live_pool(FIRST, SECOND)
    members = with_flows(live)
    live.replace(udp_pool(FIRST, serving=(SECOND,)))
    live.replace(udp_pool(FIRST, SECOND))
    assert live.members[1] is members[SECOND]
    assert serving(members) == [FIRST, SECOND]


def test_live_pool_has_the_settings_of_the_value_in_force() -> None:
    """Without any, as for TCP, the defaults."""
    settings = UdpSettings(UdpBalance.DATAGRAM, 5.0)
    live = LivePool(pool(FIRST, udp=settings), lambda: 0.0)
    assert live.udp is settings
    live.replace(pool(FIRST))
    assert live.udp == UdpSettings()


def test_f_3_service_that_is_gone_has_no_flow_that_goes_on() -> None:
    """Neither at its Backends nor where one served still; another Service at the same address is left alone."""
    other = pool_key("shop/other", protocol=Protocol.UDP)
    live = live_pools(udp_pool(*NAMES), udp_pool(FIRST, key=other))
    pools = dict(live.items())
    members, others = with_flows(pools[CLUSTER]), with_flows(pools[other])
    live.apply(udp_pool(FIRST, SECOND, serving=(THIRD,)))
    live.remove(CLUSTER)
    assert serving(members) == []
    assert serving(others) == [FIRST]
    live.remove(CLUSTER)


def test_f_3_service_that_is_gone_takes_the_flows_of_both_scopes_with_it() -> None:
    """In whichever order the two Pools are removed."""
    for keys in ((CLUSTER, LOCAL), (LOCAL, CLUSTER)):
        live = live_pools(udp_pool(*NAMES), udp_pool(FIRST, serving=(SECOND, THIRD), key=LOCAL))
        all_members = [with_flows(one) for _, one in live.items()]
        for key in keys:
            live.remove(key)
        assert [serving(members) for members in all_members] == [[], []]


def test_f_1_flows_outlive_a_change_of_policy() -> None:
    """The Pool of one scope comes, that of the other goes: its flows stay until their Backend serves no more."""
    live = live_pools(udp_pool(*NAMES))
    members = with_flows(dict(live.items())[CLUSTER])
    live.apply(udp_pool(FIRST, serving=(SECOND, THIRD), key=LOCAL))
    live.remove(CLUSTER)
    assert serving(members) == NAMES
    live.apply(udp_pool(FIRST, serving=(THIRD,), key=LOCAL))
    assert serving(members) == [FIRST, THIRD]
    live.apply(udp_pool(key=LOCAL))
    assert serving(members) == []


def test_f_1_backend_that_goes_together_with_the_policy_serves_no_more() -> None:
    """Both changes come at once: what the Pool that stays says holds for the flows it is given."""
    live = live_pools(udp_pool(*NAMES))
    members = with_flows(dict(live.items())[CLUSTER])
    live.apply(udp_pool(FIRST, serving=(THIRD,), key=LOCAL))
    live.remove(CLUSTER)
    assert serving(members) == [FIRST, THIRD]


def test_f_1_flows_outlive_a_policy_that_is_changed_to_and_fro() -> None:
    """Those of every Pool there was; then the Service goes, and all of them end."""
    live = live_pools(udp_pool(FIRST, SECOND))
    first = with_flows(dict(live.items())[CLUSTER])
    live.apply(udp_pool(FIRST, serving=(SECOND,), key=LOCAL))
    live.remove(CLUSTER)
    second = with_flows(dict(live.items())[LOCAL])
    live.apply(udp_pool(FIRST, SECOND))
    live.remove(LOCAL)
    assert (serving(first), serving(second)) == ([FIRST, SECOND], [FIRST])
    live.apply(udp_pool(SECOND))
    assert (serving(first), serving(second)) == ([SECOND], [])
    live.remove(CLUSTER)
    assert (serving(first), serving(second)) == ([], [])


def test_f_1_adopted_flows_make_no_backend_and_are_forgotten_when_they_end() -> None:
    """They are not drawn from, and a policy that is changed every minute leaves nothing behind."""
    live = live_pools(udp_pool(FIRST, SECOND))
    members = with_flows(dict(live.items())[CLUSTER])
    live.apply(udp_pool(FIRST, serving=(SECOND,), key=LOCAL))
    live.remove(CLUSTER)
    heir = dict(live.items())[LOCAL]
    assert [str(member.backend) for member in heir.members] == [FIRST]
    assert heir.members[0] is not members[FIRST]
    assert heir.members[0].open == 0
    assert len(heir.known) == 3
    for member in members.values():
        member.open = 0
    live.apply(udp_pool(FIRST, serving=(SECOND,), key=LOCAL))
    assert heir.known == tuple(heir.members)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(pool_key("shop/dns", EndpointScope.LOCAL, Family.IPV6, Protocol.UDP), id="family"),
        pytest.param(pool_key("shop/dns:x", EndpointScope.LOCAL, protocol=Protocol.UDP), id="port"),
        pytest.param(pool_key("shop/dns", EndpointScope.LOCAL), id="protocol"),
    ],
)
def test_f_1_flows_are_adopted_within_one_service_port_and_family(other: PoolKey) -> None:
    """A port that is gone is gone, whatever else the Service has."""
    live = live_pools(udp_pool(FIRST), udp_pool(FIRST, key=other))
    members = with_flows(dict(live.items())[CLUSTER])
    live.remove(CLUSTER)
    assert serving(members) == []

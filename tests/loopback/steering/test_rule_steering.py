"""What all kinds of steering with rules have in common; the rules are fakes that note what they are told."""

import resource
from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest
import trio
from attrs import evolve
from builders import frontend, listener_key, named, node_port_frontend, route

from userspace_proxy.config import Config, SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, NamespacedName, Protocol
from userspace_proxy.plan.state import Frontend, FrontendKind, PolicyClass, SteeringRule, Verdict
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.base import ServiceSteering, Surroundings
from userspace_proxy.steering.rule_steering import (
    Conditions,
    FamilyRules,
    PortRule,
    ProxyPorts,
    RuleSteering,
    ServiceRules,
)

WEB = frontend("10.96.0.10:80")
WEB6 = frontend("[fd00::a]:80")
NODE_PORT = node_port_frontend(30080)
NOT_OUTSIDE = evolve(route(), outside=Verdict.DROP)
AROUND = Surroundings()


class NotedRules(FamilyRules):
    """Rules that are nowhere but in the notes of the test."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.unfiltered_reason = ""
        self.left: ProxyPorts = {}
        """What an earlier run has left."""
        self.updates: list[Mapping[NamespacedName, ServiceRules]] = []
        self.conditions: list[Conditions] = []
        self.damaged: tuple[str, ...] = ()
        """What ``repair`` is to find, once."""
        self.failure = ""
        """What everything fails with."""
        self.removals = 0

    async def read_proxy_ports(self) -> ProxyPorts:
        """Return what the test has said."""
        await trio.lowlevel.checkpoint()
        return self.left

    async def update(self, changed: Mapping[NamespacedName, ServiceRules], conditions: Conditions) -> None:
        """Note it, or fail."""
        self._fail()
        await trio.lowlevel.checkpoint()
        self.updates.append(changed)
        self.conditions.append(conditions)

    async def repair(self) -> tuple[str, ...]:
        """Return what the test has said, or fail."""
        self._fail()
        await trio.lowlevel.checkpoint()
        damaged, self.damaged = self.damaged, ()
        return damaged

    async def remove(self) -> None:
        """Note it, or fail."""
        self._fail()
        await trio.lowlevel.checkpoint()
        self.removals += 1

    def _fail(self) -> None:
        if self.failure:
            raise SteeringError(f"{self.family}: {self.failure}")


class NotedSteering(RuleSteering):
    """Steering by such rules."""

    kind: ClassVar[SteeringKind] = SteeringKind.IPTABLES


@pytest.fixture
def rules() -> dict[Family, NotedRules]:
    """Return rules for both families."""
    return {family: NotedRules(family) for family in Family}


@pytest.fixture
def steering(rules: dict[Family, NotedRules], make_config: Callable[..., Config]) -> NotedSteering:
    """Return steering by them."""
    return NotedSteering(rules, {}, Assignments(make_config()))


def services(steering: RuleSteering, *frontends: Frontend) -> dict[NamespacedName, ServiceSteering]:
    """Return what Services ask for that have these Frontends, nobody of whose clients is kept away."""
    found: dict[NamespacedName, list[Frontend]] = {}
    for one in frontends:
        found.setdefault(one.service_port.service, []).append(one)
    return {name: ServiceSteering(steering.place(each)) for name, each in found.items()}


async def test_place_gives_addresses_a_proxy_port_and_node_ports_their_own(
    steering: NotedSteering, make_config: Callable[..., Config]
) -> None:
    """Rules lead both families to Listeners on all addresses; a NodePort is bound directly."""
    placed = steering.place([WEB, WEB6, NODE_PORT])
    assert [placement.frontend for placement in placed] == [WEB, WEB6, NODE_PORT]
    ports = {placement.listener.port for placement in placed[:2]}
    assert len(ports) == 2
    assert ports <= set(make_config().proxy_port_range)
    assert [placement.listens_at.rpartition(":")[0] for placement in placed] == ["0.0.0.0", "[::]", "0.0.0.0"]
    assert placed[0].listener.key == listener_key()
    assert placed[2].listens_at == "0.0.0.0:30080"
    assert steering.place([WEB]) == placed[:1]


async def test_place_shares_a_listener_where_the_route_is_the_same(steering: NotedSteering) -> None:
    """Cluster addresses share one, external IPs another; load balancer addresses have source ranges of their own."""
    external = [frontend(f"203.0.113.{host}:80", kind=FrontendKind.EXTERNAL_IP) for host in (1, 2)]
    balanced = [frontend(f"203.0.113.{host}:80", kind=FrontendKind.LOAD_BALANCER) for host in (3, 4)]
    bound = frontend("192.0.2.2:30080", kind=FrontendKind.NODE_PORT)
    placed = steering.place([WEB, *external, *balanced, bound])
    shared = listener_key(policy=PolicyClass.EXTERNAL)
    assert [placement.listener.key for placement in placed] == [
        listener_key(),
        *(shared, shared),
        *(evolve(shared, frontend=one) for one in (*balanced, bound)),
    ]
    assert len({placement.listener.port for placement in placed}) == 5
    assert placed[-1].listens_at == "192.0.2.2:30080"


async def test_place_leaves_out_families_without_rules_but_not_their_node_ports(
    rules: dict[Family, NotedRules], make_config: Callable[..., Config]
) -> None:
    """A NodePort needs no rule."""
    node_port6 = node_port_frontend(30080, Family.IPV6)
    ipv4 = {Family.IPV4: rules[Family.IPV4]}
    steering = NotedSteering(ipv4, {Family.IPV6: "none"}, Assignments(make_config()))
    assert [one.frontend for one in steering.place([WEB, WEB6, node_port6])] == [WEB, node_port6]


async def test_place_where_nothing_can_be_guarded_has_listeners_guard_themselves(
    rules: dict[Family, NotedRules], make_config: Callable[..., Config]
) -> None:
    """Only in that family, and no NodePort, which everybody may dial."""
    rules[Family.IPV4].unfiltered_reason = "no table filter"
    steering = NotedSteering(rules, {}, Assignments(make_config()))
    assert steering.unfiltered_families == {Family.IPV4: "no table filter"}
    placed = steering.place([WEB, WEB6, NODE_PORT])
    assert [one.listener.only_steered for one in placed] == [True, False, False]


async def test_take_over_keeps_the_proxy_ports_that_rules_lead_to(
    rules: dict[Family, NotedRules], make_config: Callable[..., Config]
) -> None:
    """Whoever has none yet gets the one its address is led to, unless somebody else has that."""
    other = frontend("10.96.0.11:80", "shop/api")
    free = make_config().proxy_port_range[-1]
    for one in (WEB, other):
        assert one.address is not None
        rules[Family.IPV4].left = {**rules[Family.IPV4].left, (one.address, 80, Protocol.TCP): free}
    steering = NotedSteering(rules, {}, Assignments(make_config()))
    await steering.take_over()
    ports = [one.listener.port for one in steering.place([WEB, other])]
    assert ports[0] == free
    assert ports[1] != free


async def test_apply_tells_each_family_what_has_changed_in_it(
    steering: NotedSteering, rules: dict[Family, NotedRules]
) -> None:
    """Where each Frontend is led, and all proxy ports; of NodePorts only those that do not serve everybody."""
    wanted = services(steering, WEB, WEB6, NODE_PORT)
    await steering.apply(wanted, AROUND)
    port, port6, _ = [one.listener.port for one in wanted[named()].placements]
    guarded = PortRule(Protocol.TCP, None, port, is_proxy_port=True, route=None)
    assert rules[Family.IPV4].updates == [{named(): ServiceRules((SteeringRule(WEB, port),), (guarded,))}]
    guarded6 = evolve(guarded, port=port6)
    assert rules[Family.IPV6].updates == [{named(): ServiceRules((SteeringRule(WEB6, port6),), (guarded6,))}]

    restricted = evolve(wanted[named()], restricted={NODE_PORT: NOT_OUTSIDE, WEB: NOT_OUTSIDE})
    await steering.apply({named(): restricted}, AROUND)
    node_port = PortRule(Protocol.TCP, None, 30080, is_proxy_port=False, route=NOT_OUTSIDE)
    assert rules[Family.IPV4].updates[1][named()].ports == (evolve(guarded, route=NOT_OUTSIDE), node_port)

    await steering.apply({named(): ServiceSteering()}, AROUND)
    assert rules[Family.IPV4].updates[2] == {named(): ServiceRules()}


async def test_apply_that_fails_in_one_family_goes_on_in_the_other(
    steering: NotedSteering, rules: dict[Family, NotedRules]
) -> None:
    """What was missed is made up for as soon as it works."""
    rules[Family.IPV4].failure = "no lock"
    with pytest.raises(SteeringError, match=r"^IPv4: no lock$"):
        await steering.apply(services(steering, WEB, WEB6), AROUND)
    assert len(rules[Family.IPV6].updates) == 1
    rules[Family.IPV4].failure = ""
    await steering.refresh()
    assert rules[Family.IPV4].updates == [{}]


async def test_proxy_port_of_a_service_that_is_gone_can_be_taken(
    rules: dict[Family, NotedRules], make_config: Callable[..., Config]
) -> None:
    """Nobody loses a port before nothing leads to it any more."""
    steering = NotedSteering(rules, {}, Assignments(make_config(proxy_port_range=range(20000, 20001))))
    api = frontend("10.96.0.11:80", "shop/api")
    await steering.apply(services(steering, WEB), AROUND)
    rules[Family.IPV4].failure = "busy"
    gone = {named(): ServiceSteering()}
    with pytest.raises(SteeringError, match="busy"):
        await steering.apply(gone, AROUND)
    with pytest.raises(SteeringError, match="widen --proxy-port-range"):
        steering.place([api])
    rules[Family.IPV4].failure = ""
    await steering.apply(gone, AROUND)
    assert [one.listener.port for one in steering.place([api])] == [20000]


async def test_udp_address_that_two_services_have_for_a_while_may_be_lost_by_both(steering: NotedSteering) -> None:
    """A Service that finds no place keeps what it had, though its address is another one's already."""
    old, new = (frontend("10.96.0.10:53", f"dns/{name}:dns", protocol=Protocol.UDP) for name in ("old", "new"))
    await steering.apply(services(steering, old), AROUND)
    await steering.apply(services(steering, new), AROUND)
    await steering.apply({named("dns/old"): ServiceSteering()}, AROUND)
    await steering.apply({named("dns/new"): ServiceSteering()}, AROUND)


async def test_first_apply_that_cannot_read_the_node_leaves_what_an_earlier_run_has_left(
    steering: NotedSteering, rules: dict[Family, NotedRules]
) -> None:
    """The rules have not been told of any Service yet: to bring that into force would remove all of them."""
    asked = services(steering, WEB)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(SteeringError, match=r"^the addresses of this node cannot be read: "):
            await steering.apply(asked, AROUND)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await steering.refresh()
    assert rules[Family.IPV4].updates == []


async def test_refresh_counts_what_it_repairs(steering: NotedSteering, rules: dict[Family, NotedRules]) -> None:
    """By family and table; on a node at rest it writes nothing."""
    await steering.refresh()
    assert rules[Family.IPV4].updates == [], "before the first apply"
    await steering.apply(services(steering, WEB), AROUND)
    await steering.refresh()
    assert steering.repairs == {}
    rules[Family.IPV4].damaged = ("nat", "filter")
    rules[Family.IPV6].damaged = ("nat",)
    await steering.refresh()
    assert steering.repairs == {"IPv4 nat": 1, "IPv4 filter": 1, "IPv6 nat": 1}
    assert [len(one.updates) for one in rules.values()] == [1, 1]


async def test_refresh_that_fails_in_one_family_repairs_the_other_and_tries_again(
    steering: NotedSteering, rules: dict[Family, NotedRules]
) -> None:
    """Until it works it is not known what is in force."""
    await steering.apply(services(steering, WEB), AROUND)
    rules[Family.IPV4].failure = "no lock"
    rules[Family.IPV6].damaged = ("nat",)
    with pytest.raises(SteeringError, match=r"^IPv4: no lock$"):
        await steering.refresh()
    assert steering.repairs == {"IPv6 nat": 1}
    rules[Family.IPV4].failure = ""
    await steering.refresh()
    assert len(rules[Family.IPV4].updates) == 2


async def test_aclose_removes_the_rules_of_all_families_and_says_what_is_left(
    steering: NotedSteering, rules: dict[Family, NotedRules]
) -> None:
    """One that cannot be removed does not save the others."""
    await steering.apply(services(steering, WEB), AROUND)
    rules[Family.IPV4].failure = "no lock"
    with pytest.raises(SteeringError, match=r"^IPv4 rules could not be removed: .*; run userspace-proxy cleanup$"):
        await steering.aclose()
    assert [one.removals for one in rules.values()] == [0, 1]
    await steering.refresh()
    assert len(rules[Family.IPV6].updates) == 1, "what was closed is not brought back"

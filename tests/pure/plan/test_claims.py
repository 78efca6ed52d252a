"""Tests of plan.claims."""

from collections.abc import Iterable

import pytest
from attrs import evolve
from builders import (
    backend,
    endpoint_port,
    endpoint_slice,
    frontend,
    named,
    node_port_frontend,
    plan_settings,
    pool,
    route,
    service,
    service_port,
    udp_settings,
)

from userspace_proxy.model.names import Family, NamespacedName, Protocol
from userspace_proxy.model.service_port import Service
from userspace_proxy.plan.claims import (
    claim_of,
    find_loop,
    neighbours_of,
    owner_of,
    update_claims,
    update_neighbours,
    wanted_frontends,
)
from userspace_proxy.plan.state import (
    Claim,
    Frontend,
    FrontendKind,
    Holder,
    PlanIndex,
    PlanSettings,
    ServicePlan,
)

_A, _B, _C = named("shop/a"), named("shop/b"), named("shop/c")
_VIP = frontend("10.96.0.10:80")
_VIP_CLAIM = claim_of(_VIP)
_SETTINGS = plan_settings()


def _plan(
    *,
    frontends: Iterable[Frontend] = (),
    denied: Iterable[Frontend] = (),
    backends: str = "",
    refused: str = "",
    serving: str = "",
) -> ServicePlan:
    members = pool(*backends.split(), udp=udp_settings(*serving.split()) if serving else None)
    return ServicePlan(
        {one: route() for one in frontends},
        {members.key: members},
        (),
        tuple(denied),
        tuple(backend(one) for one in refused.split()),
    )


def _rank(one: Frontend) -> int:
    """Return the rank of those who ask for it: that of a cluster address, or of a NodePort."""
    return {FrontendKind.CLUSTER_IP: 0, FrontendKind.NODE_PORT: 3}[one.kind]


def _wanted(asked: Service, settings: PlanSettings = _SETTINGS) -> list[str]:
    return [f"{one.service_port.port} {one.kind} {one}" for one in wanted_frontends(asked, (), settings)]


def test_wanted_frontends_are_by_port_then_family_then_kind() -> None:
    """Each served port is reachable at each address, and at its NodePort in each family the Service has."""
    wanted = _wanted(
        service(
            "shop/web",
            service_port("http", 80, node_port=30080),
            service_port("dns", 53, node_port=30053, protocol=Protocol.UDP),
            service_port("sig", 54, protocol=Protocol.SCTP),
            service_port("alt", 81),
            cluster_ips=["10.96.0.10", "fd00::a"],
            external_ips=["203.0.113.7", "2001:db8:7::7"],
            load_balancer_ips=["203.0.113.8"],
        )
    )
    assert wanted == [
        "http cluster-ip 10.96.0.10:80/TCP",
        "http external-ip 203.0.113.7:80/TCP",
        "http load-balancer 203.0.113.8:80/TCP",
        "http node-port *:30080/TCP (IPv4)",
        "http cluster-ip [fd00::a]:80/TCP",
        "http external-ip [2001:db8:7::7]:80/TCP",
        "http node-port *:30080/TCP (IPv6)",
        "dns cluster-ip 10.96.0.10:53/UDP",
        "dns external-ip 203.0.113.7:53/UDP",
        "dns load-balancer 203.0.113.8:53/UDP",
        "dns node-port *:30053/UDP (IPv4)",
        "dns cluster-ip [fd00::a]:53/UDP",
        "dns external-ip [2001:db8:7::7]:53/UDP",
        "dns node-port *:30053/UDP (IPv6)",
        "alt cluster-ip 10.96.0.10:81/TCP",
        "alt external-ip 203.0.113.7:81/TCP",
        "alt load-balancer 203.0.113.8:81/TCP",
        "alt cluster-ip [fd00::a]:81/TCP",
        "alt external-ip [2001:db8:7::7]:81/TCP",
    ]


@pytest.mark.parametrize(("cluster_ip", "family"), [("10.96.0.10", Family.IPV4), ("fd00::a", Family.IPV6)])
def test_a_5_family_that_the_service_has_not_is_left_alone(cluster_ip: str, family: Family) -> None:
    """Neither a NodePort nor an outer address is served in it."""
    wanted = wanted_frontends(
        service(
            "shop/web",
            service_port(node_port=30080),
            cluster_ips=[cluster_ip],
            external_ips=["203.0.113.7", "2001:db8:7::7"],
            load_balancer_ips=["203.0.113.8", "2001:db8:7::8"],
        ),
        (),
        _SETTINGS,
    )
    assert [one.family for one in wanted] == [family] * 4


@pytest.mark.parametrize(
    ("addresses", "found"), [(["192.0.2.1", "192.0.2.2"], ["192.0.2.1:30080/TCP", "192.0.2.2:30080/TCP"]), ([], [])]
)
def test_d_4_node_ports_are_at_every_address_unless_they_are_restricted(addresses: list[str], found: list[str]) -> None:
    """One Frontend for each address of a restricted family; none of it if there is no address."""
    asked = service("shop/web", service_port(node_port=30080), cluster_ips=["10.96.0.10", "fd00::a"])
    wanted = wanted_frontends(asked, (), plan_settings(node_port_addresses={Family.IPV4: addresses}))
    assert [str(one) for one in wanted if one.kind is FrontendKind.NODE_PORT] == [*found, "*:30080/TCP (IPv6)"]


def test_d_5_external_addresses_are_served_unless_the_setting_forbids_it() -> None:
    """Those of the load balancer are no matter of this setting."""
    asked = service(external_ips=["203.0.113.7"], load_balancer_ips=["203.0.113.8"])
    assert _wanted(asked, plan_settings(serves_external_ips=False)) == [
        "http cluster-ip 10.96.0.10:80/TCP",
        "http load-balancer 203.0.113.8:80/TCP",
    ]


@pytest.mark.parametrize(
    ("external_ips", "load_balancer_ips", "wanted"),
    [
        (["10.96.0.10"], ["10.96.0.10"], ["cluster-ip 10.96.0.10:80"]),
        (["192.0.2.9"], ["192.0.2.9"], ["cluster-ip 10.96.0.10:80", "external-ip 192.0.2.9:80"]),
        (["192.0.2.9", "192.0.2.9"], [], ["cluster-ip 10.96.0.10:80", "external-ip 192.0.2.9:80"]),
    ],
)
def test_wanted_frontends_have_one_kind_at_one_place(
    external_ips: list[str], load_balancer_ips: list[str], wanted: list[str]
) -> None:
    """Asked for twice it is one Frontend: a cluster address, else external, else of the load balancer."""
    asked = service(external_ips=external_ips, load_balancer_ips=load_balancer_ips)
    assert _wanted(asked) == [f"http {one}/TCP" for one in wanted]


def test_d_4_node_port_comes_after_other_addresses_at_one_place() -> None:
    """Where a NodePort is bound to an address that is a load balancer's too, that one is served, whatever the port."""
    asked = service(
        "shop/web",
        service_port("http", 80, node_port=81),
        service_port("alt", 81),
        load_balancer_ips=["192.0.2.1"],
    )
    assert _wanted(asked, plan_settings(node_port_addresses={Family.IPV4: ["192.0.2.1"]})) == [
        "http cluster-ip 10.96.0.10:80/TCP",
        "http load-balancer 192.0.2.1:80/TCP",
        "alt cluster-ip 10.96.0.10:81/TCP",
        "alt load-balancer 192.0.2.1:81/TCP",
    ]


def test_d_4_tcp_and_udp_may_share_a_number() -> None:
    """One number for TCP and UDP, as for DNS, is two Frontends at every kind of address."""
    asked = service(
        "shop/web",
        service_port("dns", 53, node_port=30053, protocol=Protocol.UDP),
        service_port("dns-tcp", 53, node_port=30053),
        external_ips=["203.0.113.7"],
        load_balancer_ips=["203.0.113.8"],
    )
    places = ["cluster-ip 10.96.0.10:53", "external-ip 203.0.113.7:53", "load-balancer 203.0.113.8:53"]
    assert _wanted(asked) == [
        *(f"dns {one}/UDP" for one in places),
        "dns node-port *:30053/UDP (IPv4)",
        *(f"dns-tcp {one}/TCP" for one in places),
        "dns-tcp node-port *:30053/TCP (IPv4)",
    ]


@pytest.mark.parametrize(("protocol", "kept"), [(Protocol.UDP, 1), (Protocol.TCP, 2)])
def test_wanted_frontends_give_way_to_own_endpoints_of_their_protocol_alone(protocol: Protocol, kept: int) -> None:
    """A program that has the place over TCP does not answer what comes over UDP."""
    asked = service("shop/web", service_port("dns", 53, protocol=Protocol.UDP), external_ips=["192.0.2.1"])
    own = endpoint_slice("shop/web-1", "192.0.2.1", ports=[endpoint_port("dns", 53, protocol)])
    assert len(wanted_frontends(asked, [own], _SETTINGS)) == kept


_LOCAL = frozenset({backend("192.0.2.1:1").address, backend("[2001:db8::1]:1").address})
_CLAIMS: dict[Claim, tuple[Holder, ...]] = {
    claim_of(frontend("10.96.0.10:80")): ((0, _A), (0, _B)),
    claim_of(frontend("[fd00::a]:80")): ((1, _B),),
    claim_of(frontend("127.0.0.9:80")): ((2, _B),),
    claim_of(node_port_frontend(30080)): ((3, _C),),
}


@pytest.mark.parametrize(
    ("one", "holder"),
    [
        ("10.96.0.10:80", _A),
        ("10.96.0.10:81", None),
        ("10.96.0.11:80", None),
        ("[fd00::a]:80", _B),
        ("192.0.2.1:30080", _C),
        ("127.0.0.1:30080", _C),
        ("127.9.9.9:30080", _C),
        ("127.0.0.9:80", _B),
        ("10.0.1.1:30080", None),
        ("192.0.2.1:30081", None),
        ("[::1]:30080", None),
        ("[2001:db8::1]:30080", None),
    ],
)
def test_find_loop_knows_addresses_and_node_ports_at_this_node(one: str, holder: NamespacedName | None) -> None:
    """A NodePort answers at local and loopback addresses of its own family; the holder is the Service that has it."""
    assert find_loop(backend(one), Protocol.TCP, _CLAIMS, _LOCAL) == holder


def test_find_loop_other_protocol_is_no_loop() -> None:
    """A UDP endpoint at a TCP Frontend is somebody else, and the other way round."""
    assert find_loop(backend("10.96.0.10:80"), Protocol.UDP, _CLAIMS, _LOCAL) is None
    assert find_loop(backend("192.0.2.1:30080"), Protocol.UDP, _CLAIMS, _LOCAL) is None
    udp = frontend("10.96.0.10:53", protocol=Protocol.UDP)
    claims = _CLAIMS | {claim_of(udp): ((0, _B),)}
    assert find_loop(backend("10.96.0.10:53"), Protocol.UDP, claims, _LOCAL) == _B
    assert find_loop(backend("10.96.0.10:53"), Protocol.TCP, claims, _LOCAL) is None


def test_update_claims_without_a_move_keeps_the_mapping() -> None:
    """A change of endpoints alone copies nothing."""
    index = PlanIndex(claims={_VIP_CLAIM: ((0, _A),)})
    claims, concerned = update_claims(index, {_A: _plan(frontends=[_VIP])}, {_A: [_VIP]})
    assert claims is index.claims
    assert concerned == frozenset()


@pytest.mark.parametrize(
    ("holders", "plans", "wanted", "left", "concerned"),
    [
        # the first to ask
        ((), {}, {_A: [_VIP]}, (_A,), {_A}),
        # one that comes later in sort order gets nothing, and takes nothing
        ((_A,), {_A: _plan(frontends=[_VIP])}, {_B: [_VIP]}, (_A, _B), set()),
        # one that comes earlier takes it
        ((_B,), {_B: _plan(frontends=[_VIP])}, {_A: [_VIP]}, (_A, _B), {_A, _B}),
        # the owner goes: the next one gets it, and the others hear of another owner
        (
            (_A, _B, _C),
            {_A: _plan(frontends=[_VIP]), _B: _plan(denied=[_VIP]), _C: _plan(denied=[_VIP])},
            {_A: []},
            (_B, _C),
            {_A, _B, _C},
        ),
        # one that has nothing goes
        ((_A, _B), {_A: _plan(frontends=[_VIP]), _B: _plan(denied=[_VIP])}, {_B: []}, (_A,), set()),
        # the last one goes
        ((_A,), {_A: _plan(frontends=[_VIP])}, {_A: []}, None, {_A}),
        # several at once
        ((_B,), {_B: _plan(frontends=[_VIP])}, {_B: [], _A: [_VIP], _C: [_VIP]}, (_A, _C), {_A, _B, _C}),
    ],
)
def test_update_claims_names_all_whose_plan_depends_on_a_new_owner(
    holders: tuple[NamespacedName, ...],
    plans: dict[NamespacedName, ServicePlan],
    wanted: dict[NamespacedName, list[Frontend]],
    left: tuple[NamespacedName, ...] | None,
    concerned: set[NamespacedName],
) -> None:
    """Those who ask are sorted; only where the first one changes are the others concerned."""
    index = PlanIndex(claims={_VIP_CLAIM: tuple((0, one) for one in holders)} if holders else {})
    kept = dict(index.claims)
    claims, found = update_claims(index, plans, wanted)
    assert claims == ({_VIP_CLAIM: tuple((0, one) for one in left)} if left else {})
    assert found == concerned
    assert index.claims == kept


@pytest.mark.parametrize(
    ("tcp", "udp"),
    [
        (_VIP, frontend("10.96.0.10:80", protocol=Protocol.UDP)),
        (node_port_frontend(), node_port_frontend(protocol=Protocol.UDP)),
    ],
)
def test_update_claims_of_one_number_are_apart_by_protocol(tcp: Frontend, udp: Frontend) -> None:
    """Two Services have the same place, each in its protocol; when one goes, the other hears nothing."""
    claims, concerned = update_claims(PlanIndex(), {}, {_A: [tcp], _B: [udp]})
    assert claims == {claim_of(tcp): ((_rank(tcp), _A),), claim_of(udp): ((_rank(udp), _B),)}
    assert concerned == {_A, _B}
    plans = {_A: _plan(frontends=[tcp]), _B: _plan(frontends=[udp])}
    left, concerned = update_claims(PlanIndex(claims=claims), plans, {_A: []})
    assert left == {claim_of(udp): ((_rank(udp), _B),)}
    assert concerned == {_A}


@pytest.mark.parametrize("kind", [FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER, FrontendKind.NODE_PORT])
def test_update_claims_gives_a_cluster_address_to_nobody_who_writes_it_down(kind: FrontendKind) -> None:
    """Whoever has it as a cluster address keeps it, whatever the names; it goes to the other one when that one goes."""
    taken = evolve(_VIP, kind=kind)
    claims, concerned = update_claims(PlanIndex(), {}, {_B: [_VIP], _A: [taken]})
    assert [name for _, name in claims[_VIP_CLAIM]] == [_B, _A]
    assert concerned == {_A, _B}
    plans = {_A: _plan(denied=[taken]), _B: _plan(frontends=[_VIP])}
    left, concerned = update_claims(PlanIndex(claims=claims), plans, {_B: []})
    assert [name for _, name in left[_VIP_CLAIM]] == [_A]
    assert concerned == {_A, _B}
    # and it counts for more once it is one's own
    moved, concerned = update_claims(PlanIndex(claims=claims), plans, {_A: [_VIP]})
    assert moved == {_VIP_CLAIM: ((0, _A), (0, _B))}
    assert concerned == {_A, _B}


@pytest.mark.parametrize(
    ("one", "concerned"),
    [
        (frontend("10.96.0.10:80"), {_A, _B}),
        (frontend("10.96.1.10:80"), {_A}),
        (frontend("[fd00::a]:80"), {_A}),
        (node_port_frontend(), {_A, _C}),
    ],
)
def test_update_claims_names_the_neighbours_of_a_frontend(one: Frontend, concerned: set[NamespacedName]) -> None:
    """Services with endpoints near a new Frontend may have one that is it; NodePorts are near all local endpoints."""
    before = {_B: _plan(backends="10.96.0.99:80 10.0.1.1:80"), _C: _plan(backends="127.0.0.1:9000")}
    index = PlanIndex(neighbours=update_neighbours(PlanIndex(), {}, before, before, frozenset()))
    assert update_claims(index, before, {_A: [one]})[1] == concerned


def test_update_neighbours_counts_refused_backends_and_local_addresses() -> None:
    """A Backend refused for a loop must hear when the Frontend goes; local addresses are one place."""
    plans = {_A: _plan(refused="10.96.0.10:80"), _B: _plan(backends="192.0.2.1:80 127.0.0.1:80 [::1]:80")}
    neighbours = update_neighbours(PlanIndex(), {}, plans, plans, _LOCAL)
    assert neighbours == {
        bytes([10, 96, 0]): {_A},
        bytes([192, 0, 2]): {_B},
        bytes([127, 0, 0]): {_B},
        bytes(15): {_B},
        b"": {_B},
    }


def test_f_1_update_neighbours_counts_backends_that_serve_still() -> None:
    """When a Frontend comes to be where flows still go, the Service must hear of it."""
    plans = {_A: _plan(backends="10.0.1.1:53", serving="10.0.2.1:53 192.0.2.1:53")}
    assert update_neighbours(PlanIndex(), {}, plans, plans, _LOCAL) == {
        bytes([10, 0, 1]): {_A},
        bytes([10, 0, 2]): {_A},
        bytes([192, 0, 2]): {_A},
        b"": {_A},
    }


def test_update_neighbours_forgets_and_adds_only_what_moved() -> None:
    """The index before is left as it was, and one that stays right is not copied."""
    before = {_A: _plan(backends="10.0.1.1:80 10.0.2.1:80"), _B: _plan(backends="10.0.1.2:80")}
    index = PlanIndex(neighbours=update_neighbours(PlanIndex(), {}, before, before, frozenset()))
    kept = dict(index.neighbours)
    same_networks = before | {_A: _plan(backends="10.0.1.9:80 10.0.2.9:80")}
    assert update_neighbours(index, before, same_networks, [_A], frozenset()) is index.neighbours
    after = {_A: _plan(backends="10.0.1.9:80 10.0.3.1:80")}
    assert update_neighbours(index, before, after, [_A, _B], frozenset()) == {
        bytes([10, 0, 1]): {_A},
        bytes([10, 0, 3]): {_A},
    }
    assert index.neighbours == kept


def test_update_neighbours_follows_the_addresses_of_the_node() -> None:
    """An Endpoint is at this node by what the addresses were, or are, in that build."""
    plans = {_A: _plan(backends="192.0.2.1:80")}
    index = PlanIndex(plan_settings(), {}, update_neighbours(PlanIndex(), {}, plans, plans, frozenset()))
    assert index.neighbours == {bytes([192, 0, 2]): {_A}}
    after = update_neighbours(index, plans, plans, [_A], _LOCAL)
    assert after == {bytes([192, 0, 2]): {_A}, b"": {_A}}
    moved = PlanIndex(plan_settings(local_addresses=_LOCAL), {}, after)
    assert update_neighbours(moved, plans, plans, [_A], frozenset()) == index.neighbours


@pytest.mark.parametrize(
    ("texts", "expected"),
    [("10.0.1.1:1", {_A}), ("10.0.2.1:1 [fd00::1]:1", {_B, _C}), ("10.0.9.1:1", set()), ("", set())],
)
def test_neighbours_of_addresses_are_the_services_with_endpoints_near_one(
    texts: str, expected: set[NamespacedName]
) -> None:
    """Refused ones count as well; without an address there is none."""
    plans = {_A: _plan(backends="10.0.1.1:80"), _B: _plan(refused="10.0.2.1:80"), _C: _plan(backends="[fd00::1]:80")}
    index = PlanIndex(neighbours=update_neighbours(PlanIndex(), {}, plans, plans, frozenset()))
    assert neighbours_of(index, [backend(one).address for one in texts.split()]) == expected


def test_claim_of_frontends_of_two_services_at_one_place_is_one() -> None:
    """Whose it is does not matter; address, port, protocol and family do."""
    assert claim_of(frontend("10.96.0.10:80", "shop/a:x")) == claim_of(frontend("10.96.0.10:80", "shop/b:y"))
    assert claim_of(node_port_frontend(1, "shop/a:x")) == claim_of(node_port_frontend(1, "shop/b:y"))
    others = [_VIP, frontend("10.96.0.10:81"), frontend("[fd00::a]:80")]
    others += [frontend("10.96.0.10:80", protocol=Protocol.UDP), node_port_frontend(80, protocol=Protocol.UDP)]
    others += [node_port_frontend(80), node_port_frontend(80, family=Family.IPV6)]
    assert len({claim_of(one) for one in others}) == len(others)


def test_owner_of_a_frontend_is_the_first_who_asks_for_its_place() -> None:
    """Whoever else asks for it."""
    assert owner_of(frontend("10.96.0.10:80", "shop/b:x"), _CLAIMS) == _A
    assert owner_of(node_port_frontend(30080), _CLAIMS) == _C

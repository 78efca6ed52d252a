"""Tests of plan.claims."""

from collections.abc import Iterable

import pytest
from attrs import evolve
from builders import backend, frontend, named, node_port_frontend, pool, service, service_port

from userspace_proxy.model.names import Family, NamespacedName, Protocol
from userspace_proxy.plan.claims import (
    claim_of,
    find_loop,
    update_claims,
    update_neighbours,
    wanted_frontends,
)
from userspace_proxy.plan.state import Claim, Frontend, PlanIndex, ServicePlan

_A, _B, _C = named("shop/a"), named("shop/b"), named("shop/c")
_VIP = frontend("10.96.0.10:80")
_VIP_CLAIM = claim_of(_VIP)


def _plan(
    *, frontends: Iterable[Frontend] = (), denied: Iterable[Frontend] = (), backends: str = "", refused: str = ""
) -> ServicePlan:
    members = pool(*backends.split())
    return ServicePlan(
        tuple(frontends), {members.key: members}, (), tuple(denied), tuple(backend(one) for one in refused.split())
    )


def test_wanted_frontends_are_by_port_then_family_then_kind() -> None:
    """Each served port is reachable at each cluster address, and at its NodePort in each family the Service has."""
    wanted = wanted_frontends(
        service(
            "shop/web",
            service_port("http", 80, node_port=30080),
            service_port("dns", 53, node_port=30053, protocol=Protocol.UDP),
            service_port("sig", 54, protocol=Protocol.SCTP),
            service_port("alt", 81),
            cluster_ips=["10.96.0.10", "fd00::a"],
        )
    )
    assert [f"{one.service_port.port} {one}" for one in wanted] == [
        "http 10.96.0.10:80/TCP",
        "http *:30080/TCP (IPv4)",
        "http [fd00::a]:80/TCP",
        "http *:30080/TCP (IPv6)",
        "alt 10.96.0.10:81/TCP",
        "alt [fd00::a]:81/TCP",
    ]


def test_wanted_frontends_of_one_family_leave_the_other_alone() -> None:
    """A NodePort is opened only in the families of the Service."""
    wanted = wanted_frontends(service("shop/web", service_port(node_port=30080), cluster_ips=["fd00::a"]))
    assert [str(one) for one in wanted] == ["[fd00::a]:80/TCP", "*:30080/TCP (IPv6)"]


_LOCAL = frozenset({backend("192.0.2.1:1").address, backend("[2001:db8::1]:1").address})
_CLAIMS: dict[Claim, tuple[NamespacedName, ...]] = {
    claim_of(frontend("10.96.0.10:80")): (_A, _B),
    claim_of(frontend("[fd00::a]:80")): (_B,),
    claim_of(frontend("127.0.0.9:80")): (_B,),
    claim_of(node_port_frontend(30080)): (_C,),
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
def test_find_loop_knows_cluster_addresses_and_node_ports_at_this_node(one: str, holder: NamespacedName | None) -> None:
    """A NodePort answers at local and loopback addresses of its own family; the holder is the Service that has it."""
    assert find_loop(backend(one), Protocol.TCP, _CLAIMS, _LOCAL) == holder


def test_find_loop_other_protocol_is_no_loop() -> None:
    """A UDP endpoint at a TCP Frontend is somebody else."""
    assert find_loop(backend("10.96.0.10:80"), Protocol.UDP, _CLAIMS, _LOCAL) is None


def test_update_claims_without_a_move_keeps_the_mapping() -> None:
    """A change of endpoints alone copies nothing."""
    index = PlanIndex(claims={_VIP_CLAIM: (_A,)})
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
    index = PlanIndex(claims={_VIP_CLAIM: holders} if holders else {})
    kept = dict(index.claims)
    claims, found = update_claims(index, plans, wanted)
    assert claims == ({_VIP_CLAIM: left} if left else {})
    assert found == concerned
    assert index.claims == kept


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


def test_claim_of_frontends_of_two_services_at_one_place_is_one() -> None:
    """Whose it is does not matter; address, port, protocol and family do."""
    assert claim_of(frontend("10.96.0.10:80", "shop/a:x")) == claim_of(frontend("10.96.0.10:80", "shop/b:y"))
    assert claim_of(node_port_frontend(1, "shop/a:x")) == claim_of(node_port_frontend(1, "shop/b:y"))
    udp = evolve(_VIP, service_port=evolve(_VIP.service_port, protocol=Protocol.UDP))
    others = [_VIP, udp, frontend("10.96.0.10:81"), frontend("[fd00::a]:80")]
    others += [node_port_frontend(80), node_port_frontend(80, family=Family.IPV6)]
    assert len({claim_of(one) for one in others}) == len(others)

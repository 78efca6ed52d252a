"""Steering by routes as far as it needs no right: where Listeners are to be opened."""

import pytest
from builders import frontend, node_port_frontend

from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import Frontend, FrontendKind
from userspace_proxy.steering.base import WILDCARD
from userspace_proxy.steering.local_route.steering import LocalRouteSteering, find_own_routes
from userspace_proxy.steering.local_route.wildcard_listeners import WildcardListener

CLUSTER_IP = frontend("10.96.0.10:80")
CLUSTER_IPV6 = frontend("[fd00:96::a]:80")
OWN = frontend("127.0.0.1:80", kind=FrontendKind.EXTERNAL_IP)
NODE_PORT = node_port_frontend()


def make_steering(*listeners: WildcardListener, refused: dict[Family, str] | None = None) -> LocalRouteSteering:
    """Return steering that has not been tried."""
    return LocalRouteSteering((), refused or {}, listeners)


async def test_each_frontend_has_a_listener_at_its_own_address() -> None:
    """The address is one of the node only by its route, but for those that the node has anyway."""
    steering = make_steering()
    frontends = (CLUSTER_IP, CLUSTER_IPV6, OWN, NODE_PORT)
    placed = steering.place(frontends)
    assert tuple(one.frontend for one in placed) == frontends
    assert [(one.listener.address, one.listener.port, one.listener.is_virtual) for one in placed] == [
        (CLUSTER_IP.address, 80, True),
        (CLUSTER_IPV6.address, 80, True),
        (OWN.address, 80, False),
        (WILDCARD[Family.IPV4], 30080, False),
    ]
    assert [one.listener.key.frontend for one in placed] == [*frontends]
    assert steering.place(frontends) == placed
    assert steering.refused(frontends) == {}


async def test_family_without_routes_has_node_ports_only() -> None:
    """Nobody is told why for each Service: ``refused_families`` says it for all."""
    steering = make_steering(refused={Family.IPV6: "IPv6 is disabled on lo"})
    node_port = node_port_frontend(family=Family.IPV6)
    frontends: tuple[Frontend, ...] = (CLUSTER_IPV6, node_port, CLUSTER_IP)
    assert [one.frontend for one in steering.place(frontends)] == [node_port, CLUSTER_IP]
    assert steering.refused(frontends) == {}
    assert steering.unfiltered_families.keys() == {Family.IPV4}


@pytest.mark.parametrize(
    ("count", "end"), [(10, "program9 (pid 9) at 89/UDP"), (12, "program9 (pid 9) at 89/UDP and 2 more")]
)
async def test_remark_names_the_first_programs_that_become_reachable(count: int, end: str) -> None:
    """A long list helps nobody."""
    (remark,) = make_steering(
        *(WildcardListener(80 + i, Protocol.UDP, f"program{i} (pid {i})") for i in range(count))
    ).remarks
    assert remark.startswith("these programs listen on all addresses, so they can be reached at every address of a ")
    assert ": program0 (pid 0) at 80/UDP, " in remark
    assert remark.endswith(end)


async def test_steering_that_was_never_applied_changes_nothing() -> None:
    """It may be opened only to see whether it works."""
    before = find_own_routes()
    steering = make_steering()
    steering.place([CLUSTER_IP])
    await steering.refresh()
    await steering.aclose()
    assert find_own_routes() == before

"""Where loopback steering puts the Listeners of a Service."""

import socket
from collections.abc import Callable
from ipaddress import IPv4Network

import pytest
import trio
from builders import frontend, named, node_port_frontend

from userspace_proxy.config import Config
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import Frontend, FrontendKind
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.base import Placement, ServiceSteering, Surroundings
from userspace_proxy.steering.loopback import LoopbackSteering, open_loopback

MakeConfig = Callable[..., Config]

WEB = frontend("10.96.0.10:80", "shop/web:http")
WEB6 = frontend("[fd00::a]:80", "shop/web:http")
TLS = frontend("10.96.0.10:443", "shop/web:tls")


def placed_at(steering: LoopbackSteering, *frontends: Frontend) -> dict[str, str]:
    """Return where each Frontend that is served is listened for."""
    return {str(placement.frontend): placement.listens_at for placement in steering.place(frontends)}


def test_place_gives_all_ports_of_a_service_one_address_at_their_own_numbers(make_config: MakeConfig) -> None:
    """A Service is one host to its clients, and another Service is another."""
    steering = LoopbackSteering(Assignments(make_config()), first_port=1)
    other = frontend("10.96.0.11:80", "shop/api:http")
    assert placed_at(steering, WEB, TLS) == {
        "10.96.0.10:80/TCP": "127.102.205.38:80",
        "10.96.0.10:443/TCP": "127.102.205.38:443",
    }
    assert placed_at(steering, other)["10.96.0.11:80/TCP"] != "127.102.205.38:80"


def test_place_serves_the_ipv4_pool_of_a_dual_stack_service_and_the_ipv6_pool_of_others(
    make_config: MakeConfig,
) -> None:
    """Both families would meet at the same loopback address and port; a Listener has one Pool."""
    steering = LoopbackSteering(Assignments(make_config()), first_port=1)
    assert placed_at(steering, WEB6, WEB) == {"10.96.0.10:80/TCP": "127.102.205.38:80"}
    (alone,) = steering.place([WEB6])
    assert (alone.frontend, alone.listens_at) == (WEB6, "127.102.205.38:80")
    assert alone.listener.key.family is Family.IPV6


def test_place_binds_node_ports_directly(make_config: MakeConfig) -> None:
    """NodePorts are what they are in every kind of steering."""
    steering = LoopbackSteering(Assignments(make_config()), first_port=1024)
    node_ports = (node_port_frontend(30080), node_port_frontend(30080, family=Family.IPV6))
    assert placed_at(steering, *node_ports) == {
        "*:30080/TCP (IPv4)": "0.0.0.0:30080",
        "*:30080/TCP (IPv6)": "[::]:30080",
    }


def test_place_leaves_out_what_has_no_place_of_its_own(make_config: MakeConfig) -> None:
    """External and load balancer addresses lead elsewhere than the cluster address that is served for them."""
    steering = LoopbackSteering(Assignments(make_config()), first_port=1)
    others = [
        frontend("203.0.113.1:80", kind=FrontendKind.EXTERNAL_IP),
        frontend("203.0.113.2:80", kind=FrontendKind.LOAD_BALANCER),
    ]
    bound = frontend("127.0.0.1:30080", kind=FrontendKind.NODE_PORT)
    assert placed_at(steering, *others, WEB, bound) == {
        "10.96.0.10:80/TCP": "127.102.205.38:80",
        "127.0.0.1:30080/TCP": "127.0.0.1:30080",
    }


def test_place_moves_ports_that_may_not_be_bound_past_those_of_the_service(make_config: MakeConfig) -> None:
    """10,000 is added, again if the Service has that port itself; ports that may be bound stay."""
    steering = LoopbackSteering(Assignments(make_config()), first_port=1024)
    own = frontend("10.96.0.10:10080", "shop/web:own")
    high = frontend("10.96.0.10:8080", "shop/web:high")
    ports = {name: at.rpartition(":")[2] for name, at in placed_at(steering, WEB, TLS, own, high).items()}
    assert ports == {
        "10.96.0.10:80/TCP": "20080",
        "10.96.0.10:443/TCP": "10443",
        "10.96.0.10:10080/TCP": "10080",
        "10.96.0.10:8080/TCP": "8080",
    }


def test_place_moves_the_same_port_of_two_protocols_alike(make_config: MakeConfig) -> None:
    """DNS is at one number for UDP and TCP: they do not stand in each other's way."""
    steering = LoopbackSteering(Assignments(make_config()), first_port=1024)
    tcp = frontend("10.96.0.10:53", "shop/web:dns-tcp")
    udp = frontend("10.96.0.10:53", "shop/web:dns", protocol=Protocol.UDP)
    taken = frontend("10.96.0.10:10053", "shop/web:own")
    assert {at.rpartition(":")[2] for at in placed_at(steering, tcp, udp).values()} == {"10053"}
    ports = {name: at.rpartition(":")[2] for name, at in placed_at(steering, tcp, udp, taken).items()}
    assert ports == {"10.96.0.10:53/TCP": "20053", "10.96.0.10:53/UDP": "10053", "10.96.0.10:10053/TCP": "10053"}


def test_place_without_any_port_to_move_to_names_the_sysctl(make_config: MakeConfig) -> None:
    """A node that forbids nearly all ports is told so."""
    steering = LoopbackSteering(Assignments(make_config()), first_port=65000)
    with pytest.raises(SteeringError, match=r"port 80 of shop/web:http .* lower net.ipv4.ip_unprivileged_port_start"):
        steering.place([WEB])


def test_apply_keeps_addresses_for_a_restart(make_config: MakeConfig) -> None:
    """Two Services that want the same address get the same ones after a restart, whoever comes first."""
    config = make_config(loopback_range=IPv4Network("127.96.0.2/31"))
    api = frontend("10.96.0.11:80", "shop/api:http")

    async def run() -> None:
        before = LoopbackSteering(Assignments(config), first_port=1)
        placed = [*before.place([WEB]), *before.place([api])]
        await before.apply(
            {one.frontend.service_port.service: ServiceSteering((one,)) for one in placed}, Surroundings()
        )
        await before.refresh()
        await before.aclose()
        after = LoopbackSteering(Assignments(config), first_port=1)
        assert [*after.place([api]), *after.place([WEB])] == placed[::-1]
        after_that = LoopbackSteering(Assignments(config), first_port=1)
        assert [*after_that.place([WEB]), *after_that.place([api])] == placed

    trio.run(run)


def test_apply_lets_go_of_the_address_of_a_service_that_is_gone(make_config: MakeConfig) -> None:
    """The last address of the range goes to who needs it, once nobody else does."""
    steering = LoopbackSteering(Assignments(make_config(loopback_range=IPv4Network("127.96.0.1/32"))), first_port=1)
    api = frontend("10.96.0.11:80", "shop/api:http")

    async def run() -> tuple[Placement, ...]:
        await steering.apply({named("shop/web"): ServiceSteering(steering.place([WEB]))}, Surroundings())
        with pytest.raises(SteeringError, match="no loopback address is left for shop/api"):
            steering.place([api])
        await steering.apply({named("shop/web"): ServiceSteering()}, Surroundings())
        return steering.place([api])

    (placed,) = trio.run(run)
    assert placed.listens_at == "127.96.0.1:80"


def test_open_finds_ports_that_may_be_bound_also_where_the_lowest_is_in_use(make_config: MakeConfig) -> None:
    """A port in use may be bound; a refusal would say so."""
    steering = open_loopback(Assignments(make_config()))
    may_bind_low = placed_at(steering, WEB)["10.96.0.10:80/TCP"].endswith(":80")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        try:
            holder.bind(("127.96.0.1", 1))
        except PermissionError:
            assert not may_bind_low
        else:
            assert may_bind_low
            assert placed_at(open_loopback(Assignments(make_config())), WEB) == placed_at(steering, WEB)


def test_open_where_nothing_can_be_bound_says_so(make_config: MakeConfig) -> None:
    """An address that is not loopback stands for a node whose loopback interface is down."""
    config = make_config(loopback_range=IPv4Network("198.51.100.0/24"))
    with pytest.raises(SteeringError, match=r"cannot be used: Cannot assign requested address; is lo up\?"):
        open_loopback(Assignments(config))

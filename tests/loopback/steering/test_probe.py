"""Which kind of steering is chosen, and what is said of the others; the commands are fakes, routes are refused."""

from collections.abc import Callable
from ipaddress import IPv4Network

import pytest
import trio
from builders import frontend, named, node_port_frontend
from loopback.steering.fake_commands import FakeCommands

from userspace_proxy.config import Config, SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.base import ServiceSteering, Surroundings
from userspace_proxy.steering.probe import choose_steering

MakeConfig = Callable[..., Config]

NOT_LOOPBACK = IPv4Network("198.51.100.0/24")
NO_IPTABLES = "iptables is not on PATH; ip6tables is not on PATH"
NO_ROUTES = "not permitted (needs NET_ADMIN)"


@pytest.fixture(autouse=True)
def _no_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody try a route on the machine that the tests run on."""

    def refuse(_family: Family) -> None:
        raise SteeringError(NO_ROUTES)

    monkeypatch.setattr("userspace_proxy.steering.local_route.steering.probe_routes", refuse)


def test_auto_takes_iptables_where_it_works(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Cluster addresses work as they are; what one family lacks is told."""
    commands.add("iptables-save", "iptables-restore")
    chosen = trio.run(choose_steering, make_config())
    assert chosen.steering.kind is SteeringKind.IPTABLES
    assert not chosen.steering.clients_dial_listener
    assert chosen.explain() == (
        "steering iptables is used",
        "IPv6 addresses of Services are not served: ip6tables is not on PATH",
    )


def test_iptables_without_the_means_to_drop_is_taken_and_says_what_that_means(
    commands: FakeCommands, make_config: MakeConfig
) -> None:
    """It is nothing that stands in the way of a proxy, but a user has to know why clients see a reset."""
    commands.add("iptables-save", "iptables-restore", stderr="no such match", status=2, refuses="conntrack")
    assert trio.run(choose_steering, make_config()).explain() == (
        "steering iptables is used",
        "IPv6 addresses of Services are not served: ip6tables is not on PATH",
        (
            "IPv4 clients that a traffic policy or source ranges keep away are reset, not dropped: "
            "iptables-restore: no such match"
        ),
    )


def test_auto_falls_to_loopback_with_all_reasons_in_order(commands: FakeCommands, make_config: MakeConfig) -> None:
    """What needs no right always works, and the user learns why it was taken."""
    chosen = trio.run(choose_steering, make_config())
    assert chosen.steering.kind is SteeringKind.LOOPBACK
    assert chosen.steering.clients_dial_listener
    assert chosen.explain() == (
        f"steering iptables does not work here: {NO_IPTABLES}",
        "steering nftables does not work here: nft is not on PATH",
        f"steering local-route does not work here: {NO_ROUTES}",
        "steering loopback is used",
    )


def test_auto_where_nothing_works_gives_all_reasons(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Serving less than cluster addresses is the user's decision."""
    with pytest.raises(SteeringError) as raised:
        trio.run(choose_steering, make_config(loopback_range=NOT_LOOPBACK))
    assert str(raised.value) == (
        f"no kind of steering works here: iptables: {NO_IPTABLES}; nftables: nft is not on PATH; "
        f"local-route: {NO_ROUTES}; "
        "loopback: loopback addresses cannot be used: Cannot assign requested address; is lo up?; "
        "--steering none serves NodePorts alone"
    )


@pytest.mark.parametrize("kind", [each for each in SteeringKind if each not in (SteeringKind.AUTO, SteeringKind.NONE)])
def test_kind_asked_for_that_does_not_work_is_an_error(
    commands: FakeCommands, make_config: MakeConfig, kind: SteeringKind
) -> None:
    """Nobody gets another kind than the one named."""
    with pytest.raises(SteeringError, match=f"^--steering {kind} does not work here: .*; --steering auto finds"):
        trio.run(choose_steering, make_config(steering=kind, loopback_range=NOT_LOOPBACK))


def test_choice_tells_what_else_is_to_be_known_of_a_kind(commands: FakeCommands, make_config: MakeConfig) -> None:
    """What it is that a kind has to say is its own matter."""
    chosen = trio.run(choose_steering, make_config())
    chosen.steering.remarks = ("only at night",)
    assert chosen.explain()[-2:] == ("steering loopback is used", "only at night")


def test_none_serves_node_ports_only_and_runs_nothing(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Asked for by name it needs nothing and changes nothing."""
    commands.add("iptables-nft-save", "iptables-nft-restore")

    async def run() -> None:
        steering = (await choose_steering(make_config(steering=SteeringKind.NONE))).steering
        placed = steering.place([frontend(), node_port_frontend(30080)])
        assert [str(placement) for placement in placed] == ["*:30080/TCP (IPv4) -> 0.0.0.0:30080"]
        await steering.apply({named(): ServiceSteering(placed)}, Surroundings())
        await steering.refresh()
        await steering.aclose()

    trio.run(run)
    assert commands.calls() == {}


def test_choice_writes_nothing_to_the_state_directory(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Who only wants to know what would be done leaves no trace, even after placing."""
    config = make_config()
    trio.run(choose_steering, config).steering.place([frontend()])
    assert not config.state_dir.exists()

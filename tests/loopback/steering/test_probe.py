"""Which kind of steering is chosen, and what is said of the others; the commands are fakes."""

from collections.abc import Callable
from ipaddress import IPv4Network

import pytest
import trio
from builders import frontend, node_port_frontend
from loopback.steering.fake_commands import FakeCommands

from userspace_proxy.config import Config, SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.plan.state import Restrictions
from userspace_proxy.steering.probe import choose_steering

MakeConfig = Callable[..., Config]

NOT_LOOPBACK = IPv4Network("198.51.100.0/24")


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
    commands.add("iptables-save", "iptables-restore", stderr="no such match", status=2, refuses="ctorigdst")
    assert trio.run(choose_steering, make_config()).explain() == (
        "steering iptables is used",
        "IPv6 addresses of Services are not served: ip6tables is not on PATH",
        (
            "IPv4 clients that a traffic policy or source ranges keep away are reset, not dropped: "
            "iptables-restore: no such match"
        ),
    )


def test_auto_falls_to_loopback_with_the_reason(commands: FakeCommands, make_config: MakeConfig) -> None:
    """What needs no right always works, and the user learns why it was taken."""
    chosen = trio.run(choose_steering, make_config())
    assert chosen.steering.kind is SteeringKind.LOOPBACK
    assert chosen.steering.clients_dial_listener
    assert chosen.explain() == (
        "steering iptables does not work here: iptables is not on PATH; ip6tables is not on PATH",
        "steering loopback is used",
    )


def test_auto_where_nothing_works_gives_all_reasons(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Serving less than cluster addresses is the user's decision."""
    with pytest.raises(SteeringError) as raised:
        trio.run(choose_steering, make_config(loopback_range=NOT_LOOPBACK))
    assert str(raised.value) == (
        "no kind of steering works here: iptables: iptables is not on PATH; ip6tables is not on PATH; "
        "loopback: loopback addresses cannot be used: Cannot assign requested address; is lo up?; "
        "--steering none serves NodePorts alone"
    )


@pytest.mark.parametrize("kind", [SteeringKind.IPTABLES, SteeringKind.LOOPBACK])
def test_kind_asked_for_that_does_not_work_is_an_error(
    commands: FakeCommands, make_config: MakeConfig, kind: SteeringKind
) -> None:
    """Nobody gets another kind than the one named."""
    with pytest.raises(SteeringError, match=f"--steering {kind} does not work here: .*; --steering auto finds"):
        trio.run(choose_steering, make_config(steering=kind, loopback_range=NOT_LOOPBACK))


def test_none_serves_node_ports_only_and_runs_nothing(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Asked for by name it needs nothing and changes nothing."""
    commands.add("iptables-nft-save", "iptables-nft-restore")

    async def run() -> None:
        steering = (await choose_steering(make_config(steering=SteeringKind.NONE))).steering
        placed = steering.place([frontend(), node_port_frontend(30080)])
        assert [str(placement) for placement in placed] == ["*:30080/TCP (IPv4) -> 0.0.0.0:30080"]
        await steering.apply(placed, Restrictions())
        await steering.refresh()
        await steering.aclose()

    trio.run(run)
    assert commands.calls() == {}


def test_choice_writes_nothing_to_the_state_directory(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Who only wants to know what would be done leaves no trace, even after placing."""
    config = make_config()
    trio.run(choose_steering, config).steering.place([frontend()])
    assert not config.state_dir.exists()

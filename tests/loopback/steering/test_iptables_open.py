"""Which families iptables steering is opened for, and what it says of the others; the commands are fakes."""

import socket

import pytest
import trio
import trio.testing
from builders import frontend, node_port_frontend
from loopback.steering.fake_commands import FakeCommands
from loopback.steering.iptables_steering import MakeConfig

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.iptables.steering import open_iptables

IPV4 = ("iptables-nft-save", "iptables-nft-restore")
IPV6 = ("ip6tables-nft-save", "ip6tables-nft-restore")


def test_open_leaves_out_a_family_without_a_tool_with_the_reason(
    commands: FakeCommands, make_config: MakeConfig
) -> None:
    """A node without IPv6 is served all the same; who asks is told why the other Frontends are not."""

    async def run() -> None:
        config = make_config()
        steering = await open_iptables(Assignments(config), config.runtime_dir)
        assert steering.refused_families == {Family.IPV6: "ip6tables is not on PATH"}
        assert steering.unfiltered_families == {}
        both = [frontend("10.96.0.10:80"), frontend("[fd00::a]:80"), node_port_frontend(30080)]
        assert [placement.frontend for placement in steering.place(both)] == [both[0], both[2]]

    commands.add(*IPV4)
    trio.run(run)


@pytest.mark.parametrize("missing", ["[*]filter", "ctstate", "REJECT"])
def test_open_tells_which_family_cannot_keep_away(
    commands: FakeCommands, make_config: MakeConfig, missing: str
) -> None:
    """A kernel without the conntrack match, without REJECT, or without the table, serves all the same."""

    async def run() -> None:
        config = make_config()
        steering = await open_iptables(Assignments(config), config.runtime_dir)
        assert steering.unfiltered_families == {Family.IPV4: "iptables-nft-restore: not in this kernel"}

    commands.add(*IPV4, *IPV6)
    commands.add(IPV4[1], stderr="not in this kernel", status=2, refuses=missing)
    trio.run(run)


def test_open_takes_over_the_proxy_ports_of_rules_that_are_left(
    commands: FakeCommands, make_config: MakeConfig
) -> None:
    """A killed run without a state directory has left nothing else."""
    with socket.socket() as bound:
        bound.bind(("", 0))
        free = bound.getsockname()[1]
    rule = f"-A USP-REDIRECT -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports {free}"
    left = f"*nat\n:USP-REDIRECT - [0:0]\n{rule}\nCOMMIT\n"

    async def run() -> None:
        config = make_config(proxy_port_range=range(free - 100, free + 1))
        steering = await open_iptables(Assignments(config), config.runtime_dir)
        (placed,) = steering.place([frontend("10.96.0.10:80")])
        assert placed.listener.port == free

    commands.add(*IPV4)
    commands.add(IPV4[0], stdout=left)
    trio.run(run)


def test_open_without_any_tool_gives_both_reasons(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Nothing is opened where nothing works."""
    config = make_config()
    with pytest.raises(SteeringError, match=r"^iptables is not on PATH; ip6tables is not on PATH$"):
        trio.run(open_iptables, Assignments(config), config.runtime_dir)

"""When iptables steering writes what keeps clients away, and what it does where that fails; the commands are fakes."""

import pytest
from builders import frontend, node_port_frontend, pool_key
from loopback.steering.fake_commands import FakeCommands
from loopback.steering.iptables_steering import IPV4, IPV6, MakeConfig, steer

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.plan.state import FrontendKind, Restrictions, Route, Verdict
from userspace_proxy.steering.iptables import IptablesSteering

LB = frontend("203.0.113.1:80", kind=FrontendKind.LOAD_BALANCER)
LB6 = frontend("[2001:db8::1]:80", kind=FrontendKind.LOAD_BALANCER)
NODE_PORT = node_port_frontend(30080)
NOT_OUTSIDE = Restrictions(dict.fromkeys((LB, LB6), Route(pool_key(), pool_key(), Verdict.DROP)))
NOBODY = Restrictions()
"""Nobody is kept away."""


def test_restriction_is_written_without_touching_what_steers(commands: FakeCommands, make_config: MakeConfig) -> None:
    """A policy that changes is one restore of table filter; when it goes so do chain and jump, and all is quiet."""

    async def do(steering: IptablesSteering) -> None:
        placed = steering.place([LB, NODE_PORT])
        await steering.apply(placed, NOBODY)
        commands.forget()
        await steering.apply(placed, NOT_OUTSIDE)
        assert commands.calls() == {IPV4[0]: ["-t filter"], IPV4[1]: ["--noflush -w 5"]}
        assert commands.input(IPV4[1]).startswith("*filter\n:USP-INPUT - [0:0]\n")
        commands.forget()
        await steering.apply(placed[::-1], NOT_OUTSIDE)
        assert commands.calls() == {}

        commands.add(IPV4[0], stdout="*filter\n:USP-INPUT - [0:0]\n-A INPUT -j USP-INPUT\nCOMMIT\n")
        await steering.apply(placed, NOBODY)
        assert commands.input(IPV4[1]) == "*filter\n:USP-INPUT - [0:0]\n-D INPUT -j USP-INPUT\n-X USP-INPUT\nCOMMIT\n"
        commands.forget()
        await steering.apply(placed, NOBODY)
        await steering.refresh()
        assert commands.calls() == {}

    commands.add(*IPV4)
    steer(commands, make_config, do)


def test_restricted_frontend_that_appears_is_one_restore(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Both tables are in one input, the one that leads first: what follows may fail without harm to it."""

    async def do(steering: IptablesSteering) -> None:
        await steering.apply(steering.place([LB]), NOT_OUTSIDE)
        assert commands.calls()[IPV4[1]] == ["--noflush -w 5"]
        nat, filtered = commands.input(IPV4[1]).split("*filter")
        assert nat.startswith("*nat\n")
        assert "--ctorigdst 203.0.113.1 --ctorigdstport 80 -g USP-OUTSIDE" in filtered

    commands.add(*IPV4)
    steer(commands, make_config, do)


def test_table_filter_that_fails_does_not_stop_steering_and_is_retried_alone(
    commands: FakeCommands, make_config: MakeConfig
) -> None:
    """Whoever is kept away is reset meanwhile; addresses lead to their Listeners all the same."""

    async def do(steering: IptablesSteering) -> None:
        commands.add(IPV4[1], stderr="busy", status=4, refuses="[*]filter")
        with pytest.raises(SteeringError) as raised:
            await steering.apply(steering.place([LB]), NOT_OUTSIDE)
        assert str(raised.value) == "IPv4 clients are not kept away as they should be: iptables-nft-restore: busy"
        commands.forget()
        with pytest.raises(SteeringError, match="not kept away"):
            await steering.refresh()
        assert "*nat" not in commands.input(IPV4[1])
        commands.add(IPV4[1])
        await steering.refresh()
        commands.forget()
        await steering.refresh()
        assert commands.calls() == {}

    commands.add(*IPV4)
    steer(commands, make_config, do)


@pytest.mark.parametrize("missing", ["[*]filter", "ctorigdst"])
def test_family_without_the_means_to_drop_steers_and_writes_nothing_to_table_filter(
    commands: FakeCommands, make_config: MakeConfig, missing: str
) -> None:
    """A kernel without the conntrack match, or without the table, serves all the same; the reason is kept."""

    async def do(steering: IptablesSteering) -> None:
        assert steering.unfiltered_families == {Family.IPV4: "iptables-nft-restore: not in this kernel"}
        await steering.apply(steering.place([LB, LB6]), NOT_OUTSIDE)
        assert "*filter" not in commands.input(IPV4[1])
        assert "*filter" in commands.input(IPV6[1])
        commands.forget()
        await steering.aclose()
        assert commands.calls()[IPV4[0]] == ["-t nat"]

    commands.add(*IPV4, *IPV6)
    commands.add(IPV4[1], stderr="not in this kernel", status=2, refuses=missing)
    steer(commands, make_config, do)


def test_family_without_the_means_to_drop_is_rid_of_what_a_run_before_has_left(
    commands: FakeCommands, make_config: MakeConfig
) -> None:
    """Else rules of a run that had the match, and was killed, would keep clients away that may come in by now."""

    async def do(steering: IptablesSteering) -> None:
        commands.add(IPV4[0], stdout="*filter\n:USP-INPUT - [0:0]\n-A INPUT -j USP-INPUT\nCOMMIT\n")
        await steering.apply(steering.place([LB]), NOT_OUTSIDE)
        assert commands.input(IPV4[1]).endswith(
            "*filter\n:USP-INPUT - [0:0]\n-D INPUT -j USP-INPUT\n-X USP-INPUT\nCOMMIT\n"
        )

    commands.add(*IPV4)
    commands.add(IPV4[1], stderr="not in this kernel", status=2, refuses="ctorigdst")
    steer(commands, make_config, do)


def test_table_filter_that_can_be_neither_used_nor_looked_at_stops_nothing(
    commands: FakeCommands, make_config: MakeConfig
) -> None:
    """What is not in the kernel holds nothing of ours; the table that leads is written, and all is quiet."""

    async def do(steering: IptablesSteering) -> None:
        commands.add(IPV4[0], stderr="no such table", status=1, only_with="-t filter")
        await steering.apply(steering.place([LB]), NOT_OUTSIDE)
        assert commands.input(IPV4[1]).count("*nat") == 1
        commands.forget()
        await steering.refresh()
        assert commands.calls() == {}

    commands.add(*IPV4)
    commands.add(IPV4[1], stderr="not in this kernel", status=2, refuses="[*]filter")
    steer(commands, make_config, do)


def test_close_removes_both_tables_and_goes_on_where_one_fails(commands: FakeCommands, make_config: MakeConfig) -> None:
    """What leads goes first: as long as it is there, whoever is to be kept away has to be."""

    async def do(steering: IptablesSteering) -> None:
        await steering.apply(steering.place([LB]), NOT_OUTSIDE)
        left = "*nat\n:USP-REDIRECT - [0:0]\nCOMMIT\n*filter\n:USP-INPUT - [0:0]\nCOMMIT\n"
        commands.add(IPV4[0], stdout=left)
        commands.add(IPV4[1], stderr="busy", status=4, refuses="[*]nat")
        commands.forget()
        with pytest.raises(SteeringError, match=r"^IPv4 rules could not be removed: .* run userspace-proxy cleanup$"):
            await steering.aclose()
        assert commands.input(IPV4[1]) == (
            "*nat\n:USP-REDIRECT - [0:0]\n-X USP-REDIRECT\nCOMMIT\n*filter\n:USP-INPUT - [0:0]\n-X USP-INPUT\nCOMMIT\n"
        )
        commands.add(IPV4[1])
        commands.forget()
        await steering.aclose()
        assert commands.calls() == {IPV4[0]: ["-t nat"], IPV4[1]: ["--noflush -w 5"]}

    commands.add(*IPV4)
    steer(commands, make_config, do)

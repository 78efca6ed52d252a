"""When iptables steering runs commands, and what it makes of their failures; the commands are fakes."""

import errno
from typing import NoReturn

import pytest
import trio
import trio.testing
from attrs import evolve
from builders import frontend, listener_key, node_port_frontend
from loopback.steering.fake_commands import FakeCommands
from loopback.steering.iptables_steering import IPV4, IPV6, MakeConfig, steer

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.plan.state import FrontendKind, PolicyClass, Restrictions
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.iptables import IptablesSteering, open_iptables

WEB = frontend("10.96.0.10:80")
WEB6 = frontend("[fd00::a]:80")
NODE_PORT = node_port_frontend(30080)
NOBODY = Restrictions()
"""Nobody is kept away."""


def test_place_gives_addresses_a_proxy_port_and_node_ports_their_own(
    commands: FakeCommands, make_config: MakeConfig
) -> None:
    """Rules lead both families to Listeners on all addresses; a NodePort is bound directly."""

    async def do(steering: IptablesSteering) -> None:
        await trio.lowlevel.checkpoint()
        placed = steering.place([WEB, WEB6, NODE_PORT])
        assert [placement.frontend for placement in placed] == [WEB, WEB6, NODE_PORT]
        ports = {placement.listener.port for placement in placed[:2]}
        assert len(ports) == 2
        assert ports <= set(make_config().proxy_port_range)
        assert [placement.listens_at.rpartition(":")[0] for placement in placed] == ["0.0.0.0", "[::]", "0.0.0.0"]
        assert placed[0].listener.key == listener_key()
        assert placed[2].listens_at == "0.0.0.0:30080"
        assert steering.place([WEB]) == placed[:1]

    commands.add(*IPV4, *IPV6)
    steer(commands, make_config, do)


def test_place_shares_a_listener_where_the_route_is_the_same(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Cluster addresses share one, external IPs another; load balancer addresses have source ranges of their own."""
    external = [frontend(f"203.0.113.{host}:80", kind=FrontendKind.EXTERNAL_IP) for host in (1, 2)]
    balanced = [frontend(f"203.0.113.{host}:80", kind=FrontendKind.LOAD_BALANCER) for host in (3, 4)]
    bound = frontend("192.0.2.2:30080", kind=FrontendKind.NODE_PORT)

    async def do(steering: IptablesSteering) -> None:
        await trio.lowlevel.checkpoint()
        placed = steering.place([WEB, *external, *balanced, bound])
        shared = listener_key(policy=PolicyClass.EXTERNAL)
        assert [placement.listener.key for placement in placed] == [
            listener_key(),
            *(shared, shared),
            *(evolve(shared, frontend=one) for one in (*balanced, bound)),
        ]
        assert len({placement.listener.port for placement in placed}) == 5
        assert placed[-1].listens_at == "192.0.2.2:30080"
        await steering.apply(placed, NOBODY)
        for one in (*external, *balanced):
            assert f"-d {one.address}/32 -p tcp" in commands.input(IPV4[1])
        assert "30080" not in commands.input(IPV4[1])

    commands.add(*IPV4, *IPV6)
    steer(commands, make_config, do)


def test_unchanged_rules_cause_no_exec(commands: FakeCommands, make_config: MakeConfig) -> None:
    """A change is one restore in its family; the same again, in any order, and an idle node are none."""

    async def do(steering: IptablesSteering) -> None:
        placed = steering.place([WEB, WEB6, NODE_PORT, frontend("10.96.0.11:80", "shop/api")])
        await steering.apply(placed, NOBODY)
        looked = ["-t nat", "-t filter"]  # at what an earlier run may have left
        written = ["--noflush -w 5"]
        assert commands.calls() == {IPV4[0]: looked, IPV4[1]: written, IPV6[0]: looked, IPV6[1]: written}
        assert "*filter" not in commands.input(IPV4[1])
        assert "10.96.0.11" in commands.input(IPV4[1])
        assert "30080" not in commands.input(IPV4[1])
        assert (make_config().state_dir / "assignments.json").exists()

        commands.forget()
        await steering.apply(placed[::-1], NOBODY)
        await steering.refresh()
        assert commands.calls() == {}

        await steering.apply(placed[:3], NOBODY)
        assert commands.calls() == {IPV4[0]: ["-t nat"], IPV4[1]: ["--noflush -w 5"]}
        assert "10.96.0.11" not in commands.input(IPV4[1])

    commands.add(*IPV4, *IPV6)
    steer(commands, make_config, do)


def test_proxy_port_of_a_service_that_is_gone_can_be_taken(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Nobody loses a port before nothing leads to it any more."""
    config = make_config(proxy_port_range=range(20000, 20001))

    async def run() -> None:
        steering = await open_iptables(Assignments(config))
        await steering.apply(steering.place([WEB]), NOBODY)
        commands.add(IPV4[1], stderr="busy", status=4)
        with pytest.raises(SteeringError, match="busy"):
            await steering.apply([], NOBODY)
        with pytest.raises(SteeringError, match="widen --proxy-port-range"):
            steering.place([frontend("10.96.0.11:80", "shop/api")])
        commands.add(IPV4[1])
        await steering.apply([], NOBODY)
        (placed,) = steering.place([frontend("10.96.0.11:80", "shop/api")])
        assert placed.listener.port == 20000

    commands.add(*IPV4)
    trio.run(run)


@pytest.mark.slow
def test_proxy_port_given_while_rules_are_written_stays_given(commands: FakeCommands, make_config: MakeConfig) -> None:
    """A Service that appears meanwhile is not among those being steered, and is in use all the same."""
    config = make_config(proxy_port_range=range(20000, 20002))

    async def run() -> None:
        steering = await open_iptables(Assignments(config))
        commands.add(IPV4[1], takes_s=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steering.apply, steering.place([WEB]), NOBODY)
            await trio.testing.wait_all_tasks_blocked()
            (placed,) = steering.place([frontend("10.96.0.11:80", "shop/api")])
        with pytest.raises(SteeringError, match="widen --proxy-port-range"):
            steering.place([frontend("10.96.0.12:80", "shop/cart")])
        assert steering.place([frontend("10.96.0.11:80", "shop/api")]) == (placed,)

    commands.add(*IPV4)
    trio.run(run)


def test_family_whose_tool_fails_does_not_stop_the_other_and_is_retried(
    commands: FakeCommands, make_config: MakeConfig
) -> None:
    """The sentence has the family, the tool, its words and the rule; ``refresh`` tries again, and only that family."""

    async def do(steering: IptablesSteering) -> None:
        commands.add(IPV4[1], stderr="line 3 failed", status=1)
        placed = steering.place([WEB, WEB6])
        with pytest.raises(SteeringError) as raised:
            await steering.apply(placed, NOBODY)
        assert str(raised.value).startswith(
            "IPv4 addresses of Services are not steered as they should be: iptables-nft-restore: line 3 failed: "
        )
        assert "fd00::a" in commands.input(IPV6[1])

        commands.add(IPV4[1])
        commands.forget()
        await steering.refresh()
        assert commands.calls().keys() == set(IPV4)
        commands.forget()
        await steering.refresh()
        assert commands.calls() == {}

        commands.add(IPV6[0], stderr="busy", status=4)
        with pytest.raises(SteeringError, match=r"IPv6 addresses of Services are not .*: ip6tables-nft-save: busy"):
            await steering.apply(placed[:1], NOBODY)
        commands.add(IPV6[0])
        commands.forget()
        await steering.refresh()
        assert commands.calls().keys() == set(IPV6)

    commands.add(*IPV4, *IPV6)
    steer(commands, make_config, do)


def test_cancelled_change_is_written_again(commands: FakeCommands, make_config: MakeConfig) -> None:
    """After a cancelled restore nobody knows what is in force, so the same rules are not taken for unchanged."""

    async def do(steering: IptablesSteering) -> None:
        placed = steering.place([WEB])
        await steering.apply(placed, NOBODY)
        commands.add(IPV4[1], takes_s=60)
        commands.forget()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(steering.apply, [], NOBODY)
                while IPV4[1] not in commands.calls():  # noqa: ASYNC110 - another process has no event to wait for
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

        commands.add(IPV4[1])
        commands.forget()
        await steering.apply(placed, NOBODY)
        assert commands.calls().keys() == set(IPV4)

    commands.add(*IPV4)
    steer(commands, make_config, do)


def test_family_without_a_tool_is_left_out_with_the_reason(commands: FakeCommands, make_config: MakeConfig) -> None:
    """A node without IPv6 is served all the same; who asks is told why the other Frontends are not."""

    async def do(steering: IptablesSteering) -> None:
        assert steering.refused_families == {Family.IPV6: "ip6tables is not on PATH"}
        placed = steering.place([WEB, WEB6, NODE_PORT])
        assert [placement.frontend for placement in placed] == [WEB, NODE_PORT]
        await steering.apply(placed, NOBODY)
        assert commands.calls().keys() == set(IPV4)

    commands.add(*IPV4)
    steer(commands, make_config, do)


def test_open_without_any_tool_gives_both_reasons(commands: FakeCommands, make_config: MakeConfig) -> None:
    """Nothing is opened where nothing works."""
    with pytest.raises(SteeringError, match=r"^iptables is not on PATH; ip6tables is not on PATH$"):
        trio.run(open_iptables, Assignments(make_config()))


def test_close_without_apply_runs_nothing(commands: FakeCommands, make_config: MakeConfig) -> None:
    """What only looked at the node leaves the rules of a live run alone."""

    async def do(steering: IptablesSteering) -> None:
        await steering.refresh()
        await steering.aclose()
        assert commands.calls() == {}

    commands.add(*IPV4, *IPV6)
    steer(commands, make_config, do)


def test_close_removes_what_is_there_even_when_cancelled(commands: FakeCommands, make_config: MakeConfig) -> None:
    """One restore removes chains and jumps; a second close finds nothing to do."""

    async def do(steering: IptablesSteering) -> None:
        await steering.apply(steering.place([WEB]), NOBODY)
        commands.add(IPV4[0], stdout="*nat\n:USP-REDIRECT - [0:0]\n-A OUTPUT -j USP-REDIRECT\nCOMMIT\n")
        commands.forget()
        with trio.CancelScope() as scope:
            scope.cancel()
            await steering.aclose()
        removal = "*nat\n:USP-REDIRECT - [0:0]\n-D OUTPUT -j USP-REDIRECT\n-X USP-REDIRECT\nCOMMIT\n"
        assert commands.input(IPV4[1]) == removal
        commands.forget()
        await steering.aclose()
        await steering.refresh()
        assert commands.calls() == {}

    commands.add(*IPV4)
    steer(commands, make_config, do)


def test_node_that_cannot_be_read_is_a_failure_like_others(
    commands: FakeCommands, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where file descriptors are short, the next attempt may find one."""

    def fail() -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    async def do(steering: IptablesSteering) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("userspace_proxy.steering.iptables.read_node_addresses", fail)
            patched.setattr("userspace_proxy.steering.assignments.tcp_ports_in_use", fail)
            placements = steering.place([WEB])
            with pytest.raises(SteeringError, match="Too many open files"):
                await steering.apply(placements, NOBODY)
            with pytest.raises(SteeringError, match="Too many open files"):
                await steering.refresh()
        await steering.apply(placements, NOBODY)
        assert commands.calls() != {}

    commands.add(*IPV4)
    steer(commands, make_config, do)


def test_refresh_after_close_writes_nothing(commands: FakeCommands, make_config: MakeConfig) -> None:
    """What failed before the end is not tried again after it."""

    async def do(steering: IptablesSteering) -> None:
        commands.add(IPV4[1], stderr="busy", status=4)
        with pytest.raises(SteeringError, match="busy"):
            await steering.apply(steering.place([WEB]), NOBODY)
        await steering.aclose()
        commands.forget()
        await steering.refresh()
        assert commands.calls() == {}

    commands.add(*IPV4)
    steer(commands, make_config, do)


def test_close_that_leaves_something_says_how_to_remove_it(commands: FakeCommands, make_config: MakeConfig) -> None:
    """The other family is removed all the same, and a later close tries again."""

    async def do(steering: IptablesSteering) -> None:
        await steering.apply(steering.place([WEB]), NOBODY)
        commands.add(IPV4[0], stderr="iptables-nft-save: busy", status=4)
        commands.forget()
        with pytest.raises(SteeringError) as raised:
            await steering.aclose()
        assert str(raised.value) == (
            "IPv4 rules could not be removed: iptables-nft-save: busy; run userspace-proxy cleanup"
        )
        assert IPV6[0] in commands.calls()
        commands.add(IPV4[0])
        commands.forget()
        await steering.aclose()
        assert commands.calls().keys() == {IPV4[0]}

    commands.add(*IPV4, *IPV6)
    steer(commands, make_config, do)

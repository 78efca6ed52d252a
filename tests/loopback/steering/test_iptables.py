"""When iptables rules are written and looked at, and what is made of failures; the tables are in memory."""

import pytest
import trio
import trio.testing
from builders import frontend, named
from loopback.steering.fake_tool import FOREIGN, FakeKernel, fake_tool
from loopback.steering.iptables_steering import API, NODE, NOT_KEPT_AWAY, NOT_STEERED, WEB, built, start, web

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Protocol
from userspace_proxy.steering.base import Surroundings
from userspace_proxy.steering.iptables.steering import IptablesRules
from userspace_proxy.steering.rule_steering import Conditions, ServiceRules

NOTHING = ServiceRules()
LEFT_BY_AN_EARLIER_RELEASE = {
    "nat": [":USP-PREROUTING", ":USP-REDIRECT", "-A USP-PREROUTING -g USP-REDIRECT", "-I PREROUTING -j USP-PREROUTING"],
    "filter": [":USP-OUTSIDE", "-A USP-OUTSIDE -j DROP", "-I INPUT -j USP-OUTSIDE"],
}


def chains_in(text: str) -> list[str]:
    """Return the chains that an input touches."""
    return [line.split()[0][1:] for line in text.splitlines() if line.startswith(":")]


async def test_first_update_looks_once_and_writes_both_tables_by_one_command() -> None:
    """Foreign rules stay, and the table that guards comes first: nobody is led to where no rule is yet."""
    kernel = FakeKernel()
    await IptablesRules(fake_tool(kernel), "").update(WEB, NODE)
    assert kernel.looks == ["filter", "nat"]
    (text,) = kernel.inputs
    assert text.startswith("*filter\n")
    assert "COMMIT\n*nat\n" in text
    assert kernel.foreign() == FOREIGN | {
        "nat": FOREIGN["nat"] | {"INPUT": [], "POSTROUTING": []},
        "filter": FOREIGN["filter"] | {"FORWARD": [], "OUTPUT": []},
    }


async def test_change_of_one_service_writes_its_chains_only_and_looks_at_nothing() -> None:
    """To read the rules of 10,000 Services takes longer than to change those of one."""
    kernel = FakeKernel()
    rules = await start(kernel)
    await rules.update({named("shop/web"): web(10, 12082)}, NODE)
    assert kernel.looks == []
    (text,) = kernel.inputs
    assert chains_in(text) == ["USP-PORTS-T-2F", "USP-DNAT-0A", "USP-REDIRECT-0A"]
    assert "-I " not in text


async def test_service_that_is_gone_takes_its_chains_with_it_and_the_last_one_the_jumps() -> None:
    """A node without Services has nothing of ours."""
    kernel = FakeKernel()
    rules = await start(kernel)
    await rules.update({named("shop/web"): NOTHING}, NODE)
    assert "-X USP-REDIRECT-0A" in kernel.inputs[0]
    assert chains_in(kernel.inputs[0])[:1] == ["USP-PORTS-T-2F"]
    await rules.update({named("shop/api"): NOTHING}, NODE)
    assert kernel.own() == {"nat": {}, "filter": {}}
    assert kernel.looks == []
    kernel.inputs.clear()
    await rules.update({named("shop/api"): NOTHING}, NODE)
    assert await rules.repair() == ()
    await rules.remove()
    assert (kernel.looks, kernel.inputs) == ([], [])
    await rules.update(WEB, NODE)
    assert kernel.own() == await built(WEB)


async def test_same_again_runs_nothing() -> None:
    """No change is no command."""
    kernel = FakeKernel()
    rules = await start(kernel)
    await rules.update({**API, **WEB}, NODE)
    assert await rules.repair() == ()
    assert (kernel.looks, kernel.inputs) == ([], [])


async def test_first_update_removes_what_an_earlier_release_has_left() -> None:
    """Its chains have other names; who is kept away by them now should come in."""
    kernel = FakeKernel()
    for table, lines in LEFT_BY_AN_EARLIER_RELEASE.items():
        kernel.act(table, *lines)
    await IptablesRules(fake_tool(kernel), "").update(WEB, NODE)
    assert kernel.own() == await built(WEB)


async def test_first_update_leaves_alone_what_is_as_it_should_be() -> None:
    """A run that takes over from a killed one with the same proxy ports changes nothing."""
    kernel = FakeKernel()
    await start(kernel)
    await start(kernel)
    assert kernel.inputs == []


async def test_proxy_ports_are_read_from_what_is_left() -> None:
    """Where nothing can be read there are none, and the first write will say why."""
    kernel = FakeKernel()
    await start(kernel)
    rules = IptablesRules(fake_tool(kernel), "")
    address = frontend("10.96.0.10:80").address
    assert (await rules.read_proxy_ports())[address, 80, Protocol.TCP] == 12080  # type: ignore[index]
    kernel.blind_to = {"nat"}
    assert await rules.read_proxy_ports() == {}


@pytest.mark.parametrize(("table", "sentence"), [("nat", NOT_STEERED), ("filter", NOT_KEPT_AWAY)])
async def test_table_that_fails_is_named_and_the_other_one_written(table: str, sentence: str) -> None:
    """What has failed is written whole by the next update, though nothing has changed, after a look at it."""
    kernel = FakeKernel()
    rules = IptablesRules(fake_tool(kernel), "")
    kernel.refuses = f"*{table}"
    with pytest.raises(SteeringError) as raised:
        await rules.update(WEB, NODE)
    assert str(raised.value) == f"{sentence}: no *{table}"
    assert [bool(kernel.own()[one]) for one in ("nat", "filter")] == [table != "nat", table != "filter"]

    kernel.looks.clear()
    kernel.inputs.clear()
    kernel.refuses = ""
    await rules.update({}, NODE)
    assert kernel.looks == [table]
    assert len(kernel.inputs) == 1
    assert kernel.own() == await built(WEB)


async def test_both_tables_that_fail_are_said_in_one_sentence() -> None:
    """Neither hides the other."""
    kernel = FakeKernel()
    kernel.blind_to = {"nat", "filter"}
    with pytest.raises(SteeringError) as raised:
        await IptablesRules(fake_tool(kernel), "").update(WEB, NODE)
    assert str(raised.value) == f"{NOT_KEPT_AWAY}: filter cannot be read; {NOT_STEERED}: nat cannot be read"


async def test_cancelled_change_is_written_again() -> None:
    """After a cancelled restore nobody knows what is in force, so the same rules are not taken for unchanged."""
    kernel = FakeKernel()
    rules = await start(kernel)
    kernel.restore_hangs = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rules.update, {named("shop/web"): NOTHING}, NODE)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    kernel.restore_hangs = False
    kernel.act("nat", "-F")
    await rules.update(WEB, NODE)
    assert kernel.looks == ["filter", "nat"]
    assert kernel.own() == await built({**WEB, **API})


@pytest.mark.parametrize("blind_to", [set(), {"filter"}])
async def test_without_table_filter_only_table_nat_is_written_and_leftovers_of_the_other_removed(
    blind_to: set[str],
) -> None:
    """A run before may have had it; where it cannot even be looked at it holds nothing."""
    kernel = FakeKernel()
    kernel.act("filter", *LEFT_BY_AN_EARLIER_RELEASE["filter"])
    kernel.blind_to = blind_to
    rules = IptablesRules(fake_tool(kernel), "no conntrack")
    assert rules.unfiltered_reason == "no conntrack"
    around = Conditions(Surroundings(health_check_ports=frozenset({32000})), NODE.interfaces, NODE.node_address)
    await rules.update(WEB, around)
    assert kernel.own()["nat"]
    assert bool(kernel.own()["filter"]) is bool(blind_to)
    kernel.inputs.clear()
    await rules.update({}, around)
    assert kernel.inputs == []


async def test_remove_before_any_update_runs_nothing() -> None:
    """What only looked at the node leaves the rules of a live run alone."""
    kernel = FakeKernel()
    await start(kernel)
    rules = IptablesRules(fake_tool(kernel), "")
    await rules.read_proxy_ports()
    kernel.looks.clear()
    assert await rules.repair() == ()
    await rules.remove()
    assert (kernel.looks, kernel.inputs) == ([], [])


@pytest.mark.parametrize(("table", "other"), [("nat", "filter"), ("filter", "nat")])
async def test_remove_goes_on_where_a_table_fails_and_can_be_repeated(table: str, other: str) -> None:
    """As long as rules lead somewhere, whoever is to be kept away has to be: table nat goes first."""
    kernel = FakeKernel()
    rules = await start(kernel)
    kernel.refuses = f"*{table}"
    with pytest.raises(SteeringError, match=rf"^no \*{table}$"):
        await rules.remove()
    assert kernel.inputs[0].startswith("*nat")
    assert kernel.own()[table]
    assert not kernel.own()[other]
    kernel.refuses = ""
    await rules.remove()
    assert kernel.own() == {"nat": {}, "filter": {}}
    kernel.looks.clear()
    await rules.remove()
    assert kernel.looks == []


async def test_update_of_very_many_services_lets_others_have_their_turn() -> None:
    """To build the rules of 10,000 takes a second, in which no connection may stand still."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    many = {named(f"shop/web-{number}"): web(number % 250, 12000 + number) for number in range(1000)}
    kernel = FakeKernel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await IptablesRules(fake_tool(kernel), "").update(many, NODE)
        nursery.cancel_scope.cancel()
    assert turns > len(many) / 50
    assert sum("REDIRECT --to-ports" in rule for rules in kernel.own()["nat"].values() for rule in rules) == len(many)

"""What is made of what others do to our iptables rules, and when it is looked for; the tables are in memory."""

from ipaddress import IPv4Address, ip_network

import pytest
import trio
import trio.testing
from attrs import evolve
from builders import named, route
from hypothesis import given
from hypothesis import strategies as st
from loopback.steering.fake_tool import FakeKernel, fake_tool
from loopback.steering.iptables_steering import API, NODE, NOT_KEPT_AWAY, WEB, built, start, web

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.plan.state import Verdict
from userspace_proxy.steering.base import Surroundings
from userspace_proxy.steering.iptables.steering import IptablesRules
from userspace_proxy.steering.iptables.tool import Variant
from userspace_proxy.steering.rule_steering import Conditions, ServiceRules

NOTHING = ServiceRules()
DROPPED = route(Verdict.DROP)
NOT_OUTSIDE = evolve(route(), outside=Verdict.DROP)

SERVICES = st.fixed_dictionaries(
    {},
    optional={
        named(f"shop/{name}"): st.sampled_from(
            [
                NOTHING,
                web(host, port),
                web(host, port + 300, DROPPED),
                web(host, port, NOT_OUTSIDE),
                web(host + 128, port, route(source_ranges=["192.0.2.0/24"])),
            ]
        )
        for name, host, port in (("a", 10, 12080), ("b", 10 + 64, 12081), ("c", 11, 12082))
    },
)
CONDITIONS = st.builds(
    Conditions,
    st.builds(
        Surroundings,
        st.sampled_from([(), (ip_network("10.0.0.0/16"),)]),
        st.sampled_from([frozenset(), frozenset({32000})]),
    ),
    st.sampled_from([(), ("eth0",), ("eth0", "lo")]),
    st.sampled_from([None, IPv4Address("192.0.2.2"), IPv4Address("192.0.2.3")]),
)
DAMAGE = st.sampled_from(
    ["nothing", "flush nat", "flush filter", "delete jumps", "empty a chain", "swap a rule", "add a chain"]
)


@given(
    st.lists(st.tuples(SERVICES, CONDITIONS, DAMAGE, st.booleans())),
    st.sampled_from([Variant.NFT, Variant.LEGACY]),
)
def test_any_updates_and_damages_end_with_what_one_update_would_have_built(
    steps: list[tuple[dict[NamespacedName, ServiceRules], Conditions, str, bool]], variant: Variant
) -> None:
    """Whatever came in which order, and whatever others did to it in between."""

    async def run() -> None:
        kernel = FakeKernel()
        rules = IptablesRules(fake_tool(kernel, variant=variant), "")
        services: dict[NamespacedName, ServiceRules] = {}
        for changed, conditions, damage, is_repaired in steps:
            await rules.update(changed, conditions)
            services |= changed
            do_damage(kernel, damage)
            if is_repaired:
                await rules.repair()
                assert kernel.own() == await built(services, conditions)
                kernel.inputs.clear()
                assert await rules.repair() == ()
                assert not kernel.inputs
        await rules.remove()
        assert kernel.own() == {"nat": {}, "filter": {}}

    trio.run(run)


def do_damage(kernel: FakeKernel, damage: str) -> None:
    """Do what others do to rules."""
    own = kernel.own()
    match damage:
        case "flush nat":
            kernel.act("nat", "-F")
        case "flush filter":
            kernel.act("filter", "-F")
        case "delete jumps":
            jumps = [rule for rule in own["filter"].get("INPUT", ()) if " USP-" in rule]
            kernel.act("filter", *(f"-D INPUT {jump}" for jump in jumps))
        case "empty a chain" if "USP-REDIRECT" in own["nat"]:
            kernel.act("nat", ":USP-REDIRECT -")
        case "swap a rule" if "USP-PREROUTING" in own["nat"]:
            rule = own["nat"]["USP-PREROUTING"][0]
            kernel.act("nat", f"-D USP-PREROUTING {rule}", "-I USP-PREROUTING -j RETURN")
        case "add a chain" if own["nat"]:
            kernel.act("nat", ":USP-OTHER -", "-A OUTPUT -j USP-OTHER")


async def test_change_after_a_flush_by_others_is_written_whole_at_once() -> None:
    """The chains it leads to are gone, so it fails; nobody has to wait for the next repair."""
    kernel = FakeKernel()
    rules = await start(kernel)
    kernel.act("filter", "-F")
    await rules.update({named("shop/web"): web(10, 12082)}, NODE)
    assert kernel.own() == await built({**API, named("shop/web"): web(10, 12082)})


async def test_change_after_others_changed_rules_is_followed_by_a_look() -> None:
    """It may have worked all the same, and the flush has to be repaired; but not before, for the sake of time."""
    kernel = FakeKernel()
    rules = await start(kernel)
    kernel.act("nat", "-D PREROUTING -j USP-PREROUTING")
    await rules.update({named("shop/web"): web(12, 12080)}, NODE)
    assert kernel.looks == []
    assert await rules.repair() == ("nat",)
    assert kernel.own() == await built({**API, named("shop/web"): web(12, 12080)})


async def test_flush_right_after_our_write_is_noticed() -> None:
    """The generation has grown by more than by our own changes."""
    kernel = FakeKernel()
    rules = await start(kernel)
    kernel.intruder = [("nat", "-F")]
    await rules.update({named("shop/web"): web(12, 12080)}, NODE)
    assert await rules.repair() == ("nat",)
    assert await rules.repair() == ()


async def test_repair_looks_once_after_others_have_changed_rules_and_writes_nothing_if_all_is_there() -> None:
    """Other programs change theirs every now and then."""
    kernel = FakeKernel()
    rules = await start(kernel)
    kernel.act("nat", "-A KUBE-SERVICES -j RETURN")
    assert await rules.repair() == ()
    assert kernel.looks == ["filter", "nat"]
    assert await rules.repair() == ()
    assert (kernel.looks, kernel.inputs) == (["filter", "nat"], [])


async def test_repair_leaves_our_jump_where_others_have_put_it() -> None:
    """Who comes before us later does so on purpose; only a jump that is gone comes back, first."""
    kernel = FakeKernel()
    rules = await start(kernel)
    kernel.act("nat", "-I PREROUTING -j KUBE-SERVICES")
    assert await rules.repair() == ()
    kernel.act("nat", "-D OUTPUT -j USP-REDIRECT", "-I OUTPUT -j KUBE-SERVICES")
    assert await rules.repair() == ("nat",)
    assert kernel.tables["nat"]["OUTPUT"][0] == "-j USP-REDIRECT"
    assert kernel.tables["nat"]["PREROUTING"][:2] == ["-j KUBE-SERVICES", "-j USP-PREROUTING"]


async def test_repair_that_fails_is_said_and_made_up_for_by_the_next_update() -> None:
    """Nothing has changed, but what is in force is not known."""
    kernel = FakeKernel()
    rules = await start(kernel)
    kernel.act("filter", "-F")
    kernel.refuses = "*filter"
    with pytest.raises(SteeringError, match=rf"^{NOT_KEPT_AWAY}: no \*filter$"):
        await rules.repair()
    kernel.refuses = ""
    await rules.update({}, NODE)
    assert kernel.own() == await built({**WEB, **API})


async def test_repair_that_cannot_look_says_of_what_and_tries_again() -> None:
    """Others may have changed anything meanwhile."""
    kernel = FakeKernel()
    rules = await start(kernel)
    kernel.act("nat", "-F")
    kernel.blind_to = {"nat"}
    with pytest.raises(SteeringError, match=r"^IPv4 rules cannot be read: nat cannot be read$"):
        await rules.repair()
    kernel.blind_to.clear()
    assert await rules.repair() == ("nat",)


async def test_tool_that_prints_other_words_is_written_once_more_and_then_taken_at_its_word() -> None:
    """There is no endless repair; a rule that is gone is seen by the number of rules."""
    kernel = FakeKernel()
    kernel.other_words = ("-m tcp --dport", "--destination-port")
    rules = await start(kernel)
    kernel.act("filter", "-A KUBE-FIREWALL -j RETURN")
    assert await rules.repair() == ("filter", "nat")
    kernel.inputs.clear()
    kernel.act("filter", "-A KUBE-FIREWALL -j RETURN")
    assert await rules.repair() == ()
    assert kernel.inputs == []
    kernel.act("nat", f"-D USP-REDIRECT-0A {kernel.tables['nat']['USP-REDIRECT-0A'][0]}")
    assert await rules.repair() == ("nat",)
    assert kernel.own() == await built({**WEB, **API})


async def test_legacy_variant_is_looked_at_once_after_each_write() -> None:
    """Its tables do not say how often they were changed."""
    kernel = FakeKernel()
    rules = await start(kernel, variant=Variant.LEGACY)
    assert await rules.repair() == ()
    assert kernel.looks == ["filter", "nat"]
    assert await rules.repair() == ()
    assert kernel.looks == ["filter", "nat"]


async def test_who_may_not_watch_looks_each_time() -> None:
    """Only the commands have the right to; rules are healed all the same."""
    kernel = FakeKernel()
    rules = await start(kernel, may_watch=False)
    kernel.act("nat", "-F")
    assert await rules.repair() == ("nat",)
    kernel.looks.clear()
    assert await rules.repair() == ()
    assert kernel.looks == ["filter", "nat"]

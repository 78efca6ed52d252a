"""What the Pipeline tells of how far changes have come: for health, metrics and alarms."""

from collections.abc import Iterator

import trio
from attrs import evolve
from builders import endpoint, endpoint_slice, plan_settings, service, service_port
from cli_driver import free_port
from pipeline_driver import Flow, open_flow
from trio.testing import MockClock

from userspace_proxy.control.pipeline import COALESCE_S, RETRY_S
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import Family
from userspace_proxy.model.node import Node
from userspace_proxy.model.service_port import TrafficPolicy
from userspace_proxy.sources.base import Applied, Synced

WEB = service("shop/web")
WEB_1 = endpoint_slice("shop/web-1", "10.0.1.1")
CART = service("shop/cart", cluster_ips=["10.96.0.11"])
CART_1 = endpoint_slice("shop/cart-1", "10.0.2.1", service="shop/cart")


def programmed(flow: Flow, family: Family = Family.IPV4) -> tuple[int, float]:
    """Return how many durations of network programming were observed, and their sum."""
    histogram = flow.counters.network_programming_duration[family]
    return sum(histogram.counts), round(histogram.sum_s, 3)


def triggered(one: EndpointSlice, at_s: float) -> EndpointSlice:
    """Return an EndpointSlice that says when the change happened that led to it."""
    return evolve(one, triggered_at_s=at_s)


async def test_pending_is_since_the_oldest_change_until_it_is_in_force(autojump_clock: MockClock) -> None:
    """Before the first list too; an event that changes nothing is no change."""
    async with open_flow() as flow:
        pipeline, first_s = flow.pipeline, flow.wall_s
        assert (pipeline.pending_since_s, pipeline.updated_at_s) == (None, None)
        await flow.feed(WEB)
        flow.wall_s += 1
        await flow.feed(WEB_1)
        assert (pipeline.pending_since_s, pipeline.updated_at_s) == (first_s, None)
        await flow.sync()
        assert (pipeline.pending_since_s, pipeline.updated_at_s) == (None, first_s + 1)
        flow.wall_s += 1
        await flow.feed(WEB, WEB_1)
        assert (pipeline.pending_since_s, flow.counters.queued_at_s) == (None, first_s + 1)
        await trio.sleep(2 * RETRY_S)
        assert pipeline.updated_at_s == first_s + 1


async def test_updated_is_set_by_an_empty_list(autojump_clock: MockClock) -> None:
    """A cluster without Services is served as well as can be."""
    async with open_flow() as flow:
        await flow.sync()
        assert flow.pipeline.updated_at_s == flow.wall_s


async def test_pending_lasts_while_steering_fails(autojump_clock: MockClock) -> None:
    """Success alone ends it, however often it is tried; a failure to follow the node counts too."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        updated_s = flow.wall_s
        flow.steering.failure = "no lock"
        flow.wall_s += 1
        await trio.sleep(RETRY_S)
        assert flow.pipeline.pending_since_s == updated_s + 1
        flow.wall_s += 1
        await flow.feed(CART)
        await trio.sleep(3 * RETRY_S)
        assert flow.pipeline.pending_since_s == updated_s + 1
        assert flow.pipeline.updated_at_s == updated_s
        flow.steering.failure = ""
        await trio.sleep(RETRY_S)
        assert flow.pipeline.pending_since_s is None
        assert flow.pipeline.updated_at_s == flow.wall_s


async def test_pending_is_no_older_than_the_run_of_steering_that_takes_it(autojump_clock: MockClock) -> None:
    """Services that come and go faster than rules are written make nobody ill: each change is in force in time."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        start_s = flow.wall_s
        for number in range(20):
            flow.steering.held = held = trio.Event()
            flow.wall_s = start_s + number
            await flow.feed(service(f"shop/s{number}", cluster_ips=[f"10.96.1.{number}"]))
            await flow.settle()
            flow.wall_s += 0.5
            await flow.feed(service(f"shop/t{number}", cluster_ips=[f"10.96.2.{number}"]))
            flow.steering.held = None
            held.set()
            await flow.settle()
            assert flow.pipeline.pending_since_s is None
            flow.steering.held = held = trio.Event()
            await flow.feed(service(f"shop/u{number}", cluster_ips=[f"10.96.3.{number}"]))
            await flow.settle()
            assert flow.pipeline.pending_since_s == flow.wall_s
            held.set()
            await flow.settle()


async def test_pending_does_not_count_what_finds_no_place_or_no_port(autojump_clock: MockClock) -> None:
    """A port in use is a failure of one listener, and no reason to take the node out of service."""
    async with open_flow() as flow:
        flow.steering.unplaceable = {"shop/web"}
        await flow.sync(WEB, WEB_1, CART, CART_1)
        assert flow.pipeline.failures
        assert flow.pipeline.pending_since_s is None
        assert flow.pipeline.updated_at_s == flow.wall_s


async def test_pending_counts_the_node(autojump_clock: MockClock) -> None:
    """A change of it is one like any other."""
    async with open_flow() as flow:
        await flow.feed(Node("node-1"))
        assert flow.pipeline.pending_since_s == flow.wall_s
        await flow.sync()
        assert flow.pipeline.pending_since_s is None


async def test_changes_are_counted_by_kind_and_while_pending(autojump_clock: MockClock) -> None:
    """Those that really changed something."""
    async with open_flow() as flow:
        counters = flow.counters
        await flow.feed(WEB, WEB_1, CART, WEB)
        assert (counters.service_changes, counters.service_changes_pending) == (2, 2)
        assert (counters.endpoint_changes, counters.endpoint_changes_pending) == (1, 1)
        await flow.sync()
        assert (counters.service_changes, counters.service_changes_pending) == (2, 0)
        assert (counters.endpoint_changes, counters.endpoint_changes_pending) == (1, 0)
        flow.steering.failure = "no lock"
        await flow.remove(CART, WEB_1, WEB_1)
        await flow.settle()
        assert (counters.service_changes, counters.service_changes_pending) == (3, 1)
        assert (counters.endpoint_changes, counters.endpoint_changes_pending) == (2, 1)


async def test_sync_duration_lasts_until_rules_are_in_force(autojump_clock: MockClock) -> None:
    """One for each change; what changes nothing has none."""
    async with open_flow() as flow:
        histogram = flow.counters.sync_duration
        await flow.sync(WEB, WEB_1)
        assert sum(histogram.counts) == 1
        flow.steering.held = trio.Event()
        await flow.feed(CART)
        await trio.sleep(3)
        assert sum(histogram.counts) == 1
        flow.steering.held.set()
        await flow.settle()
        assert sum(histogram.counts) == 2
        assert histogram.sum_s >= 3
        await trio.sleep(10 * RETRY_S)
        assert sum(histogram.counts) == 2


async def test_network_programming_is_measured_from_the_trigger(autojump_clock: MockClock) -> None:
    """Of EndpointSlices that really changed, by their family, once they are in force."""
    async with open_flow() as flow:
        start_s = flow.wall_s
        flow.wall_s += 5
        six = endpoint_slice("shop/web-6", "fd00::1", family=Family.IPV6)
        await flow.feed(WEB, triggered(WEB_1, start_s + 1), triggered(six, start_s + 2))
        flow.wall_s += 1
        assert programmed(flow) == (0, 0)
        await flow.sync()
        assert programmed(flow) == (1, 5)
        assert programmed(flow, Family.IPV6) == (1, 4)
        await flow.feed(triggered(WEB_1, start_s + 5))
        await flow.settle()
        assert programmed(flow) == (1, 5), "the same endpoints are no change"
        flow.wall_s += 2
        await flow.feed(triggered(endpoint_slice("shop/web-1", "10.0.1.2"), start_s + 6))
        await trio.sleep(COALESCE_S)
        assert programmed(flow) == (2, 7)


async def test_network_programming_without_a_trigger_or_with_one_of_old_is_not_measured(
    autojump_clock: MockClock,
) -> None:
    """What happened before this process began says nothing about it."""
    async with open_flow() as flow:
        await flow.sync(WEB, triggered(WEB_1, flow.wall_s - 1), CART, CART_1)
        assert programmed(flow) == (0, 0)


async def test_network_programming_of_an_endpoint_slice_that_goes_is_not_measured(autojump_clock: MockClock) -> None:
    """Its deletion discards what its Service has pending, as kube-proxy does; other Services keep theirs."""
    async with open_flow() as flow:
        other = endpoint_slice("shop/web-2", "10.0.1.2")
        await flow.feed(WEB, CART, triggered(WEB_1, flow.wall_s), triggered(other, flow.wall_s))
        await flow.feed(triggered(CART_1, flow.wall_s))
        await flow.remove(WEB_1)
        await flow.sync()
        assert programmed(flow)[0] == 1


async def test_network_programming_waits_for_rules_only_where_they_change(autojump_clock: MockClock) -> None:
    """Endpoints of other Services are in force at once; where a policy needs a rule, it has to be written first."""
    async with open_flow() as flow:
        flow.settings = plan_settings(node_name="node-1")
        here, there = endpoint("10.0.1.1", node_name="node-1"), endpoint("10.0.1.2", node_name="node-2")
        web = service("shop/web", service_port(node_port=free_port()), external_policy=TrafficPolicy.LOCAL)
        await flow.sync(web, endpoint_slice("shop/web-1", here, there), CART, CART_1)
        flow.steering.held = trio.Event()
        flow.wall_s += 1
        await flow.feed(
            triggered(endpoint_slice("shop/web-1", there), flow.wall_s),
            triggered(endpoint_slice("shop/cart-1", "10.0.2.2", service="shop/cart"), flow.wall_s),
        )
        await flow.settle()
        assert programmed(flow)[0] == 1
        flow.wall_s += 4
        flow.steering.held.set()
        await flow.settle()
        assert programmed(flow) == (2, 4)


async def test_feed_of_a_large_batch_lets_others_run_and_takes_effect_as_a_whole(autojump_clock: MockClock) -> None:
    """Clients are served between two objects, and no reconcile sees half of a batch."""
    async with open_flow() as flow:
        await flow.sync()
        services = [service(f"shop/s{number}", cluster_ips=[f"10.96.1.{number}"]) for number in range(200)]
        turns = 0

        class SlowBatch(list[Applied]):
            """Takes a millisecond for each event."""

            def __iter__(self) -> Iterator[Applied]:
                for event in super().__iter__():
                    autojump_clock.jump(0.001)
                    yield event

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            await flow.pipeline.feed(SlowBatch(map(Applied, services)))
            nursery.cancel_scope.cancel()
        assert turns > 50
        await flow.settle()
        assert [len(placed) for placed in flow.steering.applied] == [0, 200]


async def test_batch_may_hold_the_end_of_the_first_list(autojump_clock: MockClock) -> None:
    """Nothing is opened before, all of it after."""
    async with open_flow() as flow:
        await flow.pipeline.feed([Applied(WEB), Applied(WEB_1), Synced(), Applied(CART), Applied(CART_1)])
        await flow.settle()
        assert len(flow.steering.applied) == 1
        assert len(flow.sockets()) == 2

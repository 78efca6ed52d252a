"""The Pipeline, from WatchEvents to listening sockets and steering: what it does, and in which order."""

import logging
from collections.abc import Generator
from typing import Any

import pytest
import trio
from attrs import evolve
from builders import endpoint_port, endpoint_slice, plan_settings, service, service_port
from cli_driver import free_port
from pipeline_driver import open_flow
from trio.testing import MockClock

from userspace_proxy.control import pipeline
from userspace_proxy.control.pipeline import COALESCE_S, RETRY_S
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.plan.build import build_steps
from userspace_proxy.plan.state import DesiredState
from userspace_proxy.sources.base import ProblemsFound

WEB = service("shop/web")
WEB_1 = endpoint_slice("shop/web-1", "10.0.1.1")
CART = service("shop/cart", cluster_ips=["10.96.0.11"])
CART_1 = endpoint_slice("shop/cart-1", "10.0.2.1", service="shop/cart")


async def test_pipeline_before_synced_opens_and_steers_nothing(autojump_clock: MockClock) -> None:
    """Half a list must not tear down what a run before has left in force."""
    async with open_flow() as flow:
        await flow.feed(WEB, WEB_1)
        await trio.sleep(10 * RETRY_S)
        assert flow.sockets() == {}
        assert (flow.steering.applied, flow.steering.refreshes) == ([], 0)
        assert not flow.pipeline.in_force.is_set()


async def test_pipeline_once_synced_opens_listeners_before_it_steers(autojump_clock: MockClock) -> None:
    """No packet is led to where nobody listens, and one apply is enough for all."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1, CART, CART_1)
        assert flow.steering.applied == [["10.96.0.11:80/TCP", "10.96.0.10:80/TCP"]]
        assert flow.steering.open_at_apply == [{placement.listener.key for placement in flow.pipeline.placements()}]
        assert flow.pipeline.in_force.is_set()
        assert flow.pipeline.failures == ()


async def test_pipeline_empty_list_is_in_force_too(autojump_clock: MockClock) -> None:
    """Steering is told, so that what a run before has left goes."""
    async with open_flow() as flow:
        await flow.sync()
        assert flow.steering.applied == [[]]
        assert flow.pipeline.in_force.is_set()


async def test_pipeline_change_of_endpoints_touches_no_socket_and_no_rule(autojump_clock: MockClock) -> None:
    """It replaces a Pool, and is in force within milliseconds."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1, CART, CART_1)
        sockets = flow.sockets()
        await flow.feed(endpoint_slice("shop/web-1", "10.0.1.2", "10.0.1.3"))
        await trio.sleep(COALESCE_S)
        assert flow.backends()["shop/web:http cluster"] == ["10.0.1.2:8080", "10.0.1.3:8080"]
        assert flow.sockets() == sockets
        assert len(flow.steering.applied) == 1


async def test_pipeline_tells_steering_only_of_services_that_changed(autojump_clock: MockClock) -> None:
    """After the first time, when it tells of all: steering costs in proportion to the change."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1, CART, CART_1)
        await flow.feed(service("shop/web", cluster_ips=["10.96.0.77"]))
        await flow.settle()
        await flow.remove(CART)
        await flow.settle()
        assert flow.steering.changed == [{"shop/web", "shop/cart"}, {"shop/web"}, {"shop/cart"}]
        assert flow.steering.applied[1:] == [["10.96.0.11:80/TCP", "10.96.0.77:80/TCP"], ["10.96.0.77:80/TCP"]]


async def test_pipeline_service_without_endpoints_has_no_socket_and_keeps_its_rules(autojump_clock: MockClock) -> None:
    """Clients are refused at once; with the first endpoint a new socket listens, and no rule has changed."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1, CART, CART_1)
        before = flow.sockets()
        await flow.remove(WEB_1)
        await flow.settle()
        assert [name.split()[0] for name in flow.sockets()] == ["shop/cart:http"]
        await flow.feed(WEB_1)
        await flow.settle()
        assert flow.sockets().keys() == before.keys()
        assert len(flow.steering.applied) == 1
        assert flow.pipeline.failures == ()


async def test_pipeline_closes_a_shared_listener_once_no_rule_leads_to_it(autojump_clock: MockClock) -> None:
    """A removed Service: rules first, then its socket and its Pool; nothing of it is kept."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1, CART, CART_1)
        both = set(flow.listeners._serving)
        await flow.remove(WEB, WEB_1)
        await flow.settle()
        assert flow.steering.applied[1:] == [["10.96.0.11:80/TCP"]]
        assert flow.steering.open_at_apply[1] == both, "closed before the rules were gone"
        assert [name.split()[0] for name in flow.sockets()] == ["shop/cart:http"]
        assert flow.backends().keys() == {"shop/cart:http cluster"}
        assert [name for name, _ in flow.engine.counters.services] == ["shop/cart:http"]
        assert [str(placement.frontend) for placement in flow.pipeline.placements()] == ["10.96.0.11:80/TCP"]


async def test_pipeline_service_that_returns_before_its_rules_went_keeps_its_socket(autojump_clock: MockClock) -> None:
    """What was to be closed and is wanted again stays as it is."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        sockets = flow.sockets()
        flow.steering.failure = "no lock"
        await flow.remove(WEB)
        await flow.settle()
        assert flow.sockets() == sockets, "closed though rules lead to it"
        await flow.feed(WEB)
        await flow.settle()
        flow.steering.failure = ""
        await trio.sleep(RETRY_S)
        assert flow.sockets() == sockets
        assert flow.steering.applied[-1] == ["10.96.0.10:80/TCP"]


@pytest.mark.parametrize(("giver", "taker"), [("shop/a", "shop/b"), ("shop/b", "shop/a")])
async def test_pipeline_node_port_goes_to_another_service_in_one_reconcile(
    autojump_clock: MockClock, giver: str, taker: str
) -> None:
    """An address-bound listener is closed at once, whichever of the two is looked at first."""
    async with open_flow() as flow:
        port = service_port(node_port=free_port())
        old = service(giver, port, cluster_ips=["10.96.0.1"])
        new = service(taker, port, cluster_ips=["10.96.0.2"])
        await flow.sync(
            old,
            endpoint_slice(f"{giver}-1", "10.0.1.1", service=giver),
            endpoint_slice(f"{taker}-1", "10.0.1.2", service=taker),
        )
        await flow.gather()
        await flow.remove(old)
        await flow.feed(new)
        await flow.settle()
        assert flow.pipeline.failures == ()
        assert f"{taker}:http {port.node_port}" in flow.sockets()
        assert len(flow.steering.applied) == 2, "it took more than one reconcile"


async def test_pipeline_follows_the_settings_of_the_node_every_few_seconds(autojump_clock: MockClock) -> None:
    """An address that the node gets later makes an endpoint there, at one of our NodePorts, a loop."""
    async with open_flow() as flow:
        node_port = free_port()
        web = service("shop/web", service_port(node_port=node_port))
        loop = endpoint_slice("shop/cart-2", "10.0.0.9", service="shop/cart", ports=[endpoint_port("http", node_port)])
        await flow.sync(web, WEB_1, CART, endpoint_slice("shop/cart-1", "10.0.0.9", service="shop/cart"), loop)
        assert flow.backends()["shop/cart:http cluster"] == ["10.0.0.9:8080", f"10.0.0.9:{node_port}"]
        flow.settings = plan_settings(local_addresses=["10.0.0.9"])
        await trio.sleep(RETRY_S)
        assert flow.backends()["shop/cart:http cluster"] == ["10.0.0.9:8080"]


async def test_pipeline_says_each_problem_once(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Those of files, of plans and of EndpointSlices without a Service; neither retries nor changes repeat them."""
    async with open_flow() as flow:
        found = Problem(Severity.ERROR, "", "", "is broken", "shop.yaml")
        await flow.pipeline.feed([ProblemsFound("shop.yaml", (found,))])
        await flow.sync(evolve(WEB, origin="shop.yaml"), evolve(CART_1, origin="shop.yaml"))
        await flow.feed(endpoint_slice("shop/cart-2", "10.0.2.2", service="shop/cart", origin="shop.yaml"))
        await trio.sleep(3 * RETRY_S)
        await flow.pipeline.feed([ProblemsFound("shop.yaml", (found,))])
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == len(set(said)) == 4
    assert [sum(start in text for text in said) for start in ("shop.yaml: is broken", "Service shop/web")] == [
        1,
        1,
    ]
    assert sum("names Service shop/cart" in text for text in said) == 2


async def test_pipeline_counts_what_is_in_force(autojump_clock: MockClock) -> None:
    """A generation for each change; the oldest one is told while it is not in force; only changes have a duration."""
    async with open_flow() as flow:
        counters = flow.counters
        await flow.feed(WEB, WEB_1)
        flow.wall_s += 1
        await flow.feed(CART)
        assert counters.oldest_unapplied_change == flow.wall_s - 1
        assert counters.applied_generation == {}
        await flow.sync()
        assert counters.oldest_unapplied_change is None
        assert counters.applied_generation == {"control": 1}
        assert sum(counters.reconcile_duration.counts) == 1

        await trio.sleep(10 * RETRY_S)
        await flow.feed(WEB)
        await flow.settle()
        assert counters.oldest_unapplied_change is None
        assert counters.applied_generation == {"control": 1}, "nothing has changed"
        assert sum(counters.reconcile_duration.counts) == 1

        await flow.feed(CART_1)
        await flow.settle()
        assert counters.applied_generation == {"control": 2}
        assert sum(counters.reconcile_duration.counts) == 2
        assert dict(counters.reconcile_failures) == {}


async def test_pipeline_notes_the_generation_of_each_engine_that_has_it(autojump_clock: MockClock) -> None:
    """One that is late keeps the number it had, and has the new one when it has caught up."""
    async with open_flow() as flow:
        generations = flow.counters.applied_generation
        flow.engines.in_force = {"0": True, "1": False}
        await flow.sync(WEB, WEB_1)
        assert generations == {"0": 1}
        flow.engines.in_force = {"0": True, "1": True}
        await trio.sleep(2 * RETRY_S)
        assert generations == {"0": 1, "1": 1}
        flow.engines.in_force = {"0": False, "1": True}
        await flow.feed(CART, CART_1)
        await flow.settle()
        assert generations == {"0": 1, "1": 2}
        assert flow.pipeline.failures == ()


async def test_pipeline_change_of_endpoints_does_not_wait_for_steering(autojump_clock: MockClock) -> None:
    """While rules are being written a Pool is replaced all the same; not all is in force until they are written."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        flow.steering.held = trio.Event()
        await flow.feed(CART)
        await flow.settle()
        assert flow.counters.oldest_unapplied_change == flow.wall_s
        flow.wall_s += 7
        await flow.feed(CART_1)
        await flow.settle()
        assert flow.backends()["shop/cart:http cluster"] == ["10.0.2.1:8080"]
        assert flow.counters.oldest_unapplied_change == flow.wall_s - 7
        flow.steering.held.set()
        await flow.settle()
        assert flow.counters.oldest_unapplied_change is None


@pytest.mark.parametrize("failure", ["", "no lock"])
async def test_pipeline_steers_only_to_what_is_open_though_steering_is_slow(
    autojump_clock: MockClock, failure: str
) -> None:
    """Rules that were being written until the middle of a reconcile are followed by what that one has opened."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        flow.steering.held = held = trio.Event()
        await flow.feed(CART, CART_1)
        await flow.settle()
        blog = service("shop/blog", cluster_ips=["10.96.0.12"])
        await flow.feed(blog, endpoint_slice("shop/blog-1", "10.0.3.1", service="shop/blog"))
        await flow.settle()

        def take_time() -> None:
            autojump_clock.jump(1)
            flow.steering.failure = failure
            held.set()

        flow.steering.on_place = take_time
        await flow.gather()
        for number in range(20):
            name = f"shop/s{number}"
            own = service(name, cluster_ips=[f"10.96.1.{number}"])
            await flow.feed(own, endpoint_slice(f"{name}-1", "10.0.4.1", service=name))
        await trio.sleep(100)
        assert len(flow.steering.applied) >= 3
        flow.steering.failure = ""
        await trio.sleep(RETRY_S)
        for led_to, is_open in zip(flow.steering.led_to, flow.steering.open_at_apply, strict=True):
            assert led_to <= is_open
        assert len(flow.steering.led_to[-1]) == 23


async def test_pipeline_change_being_planned_is_not_in_force(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules that come into force meanwhile say nothing about it."""
    seen: list[float | None] = []

    async with open_flow() as flow:

        def build_slowly(*arguments: Any) -> Generator[None, None, DesiredState]:
            if flow.steering.held is not None:
                flow.steering.held.set()
                yield from _take_turns(autojump_clock)
                seen.append(flow.counters.oldest_unapplied_change)
            return (yield from build_steps(*arguments))

        monkeypatch.setattr(pipeline, "build_steps", build_slowly)
        await flow.sync(WEB, WEB_1)
        await trio.sleep(RETRY_S)
        flow.steering.held = trio.Event()
        await flow.feed(CART)
        await flow.settle()
        await flow.feed(CART_1, endpoint_slice("shop/web-1", "10.0.1.2"))
        await trio.sleep(RETRY_S)
        flow.steering.held = None
        await trio.sleep(10 * RETRY_S)
        assert seen
        assert None not in seen
        assert flow.counters.oldest_unapplied_change is None


def _take_turns(clock: MockClock) -> Generator[None, None, None]:
    """Let all other tasks do what they can do."""
    for _ in range(20):
        clock.jump(1)
        yield


async def test_pipeline_retains_only_what_a_source_that_starts_anew_knows(autojump_clock: MockClock) -> None:
    """What was deleted while the source was down is gone once the source says what there is."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1, CART, CART_1)
        await flow.pipeline.retain({(type(WEB), WEB.name), (type(WEB_1), WEB_1.name)})
        await flow.settle()
        assert flow.backends() == {"shop/web:http cluster": ["10.0.1.1:8080"]}
        assert flow.steering.applied[-1] == ["10.96.0.10:80/TCP"]

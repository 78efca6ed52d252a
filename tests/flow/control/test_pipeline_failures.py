"""The Pipeline when something cannot be brought into force: the rest is, and it is tried again until it is."""

import errno
import logging
import os
import socket
from collections.abc import Generator, Iterator
from typing import Any, NoReturn

import pytest
import trio
from builders import endpoint_slice, frontend, plan_settings, service, service_port
from cli_driver import free_port
from pipeline_driver import SETTLE_S, Flow, open_flow
from trio.testing import MockClock

from userspace_proxy.control import pipeline
from userspace_proxy.control.pipeline import REFRESH_S, RETRY_S
from userspace_proxy.model.service_port import Service
from userspace_proxy.plan.build import build_steps
from userspace_proxy.plan.state import FrontendKind
from userspace_proxy.sources.base import Synced

WEB = service("shop/web")
WEB_1 = endpoint_slice("shop/web-1", "10.0.1.1")
CART = service("shop/cart", cluster_ips=["10.96.0.11"])
CART_1 = endpoint_slice("shop/cart-1", "10.0.2.1", service="shop/cart")
NO_LOCK = "IPv4 cluster addresses are not steered as they should be: another app holds the lock"


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return the messages of one level."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def failures(flow: Flow) -> list[str]:
    """Return what is told as not in force."""
    return list(flow.pipeline.failures)


@pytest.fixture
def foreign() -> Iterator[socket.socket]:
    """Return a socket of somebody else that listens on all IPv4 addresses."""
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", free_port()))
        sock.listen()
        yield sock


def on_port_of(foreign: socket.socket) -> Service:
    """Return Service shop/web with a NodePort that is in use."""
    return service("shop/web", service_port(node_port=foreign.getsockname()[1]))


async def test_steering_failure_is_told_and_retried_until_it_heals(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Every 5 s, said once, counted each time; what is not in force is not called so, and then it is."""
    caplog.set_level(logging.INFO)
    async with open_flow() as flow:
        flow.steering.failure = NO_LOCK
        await flow.sync(WEB, WEB_1)
        assert failures(flow) == [NO_LOCK]
        assert flow.pipeline.steering_failure == NO_LOCK
        assert not flow.pipeline.in_force.is_set()
        await trio.sleep(RETRY_S - 2 * SETTLE_S)
        assert len(flow.steering.applied) == 1, "tried again too early"
        await trio.sleep(2 * RETRY_S)
        assert len(flow.steering.applied) == 3
        assert flow.counters.reconcile_failures["steering"] == 3
        assert flow.counters.applied_generation == {}
        assert flow.counters.oldest_unapplied_change == flow.wall_s
        assert said(caplog, logging.ERROR) == [NO_LOCK]

        flow.steering.failure = ""
        await trio.sleep(RETRY_S)
        assert failures(flow) == []
        assert flow.pipeline.in_force.is_set()
        assert flow.counters.applied_generation == {"control": 1}
        assert flow.counters.oldest_unapplied_change is None
        assert said(caplog, logging.INFO) == ["steering is in force after all"]
        assert len(flow.steering.applied) == 4


async def test_steering_failure_stops_no_listener_and_no_pool(autojump_clock: MockClock) -> None:
    """Changes go on meanwhile: new Services listen, endpoints are followed; each is not tried on its own."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        flow.steering.failure = NO_LOCK
        await flow.feed(CART, CART_1)
        await flow.settle()
        await flow.feed(endpoint_slice("shop/web-1", "10.0.1.2"))
        await flow.remove(CART, CART_1)
        await flow.feed(service("shop/blog", cluster_ips=["10.96.0.12"]))
        await flow.settle()
        assert flow.backends()["shop/web:http cluster"] == ["10.0.1.2:8080"]
        assert len(flow.steering.applied) == 2
        assert len(flow.sockets()) == 2, "the removed Service is still steered to: its socket stays"
        flow.steering.failure = ""
        await trio.sleep(RETRY_S)
        assert flow.steering.applied[2:] == [["10.96.0.12:80/TCP", "10.96.0.10:80/TCP"]]
        assert [name.split()[0] for name in flow.sockets()] == ["shop/web:http"]


async def test_steering_that_fails_to_follow_the_node_is_applied_again(autojump_clock: MockClock) -> None:
    """A failed refresh is a failure like that of an apply, also if nothing else has changed."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        await trio.sleep(2 * REFRESH_S)
        assert (len(flow.steering.applied), flow.steering.refreshes) == (1, 2)
        flow.steering.failure = NO_LOCK
        await trio.sleep(REFRESH_S)
        assert flow.pipeline.steering_failure == NO_LOCK
        flow.steering.failure = ""
        await trio.sleep(RETRY_S)
        assert failures(flow) == []
        assert flow.steering.applied[1:] == [["10.96.0.10:80/TCP"]]


async def test_settings_that_cannot_be_read_stop_nothing_and_follow_later(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Where file descriptors are short, Pools change as ever; it is said once, and read again until it works."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        flow.settings_failure = OSError(errno.EMFILE, "Too many open files")
        await trio.sleep(3 * RETRY_S)
        await flow.feed(endpoint_slice("shop/web-1", "10.0.1.2"))
        await flow.settle()
        assert flow.backends() == {"shop/web:http cluster": ["10.0.1.2:8080"]}
        (text,) = said(caplog, logging.ERROR)
        assert "Too many open files" in text
        flow.settings_failure = None
        flow.settings = plan_settings(node_name="here")
        await trio.sleep(RETRY_S + SETTLE_S)
        assert flow.pipeline.settings == flow.settings


async def test_service_without_a_place_stops_no_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are served and steered at once; it follows as soon as there is room."""
    caplog.set_level(logging.INFO)
    async with open_flow() as flow:
        flow.steering.unplaceable = {"shop/web"}
        await flow.sync(WEB, WEB_1, CART, CART_1)
        sentence = "no proxy port is left for shop/web"
        assert failures(flow) == [sentence]
        assert flow.pipeline.steering_failure == ""
        assert flow.pipeline.in_force.is_set()
        assert flow.steering.applied == [["10.96.0.11:80/TCP"]]
        await trio.sleep(2 * RETRY_S)
        assert said(caplog, logging.ERROR) == [sentence]
        assert flow.counters.reconcile_failures["place"] == 3

        flow.steering.unplaceable = set()
        await trio.sleep(RETRY_S)
        assert failures(flow) == []
        assert flow.steering.applied[1:] == [["10.96.0.11:80/TCP", "10.96.0.10:80/TCP"]]
        assert {name.split()[0] for name in flow.sockets()} == {"shop/web:http", "shop/cart:http"}
        assert said(caplog, logging.INFO) == ["has its place after all"]


async def test_service_without_a_place_that_is_removed_is_no_failure_any_more(autojump_clock: MockClock) -> None:
    """Nobody asks for it now."""
    async with open_flow() as flow:
        flow.steering.unplaceable = {"shop/web"}
        await flow.sync(WEB, WEB_1)
        await flow.remove(WEB)
        await flow.settle()
        assert failures(flow) == []


async def test_service_that_loses_its_place_keeps_what_it_had(autojump_clock: MockClock) -> None:
    """A change that finds no room leaves the listener of before, and its rules, in force."""
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        sockets = flow.sockets()
        flow.steering.unplaceable = {"shop/web"}
        await flow.feed(service("shop/web", service_port(), service_port("admin", 81)))
        await trio.sleep(RETRY_S)
        assert flow.sockets() == sockets
        assert [str(placement.frontend) for placement in flow.pipeline.placements()] == ["10.96.0.10:80/TCP"]


async def test_address_that_the_node_cannot_serve_stops_no_other_and_is_served_once_it_can(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, is a failure until then, and asks for nothing of steering meanwhile."""
    sentence = "198.51.100.1 is on the network of eth0"
    async with open_flow() as flow:
        external = service("shop/web", external_ips=["198.51.100.1"])
        flow.steering.refuses = {
            frontend("198.51.100.1:80", kind=FrontendKind.EXTERNAL_IP): sentence,
        }
        await flow.sync(external, WEB_1)
        await trio.sleep(3 * RETRY_S)
        assert failures(flow) == [sentence]
        assert flow.steering.applied == [["10.96.0.10:80/TCP"]]
        await flow.feed(service("shop/web", external_ips=["198.51.100.1", "198.51.100.2"]))
        await flow.settle()
        assert said(caplog, logging.WARNING) == [sentence]
        flow.steering.refuses = {}
        await trio.sleep(RETRY_S)
        assert failures(flow) == []
        assert "198.51.100.1:80/TCP" in flow.steering.applied[-1]


async def test_port_in_use_stops_no_other_listener(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, foreign: socket.socket
) -> None:
    """The holder is named, once; the rest is served; every 5 s it is tried again, until it succeeds."""
    caplog.set_level(logging.INFO)
    async with open_flow() as flow:
        await flow.sync(on_port_of(foreign), WEB_1, CART, CART_1)
        (failure,) = failures(flow)
        place = f"cannot listen on 0.0.0.0:{foreign.getsockname()[1]} for shop/web:http: in use by pid {os.getpid()} ("
        assert failure.startswith(place)
        assert flow.pipeline.in_force.is_set()
        assert len(flow.sockets()) == 2
        await trio.sleep(2 * RETRY_S)
        assert said(caplog, logging.ERROR) == [failure]
        assert flow.counters.listen_failures == 3
        assert flow.counters.applied_generation == {}

        foreign.close()
        await trio.sleep(RETRY_S - 4 * SETTLE_S)
        assert len(flow.sockets()) == 2, "tried again too early"
        await trio.sleep(4 * SETTLE_S)
        assert len(flow.sockets()) == 3
        assert failures(flow) == []
        assert flow.counters.applied_generation == {"control": 1}
        assert flow.counters.oldest_unapplied_change is None
        assert said(caplog, logging.INFO) == ["has its port after all"]
        assert len(flow.steering.applied) == 1, "a socket alone changes no rule"


async def test_port_in_use_is_a_failure_also_while_there_is_no_endpoint(
    autojump_clock: MockClock, foreign: socket.socket
) -> None:
    """Its clients are to be refused, and get to somebody else; it is told once, until the port is free."""
    async with open_flow() as flow:
        await flow.sync(on_port_of(foreign), WEB_1)
        assert len(failures(flow)) == 1
        await flow.remove(WEB_1)
        await flow.settle()
        assert len(failures(flow)) == 1
        foreign.close()
        await trio.sleep(RETRY_S)
        assert failures(flow) == []
        assert flow.sockets() == {}
        await flow.feed(WEB_1)
        await flow.settle()
        assert len(flow.sockets()) == 2
        assert flow.counters.oldest_unapplied_change is None


async def test_port_in_use_of_a_removed_service_is_no_failure_any_more(
    autojump_clock: MockClock, foreign: socket.socket
) -> None:
    """Neither while it is gone, nor once it is back with another port."""
    async with open_flow() as flow:
        await flow.sync(on_port_of(foreign), WEB_1)
        await flow.feed(WEB)
        await flow.settle()
        assert failures(flow) == []
        attempts = flow.counters.listen_failures
        await trio.sleep(2 * RETRY_S)
        assert flow.counters.listen_failures == attempts


async def _fail_once(flow: Flow, where: str) -> None:
    """Have the next reconcile fail by a bug somewhere, and see it do so."""
    owner = flow.steering if where in ("place", "apply") else flow.listeners
    owner.bug_in = where
    await _run_into_bug(flow, f"a bug in {where}")
    assert owner.bug_in == ""


async def _run_into_bug(flow: Flow, text: str) -> None:
    """Run the Pipeline until a bug ends it."""
    texts: list[str] = []
    try:
        with trio.fail_after(10 * RETRY_S):
            await flow.pipeline.run()
    except* RuntimeError as group:
        texts += map(str, group.exceptions)
    assert texts == [text]


@pytest.mark.parametrize(
    "where", ["place", "apply", "apply_pool", "apply_listener", "remove_listener", "open_missing", "remove_pool"]
)
async def test_bug_anywhere_is_repaired_by_the_next_reconcile(autojump_clock: MockClock, where: str) -> None:
    """Whatever was done and whatever was not, a run that starts again brings all into force at once, and no more."""
    blog = service("shop/blog", service_port(node_port=free_port()), cluster_ips=["10.96.0.12"])
    blog_1 = endpoint_slice("shop/blog-1", "10.0.3.1", service="shop/blog")
    async with open_flow(running=False) as flow:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.pipeline.run)
            await flow.sync(WEB, WEB_1, blog, blog_1)
            nursery.cancel_scope.cancel()
        await flow.remove(blog, blog_1)
        await flow.feed(endpoint_slice("shop/web-1", "10.0.1.2"), CART, CART_1)
        await _fail_once(flow, where)

        restarted_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.pipeline.run)
            await flow.settle()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - restarted_at < RETRY_S
        assert flow.backends() == {
            "shop/web:http cluster": ["10.0.1.2:8080"],
            "shop/cart:http cluster": ["10.0.2.1:8080"],
        }
        assert {name.split()[0] for name in flow.sockets()} == {"shop/web:http", "shop/cart:http"}
        assert flow.steering.applied[-1] == ["10.96.0.11:80/TCP", "10.96.0.10:80/TCP"]
        assert failures(flow) == []
        assert flow.counters.oldest_unapplied_change is None


async def _run(flow: Flow) -> None:
    """Run the Pipeline until all is done that is done at once."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flow.pipeline.run)
        await flow.settle()
        nursery.cancel_scope.cancel()


async def test_listener_opened_before_a_bug_is_closed_once_it_is_not_wanted(autojump_clock: MockClock) -> None:
    """Also if the Service has changed again by the time of the next reconcile."""
    ports = [free_port() for _ in range(3)]
    async with open_flow(running=False) as flow:
        await flow.feed(service("shop/web", service_port(node_port=ports[0])), WEB_1)
        await flow.pipeline.feed([Synced()])
        await _run(flow)
        await flow.feed(service("shop/web", service_port(node_port=ports[1])))
        await _fail_once(flow, "remove_listener")
        await flow.feed(service("shop/web", service_port(node_port=ports[2])))
        await _run(flow)
        numbers = {int(name.split()[1]) for name in flow.sockets()}
        assert numbers & set(ports) == {ports[2]}
        assert len(numbers) == 2


async def test_listener_that_waits_for_steering_and_returns_by_a_bug_is_closed(autojump_clock: MockClock) -> None:
    """It was to be closed, is wanted when the bug strikes, and is not after all."""
    with_external_ip = service("shop/web", external_ips=["192.0.2.1"])
    async with open_flow(running=False) as flow:
        await flow.feed(with_external_ip, WEB_1)
        await flow.pipeline.feed([Synced()])
        await _run(flow)
        flow.steering.failure = NO_LOCK
        await flow.feed(WEB)
        await _run(flow)
        assert len(flow.sockets()) == 2
        await flow.feed(with_external_ip)
        await _fail_once(flow, "apply_listener")
        flow.steering.failure = ""
        await flow.feed(WEB)
        await _run(flow)
        assert len(flow.sockets()) == 1


async def test_service_that_gets_its_place_by_a_bug_gets_it_again(autojump_clock: MockClock) -> None:
    """Nothing about it has changed since it found none: that it is still without a listener has to be remembered."""
    async with open_flow(running=False) as flow:
        flow.steering.unplaceable = {"shop/web"}
        await flow.feed(WEB, WEB_1)
        await flow.pipeline.feed([Synced()])
        await _run(flow)
        flow.steering.unplaceable = set()
        await _fail_once(flow, "apply_listener")
        await _run(flow)
        assert len(flow.sockets()) == 1
        assert failures(flow) == []


async def test_bug_while_planning_loses_no_change(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked out and not planned is planned by the next reconcile."""

    def build_and_fail(*arguments: Any) -> Generator[None, None, NoReturn]:
        yield from build_steps(*arguments)
        raise RuntimeError("a bug in the plan")

    async with open_flow(running=False) as flow:
        await flow.feed(WEB, WEB_1)
        await flow.pipeline.feed([Synced()])
        monkeypatch.setattr(pipeline, "build_steps", build_and_fail)
        await _run_into_bug(flow, "a bug in the plan")
        monkeypatch.undo()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.pipeline.run)
            await flow.settle()
            nursery.cancel_scope.cancel()
        assert len(flow.sockets()) == 1


async def test_reconcile_cut_short_by_a_bug_is_repaired_though_all_went_back(autojump_clock: MockClock) -> None:
    """What a reconcile did before a bug ended it is undone, also if the objects are as they were before by then."""
    names = [f"shop/s{number}" for number in range(20)]  # whichever of them the reconcile gets to before the bug
    here = [endpoint_slice(f"{name}-1", "10.0.1.1", service=name) for name in names]
    there = [endpoint_slice(f"{name}-1", "10.0.1.2", service=name) for name in names]
    async with open_flow(running=False) as flow:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.pipeline.run)
            services = [service(name, cluster_ips=[f"10.96.1.{number}"]) for number, name in enumerate(names)]
            await flow.sync(CART, CART_1, *services, *here)
            nursery.cancel_scope.cancel()
        await flow.feed(*there, service("shop/cart", cluster_ips=["10.96.0.12"]))
        await _fail_once(flow, "place")
        await flow.feed(*here, CART)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flow.pipeline.run)
            await flow.settle()
            nursery.cancel_scope.cancel()
        wanted = {f"{name}:http cluster": ["10.0.1.1:8080"] for name in names}
        assert flow.backends() == {**wanted, "shop/cart:http cluster": ["10.0.2.1:8080"]}
        assert len(flow.sockets()) == len(names) + 1
        assert failures(flow) == []


async def test_bug_in_planning_a_service_is_logged_and_counted_and_others_go_on(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The Service stays as it was; the next change of it is planned again."""
    unplannable: Any = None  # what no parser lets through, for want of a bug
    async with open_flow() as flow:
        await flow.sync(WEB, WEB_1)
        await flow.feed(endpoint_slice("shop/web-1", unplannable), CART, CART_1)
        await flow.settle()
        assert flow.backends() == {
            "shop/web:http cluster": ["10.0.1.1:8080"],
            "shop/cart:http cluster": ["10.0.2.1:8080"],
        }
        assert flow.counters.unexpected_errors == 1
        (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert record.exc_info is not None
        assert vars(record)["service"] == "shop/web"
        await flow.feed(endpoint_slice("shop/web-1", "10.0.1.2"))
        await flow.settle()
        assert flow.backends()["shop/web:http cluster"] == ["10.0.1.2:8080"]
        assert flow.counters.unexpected_errors == 1

"""The Pipeline with Services of UDP: what is gone gets no datagram more, however long steering takes."""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from attrs import evolve
from builders import endpoint, endpoint_port, endpoint_slice, plan_settings, service, service_port
from cli_driver import free_port
from peers import own_host
from pipeline_driver import Flow, open_flow
from trio.testing import MockClock

from userspace_proxy.control.pipeline import RETRY_S
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import Protocol
from userspace_proxy.model.service_port import TrafficPolicy
from userspace_proxy.sources.base import Synced

UDP = Protocol.UDP
DNS = service("shop/dns", service_port("dns", 53, protocol=UDP))


def slice_of(backend: socket.socket, *ports: str) -> EndpointSlice:
    """Return an EndpointSlice of shop/dns that has a socket for UDP ports, the one port ``dns`` if none is named."""
    host, number = backend.getsockname()
    named = [endpoint_port(port, number, UDP) for port in ports or ("dns",)]
    return endpoint_slice("shop/dns-1", endpoint(host, node_name="here"), service="shop/dns", ports=named)


def tcp_slice(port: str) -> EndpointSlice:
    """Return another EndpointSlice of shop/dns, for a port of TCP."""
    return endpoint_slice("shop/dns-2", "10.0.1.1", service="shop/dns", ports=[endpoint_port(port, 53)])


@contextmanager
def open_backend() -> Iterator[socket.socket]:
    """Yield the socket of a Backend."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind((own_host(1), free_port()))
        sock.settimeout(0)
        yield sock


def dial_address(flow: Flow, port: str = "dns") -> tuple[str, int]:
    """Return where a port of shop/dns listens."""
    (found,) = (one.listener for one in flow.pipeline.placements() if one.frontend.service_port.port == port)
    return str(found.address), found.port


def received(flow: Flow, client: socket.socket, datagram: bytes, backend: socket.socket) -> bool:
    """Return whether a datagram arrives at a Backend: on loopback that has happened, or never will, at once."""
    client.send(datagram)
    flow.engine.poll(0)
    try:
        return backend.recv(100) == datagram
    except BlockingIOError:
        return False


@contextmanager
def open_client(flow: Flow, port: str = "dns") -> Iterator[socket.socket]:
    """Yield the socket of a client of shop/dns."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind((own_host(2), 0))
        sock.connect(dial_address(flow, port))
        sock.settimeout(0)
        yield sock


@pytest.mark.parametrize("has_flow", [True, False], ids=["flow", "no flow"])
@pytest.mark.parametrize("failure", ["", "no lock"], ids=["hangs", "fails"])
async def test_pipeline_udp_service_deleted_gets_no_datagram_though_steering_never_ends(
    autojump_clock: MockClock, failure: str, *, has_flow: bool
) -> None:
    """Neither by a flow that was there nor by a new one, as often as steering is tried; the client is refused."""
    with open_backend() as backend:
        async with open_flow() as flow:
            await flow.sync(DNS, slice_of(backend))
            with open_client(flow) as client:
                assert not has_flow or received(flow, client, b"before", backend)
                flow.steering.failure = failure
                flow.steering.held = None if failure else trio.Event()
                await flow.remove(DNS)
                await flow.settle()
                assert flow.steering.applied[1:] == [[]], "steering was not asked, or is done"
                assert not received(flow, client, b"after", backend)
                with pytest.raises(ConnectionRefusedError):
                    client.recv(100)
                await trio.sleep(10 * RETRY_S)
                assert not received(flow, client, b"much later", backend)
                assert flow.backends() == {}


async def test_pipeline_udp_port_deleted_gets_no_datagram_while_the_others_go_on(autojump_clock: MockClock) -> None:
    """It is the ports that count, not the Services."""
    ports = service_port("dns", 53, protocol=UDP), service_port("log", 514, protocol=UDP)
    with open_backend() as backend:
        async with open_flow() as flow:
            await flow.sync(service("shop/dns", *ports), slice_of(backend, "dns", "log"))
            with open_client(flow, "dns") as to_dns, open_client(flow, "log") as to_log:
                assert received(flow, to_dns, b"1", backend)
                assert received(flow, to_log, b"2", backend)
                flow.steering.held = trio.Event()
                await flow.feed(service("shop/dns", ports[1]))
                await flow.settle()
                assert not received(flow, to_dns, b"3", backend)
                assert received(flow, to_log, b"4", backend)


async def test_pipeline_udp_service_that_returns_before_steering_ends_is_served(autojump_clock: MockClock) -> None:
    """By the first datagram, without any word from steering."""
    with open_backend() as backend:
        async with open_flow() as flow:
            await flow.sync(DNS, slice_of(backend))
            with open_client(flow) as client:
                assert received(flow, client, b"1", backend)
                flow.steering.held = trio.Event()
                await flow.remove(DNS)
                await flow.settle()
                await flow.feed(DNS)
                await flow.settle()
                assert received(flow, client, b"2", backend)
                flow.steering.held.set()
                await flow.settle()
                assert received(flow, client, b"3", backend)


async def test_pipeline_udp_pool_of_another_scope_takes_over_without_a_loss(autojump_clock: MockClock) -> None:
    """A change of the traffic policy removes a Pool and leads to another one in the same step."""
    with open_backend() as backend:
        async with open_flow() as flow:
            flow.settings = plan_settings(node_name="here")
            await flow.sync(DNS, slice_of(backend))
            with open_client(flow) as client:
                assert received(flow, client, b"1", backend)
                sockets = flow.sockets()
                flow.steering.held = trio.Event()
                await flow.feed(evolve(DNS, internal_policy=TrafficPolicy.LOCAL))
                await flow.settle()
                assert flow.backends().keys() == {"shop/dns:dns local"}
                assert received(flow, client, b"2", backend)
                assert flow.sockets() == sockets


async def test_pipeline_tcp_pool_stays_until_steering_was_told(autojump_clock: MockClock) -> None:
    """A client whose packets are still led here is served, as ever; of the same Service UDP is gone."""
    ports = service_port("dns", 53, protocol=UDP), service_port("dns", 53)
    with open_backend() as backend:
        async with open_flow() as flow:
            await flow.sync(service("shop/dns", *ports), slice_of(backend), tcp_slice("dns"))
            assert len(list(flow.served.pools())) == 2
            flow.steering.held = trio.Event()
            await flow.remove(service("shop/dns"))
            await flow.settle()
            assert [key.service_port.protocol for key, _ in flow.served.pools()] == [Protocol.TCP]
            flow.steering.held.set()
            await flow.settle()
            assert flow.backends() == {}


async def run_into_bug(flow: Flow, text: str) -> None:
    """Run the Pipeline until a bug ends it."""
    with pytest.raises(ExceptionGroup) as caught:
        await flow.pipeline.run()
    assert caught.group_contains(RuntimeError, match=text)


@asynccontextmanager
async def running(flow: Flow) -> AsyncIterator[None]:
    """Have the Pipeline run meanwhile, and do what it does at once."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flow.pipeline.run)
        await flow.settle()
        yield
        nursery.cancel_scope.cancel()


async def test_bug_while_a_udp_service_is_deleted_does_not_leave_its_pool(autojump_clock: MockClock) -> None:
    """The run that starts again does at once what was left."""
    with open_backend() as backend:
        async with open_flow(running=False) as flow:
            await flow.feed(DNS, slice_of(backend))
            await flow.pipeline.feed([Synced()])
            async with running(flow):
                assert flow.backends() != {}
            with open_client(flow) as client:
                await flow.remove(DNS)
                flow.listeners.bug_in = "remove_pool"
                await run_into_bug(flow, "a bug in remove_pool")
                assert flow.backends() != {}
                flow.steering.held = trio.Event()
                async with running(flow):
                    assert flow.backends() == {}
                    assert not received(flow, client, b"after", backend)


async def test_bug_while_a_service_is_added_does_not_leave_its_pools_if_it_goes(autojump_clock: MockClock) -> None:
    """Nothing of it was noted as applied when the bug struck; what is of UDP does not wait for steering here either."""
    web, web_1 = service("shop/web"), endpoint_slice("shop/web-1", "10.0.1.1")
    with open_backend() as backend:
        async with open_flow(running=False) as flow:
            for name, objects in {"dns": (DNS, slice_of(backend)), "web": (web, web_1)}.items():
                await flow.feed(*objects)
                await flow.pipeline.feed([Synced()])
                flow.steering.bug_in = "place"
                await run_into_bug(flow, "a bug in place")
                assert [str(key.service_port.service) for key, _ in flow.served.pools()] == [f"shop/{name}"]
                await flow.remove(*objects)
                flow.steering.held = trio.Event() if name == "dns" else None
                async with running(flow):
                    assert flow.backends() == {}


async def test_pipeline_port_that_becomes_udp_keeps_its_counters(autojump_clock: MockClock) -> None:
    """What it was as TCP goes later, when steering was told, and has the same name."""
    with open_backend() as backend:
        async with open_flow() as flow:
            await flow.sync(service("shop/dns", service_port("dns", 53)), tcp_slice("dns"))
            await flow.feed(DNS, slice_of(backend))
            await flow.settle()
            with open_client(flow) as client:
                assert received(flow, client, b"1", backend)
            flow.served.report()
            assert flow.engine.counters.udp_services["shop/dns:dns"].datagrams_to_backend == 1
            assert not flow.engine.counters.services

"""Idle time-outs of flows: how long, for whom, refreshed by what; on a virtual clock."""

import logging
from collections.abc import Callable

import pytest
from builders import udp_settings
from engine_driver import DNS, Proxy, stepped_proxy
from udp_peers import UdpPeer, UdpServer, open_udp_peers

from userspace_proxy.balance.flow_outcome import FlowEnd
from userspace_proxy.config import FlowLimits
from userspace_proxy.dataplane.udp_flow import TOUCH_S
from userspace_proxy.plan.state import UdpSettings

LOOKS = 16
"""Looks for idle flows within a time-out: so late one may end."""
LONGEST_LOOK_S = 5.0
CONNECTION_LOG = "userspace_proxy.connections"


def latest_s(timeout_s: float) -> float:
    """Return after how many seconds of silence a flow has certainly ended."""
    return timeout_s + TOUCH_S + min(timeout_s / LOOKS, LONGEST_LOOK_S)


def ask(proxy: Proxy, client: UdpPeer) -> None:
    """Have a datagram of a client passed on."""
    client.send(b"ping")
    proxy.pass_on()


def answer(proxy: Proxy, server: UdpServer) -> None:
    """Have a datagram of the Backend passed on."""
    server.answer(b"pong")
    proxy.pass_on()


@pytest.mark.parametrize(
    ("limits", "settings", "timeout_s"),
    [
        pytest.param(FlowLimits(), UdpSettings(), 60.0, id="default"),
        pytest.param(FlowLimits(idle_timeout_s=10.0), UdpSettings(), 10.0, id="flag"),
        pytest.param(FlowLimits(), udp_settings(idle_timeout_s=0.5), 0.5, id="annotation, shorter"),
        pytest.param(FlowLimits(idle_timeout_s=10.0), udp_settings(idle_timeout_s=3600.0), 3600.0, id="longer"),
    ],
)
def test_idle_flow_ends_after_its_time_out(limits: FlowLimits, settings: UdpSettings, timeout_s: float) -> None:
    """Not before, and little later; its socket, counters and handlers are gone with it."""
    with stepped_proxy(limits) as proxy, open_udp_peers() as peers:
        client = peers.client(proxy.serve_udp(peers.server().backend, udp=settings))
        ask(proxy, client)
        proxy.advance(timeout_s)
        assert proxy.flow_counters().active == 1
        proxy.advance(latest_s(timeout_s) - timeout_s)
        assert proxy.flow_counters().ended == {FlowEnd.IDLE: 1}
        proxy.assert_nothing_left()
        assert not proxy.engine.timers._queues


@pytest.mark.parametrize("refresh", [ask, answer], ids=["client", "backend"])
def test_idle_time_out_begins_anew_with_a_datagram_of_either_side(refresh: Callable[..., None]) -> None:
    """A Backend that goes on sending keeps the flow as a client does."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        ask(proxy, client)
        assert server.take() == [b"ping"]
        for _ in range(5):
            proxy.advance(59.0)
            refresh(proxy, client if refresh is ask else server)
        proxy.advance(59.9)
        assert proxy.flow_counters().flows == proxy.flow_counters().active == 1
        proxy.advance(latest_s(60.0) - 59.9)
        proxy.assert_nothing_left()


def test_idle_time_out_of_each_flow_runs_by_itself() -> None:
    """One that goes on is in nobody's way, wherever it stands in the order."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        address = proxy.serve_udp(peers.server().backend)
        clients = [peers.client(address) for _ in range(6)]
        for client in clients:
            ask(proxy, client)
            proxy.advance(1.0)
        for _ in range(3):
            proxy.advance(25.0)
            for client in clients[::2]:
                ask(proxy, client)
        assert {flow.client for flow in proxy.flows()} == {client.address for client in clients[::2]}
        assert proxy.flow_counters().ended == {FlowEnd.IDLE: 3}
        proxy.advance(latest_s(60.0))
        proxy.assert_nothing_left()


@pytest.mark.parametrize(("before_s", "after_s"), [(600.0, 30.0), (30.0, 600.0)], ids=["shorter", "longer"])
def test_idle_time_out_that_changes_holds_for_the_flows_there_are(before_s: float, after_s: float) -> None:
    """An annotation that is edited takes effect at once, for flows that are open too."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        backend = peers.server().backend
        client = peers.client(proxy.serve_udp(backend, udp=udp_settings(idle_timeout_s=before_s)))
        ask(proxy, client)
        proxy.advance(10.0)
        proxy.set_udp_pool(backend, udp=udp_settings(idle_timeout_s=after_s))
        proxy.advance(after_s - 10.0)
        assert proxy.flow_counters().active == 1
        proxy.advance(min(before_s, after_s) / LOOKS + LONGEST_LOOK_S + TOUCH_S)
        assert proxy.flow_counters().ended == {FlowEnd.IDLE: 1}


def test_idle_flow_that_has_ended_is_made_anew() -> None:
    """The same client port goes on after a pause: the next Backend, and no datagram is lost."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        servers = sorted((peers.server() for _ in range(2)), key=lambda server: server.backend.port)
        client = peers.client(proxy.serve_udp(*(server.backend for server in servers)))
        for server in (*servers, *servers):
            ask(proxy, client)
            assert server.take() == [b"ping"]
            proxy.advance(latest_s(60.0))
        assert proxy.flow_counters().ended == {FlowEnd.IDLE: 4}
        proxy.assert_nothing_left()


def test_idle_flow_that_has_ended_hears_no_answer() -> None:
    """What the Backend sends afterwards is refused by the kernel, as it is known to be of no use."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        ask(proxy, client)
        server.take()
        proxy.advance(latest_s(60.0))
        answer(proxy, server)
        assert client.take() == []
        assert proxy.flow_counters().datagrams_to_client == 0


def test_looks_for_idle_flows_do_not_pile_up() -> None:
    """One timer for each listener, however many flows come and go."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        address = proxy.serve_udp(peers.server().backend)
        for _ in range(40):
            ask(proxy, peers.client(address))
            proxy.advance(7.0)
        assert sum(len(queue) for queue in proxy.engine.timers._queues.values()) == 1


def test_flow_that_ends_is_logged_with_what_it_has_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    """One record for each flow, with exact figures."""
    caplog.set_level(logging.INFO, CONNECTION_LOG)
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server()
        client = peers.client(proxy.serve_udp(server.backend))
        ask(proxy, client)
        proxy.advance(2.0)
        ask(proxy, client)
        server.take()
        answer(proxy, server)
        proxy.advance(latest_s(60.0))
        (record,) = caplog.records
        assert record.getMessage() == "flow ended"
        expected = {
            "service": DNS,
            "client": "{} port {}".format(*client.address),
            "backend": str(server.backend),
            "reason": "idle",
            "datagrams_to_backend": 2,
            "datagrams_to_client": 1,
            "bytes_to_backend": 8,
            "bytes_to_client": 4,
        }
        assert {key: vars(record)[key] for key in expected} == expected
        assert 62.0 <= vars(record)["duration_s"] <= 2.0 + latest_s(60.0)

"""The servers behind healthCheckNodePorts, asked over HTTP."""

import http.client
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trio
from attrs import define, field
from builders import named
from cli_driver import free_port

from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.service_health import ServiceHealthFacts, run_service_health
from userspace_proxy.model.names import Family, NamespacedName
from userspace_proxy.plan.state import HealthCheck

DEADLINE_S = 30.0
LOCALHOST = "127.0.0.1"


def health_check(port: int, count: int) -> HealthCheck:
    """Return the one of a Service in the family of IPv4."""
    return HealthCheck(port, {Family.IPV4: count})


@define(eq=False)
class Node:
    """What the servers tell, changed by tests."""

    checks: Mapping[NamespacedName, HealthCheck] = field(factory=dict)
    addresses: tuple[str, ...] = (LOCALHOST,)
    changed: trio.Event = field(factory=trio.Event)
    healthy: bool = True
    failures: list[tuple[NamespacedName, str]] = field(factory=list)

    def check(self, checks: Mapping[str, HealthCheck]) -> None:
        """Replace all checks."""
        self.checks = {named(name): one for name, one in checks.items()}
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def facts(self) -> ServiceHealthFacts:
        """Return what the servers ask."""
        return ServiceHealthFacts(
            checks=lambda: self.checks,
            changed=lambda: self.changed,
            addresses=lambda: map(ip_address, self.addresses),
            is_healthy=lambda: self.healthy,
            on_failure=lambda name, text: self.failures.append((name, text)),
        )


@asynccontextmanager
async def serving(node: Node) -> AsyncIterator[None]:
    """Run the servers while the block runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_service_health, node.facts(), ControlCounters())
        yield
        nursery.cancel_scope.cancel()


def request(port: int, method: str, path: str, host: str) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers and body of an answer."""
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


async def ask(
    port: int, method: str = "GET", path: str = "/", host: str = LOCALHOST
) -> tuple[int, Mapping[str, str], bytes]:
    """Return the answer of a server, once there is one."""
    with trio.fail_after(DEADLINE_S):
        while True:
            try:
                return await trio.to_thread.run_sync(request, port, method, path, host)
            except ConnectionError:  # not there yet, or going
                await trio.sleep(0.01)


async def wait_refused(port: int) -> None:
    """Wait until nobody listens."""
    with trio.fail_after(DEADLINE_S):
        while True:
            with socket.socket() as sock:
                if sock.connect_ex((LOCALHOST, port)):
                    return
            await trio.sleep(0.01)


@pytest.mark.parametrize("path", ["/", "/healthz", "/any/where?x=1"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_d_7_every_path_and_method_gets_the_same_answer(method: str, path: str) -> None:
    """The document and the headers are kube-proxy's."""
    node, port = Node(), free_port()
    async with serving(node):
        node.check({"shop/web": health_check(port, 3)})
        status, headers, body = await ask(port, method, path)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "3"
    assert json.loads(body) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": 3,
        "serviceProxyHealthy": True,
    }


@pytest.mark.parametrize(
    ("count", "healthy", "status"),
    [(1, True, 200), (0, True, 503), (2, False, 503), (0, False, 503)],
)
async def test_d_7_traffic_is_wanted_with_local_endpoints_and_a_healthy_proxy(
    count: int,
    healthy: bool,  # noqa: FBT001
    status: int,
) -> None:
    """The count is told as it is, also by an unhealthy proxy."""
    port = free_port()
    node = Node({named(): health_check(port, count)}, healthy=healthy)
    async with serving(node):
        answered, headers, body = await ask(port)
    assert answered == status
    assert headers["X-Load-Balancing-Endpoint-Weight"] == str(count)
    assert json.loads(body)["serviceProxyHealthy"] is healthy


async def test_d_7_answers_follow_the_endpoints_and_the_port() -> None:
    """A change of the count needs no new server; a changed port and a removed Service close the old one."""
    node, first, second = Node(), free_port(), free_port()
    async with serving(node):
        node.check({"shop/web": health_check(first, 0)})
        assert (await ask(first))[0] == 503
        node.check({"shop/web": health_check(first, 1)})
        assert (await ask(first))[0] == 200
        node.check({"shop/web": health_check(second, 1)})
        assert (await ask(second))[0] == 200
        await wait_refused(first)
        node.check({"shop/other": health_check(second, 0)})
        with trio.fail_after(DEADLINE_S):
            while json.loads((await ask(second))[2])["service"]["name"] != "other":  # noqa: ASYNC110 - a server starts
                await trio.sleep(0.01)
        node.check({})
        await wait_refused(second)
    assert node.failures == [], "a port was asked for before the server that had it was gone"


async def test_d_7_restricted_addresses_alone_answer() -> None:
    """A server listens on each of the addresses given, and on no other."""
    port = free_port()
    node = Node({named(): health_check(port, 1)}, addresses=("127.0.0.2", "127.0.0.3"))
    async with serving(node):
        for host in node.addresses:
            assert (await ask(port, host=host))[0] == 200
        await wait_refused(port)


async def test_d_7_each_family_of_the_service_is_told_of_its_own_endpoints() -> None:
    """A server in a family that the Service does not have would tell of nothing."""
    port, other = free_port(), free_port()
    node = Node(addresses=(LOCALHOST, "::1"))
    async with serving(node):
        node.check(
            {
                "shop/both": HealthCheck(port, {Family.IPV4: 0, Family.IPV6: 2}),
                "shop/one": HealthCheck(other, {Family.IPV6: 1}),
            }
        )
        answers = [await ask(port), await ask(port, host="::1"), await ask(other, host="::1")]
        await wait_refused(other)
    assert [(status, json.loads(body)["localEndpoints"]) for status, _, body in answers] == [
        (503, 0),
        (200, 2),
        (200, 1),
    ]


async def test_d_7_port_in_use_is_told_and_another_service_served() -> None:
    """One server that cannot listen stops no other."""
    taken, port = free_port(), free_port()
    with socket.socket() as holder:
        holder.bind((LOCALHOST, taken))
        holder.listen()
        node = Node({named("shop/a"): health_check(taken, 1), named("shop/b"): health_check(port, 1)})
        async with serving(node):
            assert (await ask(port))[0] == 200
            (name, text) = node.failures[0]
            assert name == named("shop/a")
            assert str(taken) in text
    assert len(node.failures) == 1

"""The servers that tell load balancers whether this node has endpoints of a Service (``spec.healthCheckNodePort``).

One per Service and address where NodePorts answer, in the families of the Service. They tell what the plan says of
their family, at the moment it is asked for.

Source: kube-proxy, ``pkg/proxy/healthcheck/service_health.go``. Entry point: ``run_service_health``.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import NoReturn

import trio
from attrs import field, frozen

from userspace_proxy.control.admin_http import ANY_PATH, Response, serve_admin
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.health import json_response
from userspace_proxy.model.names import Family, IPAddress, NamespacedName, family_of
from userspace_proxy.plan.state import HealthCheck


@frozen
class ServiceHealthFacts:
    """What the servers tell, and where; asked again and again."""

    checks: Callable[[], Mapping[NamespacedName, HealthCheck]]
    """Returns what there is to tell, by Service."""
    changed: Callable[[], trio.Event]
    """Returns the Event that is set when ``checks`` or ``addresses`` return something else than now."""
    addresses: Callable[[], Iterable[IPAddress]]
    """Returns where to listen."""
    is_healthy: Callable[[], bool]
    """Returns whether this proxy is healthy."""
    on_failure: Callable[[NamespacedName, str], None]
    """Called when a server cannot listen, with the Service and a sentence; it goes on trying."""


@frozen(eq=False)
class _Server:
    name: NamespacedName
    address: IPAddress
    port: int
    stopping: trio.CancelScope = field(factory=trio.CancelScope)
    stopped: trio.Event = field(factory=trio.Event)


async def run_service_health(facts: ServiceHealthFacts, counters: ControlCounters) -> NoReturn:
    """Have a server for every health check, and for no other, until cancelled.

    A port that cannot be bound is tried again every 5 s.
    """
    running: dict[tuple[NamespacedName, IPAddress, int], _Server] = {}
    async with trio.open_nursery() as nursery:
        while True:
            changed = facts.changed()
            addresses = tuple(facts.addresses())
            wanted = {
                (name, address, one.port)
                for name, one in facts.checks().items()
                for address in addresses
                if family_of(address) in one.local_endpoints
            }
            leaving = [running.pop(place) for place in running.keys() - wanted]
            for server in leaving:
                server.stopping.cancel()
            for server in leaving:
                await server.stopped.wait()  # another Service may want its port
            for place in sorted(wanted - running.keys(), key=str):
                running[place] = _Server(*place)
                await nursery.start(_serve, facts, counters, running[place])
            await changed.wait()


async def _serve(
    facts: ServiceHealthFacts, counters: ControlCounters, server: _Server, *, task_status: trio.TaskStatus[None]
) -> None:
    """Run a server until it is told to stop; it has started when it listens, or has failed to."""
    with server.stopping:
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(
                partial(
                    serve_admin,
                    {ANY_PATH: partial(_page, facts, server.name, family_of(server.address))},
                    (server.address, server.port),
                    setting=f"spec.healthCheckNodePort of Service {server.name}",
                    hard_fail=False,
                    counters=counters,
                )
            )
            if bound is None:
                text = f"cannot listen on {server.address} port {server.port} for health checks; trying again"
                facts.on_failure(server.name, text)
            task_status.started()
    server.stopped.set()


def _page(facts: ServiceHealthFacts, name: NamespacedName, family: Family) -> Response:
    check = facts.checks().get(name)
    count = 0 if check is None else check.local_endpoints.get(family, 0)
    healthy = facts.is_healthy()
    document = {
        "service": {"namespace": name.namespace, "name": name.name},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }
    status = HTTPStatus.OK if count and healthy else HTTPStatus.SERVICE_UNAVAILABLE
    return json_response(status, document, (("X-Load-Balancing-Endpoint-Weight", str(count)),))

"""The source that watches the API server: Services, EndpointSlices and the Node, each in a thread of its own.

It starts the watches, hands on what they say, and tells when all is known. Entry points: ``run_api``, ``read_api``,
``cluster_address_warning``.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec
import trio

from userspace_proxy.config import ApiAccess
from userspace_proxy.errors import ApiError
from userspace_proxy.model.node import Node
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Service
from userspace_proxy.sources.api_client import open_api_client
from userspace_proxy.sources.api_handover import Handover
from userspace_proxy.sources.api_http import ApiClient
from userspace_proxy.sources.api_messages import decode_head
from userspace_proxy.sources.api_outage import OutageLog
from userspace_proxy.sources.api_resources import ApiResource, endpoint_slices, node, services
from userspace_proxy.sources.api_sync import Sync, hand_on
from userspace_proxy.sources.api_watch import Report, ResourceWatch, list_objects
from userspace_proxy.sources.base import (
    ApiState,
    Applied,
    ProblemsFound,
    ResourceState,
    Synced,
    WatchEvent,
    WatchEvents,
)


async def run_api(
    access: ApiAccess,
    send: trio.MemorySendChannel[WatchEvents],
    *,
    node_name: str,
    state: ApiState,
    wall_clock: Callable[[], float],
) -> None:
    """Send what the API server has, then what changes; does not return.

    Args:
        access: Which API server.
        send: Takes the batches. Stays open.
        node_name: Of the Node to watch; empty: none.
        state: Is kept up to date, by other threads too.
        wall_clock: Returns seconds since the epoch.

    Raises:
        ConfigError: something that ``access`` names cannot be used. Whatever fails later is tried again, and logged.

    Cancellation:
        Ends at once, wherever the threads are. They end within milliseconds, but for one that waits for the answer of
        a name server or of an exec plugin.
    """
    watched = _resources(access, node_name)
    clients = await trio.to_thread.run_sync(partial(_open_clients, access, len(watched)), abandon_on_cancel=True)
    state.server = clients[0].server
    for resource in watched:
        state.resources.setdefault(resource.name, ResourceState())
    handover: Handover[Report] = Handover()
    sync = Sync({resource.name for resource in watched})
    outages = OutageLog(time.monotonic, wall_clock)
    stopping = threading.Event()
    try:
        async with trio.open_nursery() as nursery:
            for resource, own in zip(watched, clients, strict=True):
                watch = ResourceWatch(
                    client=own,
                    resource=resource,
                    state=state.resources[resource.name],
                    outages=outages,
                    put=handover.put,
                    stopping=stopping,
                    clock=time.monotonic,
                    wall_clock=wall_clock,
                    random=random.Random().random,  # noqa: S311 - no secret
                )
                limiter = trio.CapacityLimiter(1)  # of its own: it is taken for ever
                run = partial(trio.to_thread.run_sync, watch.run, thread_name=f"watch {resource.name}", limiter=limiter)
                nursery.start_soon(partial(run, abandon_on_cancel=True))
            while True:
                await hand_on(handover, send, sync)
    finally:
        stopping.set()
        handover.close()
        for own in clients:
            own.interrupt()
        for resource in watched:  # whoever starts this anew after a bug may wait before
            state.resources[resource.name].failure = "it is not being watched now"


def read_api(access: ApiAccess, *, node_name: str) -> Sequence[WatchEvent]:
    """Return what the API server has now, as the events ``run_api`` would send, ``Synced`` last. Blocks.

    Raises:
        ConfigError: something that ``access`` names cannot be used.
        ApiError: there is no complete answer. Without the right to read Nodes it is a Problem instead.
    """
    events: list[WatchEvent] = []
    with closing(open_api_client(access)) as client:
        for resource in _resources(access, node_name):
            try:
                for page in list_objects(client, resource):
                    for raw in page.items or ():
                        events += _read_object(resource, raw, client.server)
            except ApiError as error:
                if resource.type is not Node or error.reason != "forbidden":
                    raise
                found = Problem(Severity.WARNING, f"Node {node_name}", "", str(error))
                events.append(ProblemsFound(found.subject, (found,)))
    return [*events, Synced()]


def _open_clients(access: ApiAccess, count: int) -> list[ApiClient]:
    """Return clients that share their credentials. Blocks: authorities take a while to read."""
    first = open_api_client(access)
    return [first, *(first.another() for _ in range(count - 1))]


def _read_object(resource: ApiResource, raw: msgspec.Raw, server: str) -> Iterator[WatchEvent]:
    name = decode_head(raw, server).name
    found, problems = resource.parse(name, raw)
    if found is not None:
        yield Applied(found)
    if problems:
        yield ProblemsFound(resource.subject(name), problems)


def cluster_address_warning(server: str, served: Iterable[Service]) -> str:
    """Return what is wrong with reaching the API server by an address that this proxy is to serve; empty: nothing.

    Such a proxy works until it starts anew: then it needs itself to learn what to serve.

    Args:
        server: URL of the API server.
        served: All Services there are.
    """
    parts = urlsplit(server)
    host = parts.hostname or ""
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    for service in served:
        # a pod may know it by name: https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/
        known = f"{service.name.name}.{service.name.namespace}"
        by_name = host == known or host.startswith(f"{known}.svc")
        if (address in service.cluster_ips or by_name) and any(one.port == port for one in service.ports):
            return (
                f"the API server is reached at {server}, an address of Service {service.name} that this proxy serves; "
                "after a restart it would need itself to get there: give the address of a control plane node by "
                "--api-server https://HOST:6443, or a kubeconfig that names one"
            )
    return ""


def _resources(access: ApiAccess, node_name: str) -> list[ApiResource]:
    found = [services(access.service_proxy_name), endpoint_slices()]
    return [*found, node(node_name)] if node_name else found

"""Parts of the API server source run on the API server double, and objects for it.

Entry points: ``client_of``, ``watching``, ``running_source``, ``put_service``, ``put_slice``, ``put_node``, ``delete``.
"""

import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio
from apiserver.double import ApiServer
from apiserver.store import Key
from attrs import define, field
from manifest_driver import summary

from userspace_proxy.config import ApiAccess
from userspace_proxy.sources.api_credentials import Credentials, CredentialStore
from userspace_proxy.sources.api_http import ApiClient
from userspace_proxy.sources.api_outage import OutageLog
from userspace_proxy.sources.api_resources import ApiResource, services
from userspace_proxy.sources.api_source import run_api
from userspace_proxy.sources.api_watch import Listed, ListRefused, Report, ResourceWatch
from userspace_proxy.sources.base import ApiState, ResourceState, WatchEvents

DEADLINE_S = 20.0
"""For what takes milliseconds on a machine that has nothing else to do."""
PROMPTLY_S = 8.0
"""Far below the time-outs and rests that a thread would wait for, far above what it takes on a busy machine."""


def put_service(
    server: ApiServer,
    name: str = "shop/web",
    *,
    cluster_ip: str = "10.96.0.10",
    labels: Mapping[str, str] | None = None,
) -> None:
    """Create or replace a Service with the port ``http`` 80/TCP."""
    namespace, _, short = name.partition("/")
    families = ["IPv4"] if cluster_ip != "None" else []
    ports = [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 80}]
    spec = {
        "type": "ClusterIP",
        "clusterIP": cluster_ip,
        "clusterIPs": [cluster_ip],
        "ipFamilies": families,
        "ports": ports,
    }
    metadata = {"name": short, "namespace": namespace, "uid": f"uid-of-{short}", "labels": dict(labels or {})}
    put(server, "services", Key(namespace, short), {"metadata": metadata, "spec": spec})


def put_slice(
    server: ApiServer,
    name: str = "shop/web-1",
    addresses: Iterable[str] = ("10.0.1.1",),
    *,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Create or replace an EndpointSlice of the Service ``web`` of its namespace."""
    namespace, _, short = name.partition("/")
    metadata = {
        "name": short,
        "namespace": namespace,
        "labels": {"kubernetes.io/service-name": "web", **(labels or {})},
    }
    endpoints = [{"addresses": [one], "conditions": {"ready": True}} for one in addresses]
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
    content = {"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": ports}
    put(server, "endpointslices", Key(namespace, short), content)


def put_many_slices(server: ApiServer, count: int) -> None:
    """Create many EndpointSlices ``shop/web-N`` without an endpoint at once."""
    objects = []
    for number in range(count):
        metadata = {
            "namespace": "shop",
            "name": f"web-{number}",
            "labels": {"kubernetes.io/service-name": "web"},
        }
        content = {"metadata": metadata, "addressType": "IPv4", "endpoints": []}
        objects.append((Key("shop", f"web-{number}"), content))
    server.in_thread(lambda store: store.collection("endpointslices").load(objects))


def put_node(server: ApiServer, name: str = "node-1", zone: str = "a") -> None:
    """Create or replace a Node."""
    metadata = {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}
    status = {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]}
    put(server, "nodes", Key("", name), {"metadata": metadata, "spec": {}, "status": status})


def put(server: ApiServer, resource: str, key: Key, content: Mapping[str, Any]) -> None:
    """Create or replace an object, whatever is in it."""
    server.in_thread(lambda store: store.collection(resource).put(key, content))


def delete(server: ApiServer, resource: str, name: str) -> None:
    """Delete an object."""
    namespace, _, short = name.rpartition("/")
    server.in_thread(lambda store: store.collection(resource).delete(Key(namespace, short)))


def credentials_of(double: ApiServer, **settings: Any) -> Credentials:
    """Return credentials for the double."""
    ca_pem = double.certificates.authority.read_text(encoding="utf-8") if double.certificates else ""
    known = {"server": double.url, "origin": "kubeconfig of the test", "authorization": "Bearer proxy-token"}
    return Credentials(**{**known, "ca_pem": ca_pem, **settings})


def client_of(double: ApiServer, **settings: Any) -> ApiClient:
    """Return a client of the double with certain credentials."""
    return ApiClient.open(CredentialStore(lambda: credentials_of(double, **settings)))


def report_text(report: Report) -> str:
    """Return what a report says, as ``summary`` does; also ``listed`` and ``refused``."""
    if isinstance(report, Listed | ListRefused):
        return "listed" if isinstance(report, Listed) else "refused"
    return summary(report)


@define
class Watching:
    """A watch of one resource, in a thread of its own."""

    state: ResourceState
    thread: threading.Thread
    client: ApiClient
    stopping: threading.Event
    reports: "queue.SimpleQueue[Report]"

    def until(self, last: str) -> list[str]:
        """Return the texts of all reports up to one that says ``last``."""
        taken: list[str] = []
        while not taken or taken[-1] != last:
            taken.append(report_text(self.reports.get(timeout=DEADLINE_S)))
        return taken

    def is_quiet(self) -> bool:
        """Return whether there is no report that was not taken."""
        return self.reports.empty()

    def stop(self) -> float:
        """End the watch as its source does; return the seconds that took."""
        started = time.monotonic()
        self.stopping.set()
        self.client.interrupt()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the watch does not end"
        return time.monotonic() - started


@contextmanager
def watching(client: ApiClient, resource: ApiResource | None = None) -> Iterator[Watching]:
    """Run the watch of a resource, Services if none is given."""
    reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
    state = ResourceState()
    stopping = threading.Event()

    def put_all(batch: list[Report]) -> None:
        for report in batch:
            reports.put(report)

    watch = ResourceWatch(
        client=client,
        resource=resource or services(),
        state=state,
        outages=OutageLog(time.monotonic, lambda: 1e9),
        put=put_all,
        stopping=stopping,
        clock=time.monotonic,
        wall_clock=lambda: 1e9,
        random=lambda: 0.0,
    )
    thread = threading.Thread(target=watch.run, name="watch under test")
    thread.start()
    running = Watching(state, thread, client, stopping, reports)
    try:
        yield running
    finally:
        running.stop()


async def until_true(condition: Callable[[], object]) -> None:
    """Return once a condition holds that something outside of trio brings about."""
    for _ in range(int(DEADLINE_S / 0.01)):
        if condition():
            return
        await trio.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE_S} s")


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Return once a condition holds; blocks."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        threading.Event().wait(0.002)


@define
class RunningSource:
    """A run of the whole source."""

    state: ApiState
    batches: trio.MemoryReceiveChannel[WatchEvents]
    scope: trio.CancelScope
    _untaken: list[str] = field(factory=list, init=False)

    async def until(self, last: str) -> list[str]:
        """Return the summaries of all events up to one whose summary is ``last``."""
        taken: list[str] = []
        while not taken or taken[-1] != last:
            if not self._untaken:
                self._untaken.extend(map(summary, await self.batches.receive()))
            taken.append(self._untaken.pop(0))
        return taken


@asynccontextmanager
async def running_source(
    access: ApiAccess, *, node_name: str = "", state: ApiState | None = None
) -> AsyncIterator[RunningSource]:
    """Run the whole source, with the state of a run before if there was one."""
    send, batches = trio.open_memory_channel[WatchEvents](0)
    state = state or ApiState()

    async def run() -> None:
        await run_api(access, send, node_name=node_name, state=state, wall_clock=lambda: 1e9)

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield RunningSource(state, batches, nursery.cancel_scope)
            nursery.cancel_scope.cancel()

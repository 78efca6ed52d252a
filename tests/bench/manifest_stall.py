"""Prints how long reading manifests holds the loop, and how soon a change takes effect.

A task that does nothing but pass checkpoints takes the time between two of them. From each is taken off what the thread
spent waiting for a CPU (/proc/thread-self/schedstat): that is what else runs on the machine, this task included.

Run: ``python tests/bench/manifest_stall.py``.
"""

import math
import os
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter_ns

import trio
from attrs import define, field

from userspace_proxy.sources.base import Applied, Synced, WatchEvents
from userspace_proxy.sources.manifests import run_manifests

ROUNDS = 5
OBJECTS = 500
DOCUMENTS = 10_000
ENDPOINTS = 4

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  annotations:
    example.com/note: as large as objects are that kubectl prints
  creationTimestamp: "2026-05-04T10:10:10Z"
  labels:
    app: shop-{i}
  name: shop-{i}
  namespace: bench
  resourceVersion: "1000"
  uid: 6d1f0a4e-9f3c-4a1c-8f6e-000000000000
spec:
  clusterIP: 10.96.{high}.{low}
  clusterIPs:
  - 10.96.{high}.{low}
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - name: http
    port: {port}
    protocol: TCP
    targetPort: 8080
  selector:
    app: shop-{i}
  sessionAffinity: None
  type: ClusterIP
status:
  loadBalancer: {{}}
"""
ENDPOINT = """\
- addresses:
  - 10.{k}.{high}.{low}
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: node-{k}
  targetRef:
    kind: Pod
    name: shop-{i}-{k}
    namespace: bench
    uid: 6d1f0a4e-9f3c-4a1c-8f6e-000000000000
  zone: zone-a
"""
ENDPOINT_SLICE = """\
addressType: IPv4
apiVersion: discovery.k8s.io/v1
endpoints:
{endpoints}kind: EndpointSlice
metadata:
  labels:
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
    kubernetes.io/service-name: shop-{i}
  name: shop-{i}-abcde
  namespace: bench
ports:
- name: http
  port: {port}
  protocol: TCP
"""


def manifest(objects: int, port: int) -> str:
    """Return a text with half as many Services, each with one EndpointSlice; all differ with ``port``."""
    documents = []
    for i in range(objects // 2):
        high, low = divmod(i, 250)
        places = {"i": i, "high": high, "low": low + 1, "port": port}
        endpoints = "".join(ENDPOINT.format(k=k, **places) for k in range(ENDPOINTS))
        documents += [SERVICE.format(**places), ENDPOINT_SLICE.format(endpoints=endpoints, **places)]
    return "---\n".join(documents)


@define
class Gaps:
    """The longest times between two checkpoints of one task."""

    wall_s: float = 0.0
    own_s: float = 0.0
    """Without the time in which the thread waited for a CPU."""
    _schedstat: int = field(factory=lambda: os.open("/proc/thread-self/schedstat", os.O_RDONLY), init=False)
    _last_ns: tuple[int, int] = field(default=(0, 0), init=False)

    def reset(self) -> None:
        """Forget what was measured; call it without a checkpoint since the work that is not to count."""
        self.wall_s = self.own_s = 0.0
        self._last_ns = self._now_ns()

    async def watch(self) -> None:
        """Pass checkpoints without end."""
        self.reset()
        while True:
            await trio.lowlevel.checkpoint()
            wall, waited = now = self._now_ns()
            wall, waited = wall - self._last_ns[0], waited - self._last_ns[1]
            self.wall_s = max(self.wall_s, wall * 1e-9)
            self.own_s = max(self.own_s, (wall - waited) * 1e-9)
            self._last_ns = now

    def _now_ns(self) -> tuple[int, int]:
        """Return the time, and how long the thread has waited for a CPU so far."""
        return perf_counter_ns(), int(os.pread(self._schedstat, 100, 0).split()[1])


async def idle(seconds: float) -> Gaps:
    """Return the gaps of a loop in which nothing else happens."""
    gaps = Gaps()
    with trio.move_on_after(seconds):
        await gaps.watch()
    return gaps


async def wait_applied(batches: trio.MemoryReceiveChannel[WatchEvents], objects: int) -> None:
    """Take events until so many objects have been applied; those before ``Synced`` are not counted apart."""
    left = objects
    async for events in batches:
        for event in events:
            assert isinstance(event, (Applied, Synced)), event
            left -= isinstance(event, Applied)
        if not left:
            return


async def measure(path: Path, objects: int, rounds: int) -> None:
    """Print the figures of a first read and of so many changes of all objects."""
    path.write_text(manifest(objects, 1000), encoding="utf-8")  # noqa: ASYNC240  nothing else runs yet
    async with trio.open_nursery() as nursery:
        send, events = trio.open_memory_channel[WatchEvents](100)
        _, reload_requested = trio.open_memory_channel[None](math.inf)
        gaps = Gaps()
        nursery.start_soon(gaps.watch)
        started = perf_counter_ns()
        nursery.start_soon(partial(run_manifests, [path], send, reload_requested))
        await wait_applied(events, objects)
        show(f"{objects} objects, first read", gaps, (perf_counter_ns() - started) * 1e-9)
        for port in range(1001, 1001 + rounds):
            path.write_text(manifest(objects, port), encoding="utf-8")  # noqa: ASYNC240  not measured
            gaps.reset()
            started = perf_counter_ns()
            await wait_applied(events, objects)
            show(f"{objects} objects changed", gaps, (perf_counter_ns() - started) * 1e-9)
        nursery.cancel_scope.cancel()


def show(what: str, gaps: Gaps, effect_s: float) -> None:
    """Print one line of figures."""
    print(
        f"{what:30}  in force after {effect_s:6.3f} s  "
        f"longest gap {gaps.own_s * 1e3:6.2f} ms ({gaps.wall_s * 1e3:.2f} ms with the wait for a CPU)"
    )


async def main() -> None:
    """Print all figures."""
    show("idle loop", await idle(2.0), 0.0)
    with tempfile.TemporaryDirectory() as directory:
        await measure(Path(directory, "objects.yaml"), OBJECTS, ROUNDS)
        await measure(Path(directory, "documents.yaml"), DOCUMENTS, 1)


if __name__ == "__main__":
    trio.run(main)

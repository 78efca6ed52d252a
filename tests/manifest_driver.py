"""Manifests as texts, and the manifest source run on them.

Entry points: ``service_text``, ``endpoint_slice_text``, ``documents``, ``watching``.
"""

import math
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field

from userspace_proxy.model.node import Node
from userspace_proxy.model.problem import Problem
from userspace_proxy.sources.base import Applied, ProblemsFound, Removed, Synced, WatchEvent, WatchEvents
from userspace_proxy.sources.manifests import run_manifests


def service_text(name: str = "shop/web", *, cluster_ip: object = "10.96.0.10", port: object = 80) -> str:
    """Return a Service as YAML; its values need not make sense."""
    namespace, _, name = name.partition("/")
    return f"""\
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  clusterIP: {cluster_ip}
  ports:
  - name: http
    port: {port}
"""


def endpoint_slice_text(
    name: str = "shop/web-1", addresses: Iterable[object] = ("10.0.1.1",), *, service: str = "web"
) -> str:
    """Return an EndpointSlice as YAML; its values need not make sense."""
    namespace, _, name = name.partition("/")
    endpoints = "".join(f"- addresses: [{address}]\n" for address in addresses)
    return f"""\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}
  namespace: {namespace}
  labels:
    kubernetes.io/service-name: {service}
addressType: IPv4
ports:
- name: http
  port: 8080
endpoints:
{endpoints}"""


def documents(*texts: str) -> str:
    """Return several texts as the documents of one file."""
    return "---\n".join(texts)


def write(path: Path, content: str | bytes) -> None:
    """Write a file in place; the loop can wait that long."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def replace(path: Path, text: str) -> None:
    """Write a file as careful programs do: another one, renamed to its name."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)


def summary(event: WatchEvent) -> str:
    """Return what an event says, as ``+Service shop/web``, ``-Service shop/web``, ``!origin 2`` or ``synced``."""
    match event:
        case Applied(object=object_):
            return f"+{type(object_).__name__} {object_.name}"
        case Removed(type=type_, name=name):
            return f"-{type_.__name__} {name}"
        case ProblemsFound(origin=origin, problems=problems):
            return f"!{os.path.basename(origin)} {len(problems)}"  # noqa: PTH119  the text of a path
        case Synced():
            return "synced"


def origin_of(event: WatchEvent) -> str:
    """Return where the Service or EndpointSlice of an ``Applied`` was read."""
    assert isinstance(event, Applied)
    assert not isinstance(event.object, Node)
    return event.object.origin


def problems_in(events: Iterable[WatchEvent]) -> list[Problem]:
    """Return all Problems that events tell of."""
    return [problem for event in events if isinstance(event, ProblemsFound) for problem in event.problems]


@define
class Watched:
    """A run of the manifest source."""

    batches: trio.MemoryReceiveChannel[WatchEvents]
    _reload: trio.MemorySendChannel[None]
    _untaken: list[WatchEvent] = field(factory=list, init=False)
    """The rest of the last batch."""

    def reload(self) -> None:
        """Ask for all files to be read again, as SIGHUP does."""
        self._reload.send_nowait(None)

    async def until(self, last: str) -> list[WatchEvent]:
        """Take events until one whose summary is ``last``; return them all."""
        taken: list[WatchEvent] = []
        while not taken or summary(taken[-1]) != last:
            if not self._untaken:
                self._untaken.extend(await self.batches.receive())
            taken.append(self._untaken.pop(0))
        return taken

    async def summaries_until(self, last: str) -> list[str]:
        """Take events until one whose summary is ``last``; return the summaries of them all."""
        return [summary(event) for event in await self.until(last)]


@asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[Watched]:
    """Run the manifest source on paths."""
    send, batches = trio.open_memory_channel[WatchEvents](math.inf)
    reload_send, reload_requested = trio.open_memory_channel[None](1)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_manifests, paths, send, reload_requested)
            yield Watched(batches, reload_send)
            nursery.cancel_scope.cancel()

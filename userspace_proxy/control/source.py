"""From the source that the configuration asks for to the pipeline. Entry point: ``run_source``."""

from collections.abc import Callable
from functools import partial

import trio

from userspace_proxy.config import Config
from userspace_proxy.control.pipeline import ObjectType, Pipeline
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.node import Node
from userspace_proxy.model.service_port import Service
from userspace_proxy.sources.api_source import run_api
from userspace_proxy.sources.base import ApiState, Applied, Removed, Synced, WatchEvent, WatchEvents
from userspace_proxy.sources.manifests import run_manifests


async def run_source(
    config: Config,
    pipeline: Pipeline,
    *,
    reload_requested: trio.MemoryReceiveChannel[None],
    api: ApiState,
    wall_clock: Callable[[], float],
) -> None:
    """Feed the pipeline, which takes its time, and the source waits for it. Does not return; may be started again.

    Args:
        config: Says which source.
        pipeline: Is fed.
        reload_requested: Each item has manifests read again.
        api: Gets what becomes known of the API server's objects.
        wall_clock: Returns seconds since the epoch.

    Raises:
        ConfigError: something that the configuration names cannot be used.
    """
    send, receive = trio.open_memory_channel[WatchEvents](0)
    async with trio.open_nursery() as nursery, receive:
        if config.manifests:
            nursery.start_soon(run_manifests, config.manifests, send, reload_requested)
        else:
            nursery.start_soon(
                partial(run_api, config.api, send, node_name=config.node_name, state=api, wall_clock=wall_clock)
            )
        known: set[tuple[ObjectType, NamespacedName]] = set()
        async for events in receive:
            for event in events:
                _follow(known, event)
            if any(isinstance(event, Synced) for event in events):  # after a bug this is not the first time
                await pipeline.retain(known)
            await pipeline.feed(events)


def _follow(known: set[tuple[ObjectType, NamespacedName]], event: WatchEvent) -> None:
    match event:
        case Applied(Node() as node):
            known.add((Node, NamespacedName("", node.name)))
        case Applied(Service() | EndpointSlice() as obj):
            known.add((type(obj), obj.name))
        case Removed(kind, name):
            known.discard((kind, name))

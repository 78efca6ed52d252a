"""What every source of objects says: WatchEvents, in the order in which they are to take effect.

A source is an async function ``run_*(..., send, ...)`` that does not return. It sends batches of ``Applied`` and
``Removed`` for objects, ``ProblemsFound`` for what it could not use, and ``Synced`` exactly once, after the first
complete list of everything. Objects are values of ``model``: parsing happens in the source.
"""

from collections.abc import Mapping, Sequence

from attrs import define, field, frozen

from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.node import Node
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Service


@frozen
class Applied:
    """An object is new or has changed; it replaces the one of the same type and name."""

    object: Service | EndpointSlice | Node


@frozen
class Removed:
    """An object is gone, or no longer one we serve."""

    type: type[Service] | type[EndpointSlice] | type[Node]
    name: NamespacedName
    """That of a Node has an empty namespace."""


@frozen
class ProblemsFound:
    """All Problems of one origin (a file, an object of the API server); replaces what was said of it before."""

    origin: str
    problems: tuple[Problem, ...]


@frozen
class Synced:
    """The first complete list has been sent."""


WatchEvent = Applied | Removed | ProblemsFound | Synced
WatchEvents = Sequence[WatchEvent]
"""A batch: what takes effect together, in this order."""


@define(eq=False)
class ResourceState:
    """How well one resource of the API server is known; its watch writes, metrics and health read."""

    is_listed: bool = False
    """Whether its first list is complete."""
    current_at_s: float | None = None
    """When it was last known to be current, in seconds since the epoch: by a list, an event, a bookmark, or a watch
    that ended as it should. None: never."""
    last_event_at_s: float | None = None
    """When an object of it last changed, the same way."""
    failure: str = ""
    """Why it is not being watched right now, one sentence; empty when it is."""
    events: int = 0
    """Received from watches, without bookmarks."""
    lists: int = 0
    """Complete ones."""
    failures: Mapping[str, int] = field(factory=dict)
    """Failed requests and broken watches by reason, a few fixed words."""


@define(eq=False)
class ApiState:
    """How well the objects of the API server are known, by resource (``services``, ``endpointslices``, ``nodes``)."""

    resources: dict[str, ResourceState] = field(factory=dict)
    server: str = ""
    """URL of the API server."""

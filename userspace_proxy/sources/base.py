"""What every source of objects says: WatchEvents, in the order in which they are to take effect.

A source is an async function ``run_*(send)`` that does not return. It sends ``Applied`` and ``Removed`` for objects,
``ProblemsFound`` for what it could not use, and ``Synced`` exactly once, after the first complete list. Objects are
values of ``model``: parsing happens in the source.
"""

from attrs import frozen

from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Service


@frozen
class Applied:
    """An object is new or has changed; it replaces the one of the same type and name."""

    object: Service | EndpointSlice


@frozen
class Removed:
    """An object is gone, or no longer one we serve."""

    type: type[Service] | type[EndpointSlice]
    name: NamespacedName


@frozen
class ProblemsFound:
    """All Problems of one origin (a file, a resource); replaces what was said of that origin before."""

    origin: str
    problems: tuple[Problem, ...]


@frozen
class Synced:
    """The first complete list has been sent."""


WatchEvent = Applied | Removed | ProblemsFound | Synced

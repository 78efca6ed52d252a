"""The resources that the API server double knows, and how their paths are read.

Entry points: ``RESOURCES``, ``parse_path``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from apiserver.event_names import from_core, to_core
from apiserver.statuses import no_such_path
from attrs import field, frozen


@frozen
class Resource:
    """A kind of objects, as one version of one API group shows it."""

    plural: str
    kind: str
    group: str = ""
    """Empty for the core group."""
    is_namespaced: bool = True
    has_status: bool = False
    """Whether ``status`` is written by way of a subresource only."""
    field_paths: Mapping[str, str] = field(factory=dict)
    """Field labels for selectors, besides those of the name, with the value of one that is not set."""
    empty: Mapping[str, Any] = field(factory=dict)
    """What an object without content shows, as in a bookmark."""
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    """Makes what is kept of what clients send."""
    show: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    """Makes what clients see of what is kept, where it is not the same."""

    @property
    def api_version(self) -> str:
        """Group and version, as objects have it."""
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def all_field_paths(self) -> Mapping[str, str]:
        """Field labels for selectors."""
        return {"metadata.name": "", **({"metadata.namespace": ""} if self.is_namespaced else {}), **self.field_paths}

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the path of a collection, in all namespaces with None, or of an object."""
        parts = ["/apis" if self.group else "/api", self.api_version]
        parts += ["namespaces", namespace] if namespace is not None and self.is_namespaced else []
        parts += [self.plural, *([name] if name is not None else []), *([subresource] if subresource else [])]
        return "/".join(parts)


NAMESPACES = Resource("namespaces", "Namespace", is_namespaced=False, has_status=True, field_paths={"status.phase": ""})
SERVICES = Resource(
    "services",
    "Service",
    has_status=True,
    field_paths={"spec.clusterIP": "", "spec.type": ""},
    empty={"spec": {}, "status": {"loadBalancer": {}}},
)
ENDPOINT_SLICES = Resource(
    "endpointslices",
    "EndpointSlice",
    "discovery.k8s.io",
    empty={"addressType": "", "endpoints": None, "ports": None},
)
NODES = Resource(
    "nodes",
    "Node",
    is_namespaced=False,
    has_status=True,
    field_paths={"spec.unschedulable": "false"},
    empty={"spec": {}, "status": {}},
)
CORE_EVENTS = Resource(
    "events",
    "Event",
    field_paths={f"involvedObject.{part}": "" for part in ("kind", "namespace", "name", "uid")}
    | {"reason": "", "type": "", "reportingComponent": ""},
    empty={"involvedObject": {}, "source": {}},
)
EVENTS = Resource(
    "events",
    "Event",
    "events.k8s.io",
    field_paths={f"regarding.{part}": "" for part in ("kind", "namespace", "name", "uid")}
    | {"reason": "", "type": "", "reportingController": ""},
    empty={"eventTime": None, "regarding": {}},
    read=to_core,
    show=from_core,
)

RESOURCES = (NAMESPACES, SERVICES, ENDPOINT_SLICES, NODES, CORE_EVENTS, EVENTS)


@frozen
class Place:
    """What a path names."""

    resource: Resource
    namespace: str | None
    """None: all namespaces, or a resource without."""
    name: str | None
    """None: the collection."""
    subresource: str | None

    @property
    def plural(self) -> str:
        """Name of the resource as in RBAC, with its subresource."""
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural


def parse_path(path: str) -> Place:
    """Return what a path names.

    Raises:
        ApiError: 404, nothing.
    """
    parts = path.strip("/").split("/")
    match parts:
        case ["api", "v1", *rest]:
            group = ""
        case ["apis", group, "v1", *rest]:
            pass
        case _:
            raise no_such_path()
    namespace = None
    if len(rest) > 2 and rest[0] == "namespaces" and rest[2] != "status":
        namespace, rest = rest[1], rest[2:]
    plural, *names = rest or [""]
    for resource in RESOURCES:
        if (resource.plural, resource.group) != (plural, group) or (namespace is not None) > resource.is_namespaced:
            continue
        name, subresource = [*names, None, None][:2]
        is_status = subresource == "status" and resource.has_status
        is_whole = name is None or namespace is not None or not resource.is_namespaced
        if len(names) <= 1 + is_status and is_whole:
            return Place(resource, namespace, name, subresource)
    raise no_such_path()

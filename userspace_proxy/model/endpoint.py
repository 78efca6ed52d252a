"""EndpointSlice and Endpoint: who can answer for a Service."""

from attrs import field, frozen

from userspace_proxy.model.names import Family, IPAddress, NamespacedName, Protocol


@frozen
class Endpoint:
    """One address of an EndpointSlice with its conditions; the unset ones have their API meaning already."""

    address: IPAddress
    ready: bool
    serving: bool
    terminating: bool
    node_name: str | None
    """The node it runs on, None when not said."""
    hinted_zones: tuple[str, ...] = ()
    """The zones that should use it (``hints.forZones``)."""
    hinted_nodes: tuple[str, ...] = ()
    """The nodes that should use it (``hints.forNodes``)."""


@frozen
class EndpointPort:
    """One port of an EndpointSlice; it matches the ServicePort of the same name and protocol."""

    name: str
    protocol: Protocol
    port: int


@frozen
class EndpointSlice:
    """Some of the endpoints of one Service in one family."""

    name: NamespacedName
    service: NamespacedName
    """From the label ``kubernetes.io/service-name``."""
    family: Family
    ports: tuple[EndpointPort, ...]
    endpoints: tuple[Endpoint, ...]
    origin: str
    """Where the object was read (see ``Problem.origin``)."""
    triggered_at_s: float | None = field(default=None, eq=False)
    """When the change happened that led to this value, in seconds since the epoch, as the controller that wrote it
    says (annotation ``endpoints.kubernetes.io/last-change-trigger-time``); no part of the value."""

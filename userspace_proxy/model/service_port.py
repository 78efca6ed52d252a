"""Service and ServicePort: the part of a Service that this proxy serves."""

from enum import StrEnum

from attrs import frozen

from userspace_proxy.model.names import IPAddress, NamespacedName, ServicePortName


class Balance(StrEnum):
    """How the Backends of a Pool share the connections (annotation ``userspace-proxy.io/balance``)."""

    ROUND_ROBIN = "round-robin"
    """Each Backend in turn."""
    LEAST_CONNECTIONS = "least-connections"
    """Of two Backends drawn at random, the one with fewer open connections."""


@frozen
class ServicePort:
    """One port of one Service."""

    name: ServicePortName
    port: int
    """The number clients dial at a cluster address, 1-65535."""
    node_port: int | None
    """The number clients dial at a node address, 1-65535; None where the Service has no NodePort."""


@frozen
class Service:
    """A Service that is to be proxied: neither headless nor ExternalName."""

    name: NamespacedName
    cluster_ips: tuple[IPAddress, ...]
    """At most one of each family; the families of these are the families the Service has."""
    ports: tuple[ServicePort, ...]
    balance: Balance | None
    """What the annotation asks for; None leaves it to the default."""
    origin: str
    """Where the object was read (see ``Problem.origin``)."""

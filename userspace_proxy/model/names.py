"""Names and small vocabularies that everything else is keyed by. Imports nothing of the package."""

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from attrs import frozen

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class Protocol(StrEnum):
    """The transport protocols a Service port can have; the values are the API's."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class Family(StrEnum):
    """The IP families; the values are the API's (``spec.ipFamilies``, ``addressType``)."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"


def family_of(address: IPAddress | IPNetwork) -> Family:
    """Return the family of an address or a network."""
    return Family.IPV4 if address.version == 4 else Family.IPV6  # noqa: PLR2004


@frozen(order=True, cache_hash=True)
class NamespacedName:
    """Namespace and name of an object; prints as ``namespace/name``."""

    namespace: str
    name: str

    def __str__(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@frozen(order=True, cache_hash=True)
class ServicePortName:
    """Identity of a ServicePort: Service, port *name* and protocol; its number never identifies it."""

    service: NamespacedName
    port: str
    """Name of the port; ``""`` for the unnamed port of a single-port Service."""
    protocol: Protocol

    def __str__(self) -> str:
        """Return ``namespace/name:port``, or ``namespace/name`` for an unnamed port (kube-proxy's rendering)."""
        return f"{self.service}:{self.port}" if self.port else str(self.service)

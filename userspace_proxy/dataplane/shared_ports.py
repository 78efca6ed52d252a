"""SharedPorts: which listeners are at the same port, and whether they have to share it.

A NodePort is bound at the wildcard address and a cluster address at itself, where steering asks for that; both may have
the same port number. The kernel lets sockets share a port only if all of them say so (see ``sockets.share_port``), and
they must say so only where it is needed. No effects. Entry point: ``SharedPorts``.
"""

from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address

from userspace_proxy.model.names import IPAddress, Protocol
from userspace_proxy.plan.state import ListenerKey, ListenerSpec

_WILDCARD: Mapping[int, IPAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}

_Port = tuple[Protocol, int, int]
"""Protocol, version of IP, number."""


class SharedPorts:
    """The places of all listeners that are wanted, by port."""

    def __init__(self) -> None:
        self._places: dict[_Port, dict[IPAddress, dict[ListenerKey, None]]] = {}
        """Without ports and addresses that nobody is at."""

    def add(self, spec: ListenerSpec) -> bool:
        """Note a listener; return whether its port is to be shared from now on and was not before."""
        was_shared = self.is_shared(spec)
        self._places.setdefault(_port(spec), {}).setdefault(spec.address, {})[spec.key] = None
        return self.is_shared(spec) and not was_shared

    def remove(self, spec: ListenerSpec) -> bool:
        """Forget a listener that was added; return whether its port was to be shared and is not any more."""
        was_shared = self.is_shared(spec)
        addresses = self._places[_port(spec)]
        keys = addresses[spec.address]
        del keys[spec.key]
        if not keys:
            del addresses[spec.address]
        if not addresses:
            del self._places[_port(spec)]
        return was_shared and not self.is_shared(spec)

    def is_shared(self, spec: ListenerSpec) -> bool:
        """Return whether listeners at the wildcard address and at others are at the port of a listener."""
        addresses = self._places.get(_port(spec), {})
        return len(addresses) > 1 and _WILDCARD[spec.address.version] in addresses

    def at_port(self, spec: ListenerSpec) -> Iterator[ListenerKey]:
        """Iterate over the listeners at the port of a listener, that one included."""
        for keys in self._places.get(_port(spec), {}).values():
            yield from keys

    def at_place(self, spec: ListenerSpec) -> Collection[ListenerKey]:
        """Return the listeners at the port and address of a listener, that one included; a live view."""
        return self._places.get(_port(spec), {}).get(spec.address, {}).keys()


def _port(spec: ListenerSpec) -> _Port:
    return spec.key.service_port.protocol, spec.address.version, spec.port

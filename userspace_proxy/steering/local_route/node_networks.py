"""The networks this node is connected to: what a route of ours must not take from it. Reads, never changes anything.

Entry point: ``read_node_networks``.
"""

import socket
from collections.abc import Iterable, Mapping
from contextlib import closing
from ipaddress import ip_address

from attrs import frozen

from userspace_proxy.model.names import IPAddress, IPNetwork
from userspace_proxy.steering.local_route.route_messages import LO_INDEX, RTN_UNICAST, RouteEntry, network_of
from userspace_proxy.steering.local_route.route_socket import RouteSocket
from userspace_proxy.steering.node_state import read_local_addresses

_Masked = tuple[int, int, int]
"""Version, length of the prefix, and the bits within it."""


@frozen
class NodeNetworks:
    """What this node is connected to."""

    addresses: frozenset[IPAddress]
    """Its own, of both families."""
    gateways: frozenset[IPAddress]
    """Those of its default routes."""
    on_link: Mapping[IPNetwork, str]
    """The networks whose addresses it reaches without a gateway, each with an interface; a default route does not
    count."""
    _by_bits: Mapping[_Masked, IPNetwork]
    _lengths: tuple[tuple[int, int], ...]
    """Version and length of the prefixes there are, the longest first."""

    def network_of(self, address: IPAddress) -> IPNetwork | None:
        """Return the smallest network on a link that an address is in."""
        bits = int(address)
        for version, length in self._lengths:
            if version == address.version:
                found = self._by_bits.get((version, length, bits >> (address.max_prefixlen - length)))
                if found is not None:
                    return found
        return None

    def conflict_with(self, network: IPNetwork) -> str | None:
        """Return what of the node's own a route for a network would take away; None: nothing."""
        for address in sorted(self.addresses | self.gateways, key=str):
            if address in network:
                return f"{address}, {'an address' if address in self.addresses else 'the default gateway'} of this node"
        for linked, interface in self.on_link.items():
            if linked.version == network.version and linked.overlaps(network):
                return f"addresses of {linked}, the network on {interface}"
        return None


def build_node_networks(
    addresses: Iterable[IPAddress], routes: Iterable[RouteEntry], names: Mapping[int, str]
) -> NodeNetworks:
    """Return what some addresses and unicast routes say.

    Args:
        addresses: Those of the node.
        routes: All those that lead anywhere.
        names: Of interfaces, by index.
    """
    gateways: set[IPAddress] = set()
    on_link: dict[IPNetwork, str] = {}
    for route in routes:
        is_default = route.prefix[1] == 0
        for interface, gateway in route.next_hops:
            if is_default and gateway:
                gateways.add(ip_address(gateway))
            elif not (is_default or gateway) and interface not in (0, LO_INDEX):
                on_link.setdefault(network_of(route.prefix), names.get(interface, f"interface {interface}"))
    by_bits = {_masked(network): network for network in on_link}
    lengths = sorted({(version, length) for version, length, _ in by_bits}, reverse=True)
    return NodeNetworks(frozenset(addresses), frozenset(gateways), on_link, by_bits, tuple(lengths))


def read_node_networks() -> NodeNetworks:
    """Return the networks of this network namespace.

    Raises:
        OSError: they cannot be read.
    """
    with closing(RouteSocket()) as requests:
        routes = requests.list_routes(kind=RTN_UNICAST)
    return build_node_networks(read_local_addresses(), routes, dict(socket.if_nameindex()))


def _masked(network: IPNetwork) -> _Masked:
    length = network.prefixlen
    return network.version, length, int(network.network_address) >> (network.max_prefixlen - length)

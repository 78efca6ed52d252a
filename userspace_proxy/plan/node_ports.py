"""At which addresses of this node NodePorts answer. Pure; knows no Service.

Entry point: ``choose_node_port_addresses``.
"""

from collections.abc import Collection, Mapping

from userspace_proxy.config import NodePortAddresses
from userspace_proxy.model.names import Family, IPAddress, family_of


def choose_node_port_addresses(
    wanted: NodePortAddresses, local_addresses: Collection[IPAddress], node_addresses: Mapping[Family, IPAddress]
) -> Mapping[Family, tuple[IPAddress, ...]]:
    """Return the addresses to bind NodePorts at, sorted; a family that is missing is not restricted to some.

    Without a network of a family, and with one that holds all of its addresses, that family is not restricted. An
    empty tuple means that no NodePort answers in that family, at least not for now.

    Args:
        wanted: What the setting says.
        local_addresses: All addresses of this node.
        node_addresses: The primary address of the node in each family, as far as it is known.

    Source: kube-proxy's ``pkg/proxy/util/nodeport_addresses.go``; ``nodePortAddresses`` of KubeProxyConfiguration.
    """
    if wanted.is_primary:
        return {family: _primary(node_addresses.get(family)) for family in Family}
    chosen: dict[Family, tuple[IPAddress, ...]] = {}
    for family in Family:
        networks = [network for network in wanted.networks if family_of(network) is family]
        if networks and all(network.prefixlen for network in networks):
            matching = {one for one in local_addresses if any(one in network for network in networks)}
            chosen[family] = tuple(sorted(one for one in matching if _is_bindable(one)))
    return chosen


def _primary(address: IPAddress | None) -> tuple[IPAddress, ...]:
    return () if address is None or address.is_loopback or not _is_bindable(address) else (address,)


def _is_bindable(address: IPAddress) -> bool:
    """Return whether a socket can be bound to an address alone: IPv6 link-local ones need an interface beside."""
    return address.version == 4 or not address.is_link_local  # noqa: PLR2004

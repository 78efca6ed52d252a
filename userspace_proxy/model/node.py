"""Node: what there is to know of the node this proxy runs on."""

from collections.abc import Mapping

from attrs import field, frozen

from userspace_proxy.model.names import Family, IPAddress, IPNetwork


@frozen
class Node:
    """The Node object with the name of this node."""

    name: str
    zone: str = ""
    """Its label ``topology.kubernetes.io/zone``; empty: none, which no hint matches."""
    addresses: Mapping[Family, IPAddress] = field(factory=dict)
    """The primary address of each family: the first InternalIP, else the first ExternalIP."""
    pod_networks: tuple[IPNetwork, ...] = ()
    """Where its pods have their addresses (``spec.podCIDRs``)."""
    is_eligible: bool = True
    """False: load balancers should send no new traffic here, as the node is being deleted."""

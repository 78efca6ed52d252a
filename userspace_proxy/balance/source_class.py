"""Where a client is, told by its address: the SourceClass that traffic policies ask for, and who is within ranges.

Pure. Entry points: ``classify``, ``is_within``.
"""

from collections.abc import Iterable

from userspace_proxy.model.names import IPAddress, IPNetwork
from userspace_proxy.plan.state import SourceAddresses, SourceClass


def classify(client: IPAddress, dialled: IPAddress, sources: SourceAddresses) -> SourceClass:
    """Return the class of a client.

    A client that has the very address it dialled is this node: the kernel takes a local destination for the source as
    well. kube-proxy looks for pods first; it is of no matter which comes first where both apply (a pod network may
    contain the address of the node's own bridge), as policies treat both alike.

    Args:
        client: The source of the connection.
        dialled: Where it arrived.
        sources: What is known of the node and of pods.

    Source: kube-proxy pkg/proxy/iptables/proxier.go, the rules of external chains.
    """
    if client.is_loopback or client == dialled or client in sources.local_addresses:
        return SourceClass.HOST
    return SourceClass.POD if _is_in(client, sources.pod_networks) else SourceClass.OUTSIDE


def is_within(client: IPAddress, dialled: IPAddress, ranges: Iterable[IPNetwork], sources: SourceAddresses) -> bool:
    """Return whether ``loadBalancerSourceRanges`` let a client in.

    The kernel chooses among the node's addresses when the node dials an address that it has itself. So where one of
    the node's is let in, these are too: loopback, and the address that was dialled. kube-proxy does the same for the
    latter (pkg/proxy/iptables/proxier.go, ``allowFromNode``).
    """
    if _is_in(client, ranges):
        return True
    if client.is_loopback or client == dialled:
        return any(_is_in(address, ranges) for address in sources.local_addresses)
    return False


def _is_in(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(address in network for network in networks)

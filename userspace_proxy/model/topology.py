"""Which Endpoints of a ServicePort may be used from this node: conditions, hints and nodes, for each scope apart.

The rules are kube-proxy's (``pkg/proxy/topology.go``). Decides nothing about policies: whether a connection is for
the Endpoints of the cluster or for those of this node is the plan's. Entry points: ``select_cluster``,
``select_local``, ``select_serving``, ``is_any_usable``.
"""

from collections.abc import Sequence

from userspace_proxy.model.endpoint import Endpoint
from userspace_proxy.model.endpoint_slices import MergedEndpoint


def select_cluster(merged: Sequence[MergedEndpoint], node_name: str, zone: str) -> tuple[MergedEndpoint, ...]:
    """Return the Endpoints for connections that may go anywhere in the cluster, in their order.

    The ready ones, of them only the hinted ones if the hints are to be followed; if none is ready, those that still
    serve while they terminate, whatever their hints. ``ready`` alone decides the first set: a Service that publishes
    addresses which are not ready has Endpoints that are ready and terminating at once.

    Args:
        merged: All Endpoints of a ServicePort in one family.
        node_name: That of this node; empty: no hint means it.
        zone: That of this node; empty: no hint means it.
    """
    ready = tuple(one for one in merged if one.endpoint.ready)
    if not ready:
        return tuple(one for one in merged if _is_fallback(one.endpoint))
    return _hinted_for_node(ready, node_name) or _hinted_for_zone(ready, zone) or ready


def select_local(merged: Sequence[MergedEndpoint], node_name: str) -> tuple[MergedEndpoint, ...]:
    """Return the Endpoints for connections that may not leave this node, in their order; hints do not matter here.

    The ready ones on this node; if none of those is ready, those on this node that still serve while they terminate,
    whatever there is elsewhere.

    Args:
        merged: All Endpoints of a ServicePort in one family.
        node_name: That of this node; empty: no Endpoint is on it.
    """
    local = [one for one in merged if is_local(one.endpoint, node_name)]
    ready = tuple(one for one in local if one.endpoint.ready)
    return ready or tuple(one for one in local if _is_fallback(one.endpoint))


def select_serving(merged: Sequence[MergedEndpoint]) -> tuple[MergedEndpoint, ...]:
    """Return the Endpoints that still answer, in their order, wherever they are and whatever their hints.

    Not for anything new: what goes on at one of them may go on there, however conditions and policies change.

    Source: kube-proxy's ``pkg/proxy/conntrack/cleanup.go``, which lets conntrack entries to these stand.
    """
    return tuple(one for one in merged if one.endpoint.ready or one.endpoint.serving)


def is_any_usable(merged: Sequence[MergedEndpoint]) -> bool:
    """Return whether somewhere in the cluster an Endpoint could answer; if not, clients are refused, not dropped."""
    return any(one.endpoint.ready or _is_fallback(one.endpoint) for one in merged)


def is_local(endpoint: Endpoint, node_name: str) -> bool:
    """Return whether an Endpoint is on the node of that name; for an empty name none is."""
    return bool(node_name) and endpoint.node_name == node_name


def _is_fallback(endpoint: Endpoint) -> bool:
    return not endpoint.ready and endpoint.serving and endpoint.terminating


def _hinted_for_node(ready: tuple[MergedEndpoint, ...], node_name: str) -> tuple[MergedEndpoint, ...]:
    """Return the Endpoints hinted for a node; none unless every ready Endpoint has hints of this kind.

    All or nothing: a controller that has written half of its hints must not lead all clients to a few Endpoints.
    """
    if not node_name or not all(one.endpoint.hinted_nodes for one in ready):
        return ()
    return tuple(one for one in ready if node_name in one.endpoint.hinted_nodes)


def _hinted_for_zone(ready: tuple[MergedEndpoint, ...], zone: str) -> tuple[MergedEndpoint, ...]:
    """Return the Endpoints hinted for a zone, by the rules of ``_hinted_for_node``."""
    if not zone or not all(one.endpoint.hinted_zones for one in ready):
        return ()
    return tuple(one for one in ready if zone in one.endpoint.hinted_zones)

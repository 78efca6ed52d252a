"""What every cluster holds from the beginning.

Entry point: ``seed``.
"""

from collections.abc import Sequence
from typing import Any

from apiserver.allotment import Allotment
from apiserver.resources import ENDPOINT_SLICES, NAMESPACES, SERVICES, Place
from apiserver.store import Store
from apiserver.writing import Writer

SYSTEM_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
ADVERTISED = ("192.0.2.1", 6443)
"""Where clients inside the cluster are told the API server is; from the network for documentation (RFC 5737)."""


def seed(store: Store, writer: Writer, allotment: Allotment) -> None:
    """Create the system's namespaces, and the Service ``default/kubernetes`` with its EndpointSlice."""
    for name in SYSTEM_NAMESPACES:
        writer.create(store, Place(NAMESPACES, None, None, None), {"metadata": {"name": name}})
    primary = next(iter(allotment.networks.values()))
    address, port = ADVERTISED
    labels = {"component": "apiserver", "provider": "kubernetes"}
    service: dict[str, Any] = {
        "metadata": {"name": "kubernetes", "labels": labels},
        "spec": {"clusterIP": str(primary[1]), "ports": [{"name": "https", "port": 443, "targetPort": port}]},
    }
    writer.create(store, Place(SERVICES, "default", None, None), service)
    endpoints: Sequence[dict[str, Any]] = [{"addresses": [address], "conditions": {"ready": True}}]
    endpoint_slice: dict[str, Any] = {
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }
    writer.create(store, Place(ENDPOINT_SLICES, "default", None, None), endpoint_slice)

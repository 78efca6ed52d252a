"""The cluster that tests use: what it makes is there, and is gone at the end."""

import pytest
from apiserver.cluster import Cluster, endpoint_slice_manifest, node_manifest, service_manifest
from apiserver.kube_client import RefusedError


def test_cluster_creates_changes_and_deletes_objects(cluster: Cluster) -> None:
    """A Service and its EndpointSlice live through all that can be done to them."""
    service = cluster.create(service_manifest())
    endpoint_slice = cluster.create(endpoint_slice_manifest("web-1", "10.0.1.1"))
    changed = cluster.patch(service, {"metadata": {"labels": {"tier": "front"}}})
    assert changed["metadata"]["labels"] == {"tier": "front"}
    endpoint_slice["endpoints"].append({"addresses": ["10.0.1.2"]})
    assert len(cluster.replace(endpoint_slice)["endpoints"]) == 2
    cluster.delete(service)
    with pytest.raises(RefusedError) as caught:
        cluster.get(service)
    assert (caught.value.code, caught.value.reason) == (404, "NotFound")


def test_cluster_ends_with_all_it_made_deleted(double_cluster: Cluster) -> None:
    """Objects outside the namespace are deleted, too."""
    double_cluster.create(service_manifest())
    double_cluster.create(node_manifest("extra", "10.0.0.9", zone="a"))

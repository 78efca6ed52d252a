"""Creating, changing and deleting objects: versions, conflicts, patches, namespaces, Events."""

from datetime import UTC, datetime
from typing import Any

import pytest
from apiserver.cluster import Cluster, endpoint_slice_manifest, node_manifest, service_manifest
from apiserver.double import ApiServer
from apiserver.kube_client import RefusedError
from apiserver.resources import CORE_EVENTS, EVENTS, NAMESPACES, SERVICES
from apiserver.writing import merged


def refusal(cluster: Cluster, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """Return code and reason with which a request is refused."""
    with pytest.raises(RefusedError) as caught:
        cluster.client.request(method, path, body)
    return caught.value.code, caught.value.reason


def test_object_gets_its_metadata(cluster: Cluster) -> None:
    """A new object has uid, version and time; what the author says of them does not count."""
    manifest = service_manifest()
    manifest["metadata"] |= {"uid": "mine", "creationTimestamp": "1999-01-01T00:00:00Z"}
    metadata = cluster.create(manifest)["metadata"]
    assert metadata["namespace"] == cluster.namespace
    assert metadata["uid"] != "mine"
    assert metadata["creationTimestamp"] > "2020"
    assert int(metadata["resourceVersion"]) > 0


def test_object_with_a_generated_name_gets_one(cluster: Cluster) -> None:
    """``generateName`` is the begin of the name."""
    manifest = endpoint_slice_manifest()
    manifest["metadata"] = {"generateName": "web-"}
    first, second = (cluster.create(manifest)["metadata"]["name"] for _ in range(2))
    assert first.startswith("web-")
    assert first != second


def test_object_made_twice_exists(cluster: Cluster) -> None:
    """The second one gets 409."""
    cluster.create(service_manifest())
    path = SERVICES.path(cluster.namespace)
    assert refusal(cluster, "POST", path, service_manifest()) == (409, "AlreadyExists")


def test_update_of_an_older_version_is_a_conflict(cluster: Cluster) -> None:
    """A writer that has not seen the last change is refused; without a version it is not."""
    old = cluster.create(service_manifest())
    cluster.patch(old, {"metadata": {"labels": {"a": "b"}}})
    path = SERVICES.path(cluster.namespace, "web")
    assert refusal(cluster, "PUT", path, old) == (409, "Conflict")
    del old["metadata"]["resourceVersion"]
    assert "labels" not in cluster.replace(old)["metadata"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_object_that_is_not_there_is_not_found(method: str, cluster: Cluster) -> None:
    """The answer is 404."""
    if method == "PUT":
        path, body = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices/none", endpoint_slice_manifest("none")
    else:
        path, body = "/api/v1/namespaces/{}/services/none", None
    assert refusal(cluster, method, path.format(cluster.namespace), body) == (404, "NotFound")


def test_object_in_a_namespace_that_is_not_there_is_not_found(cluster: Cluster) -> None:
    """Namespaces come first."""
    assert refusal(cluster, "POST", SERVICES.path("nowhere"), service_manifest()) == (404, "NotFound")


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/api/v1/namespaces/default/services", {**service_manifest(), "kind": "Node"}, 400),
        ("POST", "/api/v1/namespaces/default/services", {**service_manifest(), "apiVersion": "v2"}, 400),
        ("POST", "/api/v1/namespaces/default/services", {"metadata": {}, "spec": {"ports": [{"port": 1}]}}, 422),
        ("PUT", "/api/v1/namespaces/default/services/kubernetes", service_manifest("other"), 400),
        ("DELETE", "/api/v1/namespaces/default/services/kubernetes/scale", None, 404),
        ("GET", "/apis/apps/v2/deployments", None, 404),
    ],
)
def test_request_that_makes_no_sense_is_refused(
    method: str, path: str, body: dict[str, Any] | None, code: int, double_cluster: Cluster
) -> None:
    """The answer is a Status of failure."""
    assert refusal(double_cluster, method, path, body)[0] == code


def test_object_with_another_namespace_than_its_path_is_refused(double_cluster: Cluster) -> None:
    """The path and the object agree."""
    manifest = service_manifest()
    manifest["metadata"]["namespace"] = "default"
    assert refusal(double_cluster, "POST", SERVICES.path(double_cluster.namespace), manifest)[0] == 400


def test_object_to_be_made_has_no_version(double_cluster: Cluster) -> None:
    """A version in a new object is refused."""
    manifest = service_manifest()
    manifest["metadata"]["resourceVersion"] = "5"
    assert refusal(double_cluster, "POST", SERVICES.path(double_cluster.namespace), manifest)[0] == 400


def test_patch_of_another_kind_is_not_supported(double_cluster: Cluster) -> None:
    """Merge patches are the only ones."""
    double_cluster.create(service_manifest())
    assert refusal(double_cluster, "PATCH", SERVICES.path(double_cluster.namespace, "web"), {})[0] == 415


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_is_that_of_the_rfc(target: Any, patch: Any, result: Any) -> None:
    """The examples of RFC 7386, appendix A, hold."""
    assert merged(target, patch) == result


def test_namespace_takes_its_objects_along(api_server: ApiServer, double_cluster: Cluster) -> None:
    """With a namespace all in it is deleted, and a watch hears of each."""
    double_cluster.create(service_manifest(type="NodePort"))
    path = f"{SERVICES.path()}?watch=1&timeoutSeconds=20&fieldSelector=metadata.name%3Dweb"
    with double_cluster.client.watch(path) as events:
        assert next(events)["type"] == "ADDED"
        double_cluster.client.request("DELETE", NAMESPACES.path(name=double_cluster.namespace))
        assert next(events)["type"] == "DELETED"
    held = api_server.in_thread(lambda store: [key.namespace for key in store.collection("services").objects])
    assert held == ["default"]


def test_node_has_its_status_from_the_beginning(double_cluster: Cluster) -> None:
    """A Node is made with its addresses; later writes leave the status to its subresource."""
    node = double_cluster.create(node_manifest("one", "10.0.0.1", zone="a"))
    assert node["status"]["addresses"] == [{"type": "InternalIP", "address": "10.0.0.1"}]
    assert double_cluster.patch(node, {"status": {"addresses": []}})["status"] == node["status"]
    changed = double_cluster.patch_status(node, {"addresses": []})
    assert changed["status"]["addresses"] == []


def event_manifest(**fields: Any) -> dict[str, Any]:
    """Return an Event of events.k8s.io about a Service."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "web.1"},
        "eventTime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        "reportingController": "example.org/proxy",
        "reportingInstance": "proxy-node",
        "action": "Listen",
        "reason": "FailedToListen",
        "type": "Warning",
        "note": "the port is in use",
        **fields,
    }


def test_event_of_either_group_is_seen_in_both(cluster: Cluster) -> None:
    """The two groups show the same Events under their own field names."""
    service = cluster.create(service_manifest())
    about = {"kind": "Service", "name": "web", "namespace": cluster.namespace, "uid": service["metadata"]["uid"]}
    made = cluster.client.request("POST", EVENTS.path(cluster.namespace), event_manifest(regarding=about))
    assert (made["note"], made["regarding"]["name"]) == ("the port is in use", "web")
    (event,) = cluster.events(service)
    assert (event["message"], event["reportingComponent"]) == ("the port is in use", "example.org/proxy")
    query = "fieldSelector=regarding.name%3Dweb"
    (shown,) = cluster.client.request("GET", f"{EVENTS.path(cluster.namespace)}?{query}")["items"]
    assert shown["note"] == "the port is in use"
    core = {"metadata": {"name": "web.2"}, "involvedObject": about, "reason": "Old", "message": "m", "type": "Normal"}
    cluster.client.request("POST", CORE_EVENTS.path(cluster.namespace), core)
    assert len(cluster.events(service)) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("reportingController", ""), ("action", ""), ("reason", "x" * 129), ("note", "x" * 1025), ("type", "Bad")],
)
def test_event_that_breaks_a_rule_is_refused(field: str, value: str, cluster: Cluster) -> None:
    """A new Event says who reports what, in bounds."""
    about = {"kind": "Service", "name": "web", "namespace": cluster.namespace}
    manifest = event_manifest(regarding=about, **{field: value})
    assert refusal(cluster, "POST", EVENTS.path(cluster.namespace), manifest) == (422, "Invalid")


def test_event_has_the_name_of_an_object(cluster: Cluster) -> None:
    """A name that is none is refused."""
    about = {"kind": "Service", "name": "web", "namespace": cluster.namespace}
    manifest = event_manifest(regarding=about, metadata={"name": "Web_1"})
    assert refusal(cluster, "POST", EVENTS.path(cluster.namespace), manifest) == (422, "Invalid")


def test_event_is_in_the_namespace_of_its_object(cluster: Cluster) -> None:
    """An Event about an object elsewhere is refused."""
    manifest = event_manifest(regarding={"kind": "Service", "name": "web", "namespace": "default"})
    assert refusal(cluster, "POST", EVENTS.path(cluster.namespace), manifest) == (422, "Invalid")

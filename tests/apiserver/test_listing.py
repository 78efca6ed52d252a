"""Lists and watches: pages, selectors, versions, bookmarks; where possible tried on a real server, too."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import urlencode

import pytest
from apiserver.cluster import Cluster, endpoint_slice_manifest, service_manifest
from apiserver.double import ApiServer
from apiserver.kube_client import RefusedError
from apiserver.resources import ENDPOINT_SLICES, NODES, SERVICES, Resource
from apiserver.store import Key, Store

Query = Mapping[str, str]

NO_QUERY: Query = {}
NOT_HEADLESS = {"fieldSelector": "spec.clusterIP!=None"}
UNNAMED_PROXY = {"labelSelector": "!service.kubernetes.io/service-proxy-name"}
INITIAL_EVENTS = {
    "sendInitialEvents": "true",
    "resourceVersionMatch": "NotOlderThan",
    "allowWatchBookmarks": "true",
}


def listed(cluster: Cluster, query: Query = NO_QUERY, *, resource: Resource = SERVICES) -> dict[str, Any]:
    """Return a list of the test's namespace."""
    return cluster.client.request("GET", f"{resource.path(cluster.namespace)}?{urlencode(query)}")


def names(answer: dict[str, Any]) -> list[str]:
    """Return the names in a list."""
    return [item["metadata"]["name"] for item in answer["items"]]


def watch_path(cluster: Cluster, version: str = "", query: Query = NO_QUERY, *, resource: Resource = SERVICES) -> str:
    """Return the path of a watch of the test's namespace."""
    watch = {"watch": "true", "timeoutSeconds": "20", **({"resourceVersion": version} if version else {}), **query}
    return f"{resource.path(cluster.namespace)}?{urlencode(watch)}"


def take(events: Iterator[dict[str, Any]], count: int) -> list[str]:
    """Return the next events, as ``ADDED web``."""
    return [f"{event['type']} {event['object']['metadata'].get('name', '')}".strip() for event in islice(events, count)]


def test_list_shows_items_without_their_kind(cluster: Cluster) -> None:
    """A list says the kind once, as ``...List``, and has a version."""
    cluster.create(service_manifest())
    answer = listed(cluster)
    assert (answer["kind"], answer["apiVersion"]) == ("ServiceList", "v1")
    assert int(answer["metadata"]["resourceVersion"]) > 0
    assert not {"kind", "apiVersion"} & answer["items"][0].keys()


def test_list_of_all_namespaces_has_the_service_of_the_api_server(cluster: Cluster) -> None:
    """``default/kubernetes`` is there from the beginning, and its EndpointSlice."""
    for resource in (SERVICES, ENDPOINT_SLICES):
        items = cluster.client.request("GET", resource.path())["items"]
        assert ("default", "kubernetes") in [(one["metadata"]["namespace"], one["metadata"]["name"]) for one in items]


def test_list_in_pages_is_that_of_its_first_page(cluster: Cluster) -> None:
    """Objects made or deleted between two pages change nothing, and all pages have the same version."""
    for name in "abcde":
        cluster.create(endpoint_slice_manifest(name))
    first = listed(cluster, {"limit": "2"}, resource=ENDPOINT_SLICES)
    cluster.create(endpoint_slice_manifest("bb"))
    cluster.delete(endpoint_slice_manifest("d"))
    second = listed(cluster, {"limit": "2", "continue": first["metadata"]["continue"]}, resource=ENDPOINT_SLICES)
    third = listed(cluster, {"limit": "2", "continue": second["metadata"]["continue"]}, resource=ENDPOINT_SLICES)
    assert [names(page) for page in (first, second, third)] == [["a", "b"], ["c", "d"], ["e"]]
    assert len({page["metadata"]["resourceVersion"] for page in (first, second, third)}) == 1
    assert (first["metadata"]["remainingItemCount"], "continue" in third["metadata"]) == (3, False)


def test_list_page_that_expired_is_gone_and_shows_a_way_on(api_server: ApiServer, double_cluster: Cluster) -> None:
    """An old token gets 410; the token in the Status leads on in the state of now."""
    for name in "abc":
        double_cluster.create(endpoint_slice_manifest(name))
    first = listed(double_cluster, {"limit": "1"}, resource=ENDPOINT_SLICES)
    double_cluster.delete(endpoint_slice_manifest("b"))
    api_server.forget_changes()
    with pytest.raises(RefusedError) as caught:
        listed(double_cluster, {"limit": "1", "continue": first["metadata"]["continue"]}, resource=ENDPOINT_SLICES)
    assert (caught.value.code, caught.value.reason) == (410, "Expired")
    rest = listed(double_cluster, {"continue": caught.value.status["metadata"]["continue"]}, resource=ENDPOINT_SLICES)
    assert names(rest) == ["c"]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ({"labelSelector": "app"}, ["a", "b"]),
        ({"labelSelector": "!app"}, ["c"]),
        ({"labelSelector": "app=one"}, ["a"]),
        ({"labelSelector": "app==one,app"}, ["a"]),
        ({"labelSelector": "app!=one"}, ["b", "c"]),
        ({"labelSelector": "app in (one, two)"}, ["a", "b"]),
        ({"labelSelector": "app notin (two)"}, ["a", "c"]),  # codespell:ignore notin
        ({"labelSelector": "app,empty="}, ["b"]),
        ({"fieldSelector": "metadata.name=b"}, ["b"]),
        ({"fieldSelector": "metadata.name!=b"}, ["a", "c"]),
        (NOT_HEADLESS, ["a", "b"]),
        ({"fieldSelector": "spec.clusterIP=None"}, ["c"]),
        ({"fieldSelector": "spec.type=ClusterIP,metadata.name=a"}, ["a"]),
    ],
)
def test_list_with_a_selector_has_what_matches(selector: dict[str, str], found: list[str], cluster: Cluster) -> None:
    """Label and field selectors choose."""
    for name, labels, spec in (
        ("a", {"app": "one"}, {}),
        ("b", {"app": "two", "empty": ""}, {}),
        ("c", {}, {"clusterIP": "None"}),
    ):
        manifest = service_manifest(name, **spec)
        cluster.create({**manifest, "metadata": {**manifest["metadata"], "labels": labels}})
    assert names(listed(cluster, selector)) == found


@pytest.mark.parametrize(
    "query",
    [
        {"fieldSelector": "spec.sessionAffinity=None"},
        {"labelSelector": "app=(one"},
        {"continue": "no token"},
        {"resourceVersion": "1", "continue": "eA"},
        {"limit": "many"},
    ],
)
def test_list_with_a_query_that_makes_no_sense_is_refused(query: dict[str, str], cluster: Cluster) -> None:
    """The answer is 400."""
    with pytest.raises(RefusedError) as caught:
        listed(cluster, query)
    assert caught.value.code == 400


def test_list_from_the_future_is_told_to_come_back(cluster: Cluster) -> None:
    """A version that is not there yet gets 504 with a time to wait."""
    version = str(int(listed(cluster)["metadata"]["resourceVersion"]) + 1_000_000)
    with pytest.raises(RefusedError) as caught:
        listed(cluster, {"resourceVersion": version})
    assert (caught.value.code, caught.value.reason) == (504, "Timeout")
    assert caught.value.status["details"]["retryAfterSeconds"] == 1


def test_watch_from_a_version_has_what_came_after(cluster: Cluster) -> None:
    """All changes since come in order, each with the version of the object."""
    cluster.create(service_manifest("before"))
    version = listed(cluster)["metadata"]["resourceVersion"]
    service = cluster.create(service_manifest("web"))
    changed = cluster.patch(service, {"metadata": {"labels": {"a": "b"}}})
    with cluster.client.watch(watch_path(cluster, version)) as events:
        assert take(events, 1) == ["ADDED web"]
        event = next(events)
        assert event == {"type": "MODIFIED", "object": changed}
        cluster.delete(service)
        event = next(events)
        assert (event["type"], event["object"]["kind"]) == ("DELETED", "Service")
        assert int(event["object"]["metadata"]["resourceVersion"]) > int(changed["metadata"]["resourceVersion"])


@pytest.mark.parametrize("version", ["", "0"])
def test_watch_from_no_version_begins_with_what_is_there(version: str, cluster: Cluster) -> None:
    """Without a version, or with 0, all objects come as ADDED first."""
    cluster.create(service_manifest("a"))
    cluster.create(service_manifest("b"))
    with cluster.client.watch(watch_path(cluster, version)) as events:
        assert sorted(take(events, 2)) == ["ADDED a", "ADDED b"]
        cluster.create(service_manifest("c"))
        assert take(events, 1) == ["ADDED c"]


def test_watch_with_a_label_selector_sees_objects_come_and_go(cluster: Cluster) -> None:
    """An object that stops to match is DELETED, one that begins is ADDED, though neither was."""
    service = cluster.create(service_manifest())
    version = listed(cluster)["metadata"]["resourceVersion"]
    with cluster.client.watch(watch_path(cluster, version, UNNAMED_PROXY)) as events:
        cluster.patch(service, {"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": ""}}})
        cluster.patch(service, {"metadata": {"labels": {"unseen": "yes"}}})
        cluster.patch(service, {"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": None}}})
        assert take(events, 2) == ["DELETED web", "ADDED web"]


def test_watch_with_a_field_selector_never_sees_what_does_not_match(cluster: Cluster) -> None:
    """Headless Services make no event."""
    version = listed(cluster)["metadata"]["resourceVersion"]
    with cluster.client.watch(watch_path(cluster, version, NOT_HEADLESS)) as events:
        cluster.create(service_manifest("headless", clusterIP="None"))
        cluster.create(service_manifest("web"))
        assert take(events, 1) == ["ADDED web"]


def test_watch_sees_no_other_namespace(cluster: Cluster) -> None:
    """A watch of one namespace is about that one."""
    with cluster.client.watch(f"{SERVICES.path('default')}?watch=1&timeoutSeconds=1") as events:
        cluster.create(service_manifest())
        assert take(events, 5) == ["ADDED kubernetes"]


def test_watch_ends_well_after_its_time(cluster: Cluster) -> None:
    """``timeoutSeconds`` ends a watch without an error."""
    with cluster.client.watch(watch_path(cluster, query={"timeoutSeconds": "1"})) as events:
        assert list(events) == []


def test_write_that_changes_nothing_makes_no_event(cluster: Cluster) -> None:
    """The same content again has the same version."""
    service = cluster.create(service_manifest())
    version = listed(cluster)["metadata"]["resourceVersion"]
    with cluster.client.watch(watch_path(cluster, version)) as events:
        assert cluster.replace(service) == service
        cluster.create(service_manifest("next"))
        assert take(events, 1) == ["ADDED next"]


def test_watch_from_too_long_ago_gets_an_event_of_410(api_server: ApiServer, double_cluster: Cluster) -> None:
    """The usual form: 200, one ERROR with a Status, the end."""
    version = listed(double_cluster)["metadata"]["resourceVersion"]
    double_cluster.create(service_manifest())
    api_server.forget_changes()
    with double_cluster.client.watch(watch_path(double_cluster, version)) as events:
        (event,) = events
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_watch_from_too_long_ago_gets_410_as_status(api_server: ApiServer, double_cluster: Cluster) -> None:
    """The other form: the HTTP status."""
    api_server.watches.is_gone_in_status = True
    version = listed(double_cluster)["metadata"]["resourceVersion"]
    double_cluster.create(service_manifest())
    api_server.forget_changes()
    with (
        pytest.raises(RefusedError) as caught,
        double_cluster.client.watch(watch_path(double_cluster, version)),
    ):
        pass
    assert caught.value.code == 410


def test_watch_from_now_survives_forgotten_changes(api_server: ApiServer, double_cluster: Cluster) -> None:
    """A list of after the changes were forgotten gives a version to watch from."""
    double_cluster.create(service_manifest())
    api_server.forget_changes()
    version = listed(double_cluster)["metadata"]["resourceVersion"]
    with double_cluster.client.watch(watch_path(double_cluster, version)) as events:
        double_cluster.create(service_manifest("next"))
        assert take(events, 1) == ["ADDED next"]


def test_bookmarks_come_to_who_allows_them(api_server: ApiServer, double_cluster: Cluster) -> None:
    """A bookmark has no name and the newest version, also of changes that the selector hides."""
    api_server.watches.bookmark_interval_s = 0.05
    version = listed(double_cluster)["metadata"]["resourceVersion"]
    path = watch_path(double_cluster, version, {**NOT_HEADLESS, "allowWatchBookmarks": "true"})
    with double_cluster.client.watch(path) as events:
        hidden = double_cluster.create(service_manifest("headless", clusterIP="None"))
        newest = hidden["metadata"]["resourceVersion"]
        bookmark = next(event for event in events if event["object"]["metadata"]["resourceVersion"] == newest)
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"] == {"resourceVersion": newest}


def test_bookmarks_do_not_come_to_others(api_server: ApiServer, double_cluster: Cluster) -> None:
    """Without ``allowWatchBookmarks`` there are only changes."""
    api_server.watches.bookmark_interval_s = 0.05
    with double_cluster.client.watch(watch_path(double_cluster, query={"timeoutSeconds": "1"})) as events:
        assert list(events) == []


def test_watch_list_marks_the_end_of_what_was_there(cluster: Cluster) -> None:
    """With ``sendInitialEvents`` the objects come first, then a bookmark with an annotation, then changes."""
    cluster.create(service_manifest("a"))
    with cluster.client.watch(watch_path(cluster, query=INITIAL_EVENTS)) as events:
        assert take(events, 1) == ["ADDED a"]
        mark = next(events)
        cluster.create(service_manifest("b"))
        assert take(events, 1) == ["ADDED b"]
    assert mark["type"] == "BOOKMARK"
    assert mark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert int(mark["object"]["metadata"]["resourceVersion"]) > 0


def test_watch_list_is_refused_where_the_server_has_it_not(api_server: ApiServer, double_cluster: Cluster) -> None:
    """A server without WatchList answers 422."""
    api_server.watches.has_watch_list = False
    with (
        pytest.raises(RefusedError) as caught,
        double_cluster.client.watch(watch_path(double_cluster, query=INITIAL_EVENTS)),
    ):
        pass
    assert (caught.value.code, caught.value.fields) == (422, {"sendInitialEvents"})


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"watch": "true", "sendInitialEvents": "true"}, "resourceVersionMatch"),
        ({"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}, "sendInitialEvents"),
        ({"watch": "true", "resourceVersion": "1", "resourceVersionMatch": "Exact"}, "resourceVersionMatch"),
        ({"resourceVersionMatch": "Exact"}, "resourceVersionMatch"),
        ({"watch": "true", "resourceVersion": "newest"}, "resourceVersion"),
    ],
)
def test_query_that_contradicts_itself_is_refused(query: dict[str, str], field: str, double_cluster: Cluster) -> None:
    """The answer is 422 and names the parameter."""
    with pytest.raises(RefusedError) as caught:
        listed(double_cluster, query)
    assert (caught.value.code, caught.value.fields) == (422, {field})


def test_watch_that_is_too_slow_is_gone(api_server: ApiServer, double_cluster: Cluster) -> None:
    """A watch ends with 410 when the changes that it still has to send are forgotten."""
    with double_cluster.client.watch(watch_path(double_cluster, resource=NODES)) as events:

        def change_and_forget(store: Store) -> None:
            store.collection("nodes").put(Key("", "node"), {"metadata": {"name": "node"}})
            store.collection("nodes").forget_changes()

        api_server.in_thread(change_and_forget)
        (event,) = events
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)

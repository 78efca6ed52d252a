"""The watch of one resource against an API server, also one with faults."""

import socket
from collections.abc import Mapping

import msgspec
import pytest
from api_driver import (
    PROMPTLY_S,
    client_of,
    credentials_of,
    delete,
    put,
    put_many_slices,
    put_node,
    put_service,
    put_slice,
    wait_until,
    watching,
)
from apiserver.double import ApiServer
from apiserver.faults import (
    Action,
    Answer,
    Cut,
    EndAtOnce,
    Garbage,
    GoneInStream,
    Reset,
    Silence,
)
from apiserver.store import Key
from attrs import evolve

from userspace_proxy.model.names import NamespacedName
from userspace_proxy.sources.api_credentials import Credentials, CredentialStore
from userspace_proxy.sources.api_http import ApiClient, ApiResponse
from userspace_proxy.sources.api_resources import Parsed, endpoint_slices, node, services

KUBERNETES = "+Service default/kubernetes"
"""Every cluster has it from the beginning."""


def wait_watched(server: ApiServer, count: int = 1) -> None:
    """Return once Services were asked to be watched so often."""
    wait_until(lambda: len(server.asked("services", "watch")) >= count, "the watch")


def test_watch_list_then_changes_are_told_in_order(api_server: ApiServer) -> None:
    """What there is comes first, then ``listed``, then each change once."""
    put_service(api_server)
    with watching(client_of(api_server)) as watch:
        assert watch.until("listed") == [KUBERNETES, "+Service shop/web", "listed"]
        put_service(api_server, cluster_ip="10.96.0.11")
        put_service(api_server, "shop/db", cluster_ip="10.96.0.12")
        delete(api_server, "services", "shop/web")
        assert watch.until("-Service shop/web") == ["+Service shop/web", "+Service shop/db", "-Service shop/web"]
        assert (watch.state.is_listed, watch.state.lists, watch.state.events) == (True, 1, 3)
        assert watch.state.current_at_s == watch.state.last_event_at_s == 1e9


def test_watch_list_of_many_pages_is_complete(api_server: ApiServer) -> None:
    """A list that comes in pages is told whole, each object once."""
    put_many_slices(api_server, 1200)
    with watching(client_of(api_server), endpoint_slices()) as watch:
        told = watch.until("listed")
    assert len(set(told)) == len(told) == 1200 + 2
    assert len(api_server.asked("endpointslices", "list")) == 3


def test_watch_asks_with_selectors_bookmarks_and_a_timeout(api_server: ApiServer) -> None:
    """The server is asked only for what is served, and to end the watch after five to ten minutes."""
    with watching(client_of(api_server)) as watch:
        watch.until("listed")
        wait_watched(api_server)
    (asked,) = api_server.asked("services", "watch")
    assert asked.query["labelSelector"] == "!service.kubernetes.io/service-proxy-name"
    assert asked.query["fieldSelector"] == "spec.clusterIP!=None"
    assert asked.query["allowWatchBookmarks"] == "true"
    assert 300 <= int(asked.query["timeoutSeconds"]) <= 600


def test_watch_service_that_gets_another_proxy_is_removed_and_comes_back(api_server: ApiServer) -> None:
    """The label takes a Service away from this proxy, and gives it back."""
    label = {"service.kubernetes.io/service-proxy-name": "other"}
    put_service(api_server)
    with watching(client_of(api_server)) as watch:
        watch.until("listed")
        put_service(api_server, labels=label)
        assert watch.until("-Service shop/web") == ["-Service shop/web"]
        put_service(api_server)
        assert watch.until("+Service shop/web") == ["+Service shop/web"]


def test_watch_with_proxy_name_serves_only_its_own_services(api_server: ApiServer) -> None:
    """With a proxy name the Services that ask for it are served, and no others."""
    put_service(api_server, labels={"service.kubernetes.io/service-proxy-name": "mine"})
    put_service(api_server, "shop/db", labels={"service.kubernetes.io/service-proxy-name": "other"})
    with watching(client_of(api_server), services("mine")) as watch:
        assert watch.until("listed") == ["+Service shop/web", "listed"]


def test_watch_service_that_becomes_unusable_is_removed_with_a_problem(api_server: ApiServer) -> None:
    """A Service whose address cannot be read any more is removed; its Problem stands until it is mended."""
    put_service(api_server)
    with watching(client_of(api_server)) as watch:
        watch.until("listed")
        put_service(api_server, cluster_ip="10.96.0.999")
        assert watch.until("!web 1") == ["-Service shop/web", "!web 1"]
        put_service(api_server)
        assert watch.until("!web 0") == ["+Service shop/web", "!web 0"]


def test_watch_object_of_wrong_types_costs_only_itself(api_server: ApiServer) -> None:
    """One object that cannot be decoded is a Problem; those beside it are served."""
    metadata = {"namespace": "shop", "name": "bad"}
    put(api_server, "services", Key("shop", "bad"), {"metadata": metadata, "spec": {"clusterIP": "x", "ports": 3}})
    put_service(api_server)
    with watching(client_of(api_server)) as watch:
        assert watch.until("listed") == [KUBERNETES, "!bad 1", "+Service shop/web", "listed"]


def test_watch_bug_in_reading_an_object_costs_only_its_news(
    api_server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and counted; the object stays as it was known, and the watch goes on."""
    whole = services()

    def parse(raw: msgspec.Raw) -> Parsed:
        if b"10.96.0.66" in bytes(raw):
            raise ZeroDivisionError
        return whole.parse(NamespacedName("", ""), raw)

    put_service(api_server)
    put_service(api_server, "shop/db", cluster_ip="10.96.0.66")
    with watching(client_of(api_server), evolve(whole, parse=parse)) as watch:
        assert watch.until("listed") == [KUBERNETES, "+Service shop/web", "listed"]
        put_service(api_server, cluster_ip="10.96.0.66")
        put_service(api_server, "shop/other", cluster_ip="10.96.0.12")
        assert watch.until("+Service shop/other") == ["+Service shop/other"]
        delete(api_server, "services", "shop/web")
        assert watch.until("-Service shop/web") == ["-Service shop/web"]
        assert watch.state.failures == {"bug": 2}
    assert sum("a bug in reading" in record.getMessage() for record in caplog.records) == 2


def test_watch_headless_slices_are_not_asked_for(api_server: ApiServer) -> None:
    """EndpointSlices of headless Services are left out by the server."""
    put_slice(api_server, labels={"service.kubernetes.io/headless": ""})
    with watching(client_of(api_server), endpoint_slices()) as watch:
        assert watch.until("listed") == ["+EndpointSlice default/kubernetes", "listed"]


def test_watch_node_follows_the_one_with_the_name(api_server: ApiServer) -> None:
    """Of all Nodes only the own one is asked for, also when it comes and goes."""
    put_node(api_server, "node-2")
    with watching(client_of(api_server), node("node-1")) as watch:
        assert watch.until("listed") == ["listed"]
        put_node(api_server)
        put_node(api_server, "node-2", zone="b")
        delete(api_server, "nodes", "node-1")
        assert watch.until("-Node /node-1")[-1] == "-Node /node-1"


@pytest.mark.parametrize("in_status", [False, True], ids=["in-stream", "in-status"])
def test_b_15_watch_of_a_forgotten_version_is_listed_anew_and_only_differences_are_told(
    api_server: ApiServer,
    in_status: bool,  # noqa: FBT001
) -> None:
    """After 410, in either form, what changed meanwhile is told, and what did not is not."""
    put_service(api_server)
    put_service(api_server, "shop/db", cluster_ip="10.96.0.12")
    with watching(client_of(api_server)) as watch:
        watch.until("listed")
        wait_watched(api_server)
        api_server.watches.is_gone_in_status = in_status
        api_server.refuse_connections()
        api_server.drop_all_connections()
        put_service(api_server, cluster_ip="10.96.0.99")
        delete(api_server, "services", "shop/db")
        put_service(api_server, "shop/new", cluster_ip="10.96.0.13")
        api_server.forget_changes()
        api_server.accept_connections()
        assert sorted(watch.until("listed")) == ["+Service shop/new", "+Service shop/web", "-Service shop/db", "listed"]
        assert watch.state.failures["expired"] == 1


def test_watch_forgotten_continuation_starts_the_list_over(api_server: ApiServer) -> None:
    """410 in the middle of a list costs nothing but time."""
    api_server.order(Answer(410), "services", "list")
    with watching(client_of(api_server)) as watch:
        assert watch.until("listed") == [KUBERNETES, "listed"]
    assert len(api_server.asked("services", "list")) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(Answer(500), "server_error", id="500"),
        pytest.param(Answer(503), "server_error", id="503"),
        pytest.param(Answer(429), "overloaded", id="429"),
        pytest.param(Answer(403), "forbidden", id="403"),
        pytest.param(Garbage(), "bad_answer", id="garbage"),
        pytest.param(Reset(), "unreachable", id="reset"),
        pytest.param(Cut(), "cut", id="cut"),
    ],
)
@pytest.mark.parametrize("kind", ["list", "watch"])
def test_watch_after_a_fault_goes_on_from_where_it_was(
    api_server: ApiServer, kind: str, fault: Action, reason: str
) -> None:
    """A fault is counted under its reason and tried again; nothing is told twice, nothing is lost."""
    if kind == "watch" and isinstance(fault, Cut):
        api_server.order(fault, "services", "watch")
        put_service(api_server)
    else:
        api_server.order(fault, "services", kind)
    with watching(client_of(api_server)) as watch:
        watch.until("listed")
        put_service(api_server, cluster_ip="10.96.0.77")
        told = watch.until("+Service shop/web")
        assert [text for text in told if text != "refused"] == ["+Service shop/web"]
        wait_until(lambda: not watch.state.failure, "the end of the failure")
        assert watch.state.failures == {reason: 1}
        assert watch.is_quiet()


def test_watch_that_ends_well_is_followed_by_another_from_the_same_version(api_server: ApiServer) -> None:
    """The time-out of the server is no failure and costs no list."""
    api_server.order(EndAtOnce(), "services", "watch", times=2)
    with watching(client_of(api_server)) as watch:
        watch.until("listed")
        wait_watched(api_server, 3)
        put_service(api_server)
        watch.until("+Service shop/web")
        assert (watch.state.failures, watch.state.lists) == ({}, 1)


class ImpatientClient(ApiClient):
    """A client that gives up an answer soon."""

    def get(self, path: str, query: Mapping[str, str], *, read_timeout_s: float = 0.3) -> ApiResponse:
        """Wait for no longer than that, whatever is asked for."""
        return super().get(path, query, read_timeout_s=min(read_timeout_s, 0.3))


def test_watch_that_falls_silent_is_followed_by_another_from_the_same_version(api_server: ApiServer) -> None:
    """A connection over which nothing comes any more is noticed, and a new watch misses nothing."""
    client = ImpatientClient.open(CredentialStore(lambda: credentials_of(api_server)))
    with watching(client) as watch:
        watch.until("listed")
        wait_watched(api_server)
        api_server.watches.freeze()
        put_service(api_server)
        assert watch.until("+Service shop/web") == ["+Service shop/web"]
        assert watch.state.lists == 1
        assert not watch.state.failures


def test_watch_gone_in_stream_again_and_again_does_not_spin(api_server: ApiServer) -> None:
    """A server that forgets at once is asked more and more seldom."""
    api_server.order(GoneInStream(), "services", "watch", times=3)
    with watching(client_of(api_server)) as watch:
        for _ in range(4):
            watch.until("listed")
        assert watch.state.failures == {"expired": 3}
    assert len(api_server.asked("services", "list")) == 4


def test_watch_bookmark_moves_the_version_on(api_server: ApiServer) -> None:
    """After a bookmark a new watch starts from there, and that counts as being up to date."""
    with watching(client_of(api_server)) as watch:
        watch.until("listed")
        wait_watched(api_server)
        put_node(api_server)  # the version moves on without a change of Services
        api_server.watches.bookmark_interval_s = 0.01
        asked = api_server.asked("services", "watch")
        first = int(asked[0].query["resourceVersion"])

        def is_beyond_the_list() -> bool:
            count = len(api_server.asked("services", "watch"))
            watch.thread.join(0.1)  # several bookmarks may come
            api_server.drop_all_connections()
            wait_watched(api_server, count + 1)
            return int(api_server.asked("services", "watch")[-1].query["resourceVersion"]) > first

        wait_until(is_beyond_the_list, "a version beyond that of the list")
        assert watch.state.lists == 1


def test_watch_while_the_server_is_away_keeps_everything(
    api_server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage tells nothing about objects; its failure is one sentence, logged once, and so is its end."""
    caplog.set_level("INFO")
    with watching(client_of(api_server)) as watch:
        watch.until("listed")
        wait_watched(api_server)
        api_server.refuse_connections()
        api_server.drop_all_connections()
        wait_until(lambda: watch.state.failures.get("unreachable", 0) >= 3, "failures")
        assert "cannot be reached" in watch.state.failure
        assert "Connection refused" in watch.state.failure
        put_service(api_server)
        api_server.accept_connections()
        assert watch.until("+Service shop/web") == ["+Service shop/web"]
        assert watch.state.lists == 1
    refused = [one for one in caplog.records if "refused" in str(vars(one).get("reason"))]
    assert len(refused) == 1
    assert "as it was 0 s ago" in vars(refused[0])["reason"]
    (ended,) = [one for one in caplog.records if one.getMessage() == "watching the API server again"]
    assert vars(ended)["duration_s"] >= 0


def test_watch_retry_after_is_waited_for(api_server: ApiServer) -> None:
    """A server that asks to be left alone is left alone for that long."""
    api_server.order(Answer(429, retry_after_s=3600), "services", "list")
    with watching(client_of(api_server)) as watch:
        wait_until(lambda: "overloaded" in watch.state.failures, "the answer")
        threads_rest_s = 0.5
        watch.thread.join(threads_rest_s)
        assert len(api_server.asked("services", "list")) == 1


def _in_backoff(server: ApiServer) -> None:
    server.order(Answer(429, retry_after_s=3600), "services", "list")


def _in_answer(server: ApiServer) -> None:
    server.order(Silence(has_headers=False), "services", "list")


def _in_body(server: ApiServer) -> None:
    server.order(Silence(), "services", "list")


def _in_watch(server: ApiServer) -> None:
    """Nothing happens, so it waits there by itself."""


@pytest.mark.parametrize("where", [_in_backoff, _in_answer, _in_body, _in_watch])
def test_watch_stop_ends_the_thread_wherever_it_waits(api_server: ApiServer, where: object) -> None:
    """The thread ends soon, also while it waits for something that does not come."""
    assert callable(where)
    where(api_server)
    with watching(client_of(api_server)) as watch:
        kind = "watch" if where is _in_watch else "list"
        wait_until(lambda: api_server.asked("services", kind), "the request")
        watch.thread.join(0.1)  # let it get to where it waits; it must end from anywhere
        assert watch.stop() < PROMPTLY_S


def test_watch_stop_ends_the_thread_while_it_connects() -> None:
    """The same while there is no answer to a connection attempt."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for one in (first, second):  # they fill the queue, so that the kernel drops the SYN of the next
            one.settimeout(0)
            one.connect_ex(listening.getsockname())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        store = CredentialStore(lambda: Credentials(server=url, origin="the test"))
        with watching(ApiClient.open(store)) as watch:
            watch.thread.join(0.2)
            assert watch.thread.is_alive()
            assert watch.stop() < PROMPTLY_S
            assert not watch.state.failures

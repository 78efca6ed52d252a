"""The faults of the API server double are what they say, on the wire."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from apiserver.certificates import Certificates
from apiserver.cluster import Cluster, service_manifest
from apiserver.double import ApiServer
from apiserver.faults import (
    Action,
    Answer,
    Cut,
    EndAtOnce,
    Garbage,
    GoneInStream,
    RequestKind,
    Reset,
    Silence,
    SlowFirstByte,
)

LIST = "/api/v1/services"
WATCH = "/api/v1/services?watch=true&timeoutSeconds=20"
QUIET_S = 0.2
"""So long nothing may come where a fault says that nothing does."""


@pytest.fixture
def plain() -> Iterator[ApiServer]:
    """Run the double with HTTP, so that tests see what is on the wire."""
    with ApiServer() as server:
        yield server


@contextmanager
def asked(server: ApiServer, target: str) -> Iterator[socket.socket]:
    """Send a request on a connection of its own and yield that."""
    with socket.create_connection((server.address, server.port), timeout=10) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: double\r\nAuthorization: Bearer admin-token\r\n\r\n".encode())
        yield client


def read_until(client: socket.socket, end: bytes) -> bytes:
    """Return what comes until a text; all of it if the connection ends before."""
    data = b""
    while end not in data and (more := client.recv(65_536)):
        data += more
    return data


def read_all(client: socket.socket) -> bytes:
    """Return all that comes until the connection ends."""
    return b"".join(iter(lambda: client.recv(65_536), b""))


def is_silent(client: socket.socket) -> bool:
    """Return whether nothing comes for a time, also no end."""
    client.settimeout(QUIET_S)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    return False


def status_of(answer: bytes) -> int:
    """Return the HTTP status."""
    return int(answer.split()[1])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (410, "Expired"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ],
)
def test_answer_is_a_status_of_failure(code: int, reason: str, plain: ApiServer) -> None:
    """A Status with that code comes, and the connection serves on."""
    plain.order(Answer(code))
    with asked(plain, LIST) as client:
        answer = read_until(client, b'"code":%d}' % code)
        assert status_of(answer) == code
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == reason
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: double\r\n\r\n")
        assert read_until(client, b"ok").endswith(b"ok")


def test_answer_with_retry_after_says_so_twice(plain: ApiServer) -> None:
    """The header and the Status have the seconds."""
    plain.order(Answer(429, retry_after_s=7))
    with asked(plain, LIST) as client:
        answer = read_until(client, b'"code":429}').lower()
    assert b"\r\nretry-after: 7\r\n" in answer
    assert b'"retryafterseconds":7' in answer


@pytest.mark.parametrize(
    ("resource", "kind", "struck"),
    [
        (None, None, {LIST, WATCH, "/api/v1/nodes"}),
        ("services", None, {LIST, WATCH}),
        ("services", RequestKind.LIST, {LIST}),
        (None, RequestKind.WATCH, {WATCH}),
        ("nodes", "list", {"/api/v1/nodes"}),
    ],
)
def test_fault_strikes_its_resource_and_kind_only(
    resource: str | None, kind: RequestKind | None, struck: set[str], plain: ApiServer
) -> None:
    """Other requests are served."""
    plain.order(Answer(500), resource, kind, times=None)
    found = set()
    for target in (LIST, WATCH, "/api/v1/nodes"):
        with asked(plain, target) as client:
            if status_of(read_until(client, b"\r\n\r\n")) == 500:
                found.add(target)
    assert found == struck


def test_fault_strikes_so_often_and_counts(plain: ApiServer) -> None:
    """One for two requests lets the third pass."""
    fault = plain.order(Answer(503), times=2)
    codes = []
    for _ in range(3):
        with asked(plain, LIST) as client:
            codes.append(status_of(read_until(client, b"\r\n\r\n")))
    assert (codes, fault.hits) == ([503, 503, 200], 2)


def test_fault_strikes_until_it_is_lifted(plain: ApiServer) -> None:
    """The end of the context lifts it."""
    with plain.order(Answer(503), times=None), asked(plain, LIST) as client:
        assert status_of(read_until(client, b"\r\n\r\n")) == 503
    with asked(plain, LIST) as client:
        assert status_of(read_until(client, b"\r\n\r\n")) == 200


def test_gone_in_stream_is_an_event_and_the_end(plain: ApiServer) -> None:
    """A watch begins with 200, has one ERROR with 410 and ends well."""
    plain.order(GoneInStream())
    with asked(plain, WATCH) as client:
        answer = read_until(client, b"\r\n0\r\n\r\n")
    assert status_of(answer) == 200
    assert answer.count(b'"type":') == 1
    assert b'{"type":"ERROR","object":{"kind":"Status"' in answer
    assert b'"code":410}' in answer


def test_slow_first_byte_comes_late(plain: ApiServer) -> None:
    """Nothing comes for a time, then all."""
    plain.order(SlowFirstByte(2 * QUIET_S))
    began = time.monotonic()
    with asked(plain, LIST) as client:
        assert client.recv(1) == b"H"
        assert time.monotonic() - began >= 2 * QUIET_S
        assert status_of(b"H" + read_until(client, b"\r\n0\r\n\r\n")) == 200


@pytest.mark.parametrize(("has_headers", "begin"), [(True, b"HTTP/1.1 200 \r\n"), (False, b"")])
def test_silence_has_no_end(has_headers: bool, begin: bytes, plain: ApiServer) -> None:  # noqa: FBT001
    """After the headers, or before them, nothing comes and the connection stays."""
    plain.order(Silence(has_headers=has_headers))
    with asked(plain, WATCH) as client:
        if has_headers:
            assert read_until(client, b"\r\n\r\n").startswith(begin)
        assert is_silent(client)


def test_cut_list_ends_within_its_body(plain: ApiServer) -> None:
    """One half of the list comes, and the connection is closed without the last chunk."""
    plain.order(Cut())
    with asked(plain, LIST) as client:
        answer = read_all(client)
    assert b'"kind":"ServiceList"' in answer
    assert not answer.endswith(b"0\r\n\r\n")


def test_cut_watch_ends_within_a_line(plain: ApiServer) -> None:
    """Whole events come first, then the half of one."""
    plain.order(Cut(after_pieces=1))
    with asked(plain, "/api/v1/namespaces?watch=true&timeoutSeconds=20") as client:
        answer = read_all(client)
    assert answer.count(b'"type":"ADDED"') == 2
    assert answer.count(b"}}\n") == 1


def test_clean_cut_looks_whole_to_http(plain: ApiServer) -> None:
    """The body ends as HTTP wants it, the JSON does not."""
    plain.order(Cut(is_clean=True))
    with asked(plain, LIST) as client:
        answer = read_all(client)
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert b"]}" not in answer


def test_reset_is_a_reset(plain: ApiServer) -> None:
    """The client gets RST."""
    plain.order(Reset())
    with asked(plain, LIST) as client, pytest.raises(ConnectionResetError):
        client.recv(1)


@pytest.mark.parametrize("target", [LIST, WATCH])
def test_garbage_is_no_json(target: str, plain: ApiServer) -> None:
    """List and watch have status 200 and a body that is none."""
    plain.order(Garbage())
    with asked(plain, target) as client:
        answer = read_until(client, b"</html>")
    assert status_of(answer) == 200
    assert b"<html>" in answer


def test_watch_that_ends_at_once_ends_well(plain: ApiServer) -> None:
    """It has no event, and an end."""
    plain.order(EndAtOnce())
    with asked(plain, WATCH) as client:
        assert read_until(client, b"\r\n\r\n0\r\n\r\n").endswith(b"\r\n\r\n0\r\n\r\n")


def test_request_right_after_a_watch_is_served(plain: ApiServer) -> None:
    """A client may send its next request before the server has seen that the watch is over."""
    with asked(plain, f"{LIST}?watch=true&timeoutSeconds=1") as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: double\r\n\r\n")
        assert read_until(client, b"\r\n\r\nok").endswith(b"ok")


def test_frozen_watches_say_nothing(api_server: ApiServer, double_cluster: Cluster) -> None:
    """A watch that runs has no event any more, no bookmark and no end; new lists are served."""
    api_server.watches.bookmark_interval_s = 0.05
    path = "/api/v1/nodes?watch=true&timeoutSeconds=3&allowWatchBookmarks=true"
    assert api_server.certificates is not None
    context = ssl.create_default_context(cafile=api_server.certificates.authority)
    with (
        socket.create_connection((api_server.address, api_server.port), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: double\r\nAuthorization: Bearer admin-token\r\n\r\n".encode())
        read_until(client, b"BOOKMARK")
        api_server.freeze_watches()
        double_cluster.create(service_manifest())
        client.settimeout(3.5)
        with pytest.raises(TimeoutError):
            read_all(client)


def test_refused_connections_are_refused_until_accepted(plain: ApiServer) -> None:
    """While the server does not listen, those that are open stay."""
    with asked(plain, LIST) as open_before:
        read_until(open_before, b"\r\n0\r\n\r\n")
        plain.refuse_connections()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((plain.address, plain.port), timeout=10)
        open_before.sendall(b"GET /readyz HTTP/1.1\r\nHost: double\r\n\r\n")
        assert read_until(open_before, b"ok").endswith(b"ok")
    plain.accept_connections()
    with asked(plain, LIST) as client:
        assert status_of(read_until(client, b"\r\n\r\n")) == 200


@pytest.mark.parametrize("has_reset", [False, True])
def test_dropped_connections_end(has_reset: bool, plain: ApiServer) -> None:  # noqa: FBT001
    """All that are open end, with FIN or with RST; new ones are served."""
    with asked(plain, WATCH) as client:
        read_until(client, b"}}\n")
        plain.drop_all_connections(has_reset=has_reset)
        if has_reset:
            with pytest.raises(ConnectionResetError):
                read_all(client)
        else:
            assert read_all(client) == b""
    with asked(plain, LIST) as client:
        assert status_of(read_until(client, b"\r\n\r\n")) == 200


def test_stop_ends_all_that_lasts(certificates: Certificates) -> None:
    """The thread is gone with watches open, faults at work and a client that never finished its handshake."""
    server = ApiServer(certificates=certificates)
    server.start()
    with socket.create_connection((server.address, server.port)):
        server.stop()
    assert "api server double" not in {thread.name for thread in threading.enumerate()}


def test_server_without_its_port_says_so(plain: ApiServer) -> None:
    """A port that is in use is an error of the start."""
    with pytest.raises(OSError, match="in use"):
        ApiServer(port=plain.port).start()


ACTIONS: list[Action] = [Answer(500), Silence(), Reset(), Garbage()]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: type(action).__name__)
def test_requests_struck_by_a_fault_are_noted(action: Action, plain: ApiServer) -> None:
    """The record of requests has them, with who asked and what for."""
    plain.order(action, "services", "list")
    with asked(plain, f"{LIST}?limit=5"):
        while not plain.asked("services", "list"):
            threading.Event().wait(0.01)
    (request,) = plain.asked("services", "list")
    assert (request.user, request.query, request.method) == ("admin", {"limit": "5"}, "GET")

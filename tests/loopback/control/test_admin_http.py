"""The answers of the admin server, to good clients and bad ones."""

import logging
import re
import shutil
import socket

import pytest
import trio
from admin_driver import BIG_PAGE, ROUTES, Admin, read_all, statuses, with_admin


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_serve_admin_with_curl_answers_each_kind_of_request() -> None:
    """A usual client gets pages, errors and headers as HTTP says, several on one connection."""

    async def curl(*arguments: str) -> str:
        done = await trio.run_process(
            ["curl", "--silent", "--show-error", "--max-time", "10", *arguments], capture_stdout=True
        )
        return done.stdout.decode()

    async def test(admin: Admin) -> None:
        url = f"http://127.0.0.1:{admin.port}"
        shown = ("--write-out", "%{http_code} %{num_connects} %{content_type}\n")
        assert await curl(*shown, f"{url}/livez?verbose", f"{url}/readyz") == (
            "ok\n200 1 text/plain; charset=utf-8\nnot synced\n503 0 text/plain; charset=utf-8\n"
        )
        assert await curl(*shown, f"{url}/nothing") == (
            f"not found; there is: {' '.join(sorted(ROUTES))}\n404 1 text/plain; charset=utf-8\n"
        )
        head = await curl("--head", f"{url}/livez")
        assert "Content-Length: 3\r\n" in head
        assert head.endswith("\r\n\r\n")
        refused = await curl("--include", "--data", "x=1", f"{url}/livez")
        assert refused.startswith("HTTP/1.1 405 Method Not Allowed\r\n")
        assert "Allow: GET, HEAD\r\n" in refused
        assert await curl("--http1.0", *shown, f"{url}/livez") == "ok\n200 1 text/plain; charset=utf-8\n"
        assert await curl("--output", "/dev/null", "--write-out", "%{size_download}", f"{url}/big") == str(
            len(BIG_PAGE)
        )
        # curl waits for "100 Continue" before it sends a large body: the answer must come without it
        body = "x" * 2_000_000
        put = ("--request", "PUT", "--header", "Expect: 100-continue", "--data-binary", "@-")
        done = await trio.run_process(
            ["curl", "--silent", "--max-time", "10", *put, *shown, f"{url}/livez"],
            stdin=body.encode(),
            capture_stdout=True,
        )
        assert b"405 1" in done.stdout

    with_admin(test)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", [200], id="one request"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" * 5, [200] * 5, id="pipelined"),
        pytest.param(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" * 2, [200] * 2, id="page that takes time"),
        pytest.param(
            b"HEAD /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n",
            [200, 404],
            id="HEAD, GET",
        ),
        pytest.param(b"GET http://a/livez HTTP/1.1\r\nHost: a\r\n\r\n", [200], id="absolute form"),
        pytest.param(b"GET //livez HTTP/1.1\r\nHost: a\r\n\r\n", [404], id="path with an authority"),
        pytest.param(b"GET http://[livez HTTP/1.1\r\nHost: a\r\n\r\n", [404], id="broken authority"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", [404], id="asterisk form"),
        pytest.param(b"DELETE /livez HTTP/1.1\r\nHost: a\r\n\r\n", [405], id="other method"),
        pytest.param(
            b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
            [405, 200],
            id="small body is skipped",
        ),
        pytest.param(
            b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + b"x" * 900_000,
            [405],
            id="large body ends the connection",
        ),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
            [200],
            id="nothing after close",
        ),
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"GET /livez HT", [400], id="half a request"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe", [400], id="half a body"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9 + b"\r\n\r\n", [400], id="TLS"),
        pytest.param(b"GET /livez HTTP/1.1\r\n\r\n", [400], id="no Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1_000_000, [431], id="1 MB header"),
        pytest.param(
            b"HEAD /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnot a chunk\r\n",
            [400],
            id="HEAD with a broken body",
        ),
    ],
)
def test_serve_admin_raw_request_gets_exactly_these_answers(sent: bytes, expected: list[int]) -> None:
    """Whatever is sent: the right answers, an orderly close, no error of ours, and the server goes on."""

    async def test(admin: Admin) -> None:
        assert statuses(await admin.talk(sent)) == expected
        assert statuses(await admin.talk(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")) == [200]
        assert admin.counters.unexpected_errors == 0

    with_admin(test)


@pytest.mark.parametrize(
    ("header", "body_bytes"),
    [
        pytest.param(b"Content-Length: 9000000000", 100_000, id="endless body"),
        pytest.param(b"Expect: 100-continue\r\nContent-Length: 5", 0, id="body held back"),
    ],
)
def test_serve_admin_body_that_does_not_come_is_not_waited_for(header: bytes, body_bytes: int) -> None:
    """The answer comes without the rest of the body, says that it is the last one, and the connection ends."""

    async def test(admin: Admin) -> None:
        async with await admin.connect() as client:
            await client.send_all(b"POST /livez HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n\r\n" + b"x" * body_bytes)
            received = await read_all(client)
        assert statuses(received) == [405]
        assert b"Connection: close\r\n" in received

    with_admin(test)


def test_serve_admin_head_answer_has_no_body() -> None:
    """HEAD gets the headers of the page and nothing after them, errors included."""

    async def test(admin: Admin) -> None:
        for path in (b"/livez", b"/nothing", b"/broken"):
            received = await admin.talk(b"HEAD " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            assert re.search(rb"Content-Length: [1-9]", received)
            assert received.endswith(b"\r\n\r\n")

    with_admin(test)


@pytest.mark.parametrize("path", [pytest.param(b"/broken", id="at once"), pytest.param(b"/broken-slow", id="later")])
def test_serve_admin_page_that_raises_is_500_logged_counted_and_survived(
    path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in one page is told once with its traceback, counted, and costs nothing else."""

    async def test(admin: Admin) -> None:
        received = await admin.talk(
            b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        assert statuses(received) == [500, 200]
        assert b"a bug" not in received
        assert admin.counters.unexpected_errors == 1

    with_admin(test)
    (logged,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert logged.exc_info is not None
    assert isinstance(logged.exc_info[1], LookupError)


def test_serve_admin_page_that_cannot_be_sent_ends_its_connection_only() -> None:
    """A page that is not valid HTTP is a bug too: counted, its connection closed, the server goes on."""

    async def test(admin: Admin) -> None:
        assert await admin.talk(b"GET /invalid HTTP/1.1\r\nHost: a\r\n\r\n") == b""
        assert admin.counters.unexpected_errors == 1
        assert statuses(await admin.talk(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")) == [200]

    with_admin(test)


def test_serve_admin_client_that_resets_is_survived() -> None:
    """A client that is gone in the middle of a large answer is its own affair."""

    async def test(admin: Admin) -> None:
        for _ in range(5):
            client = await admin.connect()
            await client.send_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.receive_some(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await client.aclose()
        assert statuses(await admin.talk(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")) == [200]
        assert admin.counters.unexpected_errors == 0

    with_admin(test)

"""Events that are written to an API server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from api_driver import PROMPTLY_S, put_service, until_true
from apiserver.double import ApiServer
from apiserver.faults import Silence

from userspace_proxy.config import ApiAccess
from userspace_proxy.sources.api_events import EventTeller, Notice

NOTICE = Notice("Service default/web", "UnsupportedProtocol", "port sctp: SCTP is not served")


@pytest.fixture
def access(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> ApiAccess:
    """Return the way to the double."""
    return ApiAccess(api_server.kubeconfig(tmp_path_factory.mktemp("access") / "config"))


@asynccontextmanager
async def running(access: ApiAccess) -> AsyncIterator[EventTeller]:
    """Run a teller."""
    teller = EventTeller(access, "node-1", lambda: 1e9)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(teller.run)
            yield teller
            nursery.cancel_scope.cancel()


def events_in(server: ApiServer) -> list[dict[str, Any]]:
    """Return all Events there are."""
    return server.in_thread(
        lambda store: [msgspec.json.decode(stored.encoded) for stored in store.collection("events").objects.values()]
    )


async def wait_events(server: ApiServer, count: int) -> list[dict[str, Any]]:
    """Return the Events once there are so many."""
    await until_true(lambda: len(events_in(server)) >= count)
    return events_in(server)


async def test_tell_writes_an_event_of_the_object(api_server: ApiServer, access: ApiAccess) -> None:
    """An Event names its object so that ``kubectl describe`` finds it, once however often it is told."""
    put_service(api_server, "default/web")
    async with running(access) as teller:
        teller.tell(NOTICE)
        teller.tell(NOTICE)
        teller.tell(Notice("Node node-1", "Starting", "the proxy starts", is_warning=False))
        told = {event["reason"]: event for event in await wait_events(api_server, 2)}
    about = told["UnsupportedProtocol"]
    assert about["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Service",
        "namespace": "default",
        "name": "web",
        "uid": "uid-of-web",
    }
    assert (about["type"], about["message"]) == ("Warning", NOTICE.message)
    assert about["source"] == {"component": "userspace-proxy", "host": "node-1"}
    assert about["lastTimestamp"] == "2001-09-09T01:46:40Z"
    assert told["Starting"]["type"] == "Normal"
    assert told["Starting"]["metadata"]["namespace"] == "default"


async def test_tell_without_the_right_is_logged_once_and_goes_on(
    api_server: ApiServer, access: ApiAccess, caplog: pytest.LogCaptureFixture
) -> None:
    """Missing rights for Events are told once; nothing fails, and later Events are written."""
    put_service(api_server, "default/web")
    denial = api_server.access.deny("create", "events")
    async with running(access) as teller:
        for number in range(2):
            teller.tell(Notice("Node node-1", f"Reason{number}", "x"))
        await until_true(lambda: teller.dropped >= 2)
        api_server.access.allow(denial)
        teller.tell(NOTICE)
        await wait_events(api_server, 1)
    (record,) = [record for record in caplog.records if "cannot write Events" in record.getMessage()]
    assert "forbids to create events" in str(vars(record)["reason"])


async def test_tell_without_credentials_is_logged_once_and_goes_on(
    api_server: ApiServer, access: ApiAccess, caplog: pytest.LogCaptureFixture
) -> None:
    """They are asked for when there is something to tell, not before, and again for the next time."""
    path = access.kubeconfig
    assert path is not None
    aside = path.rename(path.with_name("aside"))
    put_service(api_server, "default/web")
    async with running(access) as teller:
        for reason in ("First", "Second"):
            teller.tell(Notice("Service default/web", reason, "text"))
        await until_true(lambda: teller.dropped == 2)
        aside.rename(path)
        teller.tell(Notice("Service default/web", "Third", "text"))
        assert [event["reason"] for event in await wait_events(api_server, 1)] == ["Third"]
    assert sum("cannot write Events" in record.getMessage() for record in caplog.records) == 1


async def test_tell_more_than_is_written_drops_the_rest(access: ApiAccess) -> None:
    """Whoever tells never waits, however much there is, and also while nothing is written."""
    teller = EventTeller(access, "node-1", lambda: 1e9)
    for number in range(5000):
        teller.tell(Notice("Node node-1", "Reason", str(number)))
    assert teller.dropped == 4900


async def test_run_cancelled_while_the_server_is_silent_ends_at_once(api_server: ApiServer, access: ApiAccess) -> None:
    """An Event that is being written keeps nobody waiting."""
    api_server.order(Silence(has_headers=False))
    with trio.fail_after(PROMPTLY_S):
        async with running(access) as teller:
            teller.tell(NOTICE)
            await until_true(lambda: api_server.requests)

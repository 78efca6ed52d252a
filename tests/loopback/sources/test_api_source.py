"""The whole API server source: what it sends, when all is known, and how it ends."""

import threading
import time

import pytest
import trio
from api_driver import (
    PROMPTLY_S,
    RunningSource,
    delete,
    put_many_slices,
    put_node,
    put_service,
    put_slice,
    running_source,
    until_true,
    wait_until,
)
from apiserver.double import ApiServer
from apiserver.faults import Answer, Reset, Silence
from manifest_driver import summary

from userspace_proxy.config import ApiAccess
from userspace_proxy.errors import ApiError, ConfigError
from userspace_proxy.sources.api_source import read_api, run_api
from userspace_proxy.sources.base import ApiState, ProblemsFound, ResourceState, WatchEvents

pytestmark = pytest.mark.slow


@pytest.fixture
def access(api_server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> ApiAccess:
    """Return the way to the double."""
    return ApiAccess(api_server.kubeconfig(tmp_path_factory.mktemp("access") / "config"))


def busy_threads() -> list[str]:
    """Return the names of threads that work for trio now; idle ones wait to be used again."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("watch ")]


async def test_run_api_sends_all_then_synced_once_then_changes(api_server: ApiServer, access: ApiAccess) -> None:
    """Everything there is comes before ``synced``, which comes once; changes follow."""
    put_service(api_server)
    put_slice(api_server)
    put_node(api_server)
    async with running_source(access, node_name="node-1") as source:
        told = await source.until("synced")
        assert {"+Service shop/web", "+EndpointSlice shop/web-1", "+Node node-1"} <= set(told)
        delete(api_server, "endpointslices", "shop/web-1")
        assert await source.until("-EndpointSlice shop/web-1") == ["-EndpointSlice shop/web-1"]
        assert source.state.server == api_server.url
        assert sorted(source.state.resources) == ["endpointslices", "nodes", "services"]


async def _cancel_when_refused(scope: trio.CancelScope, source: RunningSource, resource: str) -> None:
    """Cancel once some lists of a resource have been refused."""
    nothing = ResourceState()
    await until_true(lambda: source.state.resources.get(resource, nothing).failures.get("server_error", 0) > 1)
    scope.cancel()


@pytest.mark.parametrize("resource", ["services", "endpointslices"])
async def test_run_api_without_one_list_is_not_synced(api_server: ApiServer, access: ApiAccess, resource: str) -> None:
    """Nothing is known before both Services and EndpointSlices are."""
    fault = api_server.order(Answer(500), resource, "list", times=None)
    async with running_source(access) as source:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_refused, nursery.cancel_scope, source, resource)
            await source.until("synced")
        assert nursery.cancel_scope.cancelled_caught, "synced too early"
        fault.lift()
        await source.until("synced")


@pytest.mark.parametrize("is_there", [False, True], ids=["no-such-node", "forbidden"])
async def test_run_api_without_its_node_is_synced_all_the_same(
    api_server: ApiServer,
    access: ApiAccess,
    is_there: bool,  # noqa: FBT001
) -> None:
    """A Node that does not exist, or may not be read, keeps nothing back."""
    if is_there:
        put_node(api_server)
        api_server.access.deny(resource="nodes")
    async with running_source(access, node_name="node-1") as source:
        assert "+Node node-1" not in await source.until("synced")
        wait_until(lambda: bool(source.state.resources["nodes"].failure) is is_there, "the failure")


async def test_run_api_while_the_server_is_not_there_yet_keeps_trying(api_server: ApiServer, access: ApiAccess) -> None:
    """A proxy that starts before its API server gets what there is later, and says meanwhile what is wrong."""
    api_server.refuse_connections()
    async with running_source(access) as source:
        await until_true(lambda: source.state.resources and all(one.failure for one in source.state.resources.values()))
        assert "Connection refused" in source.state.resources["services"].failure
        api_server.accept_connections()
        await source.until("synced")


async def test_run_api_again_sends_everything_again(api_server: ApiServer, access: ApiAccess) -> None:
    """Each run is complete, as one that follows a failed one must be."""
    put_service(api_server)
    for _ in range(2):
        async with running_source(access) as source:
            assert "+Service shop/web" in await source.until("synced")


async def test_run_api_with_bad_settings_is_a_config_error(access: ApiAccess) -> None:
    """What cannot get any better ends the run."""
    send, _ = trio.open_memory_channel[WatchEvents](0)
    with pytest.raises(ConfigError, match="has no context 'other'"):
        await run_api(
            ApiAccess(access.kubeconfig, context="other"),
            send,
            node_name="",
            state=ApiState(),
            wall_clock=lambda: 1e9,
        )


@pytest.mark.parametrize(
    "fault", [None, Answer(429, retry_after_s=3600), Reset(), Silence(), Silence(has_headers=False)]
)
async def test_run_api_cancelled_ends_at_once_with_its_threads(
    api_server: ApiServer, access: ApiAccess, fault: Answer | Reset | Silence | None
) -> None:
    """Whatever the threads wait for, they are gone soon, and nobody waited for them."""
    if fault is not None:
        api_server.order(fault, "services", "list", times=None)
    async with running_source(access) as source:
        if fault is None:
            await source.until("synced")
        await until_true(lambda: api_server.asked("services", "list"))
        assert len(busy_threads()) == 2
        started = time.monotonic()
        source.scope.cancel()
    wait_until(lambda: not busy_threads(), "the end of the threads")
    assert time.monotonic() - started < PROMPTLY_S


async def test_run_api_that_has_ended_says_that_nothing_is_watched(api_server: ApiServer, access: ApiAccess) -> None:
    """Health and metrics must not tell of a watch that is up while the source waits to be started anew."""
    async with running_source(access) as source:
        await source.until("synced")
    assert {state.failure for state in source.state.resources.values()} == {"it is not being watched now"}
    async with running_source(access, state=source.state) as source:
        await source.until("synced")
        await until_true(lambda: not any(state.failure for state in source.state.resources.values()))


async def test_run_api_receiver_that_takes_its_time_holds_the_source_back(
    api_server: ApiServer, access: ApiAccess
) -> None:
    """What waits for a slow receiver is bounded, and the threads wait too; cancelling frees them."""
    put_many_slices(api_server, 8000)
    async with running_source(access) as source:
        await until_true(lambda: len(api_server.asked("endpointslices", "list")) >= 5)
        await trio.sleep(1.0)
        assert len(api_server.asked("endpointslices", "list")) < 10
        source.scope.cancel()
    wait_until(lambda: not busy_threads(), "the end of the threads")


def test_read_api_returns_what_there_is(api_server: ApiServer, access: ApiAccess) -> None:
    """One look gives all objects, with their Problems, and ends with ``synced``."""
    put_service(api_server)
    put_service(api_server, "shop/bad", cluster_ip="10.96.0.999")
    put_node(api_server)
    told = [summary(event) for event in read_api(access, node_name="node-1")]
    assert {"+Service shop/web", "!bad 1", "+Node node-1"} <= set(told)
    assert "+Service shop/bad" not in told
    assert told[-1] == "synced"


def test_read_api_without_rights_says_which(api_server: ApiServer, access: ApiAccess) -> None:
    """A look that is not complete is none."""
    api_server.access.deny("list", "endpointslices")
    with pytest.raises(ApiError, match="forbids to list endpointslices"):
        read_api(access, node_name="")


def test_read_api_without_the_right_to_nodes_returns_the_rest_with_a_problem(
    api_server: ApiServer, access: ApiAccess
) -> None:
    """A run would serve all the same."""
    put_service(api_server)
    api_server.access.deny("list", "nodes")
    told = list(read_api(access, node_name="node-1"))
    assert "+Service shop/web" in map(summary, told)
    (found,) = [one for one in told if isinstance(one, ProblemsFound)]
    assert "forbids to list nodes" in found.problems[0].text

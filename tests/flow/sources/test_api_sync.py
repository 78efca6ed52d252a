"""When all that the API server has is known."""

import trio
from manifest_driver import summary
from trio.testing import MockClock

from userspace_proxy.sources.api_handover import MAX_BATCH, Handover
from userspace_proxy.sources.api_sync import Sync, hand_on
from userspace_proxy.sources.api_watch import Listed, ListRefused, Report
from userspace_proxy.sources.base import ProblemsFound, WatchEvents

ALL = ("services", "endpointslices", "nodes")


async def told_after(*reports: Report, missing: tuple[str, ...] = ALL) -> list[tuple[float, list[str]]]:
    """Return what is sent when these reports come, and at which second, within ten minutes."""
    send, batches = trio.open_memory_channel[WatchEvents](100)
    handover: Handover[Report] = Handover()
    sync = Sync(set(missing))
    started = trio.current_time()
    told: list[tuple[float, list[str]]] = []
    handover.put(reports)
    with trio.move_on_after(600):
        while True:
            await hand_on(handover, send, sync)
            while True:
                try:
                    batch = batches.receive_nowait()
                except trio.WouldBlock:
                    break
                told.append((trio.current_time() - started, [summary(event) for event in batch]))
    return told


async def test_hand_on_when_all_is_listed_tells_synced_once(autojump_clock: MockClock) -> None:
    """``synced`` comes after all events before it, at once, and not again after a later list."""
    found = ProblemsFound("Service shop/web", ())
    reports: list[Report] = [*map(Listed, ALL[:2]), found, *map(Listed, ALL)]
    assert await told_after(*reports) == [(0.0, ["!web 0"]), (0.0, ["synced"])]


async def test_hand_on_without_the_node_waits_half_a_minute(autojump_clock: MockClock) -> None:
    """A Node that cannot be had for now keeps the rest back for 30 s, no longer, and only once."""
    assert await told_after(*map(Listed, ALL[:2])) == [(30.0, ["synced"])]


async def test_hand_on_with_a_refused_node_does_not_wait(autojump_clock: MockClock) -> None:
    """A Node that may not be read is not waited for."""
    assert await told_after(*map(Listed, ALL[:2]), ListRefused("nodes")) == [(0.0, ["synced"])]


async def test_hand_on_with_refused_services_is_never_synced(autojump_clock: MockClock) -> None:
    """Without Services there is nothing to serve, however long it takes."""
    assert await told_after(ListRefused("services"), *map(Listed, ALL[1:])) == []


async def test_hand_on_of_much_makes_batches_of_bounded_size(autojump_clock: MockClock) -> None:
    """What has come together is sent in parts, in order."""
    reports = [ProblemsFound(f"Service shop/{number}", ()) for number in range(2 * MAX_BATCH + 1)]
    told = [texts for _, texts in await told_after(*reports)]
    assert [len(texts) for texts in told] == [MAX_BATCH, MAX_BATCH, 1]
    assert [text for texts in told for text in texts] == [f"!{number} 0" for number in range(2 * MAX_BATCH + 1)]


async def test_handover_after_close_keeps_nothing_and_nobody(autojump_clock: MockClock) -> None:
    """A thread that comes too late neither waits nor leaves anything."""
    handover: Handover[int] = Handover()
    handover.close()
    handover.put(range(100_000))
    with trio.move_on_after(1) as waiting:
        await handover.take()
    assert waiting.cancelled_caught

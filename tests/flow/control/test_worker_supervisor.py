"""Tests of worker_supervisor: one worker kept alive, told and heard."""

import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from ipaddress import ip_address
from itertools import pairwise

import pytest
import trio
from attrs import frozen
from builders import listener_key, pool, pool_key, route, service_port_name
from fake_worker import FakeWorkers, report, service_report
from trio.testing import MockClock, wait_all_tasks_blocked

from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.control.batch_encoder import BatchEncoder
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.worker_process import END_PATIENCE_S
from userspace_proxy.control.worker_store import WorkerStore
from userspace_proxy.control.worker_supervisor import (
    FAILING_FROM,
    LONGEST_PAUSE_S,
    MAX_SILENCES_AT_START,
    RETRY_LOST_S,
    YOUNG_S,
    WorkerSupervisor,
)
from userspace_proxy.ipc.commands import Ask, LogState, Remember, Serve, SetPool, Start, Stop
from userspace_proxy.ipc.frames import MAX_PAYLOAD_BYTES, encode_frame
from userspace_proxy.ipc.reports import AffinityReport, Applied, Stopped, encode_message
from userspace_proxy.model.names import Protocol, ServicePortName
from userspace_proxy.plan.state import ListenerKey, ListenerSpec

START = Start("0", RelayLimits(), FlowLimits(), "info", "text")
WEB = ("shop/web:http", Protocol.TCP)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """Return a socket to be lent."""
    with socket.socket() as one:
        yield one


@frozen
class Place:
    """A supervised place for a worker, and all around it."""

    store: WorkerStore
    supervisor: WorkerSupervisor
    workers: FakeWorkers
    counters: ControlCounters
    stopped: list[ListenerKey]

    def serve(self, sock: socket.socket) -> int:
        """Have a listener served; return its number."""
        spec = ListenerSpec(listener_key(), ip_address("127.0.0.1"), 80)
        self.store.serve(spec, route(), (sock,))
        return self.store.listeners[spec.key].command.number

    @property
    def restarts(self) -> dict[str, int]:
        """How many were replaced, by the reason."""
        return {reason: count for (_, reason), count in self.counters.worker_restarts.items()}


@asynccontextmanager
async def _place(setup: Callable[[FakeWorkers], None] = lambda _: None) -> AsyncIterator[Place]:
    """Yield a place that is being supervised, with its first worker."""
    async with _unattended_place() as (place, nursery):
        setup(place.workers)
        nursery.start_soon(place.supervisor.run)
        await wait_all_tasks_blocked()
        yield place


@asynccontextmanager
async def _unattended_place() -> AsyncIterator[tuple[Place, trio.Nursery]]:
    """Yield a place, and a nursery to run it in."""
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            place = _new_place(nursery)
            stack.callback(_close, place)
            yield place, nursery
            nursery.cancel_scope.cancel()


def _close(place: Place) -> None:
    for worker in place.workers.all:
        worker.end(0)
        worker.channel.close()


def _new_place(nursery: trio.Nursery) -> Place:
    workers, counters, stopped = FakeWorkers(nursery), ControlCounters(), list[ListenerKey]()

    def wake() -> None:
        supervisor.wake()

    def forget(name: ServicePortName) -> None:
        supervisor.forget(name)

    store = WorkerStore(1, wake, forget)
    supervisor = WorkerSupervisor(
        worker=0,
        store=store,
        start=START,
        start_process=workers.start,
        encoder=BatchEncoder(1),
        control_counters=counters,
        on_stopped=stopped.append,
    )
    return Place(store, supervisor, workers, counters, stopped)


async def _until(is_so: Callable[[], bool]) -> None:
    """Wait until something holds that takes no time."""
    with trio.fail_after(5):
        while not is_so():
            await trio.lowlevel.checkpoint()


async def test_supervisor_worker_gets_all_there_is_and_then_what_changes(sock: socket.socket) -> None:
    """It does not matter whether something is said before it starts or after."""
    async with _place() as place:
        place.serve(sock)
        with trio.fail_after(5):
            await place.supervisor.wait_settled()
        assert place.supervisor.is_settled
        place.store.apply_pool(pool("10.0.0.1:80"))
        assert not place.supervisor.is_settled
        await place.supervisor.wait_settled()
        told = [one for one in place.workers.last.commands if not isinstance(one, Ask)]
        assert [type(one) for one in told] == [Start, Serve, SetPool]
        assert place.workers.last.descriptors == 1
        assert (place.supervisor.serves, place.supervisor.failure) == (True, "")


async def test_supervisor_settles_with_the_first_worker_and_does_not_wait_for_another() -> None:
    """What is in force at the start is waited for; a place whose worker has died keeps nobody waiting."""
    async with _unattended_place() as (place, nursery):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(place.supervisor.wait_settled)
            await wait_all_tasks_blocked()
            nursery.start_soon(place.supervisor.run)
        assert place.supervisor.is_settled
        place.workers.fails = True
        place.workers.last.kill()
        await _until(lambda: place.supervisor.process is None)
        await place.supervisor.wait_settled()
        assert not place.supervisor.is_settled


async def test_supervisor_successor_gets_all_again(sock: socket.socket) -> None:
    """The whole of it, with the socket, whose queue waits for it."""
    async with _place() as place:
        place.serve(sock)
        place.store.apply_pool(pool("10.0.0.1:80"))
        await place.supervisor.wait_settled()
        place.workers.last.kill()
        await _until(lambda: len(place.workers.all) == 2 and place.supervisor.is_settled)
        assert [type(one) for one in place.workers.last.commands[:3]] == [Start, SetPool, Serve]
        assert place.workers.last.descriptors == 1
        assert place.restarts == {"signal": 1}


async def test_supervisor_worker_that_is_told_more_than_the_line_holds_gets_all_of_it() -> None:
    """What the kernel does not take at once follows, and nothing comes in between."""
    async with _place() as place:
        backends = [f"10.0.{number}.1:80" for number in range(100)]
        pools = [pool(*backends, key=pool_key(f"shop/s{number}:http")) for number in range(600)]
        for one in pools:
            place.store.apply_pool(one)
        with trio.fail_after(30):
            await place.supervisor.wait_settled()
        assert [one.pool for one in place.workers.last.commands if isinstance(one, SetPool)] == pools


async def test_supervisor_report_that_has_come_counts_as_a_whole_though_cancelled(sock: socket.socket) -> None:
    """It has only what has changed: what is missed is never said again."""
    names = [f"shop/s{number}:http" for number in range(5000)]
    async with _unattended_place() as (place, nursery):
        for name in names:
            spec = ListenerSpec(listener_key(name), ip_address("127.0.0.1"), 80)
            place.store.serve(spec, route(), (sock,))

        async def run(scope: trio.CancelScope) -> None:
            with scope:
                await place.supervisor.run()

        scope = trio.CancelScope()
        nursery.start_soon(run, scope)
        await _until(lambda: place.supervisor.is_settled)
        said = report(0, services=tuple(service_report(1, service=name) for name in names))
        nursery.start_soon(place.workers.last.say, said)
        services = place.supervisor.counters.total.services
        await _until(lambda: len(services) > 0)
        assert len(services) < len(names), "it is taken in bit by bit"
        scope.cancel()
        await _until(lambda: len(services) == len(names))


async def test_supervisor_that_is_cancelled_and_run_again_has_the_same_worker(sock: socket.socket) -> None:
    """A bug elsewhere costs no connection: whatever was cancelled goes on where it was."""
    async with _unattended_place() as (place, nursery):
        for number in range(20):
            place.store.apply_pool(pool(f"10.0.0.{number}:80"))
            with trio.move_on_after(0.01 if number % 2 else 0):
                await place.supervisor.run()
        place.serve(sock)
        nursery.start_soon(place.supervisor.run)
        await wait_all_tasks_blocked()
        await place.supervisor.wait_settled()
        assert len(place.workers.all) == 1
        assert place.supervisor.is_settled


async def test_supervisor_silent_worker_is_killed_after_some_questions(autojump_clock: MockClock) -> None:
    """Three in a row without any answer; one that answers late is left alone."""
    async with _place() as place:
        await trio.sleep(10.5)
        worker = place.workers.last
        worker.is_mute = True
        await trio.sleep(2)
        worker.is_mute = False
        await trio.sleep(10)
        assert place.workers.all == [worker]
        worker.is_mute = True
        await trio.sleep(3.4)
        assert place.workers.all == [worker]
        await trio.sleep(0.2)
        assert len(place.workers.all) == 2
        assert place.restarts == {"hang": 1}
        await trio.sleep(10)
        assert len(place.workers.all) == 2


async def test_supervisor_worker_that_never_says_anything_gets_more_time(autojump_clock: MockClock) -> None:
    """Python takes its time to start on a busy node; but not for ever."""

    def be_mute(workers: FakeWorkers) -> None:
        workers.are_mute = True

    async with _place(be_mute) as place:
        await place.supervisor.wait_report()
        await trio.sleep(MAX_SILENCES_AT_START - 0.1 - trio.current_time())
        assert (place.supervisor.serves, place.supervisor.failure) == (False, "worker 0 is being started")
        assert len(place.workers.all) == 1
        await trio.sleep(0.2)
        assert place.restarts == {"hang": 1}


@pytest.mark.parametrize(
    "data",
    [
        encode_frame(b"A[1", 0),
        encode_frame(b"Z[1]", 0),
        encode_frame(b"", 0),
        encode_frame(encode_message(Applied(1000)), 0),
        encode_frame(encode_message(report(1000)), 0),
        encode_frame(encode_message(report(0, dial_duration=(1,))), 0),
        encode_frame(b"", 0)[:4].replace(b"\0", b"\xff") + bytes(4),
    ],
    ids=["cut", "letter", "empty", "confirmation", "answer", "counters", "length"],
)
async def test_supervisor_worker_that_says_what_none_would_is_replaced(data: bytes) -> None:
    """Whoever has taken a worker over gets no further with it."""
    assert MAX_PAYLOAD_BYTES < 0xFFFFFFFF
    async with _place() as place:
        await place.workers.last.send(data)
        await _until(lambda: bool(place.restarts))
        assert place.workers.all[0].has_ended()
        assert place.restarts == {"protocol": 1}


async def test_supervisor_worker_that_has_cut_its_line_may_end_by_itself() -> None:
    """Its status says why; SIGKILL would say only that it was killed."""
    async with _place() as place:
        worker = place.workers.last
        worker.hang_up()
        await wait_all_tasks_blocked()
        assert not worker.has_ended()
        worker.end(1)
        await _until(lambda: bool(place.restarts))
        assert place.restarts == {"exit": 1}


async def test_supervisor_worker_that_has_cut_its_line_and_lives_on_is_killed(autojump_clock: MockClock) -> None:
    """It serves nobody any more."""
    async with _place() as place:
        place.workers.last.hang_up()
        await trio.sleep(END_PATIENCE_S + 0.1)
        assert place.restarts == {"signal": 1}


async def test_supervisor_descriptors_from_a_worker_are_not_received() -> None:
    """It cannot fill the table of control with them."""
    async with _place() as place:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await place.workers.last.send(encode_frame(b"", 1)[:4], theirs.fileno())
            theirs.close()
            await wait_all_tasks_blocked()
            ours.settimeout(0.0)
            assert ours.recv(1) == b"", "the other end is closed everywhere"


async def test_supervisor_deaths_soon_after_the_start_are_followed_by_longer_and_longer_pauses(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, then after 0.1 s, doubling to 10 s; from the third on it counts as failing. One sentence for each."""
    caplog.set_level(logging.WARNING)

    def die(workers: FakeWorkers) -> None:
        workers.dies = True

    async with _place(die) as place:
        await trio.sleep(60)
        starts = place.workers.started_s
        pauses = [round(later - earlier, 3) for earlier, later in pairwise(starts)]
        assert pauses[:9] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, LONGEST_PAUSE_S]
        assert set(pauses[9:]) == {LONGEST_PAUSE_S}
        assert place.restarts == {"exit": len(starts)}
        assert place.supervisor.is_failing
        assert place.supervisor.failure == "worker 0 is being started; the one before: it has exited with status 1"
        levels = [record.levelno for record in caplog.records]
        assert levels[:FAILING_FROM] == [logging.WARNING] * (FAILING_FROM - 1) + [logging.ERROR]
        assert len(levels) == len(starts)


async def test_supervisor_worker_that_lives_for_a_while_ends_the_failing(autojump_clock: MockClock) -> None:
    """Then the next death is followed by a start at once again."""

    def die(workers: FakeWorkers) -> None:
        workers.dies = True

    async with _place(die) as place:
        await trio.sleep(1)
        place.workers.dies = False
        await trio.sleep(1)
        assert place.supervisor.serves
        assert place.supervisor.is_failing
        await trio.sleep(YOUNG_S + 1)
        assert not place.supervisor.is_failing
        for _ in range(2):  # an old one, and one that is the first to die young
            place.workers.last.kill()
            now_s = trio.current_time()
            await trio.sleep(0.01)
            assert place.workers.started_s[-1] == now_s


async def test_supervisor_process_that_cannot_be_started_is_tried_again(autojump_clock: MockClock) -> None:
    """As one that dies at once; the sentence says why."""

    def fail(workers: FakeWorkers) -> None:
        workers.fails = True

    async with _place(fail) as place:
        await trio.sleep(1)
        assert place.restarts["exit"] >= 3
        assert "Resource temporarily unavailable" in place.supervisor.failure
        place.workers.fails = False
        await trio.sleep(2)
        assert place.supervisor.serves


async def test_supervisor_after_stop_there_is_no_successor() -> None:
    """It would have nothing to do; and ``run`` ends when the last one has."""
    async with _unattended_place() as (place, _):
        async with trio.open_nursery() as inner:
            inner.start_soon(place.supervisor.run)
            await wait_all_tasks_blocked()
            place.store.stop()
            await place.supervisor.wait_settled()
            assert Stop() in place.workers.last.commands
            place.workers.last.end(0)
        assert len(place.workers.all) == 1
        with trio.fail_after(5):
            await place.supervisor.wait_settled()
        assert not place.restarts


async def test_supervisor_totals_never_go_down_and_open_connections_do(sock: socket.socket) -> None:
    """A scrape gets what is counted now, and over a replacement no less than before."""
    async with _place() as place:
        place.serve(sock)
        place.workers.last.counts = {"services": (service_report(5, active=3),), "open_relays": 3}
        await place.supervisor.wait_settled()
        await place.supervisor.wait_report()
        total = place.supervisor.counters.total
        assert (total.services[WEB].connections, total.services[WEB].active) == (5, 3)
        assert place.supervisor.open_now == (3, 0)
        place.workers.last.kill()
        await _until(lambda: len(place.workers.all) == 2 and place.supervisor.serves)
        assert (total.services[WEB].connections, total.services[WEB].active) == (5, 0)
        assert place.supervisor.open_now == (0, 0)
        place.workers.last.counts = {"services": (service_report(2, active=1),)}
        await place.supervisor.wait_report()
        assert (total.services[WEB].connections, total.services[WEB].active) == (7, 1)


async def test_supervisor_report_of_a_forgotten_service_port_is_dropped(sock: socket.socket) -> None:
    """Also where it has come back already, and the report is still of the one before."""
    async with _place() as place:
        place.serve(sock)
        await place.supervisor.wait_settled()
        worker = place.workers.last
        worker.counts = {"services": (service_report(5), service_report(9, service="shop/none:http"))}
        await place.supervisor.wait_report()
        total = place.supervisor.counters.total
        assert set(total.services) == {WEB}
        worker.confirms = False
        place.store.close(listener_key())
        place.store.forget(service_port_name())
        assert not total.services
        place.serve(sock)
        await place.supervisor.wait_report()
        assert not total.services


async def test_supervisor_clients_keep_their_backends_over_a_replacement(sock: socket.socket) -> None:
    """The successor is told what was reported, before it serves."""
    async with _place() as place:
        place.store.apply_pool(pool("10.0.0.1:80", affinity_timeout_s=60))
        place.serve(sock)
        await place.supervisor.wait_settled()
        given = AffinityReport("shop/web:http", "TCP", "10.9.9.9", "10.0.0.1", 80, 5.0)
        unknown = (given._replace(service="shop/none:http"), given._replace(protocol="QUIC"))
        place.workers.last.counts = {"affinity": (*unknown, given)}
        await place.supervisor.wait_report()
        place.workers.last.kill()
        await _until(lambda: len(place.workers.all) == 2 and place.supervisor.is_settled)
        told = place.workers.last.commands
        (remember,) = [one for one in told if isinstance(one, Remember)]
        assert [client for client, _, _ in remember.records] == ["10.9.9.9"]
        assert told.index(remember) < next(index for index, one in enumerate(told) if isinstance(one, Serve))


async def test_supervisor_listener_that_somebody_has_had_stop_is_told(sock: socket.socket) -> None:
    """Only control can have it listen again."""
    async with _place() as place:
        number = place.serve(sock)
        await place.supervisor.wait_settled()
        await place.workers.last.say(Stopped(number))
        await place.workers.last.say(Stopped(number + 1))
        await wait_all_tasks_blocked()
        assert place.stopped == [listener_key()]


async def test_supervisor_listeners_that_a_worker_has_no_room_for_are_tried_again(
    sock: socket.socket, autojump_clock: MockClock
) -> None:
    """Until then a sentence says so."""
    async with _place() as place:
        number = place.serve(sock)
        await wait_all_tasks_blocked()
        await place.workers.last.say(Applied(2, (number,)))
        await wait_all_tasks_blocked()
        assert "1 listeners" in place.supervisor.failure
        assert not place.supervisor.is_settled
        before_s = trio.current_time()
        await place.supervisor.wait_settled()
        assert trio.current_time() == before_s, "other changes do not wait for what cannot be"
        await trio.sleep(RETRY_LOST_S + 1)
        assert sum(isinstance(one, Serve) for one in place.workers.last.commands) == 2
        assert place.supervisor.failure == ""
        assert place.supervisor.is_settled


async def test_supervisor_waits_end_when_the_worker_dies(autojump_clock: MockClock) -> None:
    """Nobody waits for an answer that cannot come."""
    async with _place() as place:
        place.workers.last.is_mute = True
        place.store.apply_pool(pool())
        place.workers.dies = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.supervisor.wait_settled)
            nursery.start_soon(place.supervisor.wait_report)
            await wait_all_tasks_blocked()
            place.workers.last.kill()


async def test_supervisor_log_state_is_passed_on_and_says_what_is_known_here(caplog: pytest.LogCaptureFixture) -> None:
    """Both ends write to the log."""
    caplog.set_level(logging.INFO)
    async with _place() as place:
        await place.supervisor.wait_settled()
        place.supervisor.say_log_state()
        await wait_all_tasks_blocked()
        assert LogState() in place.workers.last.commands
        (record,) = [one for one in caplog.records if one.message == "state: worker"]
        assert "pid 1000, 0 s old, 0 descriptors watched, all is in force" in str(vars(record)["reason"])

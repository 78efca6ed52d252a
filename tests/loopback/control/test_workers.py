"""Tests of workers: real worker processes, supervised in this process, and what their clients see."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from attrs import frozen
from builders import listener_key, pool, route
from peers import End, Peer, Peers, count_descriptors, echo, greet, open_peers, own_host
from process_tree import children

from userspace_proxy.config import Config, FlowLimits, RelayLimits
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.workers import Workers
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.model.names import Protocol
from userspace_proxy.plan.state import Backend, ListenerKey, ListenerSpec

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0
HOST = own_host(77)
PORT = 8123
WEB = ("shop/web:http", Protocol.TCP)
PAIR = 2


async def _until(is_so: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not is_so():  # noqa: ASYNC110 - it happens in other processes
            await trio.sleep(0.01)


@frozen
class Proxy:
    """Some workers and the listeners they serve."""

    workers: Workers
    listeners: ListenerSet
    counters: ControlCounters
    nursery: trio.Nursery
    scope: trio.CancelScope
    """Around the first run of the workers."""

    async def run(self) -> None:
        """Run the workers for the first time."""
        with self.scope:
            await self.workers.run()

    def serve(self, *backends: Backend, affinity_timeout_s: int | None = None) -> tuple[str, int]:
        """Have a listener open that leads to some Backends; return where."""
        self.listeners.apply_pool(pool(*map(str, backends), affinity_timeout_s=affinity_timeout_s))
        self.listeners.apply_listener(ListenerSpec(listener_key(), ip_address(HOST), PORT), route())
        assert not self.listeners.open_missing(retry=True)
        return HOST, PORT

    def pid(self, worker: int) -> int:
        """Return the process that a worker is now; 0: there is none."""
        process = self.workers._supervisors[worker].process
        return 0 if process is None else process.pid

    def pids(self) -> set[int]:
        """Return the processes that all workers are now; 0 among them: one is being replaced."""
        return {self.pid(worker) for worker in range(len(self.workers._supervisors))}

    async def settle(self) -> None:
        """Wait until all is in force in all workers."""
        await _until(lambda: all(one.is_settled for one in self.workers._supervisors))

    def kill(self, worker: int, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill a worker, and return which process that was, once it is dead."""
        pid = self.pid(worker)
        os.kill(pid, number)
        if number == signal.SIGKILL:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return pid

    async def wait_replaced(self, *pids: int) -> None:
        """Wait until others have taken the places of some processes, and serve."""
        await _until(lambda: self.pids().isdisjoint({0, *pids}))
        await self.settle()

    async def total(self) -> int:
        """Return how many connections the workers say that there were."""
        counters = await self.workers.counters()
        return sum(one.services[WEB].connections for one in counters.values() if WEB in one.services)


def _config(directory: Path, workers: int, **settings: object) -> Config:
    return Config(state_dir=directory, runtime_dir=directory, workers=workers, **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def _proxy(directory: Path, workers: int = PAIR, **settings: object) -> AsyncIterator[Proxy]:
    """Yield workers that run."""

    def listen_again(key: ListenerKey) -> None:
        listeners.listen_again(key)

    config, counters = _config(directory, workers, **settings), ControlCounters()
    engines = Workers(config, counters, listen_again)
    listeners = ListenerSet(engines.plane, config.limits)
    try:
        async with trio.open_nursery() as nursery:
            proxy = Proxy(engines, listeners, counters, nursery, trio.CancelScope())
            nursery.start_soon(proxy.run)
            yield proxy
            nursery.cancel_scope.cancel()
    finally:
        listeners.close_listeners()
        engines.abort()
        listeners.close()


class Load:
    """Clients that come and go, each with one exchange."""

    def __init__(self) -> None:
        """Start without any."""
        self.served = 0
        self.failed_since_s: list[float] = []
        """When those that failed had begun to connect."""

    async def run(self, peers: Peers, address: tuple[str, int]) -> None:
        """Come and go for ever."""
        while True:
            since_s = trio.current_time()
            peer = await peers.connect(address)
            try:
                await peer.send(b"x")
                answer = await peer.receive_some()
            except OSError:
                answer = b""
            if answer == b"x":
                self.served += 1
            else:
                self.failed_since_s.append(since_s)
            peer.close()


async def test_workers_one_that_is_killed_under_load_takes_only_its_open_connections_along(tmp_path: Path) -> None:
    """No client that comes after its death sees anything of it, and those of the other worker neither."""
    load = Load()
    async with _proxy(tmp_path) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        await proxy.settle()
        idle = [await peers.connect(address) for _ in range(40)]
        for one in idle:
            await one.send(b"a")
            assert await one.receive(1) == b"a"
        counters = await proxy.workers.counters()
        shares = [one.services[WEB].active for one in counters.values()]
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(load.run, peers, address)
            await _until(lambda: load.served > 200)
            dead = proxy.kill(0)
            dead_s = trio.current_time()
            await proxy.wait_replaced(dead)
            served = load.served
            await _until(lambda: load.served > served + 200)
            nursery.cancel_scope.cancel()
        assert not [since_s for since_s in load.failed_since_s if since_s > dead_s]
        assert len(load.failed_since_s) <= 4
        assert await _count_lost(idle) == shares[0]
        assert proxy.counters.worker_restarts == {("0", "signal"): 1}


async def _count_lost(peers: list[Peer]) -> int:
    """Return how many connections have ended; the others are shown to work."""
    lost = 0
    for one in peers:
        try:
            await one.send(b"b")
            lost += await one.receive_some() != b"b"
        except OSError:
            lost += 1
    return lost


async def test_workers_one_that_hangs_is_replaced_and_costs_no_new_connection(tmp_path: Path) -> None:
    """The other one takes all that come meanwhile; what it had accepted waits until it is killed."""
    load = Load()
    async with _proxy(tmp_path) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        await proxy.settle()
        await proxy.workers.counters()  # so it is known to be there
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(load.run, peers, address)
            await _until(lambda: load.served > 100)
            hung = proxy.kill(0, signal.SIGSTOP)
            stopped_s = trio.current_time()
            await trio.sleep(0.1)
            alive = Load()
            for _ in range(4):
                nursery.start_soon(alive.run, peers, address)
            await proxy.wait_replaced(hung)
            took_s = trio.current_time() - stopped_s
            assert alive.served > 200
            assert not alive.failed_since_s
            assert not [since_s for since_s in load.failed_since_s if since_s > stopped_s + 0.1]
            nursery.cancel_scope.cancel()
        assert took_s > 2
        assert proxy.counters.worker_restarts == {("0", "hang"): 1}


async def test_workers_that_cannot_live_are_tried_less_often_and_clients_wait_for_one_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readiness says so; clients are in the queue of the socket, and served in the end."""
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")  # no Python starts with it
    async with _proxy(tmp_path, workers=1) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        client = await peers.connect(address)
        await client.send(b"a")
        await _until(lambda: proxy.counters.worker_restarts["0", "exit"] >= 3)
        assert not proxy.workers.serves
        (failure,) = proxy.workers.failures
        assert failure == "worker 0 is being started; the one before: it has exited with status 1"
        monkeypatch.delenv("PYTHONHOME")
        with trio.fail_after(DEADLINE_S):
            assert await client.receive(1) == b"a"
        assert not proxy.workers.serves, "it has not lived for long"


async def test_workers_totals_are_exact_and_go_on_over_replacements(tmp_path: Path) -> None:
    """A scrape asks: what is counted by then is in it, whoever has counted it."""
    async with _proxy(tmp_path) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(greet(b"a")).backend)
        await proxy.settle()
        for round_ in range(1, 4):
            for _ in range(20):
                client = await peers.connect(address)
                assert await client.receive(1) == b"a"
                client.close()
            assert await proxy.total() == 20 * round_
            dead = [proxy.kill(worker) for worker in range(PAIR)]
            assert await proxy.total() == 20 * round_
            await proxy.wait_replaced(*dead)
            assert await proxy.total() == 20 * round_


async def test_workers_clients_keep_their_backends_when_all_workers_die(tmp_path: Path) -> None:
    """Those whose connections were reported, that is, all from a second before; over both workers."""
    async with _proxy(tmp_path) as proxy, open_peers() as peers:
        greetings = (b"a", b"b", b"c")
        address = proxy.serve(*(peers.listen(greet(one)).backend for one in greetings), affinity_timeout_s=600)
        await proxy.settle()

        async def ask(number: int) -> bytes:
            client = await peers.connect(address, source=(own_host(number), 0))
            greeting = await client.receive(1)
            client.close()
            return greeting

        before = [await ask(number) for number in range(100, 124)]
        counters = await proxy.workers.counters()
        assert all(one.services[WEB].connections for one in counters.values()), "both have clients"
        assert set(before) == set(greetings)
        for _ in range(2):
            await proxy.wait_replaced(*(proxy.kill(worker) for worker in range(PAIR)))
            assert [await ask(number) for number in range(100, 124)] == before
            await proxy.workers.counters()


async def test_workers_share_connections_that_come_slowly(tmp_path: Path) -> None:
    """Of 200 long ones, opened one by one, none holds more than 65 %."""
    async with _proxy(tmp_path) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(greet(b"a")).backend)
        await proxy.settle()
        for _ in range(200):
            client = await peers.connect(address)
            assert await client.receive(1) == b"a"
            await trio.sleep(0.002)
        counters = await proxy.workers.counters()
        active = [one.services[WEB].active for one in counters.values()]
        assert sum(active) == 200
        assert proxy.workers.open_now == (200, 0)
        assert max(active) <= 130, active


async def test_workers_fifty_replacements_leave_no_descriptor_and_no_process_behind(tmp_path: Path) -> None:
    """Neither here nor in the last ones."""
    async with _proxy(tmp_path, workers=10) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(greet(b"a")).backend)
        await proxy.settle()
        await proxy.workers.counters()
        here, there = count_descriptors(), _count_descriptors(proxy.pid(0))
        for _ in range(5):  # some while they are being told what to serve
            dead = [proxy.kill(worker) for worker in range(10)]
            await _until(partial(_are_replaced, proxy, {0, *dead}))
        await proxy.settle()
        await proxy.workers.counters()
        assert sum(proxy.counters.worker_restarts.values()) == 50
        assert (count_descriptors(), _count_descriptors(proxy.pid(0))) == (here, there)
        assert len(children()) == 10
        client = await peers.connect(address)
        assert await client.receive(1) == b"a"
    assert not children()


def _are_replaced(proxy: Proxy, dead: set[int]) -> bool:
    return proxy.pids().isdisjoint(dead)


def _count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


async def test_workers_drain_ends_with_the_last_connection(tmp_path: Path) -> None:
    """No new one is accepted by then, and the open one goes on as before."""
    async with _proxy(tmp_path) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        await proxy.settle()
        client = await peers.connect(address)
        await client.send(b"a")
        assert await client.receive(1) == b"a"
        proxy.listeners.close_listeners()
        with pytest.raises(ConnectionRefusedError):
            await peers.connect(address)
        with trio.move_on_after(1) as scope:
            await proxy.workers.wait_empty()
        assert scope.cancelled_caught
        await client.send(b"b")
        assert await client.receive(1) == b"b"
        client.close()
        with trio.fail_after(DEADLINE_S):
            await proxy.workers.wait_empty()
        assert proxy.workers.open_now == (0, 0)


async def test_workers_abort_resets_what_is_open(tmp_path: Path) -> None:
    """A client must not take the end of the proxy for the end of the data."""
    async with open_peers() as peers:
        async with _proxy(tmp_path) as proxy:
            address = proxy.serve(peers.listen(echo).backend)
            await proxy.settle()
            client = await peers.connect(address)
            await client.send(b"a")
            assert await client.receive(1) == b"a"
        assert await client.receive_to_end() == (b"", End.RST)
    assert not children()


async def test_workers_a_run_that_is_cancelled_leaves_them_serving(tmp_path: Path) -> None:
    """A bug in the control process costs no connection, and the next run has the same workers."""
    async with _proxy(tmp_path) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(echo).backend)
        await proxy.settle()
        client = await peers.connect(address)
        pids = proxy.pids()
        proxy.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        await client.send(b"a")
        assert await client.receive(1) == b"a"
        proxy.nursery.start_soon(proxy.workers.run)
        proxy.listeners.apply_pool(pool())
        await proxy.settle()
        assert proxy.pids() == pids


async def test_workers_listener_that_somebody_has_had_stop_listens_again(tmp_path: Path) -> None:
    """As ``ss -K`` does; a worker sees it, and control mends it."""
    async with _proxy(tmp_path) as proxy, open_peers() as peers:
        address = proxy.serve(peers.listen(greet(b"a")).backend)
        await proxy.settle()
        proxy.listeners._sockets[listener_key()][0].shutdown(2)
        with trio.fail_after(DEADLINE_S):
            client = await _connect_at_last(peers, address)
        assert await client.receive(1) == b"a"


async def _connect_at_last(peers: Peers, address: tuple[str, int]) -> Peer:
    while True:
        try:
            return await peers.connect(address)
        except ConnectionRefusedError:
            await trio.sleep(0.01)


async def test_workers_each_has_its_share_of_the_limits(tmp_path: Path) -> None:
    """At least one of each, and no more in all than one process would have; but for rounding."""
    limits, flow_limits = RelayLimits(max_connections=3), FlowLimits(max_flows=5, max_total_flows=1)
    workers = Workers(
        _config(tmp_path, PAIR, limits=limits, flow_limits=flow_limits), ControlCounters(), lambda _: None
    )
    start = workers._supervisors[1]._start
    assert (start.name, start.limits.max_connections) == ("1", 2)
    assert (start.flow_limits.max_flows, start.flow_limits.max_total_flows) == (3, 1)

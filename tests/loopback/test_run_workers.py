"""``userspace-proxy run`` with worker processes, from outside: what lives, what dies, and what clients see of it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio
from cli_driver import (
    DEADLINE_S,
    Run,
    dial,
    open_run,
    own_loopback_range,
    service_object,
    slice_objects,
    wait_until,
    write_manifests,
)
from peers import NOBODY, End, Peers, greet, open_peers
from process_tree import children

from userspace_proxy.plan.state import Backend

pytestmark = pytest.mark.slow

WIDE_RANGE = f"127.{80 + os.getpid() % 16}.0.0/16"
"""For more Services than other runs have."""
SERVICE = "shop/web-0:http"
SILENT_S = 3.0
"""How long it is looked at that nothing happens: some questions whether a worker lives fall into it."""
QUESTIONS = 6
"""More than are asked in that time."""

ANSWERING = """
import socket
with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
    print(listening.getsockname()[1], flush=True)
    while True:
        client, _ = listening.accept()
        client.sendall(b"a")
        client.close()
"""
"""A backend that lets go of clients faster than one under trio."""

CONNECTING = """
import socket, sys
address = sys.argv[1], int(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with socket.create_connection(address) as sock:
        assert sock.recv(2) == b"a" and not sock.recv(1)
"""


def worker_pids(run: Run) -> list[int]:
    """Return the workers of a run."""
    return [pid for pid in children(run.process.pid) if b"userspace_proxy.worker" in command_line(pid)]


def command_line(pid: int) -> bytes:
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def status(pid: int, field: str) -> str:
    """Return a field of /proc/PID/status."""
    found = re.search(rf"(?m)^{field}:[ \t]*(.*?) *$", Path(f"/proc/{pid}/status").read_text())
    assert found
    return found[1]


def wake_ups(pid: int) -> int:
    """Return how often a process has waited for something and got it."""
    return int(status(pid, "voluntary_ctxt_switches"))


def lives(pid: int) -> bool:
    """Return whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


def open_files(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def write_services(path: Path, backend: Backend, count: int = 1) -> None:
    """Write Services ``shop/web-0``, ``shop/web-1`` and so on, all with the same Backend."""
    objects = []
    for number in range(count):
        name = f"shop/web-{number}"
        cluster_ip = str(IPv4Address("10.96.0.1") + number)
        objects += [service_object(name, cluster_ips=(cluster_ip,)), *slice_objects(name, backend)]
    write_manifests(path, objects)


@asynccontextmanager
async def serving(
    directory: Path, *arguments: str, count: int = 1, nofile: int = 0
) -> AsyncIterator[tuple[Run, Peers]]:
    """Yield a run that serves some Services by one Backend, which greets with ``a`` and then echoes.

    Args:
        directory: Of its own.
        arguments: Of the run.
        count: How many Services.
        nofile: How many descriptors each process may have; 0: as many as there are.
    """
    manifests = directory / "shop.yaml"
    through = ("prlimit", f"--nofile={nofile}:{nofile}") if nofile else ()
    async with open_peers() as peers:
        write_services(manifests, peers.listen(greet(b"a")).backend, count)
        async with open_run(directory, "--manifests", manifests, *arguments, through=through) as run:
            await run.wait_ready()
            yield run, peers


@contextmanager
def answering_backend() -> Iterator[Backend]:
    """Run a backend in a process of its own that answers ``a`` and closes."""
    command = [sys.executable, "-c", ANSWERING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield Backend(IPv4Address("127.0.0.1"), int(process.stdout.readline()))
        finally:
            process.kill()


async def test_run_has_as_many_workers_as_asked_for_in_each_run(tmp_path: Path) -> None:
    """1, then 4, then 1: clients are served at the same place by each run, and no process is left of one."""
    places = set()
    loopback_range = str(own_loopback_range())
    for count in (1, 4, 1):
        async with serving(tmp_path, "--workers", str(count), "--loopback-range", loopback_range) as (run, peers):
            pids = worker_pids(run)
            assert len(pids) == count
            places.add(run.dial_address(SERVICE))
            for _ in range(8):
                assert await dial(peers, run.dial_address(SERVICE)) == "a"
            assert await run.terminate() == 0
            assert not any(map(lives, pids))
    assert len(places) == 1


async def test_run_without_workers_serves_by_itself(tmp_path: Path) -> None:
    """With ``--workers 0`` there is one process."""
    async with serving(tmp_path, "--workers", "0") as (run, peers):
        assert not worker_pids(run)
        assert await dial(peers, run.dial_address(SERVICE)) == "a"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
async def test_run_serves_by_workers_of_another_user_with_few_descriptors(tmp_path: Path) -> None:
    """More sockets than go into one message arrive, and the workers have neither the user nor a right of control."""
    arguments = ("--workers", "2", "--worker-user", str(NOBODY), "--loopback-range", WIDE_RANGE)
    async with serving(tmp_path, *arguments, count=600, nofile=1024) as (run, peers):
        pids = worker_pids(run)
        for pid in pids:
            assert set(status(pid, "Uid").split()) == set(status(pid, "Gid").split()) == {str(NOBODY)}
            assert status(pid, "Groups") == ""
            for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                assert int(status(pid, kind), 16) == 0
            assert status(pid, "NoNewPrivs") == "1"
        await wait_until(lambda: min(map(open_files, pids)) > 600)
        for number in range(0, 600, 7):
            assert await dial(peers, run.dial_address(f"shop/web-{number}:http")) == "a"
        assert (await run.get("/readyz"))[0] == 200


async def test_run_with_more_listeners_than_descriptors_serves_those_that_fit(tmp_path: Path) -> None:
    """The others are named, and descriptors are left for clients, for the admin pages and for a new worker."""
    async with serving(tmp_path, "--workers", "1", "--loopback-range", WIDE_RANGE, count=300, nofile=256) as (
        run,
        peers,
    ):
        (pid,) = worker_pids(run)
        unserved = set(re.findall(r"cannot listen on \S+ for (shop/web-\d+:http): no file descriptor is left", run.log))
        assert 300 - 256 < len(unserved) < 200
        served = next(name for name in (f"shop/web-{number}:http" for number in range(300)) if name not in unserved)
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: worker_pids(run) not in ([], [pid]))
        for _ in range(10):
            assert await dial(peers, run.dial_address(served)) == "a"
        assert (await run.get("/readyz"))[0] == 200


async def test_run_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    """Workers end when control is gone, and with them their connections."""
    async with serving(tmp_path, "--workers", "2") as (run, peers):
        pids = worker_pids(run)
        client = await peers.connect(run.dial_address(SERVICE))
        assert await client.receive(1) == b"a"
        run.signal(signal.SIGKILL)
        await wait_until(lambda: not any(map(lives, pids)))
        assert (await client.receive_to_end())[1] in (End.FIN, End.RST)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_run_of_which_all_processes_get_a_signal_serves_on(tmp_path: Path, number: signal.Signals) -> None:
    """What systemd sends reaches the workers too: only control heeds it, and drains."""
    async with serving(tmp_path, "--workers", "2") as (run, peers):
        client = await peers.connect(run.dial_address(SERVICE))
        assert await client.receive(1) == b"a"
        for pid in (*worker_pids(run), run.process.pid):
            os.kill(pid, number)
        if number == signal.SIGHUP:
            await run.wait_for_log("reading all manifests again")
        else:
            await run.wait_for_log("stopping; open connections may end by themselves")
        await client.send(b"still here")
        assert await client.receive(10) == b"still here"
        assert len(worker_pids(run)) == 2
        client.fin()
        assert await client.receive_to_end() == (b"", End.FIN)
        if number != signal.SIGHUP:
            assert await run.wait_end() == 0


async def test_run_has_each_worker_in_a_group_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C does not reach one that has just started, and would end with a traceback."""
    async with serving(tmp_path, "--workers", "2") as (run, _):
        pids = worker_pids(run)
        assert [os.getpgid(pid) for pid in pids] == pids


async def test_run_with_idle_connections_lets_workers_sleep(tmp_path: Path) -> None:
    """5,000 open connections on which nothing happens wake a worker no oftener than the questions whether it lives."""
    async with serving(tmp_path, "--workers", "1") as (run, peers):
        (pid,) = worker_pids(run)
        address = run.dial_address(SERVICE)
        clients = []
        for _ in range(5000):
            clients.append(await peers.connect(address))
            assert await clients[-1].receive(1) == b"a"
        before = open_files(pid)
        assert before > 10_000
        with trio.fail_after(DEADLINE_S):
            woken = -QUESTIONS
            while wake_ups(pid) - woken > QUESTIONS:  # timers of dials may still be pending at first
                woken = wake_ups(pid)
                await trio.sleep(SILENT_S)
        assert open_files(pid) == before


async def test_run_after_100000_connections_has_no_more_descriptors_than_before(tmp_path: Path) -> None:
    """Neither control nor a worker keeps anything of connections that have ended, and all of them are counted."""
    manifests = tmp_path / "shop.yaml"
    with answering_backend() as backend:
        write_services(manifests, backend)
        async with open_run(tmp_path, "--manifests", manifests, "--workers", "2") as run:
            await run.wait_ready()
            host, port = run.dial_address(SERVICE)

            async def connect(count: int) -> None:
                await trio.run_process([sys.executable, "-c", CONNECTING, host, str(port), str(count)])

            pids = (run.process.pid, *worker_pids(run))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect, 500)
                nursery.start_soon(connect, 500)
            before = [open_files(pid) for pid in pids]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect, 49_500)
                nursery.start_soon(connect, 49_500)
            assert [open_files(pid) for pid in pids] == before
            _, page = await run.get()
            assert re.search(rf'userspace_proxy_connections_total\{{.*service="{SERVICE}".*\}} 100000', page)

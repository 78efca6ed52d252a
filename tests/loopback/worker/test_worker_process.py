"""A worker as a process: what ends it and what does not, what it may do, what it costs."""

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import evolve
from builders import pool, pool_key
from deadline import wait_until
from loopback.worker.serving import HOST, Shop, port_of, serve, set_pool
from peers import NOBODY
from worker_driver import START, WorkerProcess, open_worker

from userspace_proxy.ipc.commands import Ask, Batch, LogState, SetPool, Stop, encode_batch
from userspace_proxy.ipc.frames import encode_frame
from userspace_proxy.ipc.reports import Applied, Report

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")

FORBIDDEN = {
    *("trio", "kubernetes", "click", "prometheus_client", "msgspec", "yaml", "h11", "rich", "urllib3"),
    *("asyncio", "subprocess", "ssl", "tempfile", "decimal", "datetime", "uuid", "http", "email"),
}
"""What a worker has no use for and would pay for with memory."""
MOST_RESIDENT_KB = 20_000 if sys.version_info < (3, 12) else 21_000
"""From Python 3.12 on, what attrs compiles while it is imported leaves more behind."""
SERVICES = 100
QUESTIONS = 500
"""While a worker answers so many, it writes some hundred kilobytes to the log if there is that much to write."""
FLOOD = 3000
"""Questions that nobody reads the answers to: several times what a socket's buffer takes of these."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_worker_ignores_what_is_for_the_control_process(worker: WorkerProcess, number: signal.Signals) -> None:
    """A terminal and a service manager signal the whole group; the worker goes on for as long as control drains."""
    worker.process.send_signal(number)
    assert worker.report().open_relays == 0


def test_worker_ends_with_the_control_process_and_resets_its_connections(shop: Shop, worker: WorkerProcess) -> None:
    """Clients must not take the end for that of what they were being sent."""
    server, sock = shop.listening(), shop.listening()
    worker.apply(set_pool(server), serve(1, sock), sockets=[sock])
    client, _, connection = shop.connect(port_of(sock), server)
    worker.close()
    assert worker.process.returncode == 0
    for end in (client, connection):
        with pytest.raises(ConnectionResetError):
            end.recv(1)


def test_worker_that_nobody_starts_ends_with_the_control_process() -> None:
    """One that has died in the middle of it leaves no process behind."""
    ours, its = socket.socketpair()
    with ours, its:
        process = subprocess.Popen(
            [sys.executable, "-m", "userspace_proxy.worker", str(its.fileno())], pass_fds=[its.fileno()]
        )
    assert process.wait(30) == 0


def test_worker_that_nobody_hears_ends_with_the_control_process(worker: WorkerProcess) -> None:
    """What it has to say is lost with whom it was for."""
    for number in range(FLOOD):
        worker.send(Ask(number))
    worker.close()
    assert worker.process.returncode == 0


def test_worker_that_is_not_told_first_how_to_start_ends_and_says_so() -> None:
    """It serves nothing before it has given up what it is to give up."""
    with pytest.raises(AssertionError, match="the first command is not Start, but Stop"), open_worker(Stop()):
        pytest.fail("it serves")


def test_worker_that_is_told_nonsense_ends_and_says_so() -> None:
    """It may have done half of it: its successor gets everything."""
    with pytest.raises(AssertionError, match=r"the worker is gone:(\n|.)*Traceback"), open_worker() as worker:
        hear_after(worker, encode_frame(b"nonsense", 0))


def hear_after(worker: WorkerProcess, data: bytes) -> None:
    """Send bytes to a worker, and wait for what it says then."""
    worker.sock.sendall(data)
    worker.receive(Report)


def test_frame_that_comes_byte_by_byte_is_understood(worker: WorkerProcess) -> None:
    """The kernel may cut the stream anywhere."""
    for byte in encode_frame(encode_batch(Batch(77, (Ask(9),))), 0):
        worker.sock.sendall(bytes([byte]))
    assert worker.receive(Applied).generation == 77
    assert worker.receive(Report).number == 9


def test_worker_serves_though_nobody_hears_what_it_says(shop: Shop, worker: WorkerProcess) -> None:
    """The line to control never blocks it; later, one answer stands for all questions that were not answered."""
    server, sock = shop.listening(), shop.listening()
    worker.apply(set_pool(server), serve(1, sock), sockets=[sock])
    for number in range(FLOOD):
        worker.send(Ask(number))
    shop.connect(port_of(sock), server)
    answers = [worker.receive(Report)]
    while answers[-1].number != FLOOD - 1:
        answers.append(worker.receive(Report))
    assert len(answers) < FLOOD
    assert answers[-1].open_relays == 1


def test_worker_with_much_to_write_to_the_log_answers_meanwhile(worker: WorkerProcess) -> None:
    """Else control would take it for one that hangs, and end its connections."""
    backends = [f"10.0.{number}.1:80" for number in range(100)]
    for number in range(30):
        worker.apply(SetPool(pool(*backends, key=pool_key(f"shop/web-{number}:http"))))
    worker.apply(LogState())
    worker.report()
    assert worker.log.count("state: backend") < 3000
    wait_until(lambda: worker.log.count("state: backend") == 3000)


def test_worker_goes_on_though_nobody_reads_its_log(tmp_path: Path) -> None:
    """What finds no room is lost, and said once there is some: a terminal that was stopped must not stop clients."""
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with open_worker(through=("sh", "-c", 'exec "$@" 2>"$0"', str(pipe))) as worker:
            backends = [f"10.0.{number}.1:80" for number in range(100)]
            for number in range(30):
                worker.apply(SetPool(pool(*backends, key=pool_key(f"shop/web-{number}:http"))))
            worker.apply(LogState())
            for _ in range(QUESTIONS):  # between them it writes on, until the pipe has been full for long
                worker.report()
            said = os.read(reader, 1 << 20)
            assert said.count(b"state: backend") < 3000

            def has_said_so() -> bool:
                worker.report()
                return bool(select.select([reader], [], [], 0)[0]) and b"were lost" in os.read(reader, 1 << 20)

            wait_until(has_said_so)
    finally:
        os.close(reader)


def test_worker_names_itself_in_the_log(shop: Shop, worker: WorkerProcess) -> None:
    """Records of several workers come together at one place."""
    server = shop.listening()
    worker.apply(set_pool(server), LogState())
    state, member = worker.log.splitlines()[-2:]
    assert state.endswith("state: 0 connections, 0 flows, 1 file descriptors watched worker=0")
    assert member.endswith(f"backend={HOST}:{port_of(server)} worker=0")


@pytest.mark.parametrize("wanted", [True, False])
def test_worker_writes_a_record_of_each_connection_if_it_is_told_to(shop: Shop, wanted: bool) -> None:  # noqa: FBT001
    """As the control process does where it serves by itself."""
    server, sock = shop.listening(), shop.listening()
    with open_worker(evolve(START, logs_connections=wanted)) as worker:
        worker.apply(set_pool(server), serve(1, sock), sockets=[sock])
        client, _, connection = shop.connect(port_of(sock), server)
        client.close()
        connection.close()
        wait_until(lambda: worker.report().open_relays == 0)
        assert worker.log.count("connections: connection ended service=shop/web:http") == wanted


@needs_root
def test_worker_of_another_user_has_no_privilege_and_serves(shop: Shop) -> None:
    """Whoever takes it over is nobody, and cannot become anybody else."""
    server, sock = shop.listening(), shop.listening()
    with open_worker(evolve(START, user=(NOBODY, NOBODY)), through=("setpriv", "--groups=4,5")) as worker:
        assert_unprivileged(worker)
        assert worker.status("Uid").split() == worker.status("Gid").split() == [str(NOBODY)] * 4
        assert worker.status("Groups") == ""
        worker.apply(set_pool(server), serve(1, sock), sockets=[sock])
        shop.connect(port_of(sock), server)
        worker.apply(LogState())
        assert worker.report().open_relays == 1


@needs_root
def test_worker_of_root_has_no_capability() -> None:
    """Without another user to run as it has no power over the machine either."""
    with open_worker() as worker:
        assert_unprivileged(worker)
        assert worker.status("Uid").split() == ["0"] * 4


def assert_unprivileged(worker: WorkerProcess) -> None:
    """Fail if a worker has a capability or could get one."""
    sets = [int(worker.status(name), 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    assert sets == [0] * 5
    assert worker.status("NoNewPrivs") == "1"


@needs_root
def test_worker_that_may_not_become_another_user_says_so_and_ends() -> None:
    """It does not serve with rights that it was to give up."""
    through = ("setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-all")
    with (
        pytest.raises(AssertionError, match=r"ERROR worker\.main: cannot give up privileges, .* worker=0 reason="),
        open_worker(evolve(START, user=(NOBODY, NOBODY)), through=through),
    ):
        pytest.fail("it serves")


def test_worker_imports_nothing_that_it_has_no_use_for() -> None:
    """Each worker has its own copy of all of it."""
    code = "import sys, userspace_proxy.worker.main; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], env=lean_environment(), capture_output=True, check=True)
    assert not FORBIDDEN & set(run.stdout.decode().split())


def test_worker_with_a_hundred_services_takes_less_than_20_mb(shop: Shop) -> None:
    """Resident, with what it shares with others; when it has nothing to do."""
    names = [f"shop/web-{number}:http" for number in range(SERVICES)]
    socks = [shop.listening() for _ in names]
    backends = socks[:4]
    with open_worker(env=lean_environment()) as worker:
        worker.apply(
            *(set_pool(*backends, name=name) for name in names),
            *(serve(number, sock, name) for number, (sock, name) in enumerate(zip(socks, names, strict=True))),
            sockets=socks,
        )
        worker.report()
        worker.report()
        assert int(worker.status("VmRSS").removesuffix("kB")) < MOST_RESIDENT_KB


def test_worker_with_nothing_to_do_sleeps(shop: Shop, worker: WorkerProcess) -> None:
    """An open connection without traffic costs nothing."""
    server, sock = shop.listening(), shop.listening()
    worker.apply(set_pool(server), serve(1, sock), sockets=[sock])
    shop.connect(port_of(sock), server)
    worker.report()
    select.select([], [], [], 0.3)  # timers of the dial
    before_s = worker.cpu_s()
    select.select([], [], [], 0.3)
    assert worker.cpu_s() - before_s < 0.001


def lean_environment() -> dict[str, str]:
    """Return an environment in which no coverage is measured, which imports a lot."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}

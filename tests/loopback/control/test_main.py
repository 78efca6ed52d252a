"""``run`` from start to end as a user sees it: readiness, signals, draining, admin pages, what is in use by others."""

import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cli_driver import (
    UNPRIVILEGED,
    Run,
    dial,
    free_port,
    open_run,
    run_command,
    service_object,
    slice_objects,
    wait_until_dialled,
    write_manifests,
)
from peers import End, Peers, Server, greet, open_peers
from process_tree import children

from userspace_proxy.control.process_limits import count_default_workers
from userspace_proxy.telemetry import metric_names

pytestmark = pytest.mark.slow


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """Return a file for manifests."""
    return tmp_path / "shop.yaml"


@asynccontextmanager
async def serving(manifests: Path, *arguments: str | Path) -> AsyncIterator[tuple[Run, Peers]]:
    """Yield a run that serves Service shop/web by one Backend, which greets with ``a`` and then echoes."""
    async with open_peers() as peers:
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", peers.listen(greet(b"a")).backend)])
        async with open_run(manifests.parent, "--manifests", manifests, *arguments) as run:
            await run.wait_ready()
            yield run, peers


async def test_run_says_settings_table_and_that_it_is_ready(manifests: Path) -> None:
    """Results are on stdout, in this order; the log is on stderr."""
    async with serving(manifests, "--idle-timeout", "90", "--max-connections", "7") as (run, _):
        settings, _, rest = run.output.partition("SERVICE ")
        assert settings.startswith(f"settings:\n  manifests: {manifests}\n")
        assert "\n  idle-timeout: 90 s\n" in settings
        assert "\n  max-connections: 7 per listener\n" in settings
        host, port = run.dial_address()
        ready = r"ready: 1 service, 1 endpoint, 1 listener, steering loopback, \d+\.\d\d s"
        assert re.fullmatch(
            rf" *FRONTEND +DIAL\nshop/web:http +10\.96\.0\.10:{port}/TCP +{re.escape(host)}:{port}\n{ready}\n", rest
        )
        assert "steering loopback is used" in run.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_told_to_stop_lets_open_connections_end(manifests: Path, number: signal.Signals) -> None:
    """New clients are refused at once, the open one goes on to its end, and then the run ends well."""
    async with serving(manifests) as (run, peers):
        address = run.dial_address()
        client = await peers.connect(address)
        assert await client.receive(1) == b"a"
        run.signal(number)
        await wait_until_dialled(peers, address, "refused")
        await client.send(b"still here")
        assert await client.receive(10) == b"still here"
        assert await run.get("/readyz") == (503, "stopping\n")
        assert await run.get("/livez") == (200, "ok\n")
        assert run.process.poll() is None
        client.fin()
        assert await client.receive_to_end() == (b"", End.FIN)
        assert await run.wait_end() == 0
        assert run.log.rstrip().endswith("stopped")


async def test_run_without_connections_stops_at_once(manifests: Path) -> None:
    """There is nothing to wait for, however long it might."""
    async with serving(manifests, "--drain-timeout", "1000000") as (run, _):
        assert await run.terminate() == 0


async def test_run_resets_what_is_open_after_the_drain_time(manifests: Path) -> None:
    """Nobody takes a cut stream for a whole one; how many there were is said."""
    async with serving(manifests, "--drain-timeout", "0.2") as (run, peers):
        client = await peers.connect(run.dial_address())
        assert await client.receive(1) == b"a"
        run.signal(signal.SIGTERM)
        await client.wait_reset()
        assert await run.wait_end() == 0
        assert 'reason="1 connections, 0 flows after 0.2 s"' in run.log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_run_told_twice_stops_at_once(manifests: Path, second: signal.Signals) -> None:
    """Open connections are reset, whatever time they would have had."""
    async with serving(manifests, "--drain-timeout", "1000000") as (run, peers):
        client = await peers.connect(run.dial_address())
        assert await client.receive(1) == b"a"
        run.signal(signal.SIGTERM)
        await run.wait_for_log("open connections may end by themselves")
        run.signal(second)
        await client.wait_reset()
        assert await run.wait_end() == 0
        assert "stopping at once" in run.log


async def test_run_told_to_stop_before_it_is_ready_ends_well(manifests: Path) -> None:
    """A first list that takes its time can be interrupted."""
    os.mkfifo(manifests.with_name("never.yaml"))
    write_manifests(manifests, [service_object()])
    async with open_run(manifests.parent, "--manifests", manifests.parent) as run:
        await run.wait_for_log("serving metrics and health")
        assert await run.terminate() == 0


async def test_run_asked_for_its_state_logs_it_and_goes_on(manifests: Path) -> None:
    """SIGUSR1: counts, each Backend with its connections, and what each task waits for."""
    async with serving(manifests) as (run, peers):
        client = await peers.connect(run.dial_address())
        assert await client.receive(1) == b"a"
        run.signal(signal.SIGUSR1)
        await run.wait_for_log(r"state: backend with 1 open connections, 1 made service=shop/web:http backend=127\.")
        assert "state: 1 services, 1 listeners" in run.log
        assert "state: 1 connections, 0 flows, " in run.log
        assert re.search(r"task: .*Pipeline\._reconcile_for_ever:\d+ > (Event\.wait|sleep):", run.log), run.log
        await client.send(b"x")
        assert await client.receive(1) == b"x"


async def test_run_without_workers_serves_by_itself(manifests: Path) -> None:
    """With --workers 0 there is one process, and the metrics and the state are those of its own engine."""
    async with serving(manifests, "--workers", "0") as (run, peers):
        assert "\n  workers: 0: this process serves\n" in run.output
        client = await peers.connect(run.dial_address())
        assert await client.receive(1) == b"a"
        assert children(run.process.pid) == set()
        page = (await run.get("/metrics"))[1]
        assert 'userspace_proxy_connections_active{service="shop/web:http",worker="control"} 1.0' in page
        assert 'userspace_proxy_applied_generation{worker="control"} 1.0' in page
        run.signal(signal.SIGUSR1)
        await run.wait_for_log(r"state: backend with 1 open connections, 1 made service=shop/web:http backend=127\.")
        assert re.search(r"(?m)task: .*run_engine:\d+ > \S*wait_readable:\d+$", run.log), run.log


async def test_run_serves_metrics_and_health(manifests: Path) -> None:
    """Every metric there is stands on the page, with what has happened; the run is alive and ready."""
    async with serving(manifests) as (run, peers):
        client = await peers.connect(run.dial_address())
        await client.send(b"x")
        assert await client.receive(2) == b"ax"
        status, page = await run.get("/metrics")
        assert status == 200
        assert {name.name for name in metric_names.ALL} <= set(re.findall(r"(?m)^# TYPE (\S+) ", page))
        for line in (
            'userspace_proxy_connections_total{protocol="TCP",service="shop/web:http"} 1.0',
            'userspace_proxy_relayed_bytes_total{direction="to_client",service="shop/web:http"} 2.0',
            'userspace_proxy_dials_total{outcome="connected",service="shop/web:http"} 1.0',
            'userspace_proxy_unexpected_errors_total{part="control"} 0.0',
        ):
            assert f"\n{line}\n" in page
        by_worker = r'(?m)^userspace_proxy_{}{{{}worker="(\d+)"}} (\S+)$'
        active = re.findall(by_worker.format("connections_active", 'service="shop/web:http",'), page)
        assert sum(float(value) for _, value in active) == 1
        applied = re.findall(by_worker.format("applied_generation", ""), page)
        assert applied == [(str(number), "1.0") for number in range(count_default_workers())]
        assert await run.get("/livez") == (200, "ok\n")
        assert await run.get("/readyz") == (200, "ok\n")
        assert (await run.get("/"))[0] == 404


async def test_run_removed_service_takes_its_metrics_with_it(manifests: Path) -> None:
    """A dashboard does not show what is no more."""
    async with serving(manifests) as (run, peers):
        assert await dial(peers, run.dial_address()) == "a"
        write_manifests(manifests, [])
        await wait_until_dialled(peers, run.dial_address(), "refused")
        assert 'service="shop/web:http"' not in (await run.get())[1]


@pytest.fixture
def foreign() -> Iterator[socket.socket]:
    """Return a socket of this process that listens on all addresses of both families."""
    with socket.create_server(("::", free_port()), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        yield sock


async def test_run_with_metrics_address_in_use_warns_and_serves(manifests: Path, foreign: socket.socket) -> None:
    """kube-proxy may sit there: its name is said, and clients are served."""
    port = foreign.getsockname()[1]
    async with serving(manifests, "--metrics-bind-address", f"127.0.0.1:{port}") as (run, peers):
        warning = (await run.wait_for_log(r"WARNING.*admin.*"))[0]
        assert f"127.0.0.1:{port}" in warning
        assert f"in use by pid {os.getpid()} (" in warning
        assert "--metrics-bind-address" in warning
        assert await dial(peers, run.dial_address()) == "a"


def test_run_with_metrics_address_in_use_ends_if_told_so(manifests: Path, foreign: socket.socket) -> None:
    """With --bind-address-hard-fail it is one sentence, and exit status 3."""
    write_manifests(manifests, [service_object()])
    address = f"127.0.0.1:{foreign.getsockname()[1]}"
    done = run_command(
        *("run", "--manifests", manifests, "--steering", "loopback", "--state-dir", "state", "--runtime-dir", "run"),
        *("--metrics-bind-address", address, "--bind-address-hard-fail"),
        cwd=manifests.parent,
    )
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(f"userspace-proxy: cannot listen on {address}: in use by pid")
    assert "Traceback" not in done.stderr


async def test_run_with_node_port_in_use_serves_the_rest(manifests: Path, foreign: socket.socket) -> None:
    """The process that has it is named in the log and on /readyz; once it is free, it is served."""
    port = foreign.getsockname()[1]
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        write_manifests(manifests, [service_object(node_port=port), *slice_objects("shop/web", backend)])
        async with open_run(manifests.parent, "--manifests", manifests) as run:
            await run.wait_for(r"(?m)^ready: 1 service, 1 endpoint, 1 listener, .* \(1 failure, see the log\)$")
            sentence = f"cannot listen on 0.0.0.0:{port} for shop/web:http: in use by pid {os.getpid()} ("
            assert sentence in run.log
            assert await dial(peers, run.dial_address()) == "a"
            status, text = await run.get("/readyz")
            assert status == 200
            assert text.startswith(f"ok\n{sentence}")
            run.signal(signal.SIGUSR1)
            await run.wait_for_log(rf'state: not in force reason="{re.escape(sentence)}')
            foreign.close()
            await run.wait_for_log("has its port after all service=shop/web:http")
            assert await dial(peers, ("127.0.0.1", port)) == "a"
            assert await run.get("/readyz") == (200, "ok\n")
            assert run.log.count(sentence) == 2


async def test_second_run_with_the_same_runtime_directory_names_the_first(manifests: Path) -> None:
    """SO_REUSEPORT would otherwise let both share ports; the first is not disturbed."""
    async with serving(manifests) as (run, peers):
        async with open_run(manifests.parent, "--manifests", manifests) as second:
            assert await second.wait_end() == 3
            sentence = second.log.splitlines()[-1]
            assert sentence.startswith(f"userspace-proxy: another userspace-proxy (pid {run.process.pid}) uses run;")
            assert "--runtime-dir" in sentence
        assert await dial(peers, run.dial_address()) == "a"


async def test_run_after_one_that_was_killed_has_the_same_addresses(manifests: Path) -> None:
    """The lock went with the process; the state directory says where the Service was."""
    async with serving(manifests) as (run, peers):
        before = run.dial_address()
        run.signal(signal.SIGKILL)
        await run.wait_end()
        async with open_run(manifests.parent, "--manifests", manifests, "--loopback-range", "127.96.0.0/11") as second:
            await second.wait_ready()
            assert second.dial_address() == before
            assert await dial(peers, before) == "a"


async def test_run_without_rights_moves_low_ports_up(manifests: Path) -> None:
    """Another user than root is told where to dial a Service at port 80."""
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        write_manifests(manifests, [service_object(port=80), *slice_objects("shop/web", backend)])
        manifests.parent.chmod(0o777)
        async with open_run(manifests.parent, "--manifests", manifests, through=UNPRIVILEGED) as run:
            await run.wait_ready()
            host, port = run.dial_address()
            assert port == 10080
            assert await dial(peers, (host, port)) == "a"
            assert await run.terminate() == 0


async def test_run_whose_output_nobody_reads_serves_on(manifests: Path) -> None:
    """``| head -1`` has seen what it wanted."""
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", backend)])
        no_reader = ("sh", "-c", 'mkfifo out; exec 3<>out 4>out 3<&-; exec "$@" >&4 4>&-', "sh")
        async with open_run(manifests.parent, "--manifests", manifests, through=no_reader) as run:
            await run.wait_for_log("serving metrics and health")
            with trio.fail_after(30):
                while (await run.get("/readyz"))[0] != 200:  # noqa: ASYNC110 - it happens in another process
                    await trio.sleep(0.02)
            assert await run.terminate() == 0
            assert "Error" not in run.log


async def test_run_with_an_idle_timeout_resets_a_silent_connection(manifests: Path) -> None:
    """The options of the relays reach them."""
    async with serving(manifests, "--idle-timeout", "0.2") as (run, peers):
        client = await peers.connect(run.dial_address())
        assert await client.receive(1) == b"a"
        await client.wait_reset()


async def test_run_black_holed_endpoint_delays_no_other_client(manifests: Path) -> None:
    """While one endpoint does not answer, clients of the same Service are served by the other."""
    async with open_peers() as peers:
        servers: list[Server] = [peers.listen(greet(b"a")), await peers.black_hole()]
        write_manifests(
            manifests, [service_object(), *slice_objects("shop/web", *(server.backend for server in servers))]
        )
        async with open_run(
            *(manifests.parent, "--manifests", manifests, "--workers", "1"),
            *("--dial-next-after", "1000", "--dial-timeout", "2000"),
        ) as run:
            await run.wait_ready()
            clients = [await peers.connect(run.dial_address()) for _ in range(6)]
            answered = 0
            with trio.fail_after(30):
                for client in clients[::-1]:
                    with trio.move_on_after(0.5):
                        assert await client.receive(1) == b"a"
                        answered += 1
            assert answered == 3

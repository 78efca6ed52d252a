"""``run`` with a Service of UDP as a user sees it: options, metrics, log, state, draining."""

import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from itertools import count
from pathlib import Path

import pytest
import trio
from cli_driver import DEADLINE_S, Run, free_port, open_run, service_object, slice_objects, write_manifests
from peers import own_host
from trio.socket import SOCK_DGRAM, SocketType

from userspace_proxy.model.names import Protocol
from userspace_proxy.plan.state import Backend

pytestmark = pytest.mark.slow

_CLIENTS = count(2)


class UdpService:
    """A run that serves Service shop/web by one Backend, which a test plays."""

    def __init__(self, run: Run, backend: SocketType) -> None:
        """Take what is there."""
        self.run = run
        self.backend = backend

    async def ask(self, client: SocketType, datagram: bytes = b"query") -> None:
        """Send a datagram and wait for its answer, of the same bytes twice."""
        with trio.fail_after(DEADLINE_S):
            await client.send(datagram)
            received, proxy = await self.backend.recvfrom(100)
            assert received == datagram
            await self.backend.sendto(datagram * 2, proxy)
            assert await client.recv(100) == datagram * 2

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric of the Service over the series that have these labels; 0 if there is none."""
        series = re.findall(rf"(?m)^userspace_proxy_{name}\{{(.*)\}} (\S+)$", (await self.run.get())[1])
        wanted = {f'{key}="{value}"' for key, value in {**labels, "service": "shop/web:http"}.items()}
        return sum(float(value) for found, value in series if wanted <= set(found.split(",")))


@asynccontextmanager
async def open_client(served: UdpService) -> AsyncIterator[SocketType]:
    """Yield the socket of a client of the Service."""
    with trio.socket.socket(type=SOCK_DGRAM) as client:
        await client.bind((own_host(next(_CLIENTS)), 0))
        await client.connect(served.run.dial_address())
        yield client


@asynccontextmanager
async def serving(directory: Path, *arguments: str, through: tuple[str, ...] = ()) -> AsyncIterator[UdpService]:
    """Yield a UdpService that is ready."""
    with trio.socket.socket(type=SOCK_DGRAM) as backend:
        at = Backend(ip_address(own_host(1)), free_port())
        await backend.bind((str(at.address), at.port))
        udp = Protocol.UDP
        objects = [service_object(protocol=udp), *slice_objects("shop/web", at, protocol=udp)]
        write_manifests(directory / "shop.yaml", objects)
        async with open_run(directory, "--manifests", "shop.yaml", *arguments, through=through) as run:
            await run.wait_ready()
            yield UdpService(run, backend)


async def test_run_with_udp_counts_flows_datagrams_and_bytes(tmp_path: Path) -> None:
    """On /metrics, in the direction in which they went, while the flow is open."""
    async with serving(tmp_path) as served, open_client(served) as client:
        await served.ask(client)
        await served.ask(client)
        assert await served.metric("udp_flows_active") == 1
        assert await served.metric("udp_flows_total") == 1
        assert await served.metric("udp_datagrams_total", direction="to_backend") == 2
        assert await served.metric("udp_datagrams_total", direction="to_client") == 2
        assert await served.metric("relayed_bytes_total", direction="to_backend") == 10
        assert await served.metric("relayed_bytes_total", direction="to_client") == 20


async def test_run_with_a_udp_idle_timeout_ends_a_silent_flow_and_logs_it(tmp_path: Path) -> None:
    """One record with all that is known of the flow."""
    async with serving(tmp_path, "--udp-idle-timeout", "0.2", "--log-connections") as served:
        async with open_client(served) as client:
            await served.ask(client)
            host, port = client.getsockname()
            backend = "{}:{}".format(*served.backend.getsockname())
            line = (await served.run.wait_for_log(r"flow ended.*\n"))[0]
        assert line.startswith(f'flow ended service=shop/web:http client="{host} port {port}" backend={backend} ')
        assert re.search(
            r" reason=idle duration_s=\S+ datagrams_to_backend=1 datagrams_to_client=1 "
            r"bytes_to_backend=5 bytes_to_client=10\n",
            line,
        )
        assert await served.metric("udp_flows_ended_total", reason="idle") == 1
        assert await served.metric("udp_flows_active") == 0


@pytest.mark.parametrize("option", ["--udp-max-flows", "--udp-max-total-flows"])
async def test_run_with_a_cap_of_flows_ends_the_one_silent_for_longest(tmp_path: Path, option: str) -> None:
    """The third client is served, and so is the first, by a new flow; each worker has its share of a cap."""
    async with (
        serving(tmp_path, option, "2", "--workers", "1") as served,
        open_client(served) as first,
        open_client(served) as second,
        open_client(served) as third,
    ):
        for client in (first, second, third):
            await served.ask(client)
        assert await served.metric("udp_flows_active") == 2
        assert await served.metric("udp_flows_ended_total", reason="evicted") == 1
        await served.ask(third)
        assert await served.metric("udp_flows_ended_total", reason="evicted") == 1
        await served.ask(first)
        assert await served.metric("udp_flows_ended_total", reason="evicted") == 2


async def test_run_without_a_cap_of_all_flows_takes_half_of_the_descriptors(tmp_path: Path) -> None:
    """Of the limit that it has raised; the settings say so in words, the log in numbers."""
    limited = ("sh", "-c", 'ulimit -Sn 100; ulimit -Hn 300; exec "$@"', "sh")
    async with serving(tmp_path, "--log-level", "debug", through=limited) as served:
        assert "\n  udp-max-total-flows: half of the files or local ports there are\n" in served.run.output
        assert 'open files limit reason="soft limit was 100, is 300; 150 flows"' in served.run.log


async def test_run_asked_for_its_state_tells_of_flows(tmp_path: Path) -> None:
    """How many, and of which Backend."""
    async with serving(tmp_path) as served, open_client(served) as client:
        await served.ask(client)
        served.run.signal(signal.SIGUSR1)
        await served.run.wait_for_log(r"state: backend with 1 open flows, 1 made service=shop/web:http backend=127\.")
        assert "state: 0 connections, 1 flows, " in served.run.log


async def test_run_told_to_stop_delivers_late_answers_and_takes_no_more(tmp_path: Path) -> None:
    """Who sends is refused by the kernel; the answer to what was sent before comes. Then the run ends by itself."""
    async with serving(tmp_path, "--drain-timeout", "1000000") as served, open_client(served) as client:
        with trio.fail_after(DEADLINE_S):
            await client.send(b"query")
            _, proxy = await served.backend.recvfrom(100)
            served.run.signal(signal.SIGTERM)
            await served.run.wait_for_log("open connections may end by themselves")
            refused = False
            while not refused:
                async with open_client(served) as other:
                    await other.send(b"too late")
                    with trio.move_on_after(0.1):
                        try:
                            await other.recv(100)
                        except ConnectionRefusedError:
                            refused = True
            await served.backend.sendto(b"late answer", proxy)
            assert await client.recv(100) == b"late answer"
        assert await served.run.wait_end() == 0
        assert "the drain time is over" not in served.run.log


async def test_run_ends_flows_after_the_drain_time(tmp_path: Path) -> None:
    """How many there were is said."""
    async with serving(tmp_path, "--drain-timeout", "0.2") as served, open_client(served) as client:
        await served.ask(client)
        assert await served.run.terminate() == 0
        assert 'reason="0 connections, 1 flows after 0.2 s"' in served.run.log


async def test_run_told_twice_ends_flows_at_once(tmp_path: Path) -> None:
    """Whatever time their late answers would have had."""
    async with serving(tmp_path, "--drain-timeout", "1000000", "--log-connections") as served:
        async with open_client(served) as client:
            await served.ask(client)
            served.run.signal(signal.SIGTERM)
            await served.run.wait_for_log("open connections may end by themselves")
            assert await served.run.terminate() == 0
        assert "stopping at once" in served.run.log
        assert re.search(r"flow ended .* reason=stopped ", served.run.log)

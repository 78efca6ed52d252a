"""userspace-proxy as a user starts it: each command a process of its own.

``run_command`` runs one to its end, ``open_run`` yields a ``run`` that serves what ``write_manifests`` has written.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import trio
from peers import End, Peers

from userspace_proxy.model.names import Protocol
from userspace_proxy.plan.state import Backend

COMMAND = (sys.executable, "-m", "userspace_proxy")
DEADLINE_S = 60.0
PORT = 8123
"""Of every Service, unless it says otherwise."""
_LOOK_S = 0.02
_RUNS = count()
_PORTS = count(10000 + os.getpid() * 97 % 12000)

_ALL_FILES = "-all,+dac_override"  # the interpreter may be in a place for root only
UNPRIVILEGED = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--bounding-set={_ALL_FILES}"),
    *(f"--inh-caps={_ALL_FILES}", f"--ambient-caps={_ALL_FILES}"),
) * (os.geteuid() == 0)
"""Runs a command as another user without the right to bind low ports or to change rules, if we have it."""


def free_port() -> int:
    """Return a port that is free on all addresses, for TCP and UDP, and that the kernel gives to no client.

    That is, it is out of ip_local_port_range.
    """
    for port in _PORTS:
        with (
            socket.socket(socket.AF_INET6) as tcp,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp,
        ):
            try:
                tcp.bind(("::", port))
                udp.bind(("::", port))
            except OSError:
                continue
            return port
    raise AssertionError


def own_loopback_range() -> IPv4Network:
    """Return addresses for one run that hardly anybody else on this machine has at the time."""
    number = os.getpid() * 16 + next(_RUNS)
    return IPv4Network(f"127.{100 + number // 256 % 28}.{number % 256}.0/24")


def run_command(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    through: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a command of userspace-proxy to its end.

    Args:
        arguments: As a user types them.
        cwd: Where.
        env: Added to the environment.
        through: A command that runs it.
    """
    return subprocess.run(
        [*through, *COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=_environment(cwd, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def _environment(home: Path, more: Mapping[str, str] | None) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("USERSPACE_PROXY_")}
    return {**ours, "HOME": str(home), **(more or {})}


def service_object(
    name: str = "shop/web",
    *,
    cluster_ips: Sequence[str] = ("10.96.0.10",),
    port: int = PORT,
    node_port: int | None = None,
    protocol: Protocol = Protocol.TCP,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a Service with the port ``http``, as the API has it."""
    namespace, _, name = name.partition("/")
    families = ["IPv6" if ":" in address else "IPv4" for address in cluster_ips]
    numbers = {"port": port} if node_port is None else {"port": port, "nodePort": node_port}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "annotations": dict(annotations or {})},
        "spec": {
            "type": "ClusterIP" if node_port is None else "NodePort",
            "clusterIP": cluster_ips[0],
            "clusterIPs": list(cluster_ips),
            "ipFamilies": families,
            "ports": [{"name": "http", "protocol": protocol, **numbers}],
        },
    }


def slice_objects(service: str, *backends: Backend, protocol: Protocol = Protocol.TCP) -> list[dict[str, Any]]:
    """Return EndpointSlices of a Service, one for each Backend, as each may have another port."""
    namespace, _, name = service.partition("/")
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-{number}",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4" if backend.address.version == 4 else "IPv6",
            "ports": [{"name": "http", "protocol": protocol, "port": backend.port}],
            "endpoints": [{"addresses": [str(backend.address)], "conditions": {"ready": True}}],
        }
        for number, backend in enumerate(backends)
    ]


def write_manifests(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Put a List of objects in the place of a file, at once."""
    fd, written = tempfile.mkstemp(dir=path.parent, prefix=".")
    os.fchmod(fd, 0o644)  # others may be who reads it
    with os.fdopen(fd, "w") as file:
        json.dump({"apiVersion": "v1", "kind": "List", "items": list(objects)}, file)
    Path(written).replace(path)


async def wait_until(is_so: Callable[[], object]) -> None:
    """Wait until a condition on real processes holds."""
    with trio.fail_after(DEADLINE_S):
        while not is_so():  # noqa: ASYNC110 - it happens in another process
            await trio.sleep(_LOOK_S)


async def dial(peers: Peers, address: tuple[str, int]) -> str:
    """Return what the Backend of a new connection says first, ``refused``, or how the connection ended without it."""
    try:
        client = await peers.connect(address)
    except ConnectionRefusedError:
        return "refused"
    except ConnectionError:  # the listener went while the handshake was under way or just done
        return End.RST.value
    try:
        return (await client.receive_some(1)).decode() or End.FIN.value
    except ConnectionError:
        return End.RST.value
    finally:
        client.close()


async def wait_until_dialled(peers: Peers, address: tuple[str, int], answer: str) -> None:
    """Wait until ``dial`` returns an answer."""
    with trio.fail_after(DEADLINE_S):
        while await dial(peers, address) != answer:  # noqa: ASYNC110 - another process changes it
            await trio.sleep(_LOOK_S)


class Run:
    """``userspace-proxy run`` in a process of its own."""

    def __init__(
        self, directory: Path, arguments: Sequence[str | Path], env: Mapping[str, str] | None, through: Sequence[str]
    ) -> None:
        """Start it; see ``open_run``."""
        self._output = directory / f"output-{next(_RUNS)}"
        self._errors = self._output.with_suffix(".err")
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*through, *COMMAND, "run", *map(str, arguments)],
                cwd=directory,
                env=_environment(directory, env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )

    @property
    def output(self) -> str:
        """All of stdout so far."""
        return self._output.read_text()

    @property
    def log(self) -> str:
        """All of stderr so far."""
        return self._errors.read_text()

    async def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first match in stdout, as soon as it is there."""
        return await self._wait_for(pattern, lambda: self.output)

    async def wait_for_log(self, pattern: str) -> re.Match[str]:
        """Return the first match in stderr, as soon as it is there."""
        return await self._wait_for(pattern, lambda: self.log)

    async def wait_ready(self) -> None:
        """Wait until the first complete list is in force."""
        await self.wait_for(r"(?m)^ready: .*\n")

    def dial_address(self, service: str = "shop/web:http") -> tuple[str, int]:
        """Return where clients dial a Service, as the table says."""
        row = re.search(rf"(?m)^{service} +\S+ +(\S+):(\d+)$", self.output)
        assert row, self.output
        return row[1], int(row[2])

    async def get(self, path: str = "/metrics") -> tuple[int, str]:
        """Return status and text of an admin page."""
        port = (await self.wait_for_log(r"serving metrics and health.*? port (\d+)"))[1]

        def fetch() -> tuple[int, str]:
            try:
                with urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE_S) as response:
                    return response.status, response.read().decode()
            except HTTPError as error:
                with error:
                    return error.code, error.read().decode()

        return await trio.to_thread.run_sync(fetch)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def wait_end(self) -> int:
        """Wait until it has ended and return its exit status."""
        await wait_until(lambda: self.process.poll() is not None)
        return self.process.returncode

    async def terminate(self) -> int:
        """End it as a user does, and return its exit status."""
        self.signal(signal.SIGTERM)
        return await self.wait_end()

    def close(self) -> None:
        """Kill it, if it still runs."""
        self.process.kill()
        self.process.wait()

    async def _wait_for(self, pattern: str, text: Callable[[], str]) -> re.Match[str]:
        await wait_until(lambda: self.process.poll() is not None or re.search(pattern, text()))
        found = re.search(pattern, text())
        assert found, f"no {pattern!r}; exit status {self.process.poll()}; {self.output!r}; {self.log!r}"
        return found


@asynccontextmanager
async def open_run(
    directory: Path,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    through: Sequence[str] = (),
) -> AsyncIterator[Run]:
    """Yield a run that has just been started, with loopback steering and everything of its own; kill it at the end.

    Args:
        directory: Where it is started, and keeps its state.
        arguments: Follow those that make it one of its own, and win over them.
        env: Added to the environment.
        through: A command that runs it.
    """
    own = [
        *("--steering", "loopback", "--loopback-range", str(own_loopback_range())),
        *("--state-dir", "state", "--runtime-dir", "run", "--metrics-bind-address", "127.0.0.1:0"),
    ]
    run = Run(directory, [*own, *arguments], env, through)
    try:
        yield run
        assert "Traceback" not in run.log, run.log
    finally:
        run.close()

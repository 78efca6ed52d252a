"""Proxy CPU per short connection: this proxy against HAProxy, in turn over the same backend.

Run: python tests/bench/short_connections.py [--clients 1 32] [--rounds 7] [--connections 4000]

A short connection is connect, 64 bytes there, 64 bytes back, close by the client. Each round measures the proxies one
after another (A B A B ...), so that a machine that changes its speed changes both; what counts is the ratio of the
medians. CPU is user and system time of the proxy process alone, from /proc/PID/stat.

Needs haproxy on PATH. Uses loopback only.
"""

import argparse
import os
import selectors
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.processes import cpu_s, free_port, running

MESSAGE = b"x" * 64

HAPROXY_CONFIG = """
global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    option splice-request
    option splice-response
    timeout connect 2s
    timeout client 60s
    timeout server 60s
listen bench
    bind 127.0.0.1:{port}
    server one 127.0.0.1:{backend}
"""

MANIFEST = """
apiVersion: v1
kind: Service
metadata: {{name: bench}}
spec:
  clusterIP: 10.96.0.1
  type: NodePort
  ports: [{{name: tcp, port: 10001, nodePort: {port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: bench-1, labels: {{kubernetes.io/service-name: bench}}}}
addressType: IPv4
ports: [{{name: tcp, port: {backend}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"""


def serve_echo(listening: socket.socket) -> None:
    """Echo, one epoll for all connections; runs in a process of its own and does not return."""
    selector = selectors.DefaultSelector()
    listening.setblocking(False)  # noqa: FBT003
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listening:
                try:
                    client, _ = listening.accept()
                except BlockingIOError:
                    continue
                selector.register(client, selectors.EVENT_READ)
                continue
            client = key.fileobj  # type: ignore[assignment]
            try:
                data = client.recv(4096)
                if data:
                    client.send(data)
                    continue
            except OSError:
                pass
            selector.unregister(client)
            client.close()


@contextmanager
def forked(target: Callable[[], None]) -> Iterator[int]:
    """Run a function in a child process, which is killed at the end."""
    pid = os.fork()
    if pid == 0:
        target()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def connects(port: int) -> bool:
    """Return whether something listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def drive(port: int, clients: int, connections: int) -> float:
    """Make connections from some processes at a time; return how long it took."""

    def one_client(count: int) -> None:
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(MESSAGE)
                received = 0
                while received < len(MESSAGE):
                    data = sock.recv(4096)
                    if not data:
                        os._exit(1)
                    received += len(data)

    started = time.monotonic()
    pids = []
    for _ in range(clients):
        pid = os.fork()
        if pid == 0:
            one_client(connections // clients)
            os._exit(0)
        pids.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in pids):
        raise SystemExit("a connection failed: the figures would mean nothing")
    return time.monotonic() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--connections", type=int, default=4000)
    arguments = parser.parse_args()
    if shutil.which("haproxy") is None:
        raise SystemExit("haproxy is not on PATH: apt-get install haproxy")
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    backend = listening.getsockname()[1]
    ports = {"userspace-proxy": free_port(), "haproxy": free_port()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(forked(lambda: serve_echo(listening)))
        (folder / "haproxy.cfg").write_text(HAPROXY_CONFIG.format(port=ports["haproxy"], backend=backend))
        (folder / "bench.yaml").write_text(MANIFEST.format(port=ports["userspace-proxy"], backend=backend))
        commands = {
            "haproxy": ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")],
            "userspace-proxy": [
                *(sys.executable, "-m", "userspace_proxy", "run", "--manifests", str(folder / "bench.yaml")),
                *("--steering", "none", "--metrics-bind-address", ""),
                *("--state-dir", str(folder), "--runtime-dir", str(folder)),
            ],
        }
        pids = {
            name: stack.enter_context(running(command, partial(connects, ports[name])))
            for name, command in commands.items()
        }
        for clients in arguments.clients:
            cpu: dict[str, list[float]] = {name: [] for name in pids}
            rate: dict[str, list[float]] = {name: [] for name in pids}
            for _ in range(arguments.rounds + 1):
                for name, pid in pids.items():
                    before = sum(cpu_s(pid))
                    duration = drive(ports[name], clients, arguments.connections)
                    cpu[name].append((sum(cpu_s(pid)) - before) / arguments.connections * 1e6)
                    rate[name].append(arguments.connections / duration)
            for name in pids:
                of_cpu, of_rate = cpu[name][1:], rate[name][1:]  # the first round warms up
                print(
                    f"{clients:3} clients  {name:16} {statistics.median(of_cpu):6.1f} us/connection "
                    f"({min(of_cpu):.1f}-{max(of_cpu):.1f})  {statistics.median(of_rate):8.0f} connections/s"
                )
            ratio = statistics.median(cpu["userspace-proxy"][1:]) / statistics.median(cpu["haproxy"][1:])
            print(f"{clients:3} clients  CPU ratio to haproxy {ratio:.2f} ({arguments.rounds} rounds)")


if __name__ == "__main__":
    main()

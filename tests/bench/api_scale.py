"""Prints what thousands of Services in an API server cost: the first list, one update, many updates.

Run as root: ``python tests/bench/api_scale.py [--rounds 3] [--sizes 5000x4 10000x10] [--parts update churn]``.

API server double (``tests/apiserver``) and ``userspace-proxy run --steering iptables`` are processes of their own in a
network namespace that this script makes and deletes. All addresses of pods are local there, and one backend tells each
client at which of them it was reached: so a new connection to a cluster IP tells which Pool is in force.

- always: from the moment the double is asked for the first list until all listeners are open, and until a connection to
  the last Service is served; memory of the proxy when it has settled.
- update: from the moment when the double has written the watch line of one EndpointSlice, of which all endpoints
  change, until the backend has accepted a new connection at a new one. Connections are tried one after another: what
  the one that succeeds takes to get to the backend is part of it.
- churn: so many updates a second for so long; then the time until the last of them is in force.
"""

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from apiserver.scale import PORT, TARGET_PORT, cluster_ip  # noqa: E402  found by the path set above

POD_NETWORKS = {"10.244.": 0, "10.245.": 1}
NETWORK = """\
link set lo up
link add eth0 type veth peer name eth1
link set eth0 up
link set eth1 up
address add 192.0.2.2/24 dev eth0
route add default dev eth0
route add local 10.244.0.0/15 dev lo
"""
METRICS_URL = "http://127.0.0.1:10249"
RECONCILE = "userspace_proxy_reconcile_duration_seconds"
START_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 0.2
"""For one connection; without a rule that leads it to the proxy it would wait for long."""
SETTLE_S = 3.0
FEW_UPDATES = 20  # to warm up; arbitrary
BETWEEN_PROBES_S = 0.0005
"""Without a pause the connections that probe would take the CPU from what is measured."""
BETWEEN_UPDATES_S = 0.05
"""Single updates are to find a proxy that rests."""

Figures = dict[str, list[float]]


@contextmanager
def namespace() -> Iterator[str]:
    """Make a network namespace; yields its name."""
    name = f"usp-bench-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "-batch", "-"], input=NETWORK, text=True, check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextmanager
def running(command: list[str], stdout: int, stderr: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a program until the end of the block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def ask(double: subprocess.Popen[str], **command: Any) -> Any:
    """Return what the double answers to a command."""
    assert double.stdin is not None
    assert double.stdout is not None
    double.stdin.write(json.dumps(command) + "\n")
    double.stdin.flush()
    return json.loads(double.stdout.readline())


def serve_addresses(listening: socket.socket) -> None:
    """Tell each client at which address it has reached us and when; ends when the socket is closed."""
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        accepted_s = time.monotonic()
        with client, suppress(OSError):  # it may have been broken before we looked
            client.sendall(f"{client.getsockname()[0]} {accepted_s}".encode())


def reached(service: int) -> tuple[int | None, float]:
    """Return in which pod network a new connection to a Service has ended, and when; None: it is not served."""
    try:
        with socket.create_connection((cluster_ip(service), PORT), timeout=CONNECT_TIMEOUT_S) as client:
            answer = client.recv(100).decode()
    except OSError:
        answer = ""
    address, _, accepted_s = answer.partition(" ")
    return POD_NETWORKS.get(address[:7]), float(accepted_s or "nan")


def wait_in_force(service: int, generation: int | None) -> float:
    """Wait until a new connection ends in a pod network; return when it did, by the monotonic clock.

    Without a generation: wait until none is served; there is no time then.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        found, accepted_s = reached(service)
        if found == generation:
            return accepted_s
        if time.monotonic() > deadline:
            raise SystemExit(f"Service {service} is not served as wanted after {START_TIMEOUT_S:.0f} s")
        threading.Event().wait(BETWEEN_PROBES_S)


def listening_sockets() -> int:
    """Return how many sockets of this namespace listen; source: proc_net_tcp, state 0A."""
    with Path("/proc/thread-self/net/tcp").open(encoding="ascii") as rows:
        return sum(row.split()[3] == "0A" for row in rows)


def wait_listening(count: int) -> float:
    """Wait until so many sockets listen; return when."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (found := listening_sockets()) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {found} of {count} listeners are open after {START_TIMEOUT_S:.0f} s")
        threading.Event().wait(0.02)
    return time.monotonic()


def status_mb(pid: int, name: str) -> float:
    """Return a size from /proc/PID/status in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise KeyError(name)


@contextmanager
def proxied(services: int, endpoints: int, figures: Figures) -> Iterator[subprocess.Popen[str]]:
    """Run double and proxy with so many Services, and note what the start costs; yields the double."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kubeconfig = folder / "kubeconfig"
        size = ["--services", str(services), "--endpoints", str(endpoints)]
        double_command = [sys.executable, str(TESTS / "apiserver" / "main.py"), "--kubeconfig", str(kubeconfig), *size]
        double = stack.enter_context(running(double_command, subprocess.PIPE, None))
        assert double.stdout is not None
        if not double.stdout.readline().startswith("listening"):
            raise SystemExit("the API server double does not start")
        before = listening_sockets()
        proxy_command = [
            *(sys.executable, "-m", "userspace_proxy", "run", "--kubeconfig", str(kubeconfig)),
            *("--steering", "iptables", "--hostname-override", "bench", "--log-level", "warning"),
            *("--state-dir", str(folder / "state"), "--runtime-dir", str(folder / "run")),
        ]
        log = stack.enter_context((folder / "log").open("w+"))
        started = time.monotonic()
        proxy = stack.enter_context(running(proxy_command, subprocess.DEVNULL, log))
        try:
            listening_at = wait_listening(before + services)
            served_at = wait_in_force(services - 1, 0)
            asked = ask(double, do="requests")
            first_s = min(one["at_s"] for one in asked if one["resource"] in {"services", "endpointslices"})
            note(figures, "start of the process -> first list, s", first_s - started)
            note(figures, "first list -> all listeners open, s", listening_at - first_s)
            note(figures, "first list -> last Service served, s", served_at - first_s)
            threading.Event().wait(SETTLE_S)
            note(figures, "RSS after the start, MB", status_mb(proxy.pid, "VmRSS"))
            note(figures, "highest RSS, MB", status_mb(proxy.pid, "VmHWM"))
            yield double
            note(figures, "RSS at the end, MB", status_mb(proxy.pid, "VmRSS"))
        finally:
            log.seek(0)
            sys.stderr.write("".join(log.readlines()[-20:]))


def note(figures: Figures, name: str, value: float) -> None:
    """Note a figure of one round."""
    figures.setdefault(name, []).append(value)


def show(title: str, figures: Figures) -> None:
    """Print figures of all rounds."""
    print(f"\n{title}")
    print(f"  {'':62} {'min':>9} {'median':>9} {'max':>9}  rounds")
    for name, values in figures.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"  {name:62} {low:9.3f} {middle:9.3f} {high:9.3f}  {len(values)}", flush=True)


def metric(name: str) -> float:
    """Return the value of a metric without labels."""
    with urllib.request.urlopen(f"{METRICS_URL}/metrics", timeout=10) as answer:  # noqa: S310  http
        lines = answer.read().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def measure_updates(double: subprocess.Popen[str], services: int, updates: int, figures: Figures) -> None:
    """Note how long single updates take; each is of another Service."""
    taken_ms, alone_ms = [], []
    before = metric(f"{RECONCILE}_sum"), metric(f"{RECONCILE}_count")
    for i in range(FEW_UPDATES + updates):
        service = (i * 37 + 11) % services
        began = time.monotonic()
        alone_ms.append((wait_in_force(service, 0) - began) * 1e3)
        threading.Event().wait(BETWEEN_UPDATES_S)
        sent_s = ask(double, do="set", service=service, generation=1)["sent_s"]
        taken_ms.append((wait_in_force(service, 1) - sent_s) * 1e3)
    reconcile_s, reconciles = metric(f"{RECONCILE}_sum") - before[0], metric(f"{RECONCILE}_count") - before[1]
    taken_ms, alone_ms = taken_ms[FEW_UPDATES:], alone_ms[FEW_UPDATES:]
    note(figures, f"connection -> backend without an update, median of {updates}, ms", statistics.median(alone_ms))
    note(figures, "reconcile in the proxy, mean, ms", reconcile_s / reconciles * 1e3)
    note(figures, f"update -> in force, median of {updates}, ms", statistics.median(taken_ms))
    note(figures, f"update -> in force, p99 of {updates}, ms", sorted(taken_ms)[math.ceil(0.99 * updates) - 1])
    note(figures, f"update -> in force, longest of {updates}, ms", max(taken_ms))


def measure_churn(double: subprocess.Popen[str], rate: float, seconds: float, figures: Figures) -> None:
    """Note how long after many updates the last one is in force."""
    done = ask(double, do="churn", rate=rate, seconds=seconds)
    in_force_s = wait_in_force(0, done["generation"] % 2)
    note(figures, "updates a second that the double has made", done["made"] / done["took_s"])
    note(figures, "longest delay of the double, s", done["late_s"])
    note(figures, "last update -> in force, s", in_force_s - done["at_s"])


def measure(arguments: argparse.Namespace) -> None:
    """Measure and print, inside the namespace."""
    listening = socket.create_server(("0.0.0.0", TARGET_PORT), backlog=1024)
    backend = threading.Thread(target=serve_addresses, args=(listening,))
    backend.start()
    try:
        for services, endpoints in arguments.sizes:
            figures: Figures = {}
            is_largest = services == max(arguments.sizes)[0]
            for _ in range(arguments.rounds):
                with proxied(services, endpoints, figures) as double:
                    if is_largest and "update" in arguments.parts:
                        measure_updates(double, services, arguments.updates, figures)
                    if is_largest and "churn" in arguments.parts:
                        measure_churn(double, arguments.rate, arguments.seconds, figures)
            show(f"{services} Services, {services} EndpointSlices of {endpoints} endpoints", figures)
    finally:
        listening.shutdown(socket.SHUT_RDWR)  # ends the accept of the thread
        listening.close()
        backend.join()


def size(text: str) -> tuple[int, int]:
    """Return the numbers in ``SERVICESxENDPOINTS``."""
    services, _, endpoints = text.partition("x")
    return int(services), int(endpoints)


def main() -> None:
    """Measure in a namespace of our own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=size, nargs="+", default=[(5000, 4), (10_000, 10)], metavar="SERVICESxENDPOINTS"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="*", choices=("update", "churn"), default=["update", "churn"])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        measure(arguments)
        return
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes a network namespace")
    with namespace() as name:
        own = [sys.executable, __file__, *sys.argv[1:], "--inside"]
        raise SystemExit(subprocess.run(["ip", "netns", "exec", name, *own], check=False).returncode)


if __name__ == "__main__":
    main()

"""Prints what steering costs with 10,000 Services, for each kind with rules or routes.

Run as root: ``python tests/bench/steering_scale.py [--kinds nftables ...] [--rounds 3] [--services 10000]``.

On a machine that has other things to do, put ``chrt -r 1`` before it: what is measured then waits for none of them.
All of it happens in network namespaces that this script makes and deletes: a node, a pod on it and a host outside.

- alone: the steering as an object in a program of its own (see ``steering_alone.py``).
- run: API server double (``tests/apiserver``) and ``userspace-proxy run`` as programs of their own on the node. First
  programming counts from the moment when the last listener is open until a connection to the last Service is served;
  one Service added, from when the double has written it until a connection to it is served. Connections are tried one
  after another: what the one that succeeds takes is part of it.
- endpoint changes: another address, none, and the first one again, in turn; after each has come into force the kernel
  is asked whether its rules or routes are others than before.
- first and last: how long ``connect`` takes to the Service whose connections meet the fewest rules, and to the one
  whose connections meet the most (without a list of rules: the least and the greatest address), in turn; from the node
  and from the pod. The proxy is stopped meanwhile: connections are made by the kernel.
- idle: CPU time of the proxy and all its children while nothing happens; ``none`` is the same with ``--steering none``.
"""

import argparse
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from apiserver.scale import PORT, TARGET_PORT, cluster_ip  # noqa: E402  found by the path set above
from bench.api_scale import (  # noqa: E402
    METRICS_URL,
    SETTLE_S,
    START_TIMEOUT_S,
    Figures,
    ask,
    note,
    running,
    serve_addresses,
    show,
    status_mb,
    wait_in_force,
)
from bench.processes import CLOCK_TICKS  # noqa: E402
from bench.steering_node import KINDS, Kind, node  # noqa: E402

ENDPOINTS = 4  # of each Service; arbitrary
NONE = Kind("none")
CONNECTS = 1500
"""To each of two Services and in each round; below the backlog, as nobody accepts them meanwhile."""
BETWEEN_ADDS_S = 0.1
"""Single changes are to find a proxy that rests."""
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER with 0 s: nothing of a closed connection is left in the kernel, but the entry of its NAT."""
ALONE = (
    ("place", "all Services placed", "s", 1),
    ("apply", "all Services brought into force", "s", 1),
    ("apply, CPU", "CPU time of that", "s", 1),
    ("apply, stall", "other tasks wait meanwhile", "s", 1),
    ("add", "one Service added", "ms", 1e3),
    ("add, stall", "one Service added, other tasks wait", "ms", 1e3),
    ("remove", "one Service removed", "ms", 1e3),
    ("idle", "CPU of one idle look", "ms", 1e3),
    ("foreign", "look after a foreign change", "ms", 1e3),
    ("foreign, stall", "look after a foreign change, other tasks wait", "ms", 1e3),
    ("flushed", "look after a flush, with the repair", "ms", 1e3),
    ("flushed, stall", "look after a flush, other tasks wait", "ms", 1e3),
    ("repairs", "repairs that were counted", "times", 1),
    ("end", "all removed", "s", 1),
)
"""What of ``steering_alone.py`` is shown: its name there, a title, and the unit."""


@contextmanager
def proxied(kind: Kind, services: int, figures: Figures) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run double and proxy, and note what the start costs; yields the double and the proxy's pid."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kubeconfig = folder / "kubeconfig"
        size = ["--services", str(services), "--endpoints", str(ENDPOINTS)]
        double_command = [sys.executable, str(TESTS / "apiserver" / "main.py"), "--kubeconfig", str(kubeconfig), *size]
        double = stack.enter_context(running(double_command, subprocess.PIPE, None))
        assert double.stdout is not None
        if not double.stdout.readline().startswith("listening"):
            raise SystemExit("the API server double does not start")
        proxy_command = [
            *(sys.executable, "-m", "userspace_proxy", "run", "--kubeconfig", str(kubeconfig)),
            *("--steering", kind.steering, "--hostname-override", "bench", "--log-level", "error"),
            *("--state-dir", str(folder / "state"), "--runtime-dir", str(folder / "run")),
        ]
        log = stack.enter_context((folder / "log").open("w+"))
        before = tcp_sockets()
        proxy = subprocess.Popen(proxy_command, stdout=subprocess.DEVNULL, stderr=log, env=kind.environment(folder))
        try:
            if kind is not NONE:
                wait_sockets(before + services)
                listening_at = time.monotonic()
                served_at = wait_in_force(services - 1, 0)
                note(figures, "last listener open -> last Service served, s", served_at - listening_at)
            wait_ready()
            threading.Event().wait(SETTLE_S)
            yield double, proxy.pid
        finally:
            proxy.terminate()
            if proxy.wait(START_TIMEOUT_S) != 0:
                print(f"the proxy has ended with {proxy.returncode}", file=sys.stderr)
            log.seek(0)
            sys.stderr.write("".join(log.readlines()[-20:]))


def tcp_sockets() -> int:
    """Return how many TCP sockets of this namespace listen or are connected; source: proc(5), net/sockstat."""
    for line in Path("/proc/thread-self/net/sockstat").read_text(encoding="ascii").splitlines():
        if line.startswith("TCP: inuse "):
            return int(line.split()[2])
    raise KeyError("TCP: inuse")


def wait_sockets(count: int) -> None:
    """Wait until there are so many TCP sockets."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (found := tcp_sockets()) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"only {found} of {count} sockets are open after {START_TIMEOUT_S:.0f} s")
        threading.Event().wait(0.005)


def wait_ready() -> None:
    """Wait until the proxy says that all is in force."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(urllib.error.URLError):
            urllib.request.urlopen(f"{METRICS_URL}/readyz", timeout=10).close()  # noqa: S310  http
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"the proxy is not ready after {START_TIMEOUT_S:.0f} s")
        threading.Event().wait(0.1)


def measure_adds(double: subprocess.Popen[str], services: int, adds: int, figures: Figures) -> None:
    """Note how long it takes until a new Service is served."""
    for number in range(services, services + adds):
        threading.Event().wait(BETWEEN_ADDS_S)
        at_s = ask(double, do="add", service=number)["at_s"]
        note(figures, "one Service added -> served, ms", (wait_in_force(number, 0) - at_s) * 1e3)


def measure_endpoint_changes(double: subprocess.Popen[str], kind: Kind, changed: int, figures: Figures) -> None:
    """Note how many changes of endpoints have changed rules or routes."""
    changes = 0
    threading.Event().wait(SETTLE_S)  # a Service may be served before all its rules are written
    with kind.watched() as read_state:
        before = read_state()
        for number in range(changed):
            for generation in (1, None, 0):
                if generation is None:
                    ask(double, do="empty", service=number)
                else:
                    ask(double, do="set", service=number, generation=generation)
                wait_in_force(number, generation)
                after = read_state()
                changes += after != before
                before = after
    note(figures, f"of {3 * changed} endpoint changes, have changed rules", changes)


def connect_times(first: str, last: str) -> list[list[float]]:
    """Return how long connections to two addresses take, made in turn, in seconds."""
    taken: list[list[float]] = [[], []]
    for _ in range(CONNECTS):
        for address, these in zip((first, last), taken, strict=True):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
                client.settimeout(None)
                began = time.perf_counter()
                client.connect((address, PORT))
                these.append(time.perf_counter() - began)
    return taken


def measure_first_and_last(kind: Kind, pid: int, services: int, pod: str, figures: Figures) -> None:
    """Note how long connections take, from the node and from the pod."""
    first, last = kind.first_and_last(services)
    own = [sys.executable, __file__, "--connect", cluster_ip(first), cluster_ip(last)]
    for where, through in (("node", []), ("pod", ["ip", "netns", "exec", pod])):
        os.kill(pid, signal.SIGSTOP)
        try:
            client = subprocess.run([*through, *own], stdout=subprocess.PIPE, text=True, check=True)
        finally:
            os.kill(pid, signal.SIGCONT)
        medians = [statistics.median(these) * 1e6 for these in json.loads(client.stdout)]
        note(figures, f"connect to the first Service from the {where}, us", medians[0])
        note(figures, f"connect to the last Service from the {where}, us", medians[1])
        note(figures, f"last / first from the {where}", medians[1] / medians[0])
        threading.Event().wait(SETTLE_S)  # the proxy has many broken connections to look at


def used_cpu_s(pid: int) -> float:
    """Return the CPU time of a process and of its children that have ended; source: proc(5), stat, fields 14 to 17."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / CLOCK_TICKS


def measure_idle(pid: int, seconds: float, name: str, figures: Figures) -> None:
    """Note what an idle proxy uses."""
    before_s = used_cpu_s(pid)
    began = time.monotonic()
    threading.Event().wait(seconds)
    note(figures, f"idle{name}, % of a core", (used_cpu_s(pid) - before_s) / (time.monotonic() - began) * 100)
    note(figures, f"RSS{name}, MB", status_mb(pid, "VmRSS"))
    note(figures, f"highest RSS{name}, MB", status_mb(pid, "VmHWM"))


def measure_alone(kind: Kind, arguments: argparse.Namespace, figures: Figures) -> None:
    """Note what the steering alone costs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, str(Path(__file__).with_name("steering_alone.py")), "--kind", kind.steering),
            *("--services", str(arguments.services), "--adds", str(arguments.adds)),
            *("--foreign", json.dumps(kind.commands(kind.foreign)), "--flush", json.dumps(kind.commands(kind.flush))),
        ]
        environment = kind.environment(Path(folder))
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"the steering alone has failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    for name, title, unit, factor in ALONE:
        figures.setdefault(f"alone: {title}, {unit}", []).extend(each * factor for each in found[name])


def measure(arguments: argparse.Namespace) -> None:
    """Measure and print, inside the namespace of the node."""
    listening = socket.create_server(("0.0.0.0", TARGET_PORT), backlog=1024)
    backend = threading.Thread(target=serve_addresses, args=(listening,))
    backend.start()
    try:
        for name in arguments.kinds:
            kind, figures = KINDS[name], Figures()
            for _ in range(arguments.rounds):
                if "alone" in arguments.parts:
                    measure_alone(kind, arguments, figures)
                if "run" in arguments.parts:
                    with proxied(kind, arguments.services, figures) as (double, pid):
                        measure_idle(pid, arguments.idle, "", figures)
                        measure_adds(double, arguments.services, arguments.adds, figures)
                        measure_endpoint_changes(double, kind, arguments.changes, figures)
                        measure_first_and_last(kind, pid, arguments.services, f"{arguments.inside}-pod", figures)
                    with proxied(NONE, arguments.services, figures) as (double, pid):
                        measure_idle(pid, arguments.idle, " with none", figures)
            show(f"{name}: {arguments.services} Services of {ENDPOINTS} endpoints", figures)
    finally:
        listening.shutdown(socket.SHUT_RDWR)  # ends the accept of the thread
        listening.close()
        backend.join()


@contextmanager
def running_inside(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run this script in a namespace; it has ended all that it has started before the block is left."""
    own = [sys.executable, __file__, *sys.argv[1:], "--inside", name]
    with subprocess.Popen(["ip", "netns", "exec", name, *own]) as process:
        try:
            yield process
        finally:
            process.terminate()


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Measure in namespaces of our own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--parts", nargs="+", choices=("alone", "run"), default=["alone", "run"])
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--adds", type=int, default=20, help="Services added in each round")
    parser.add_argument("--changes", type=int, default=40, help="Services whose endpoints change in each round")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds of watching an idle proxy")
    parser.add_argument("--connect", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _exit)  # a run that is ended leaves nothing behind either
    if arguments.connect:
        print(json.dumps(connect_times(*arguments.connect)))
        return
    if arguments.inside:
        measure(arguments)
        return
    if os.geteuid() != 0:
        raise SystemExit("needs root: it makes network namespaces")
    with node() as name, running_inside(name) as process:
        raise SystemExit(process.wait())


if __name__ == "__main__":
    main()

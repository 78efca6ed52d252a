"""UDP before a real DNS server: this proxy against nginx and dnsdist, in turn over the same nsd.

Run: python tests/bench/dns.py [--parts flows wildcard loss new memory] [--rounds 5] [--seconds 2]

Each round measures the proxies one after another (A B A B ...), so that a machine that changes its speed changes all;
what counts is the ratio of the medians. CPU is user and system time of the proxy's processes alone, from
/proc/PID/stat; for "direct" it is that of nsd. Figures are the median of the rounds, with the least and the greatest.

- flows: dnsperf, 20 clients with 100 queries under way, so 20 flows that last. Each proxy listens at one address.
- wildcard: the same, but each listens at the wildcard address, where it has to look after the address of its answers.
- loss: dnsperf at half of what this proxy did in "flows", which is measured too.
- new: each query from a source port that was not seen before. nginx and this proxy end a flow after a second of silence
  here, and the CPU time counts until the last one has ended; dnsdist has no flows. The load comes from this script: its
  own speed bounds the queries per second, so look at the CPU time, and at "direct" for the bound.
- memory: what one flow that rests takes in the memory of the process; what the kernel has for its socket comes on top.

With strace on PATH "flows" and "new" also print the system calls per query, of a short run of their own: a proxy that
is traced is slower, and so finds more at each wake-up than it does otherwise.

Needs nsd, dnsperf, libnginx-mod-stream and dnsdist (Debian packages). Uses loopback only; nothing but "wildcard"
listens elsewhere.
"""

import argparse
import os
import platform
import re
import resource
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType

from attrs import Factory, define, frozen

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.dns_programs import (
    ANSWER_TIMEOUT_S,
    DNSDIST,
    NGINX,
    OURS,
    QUERY,
    Setup,
    Target,
    find_program,
    run_nsd,
    run_proxies,
)
from bench.processes import cpu_s, family_of_processes, memory_bytes

PARTS = ("flows", "wildcard", "loss", "new", "memory")
PROXIES = [NGINX, DNSDIST, OURS]
CLIENTS = 20
NEW_FLOWS = 15_000
"""In a round: many, as CPU time is counted in steps of 10 ms, but with a descriptor for each."""
NEW_FLOW_TIMEOUT_S = 1
IN_FLIGHT = 100
IDLE_FLOWS = (5000, 9000)
FLOW_CAP = 20_000
DESCRIPTORS = 20_000
TRACED_S = 1.0
TRACED_QUERIES = 2000
SETTLE_S = 0.5
"""Beyond its time-out, until a flow has ended for sure."""


@frozen
class Load:
    """What a load tool saw."""

    sent: int
    answered: int
    duration_s: float


@define
class Figures:
    """Of one Target, one item per round."""

    rate: list[float] = Factory(list)
    """Queries per second."""
    cpu_us: list[float] = Factory(list)
    """Per query."""
    user_us: list[float] = Factory(list)
    """The part of it outside of the kernel."""
    sent: int = 0
    lost: int = 0


def run_dnsperf(folder: Path, seconds: float, target: Target, *options: str) -> Load:
    """Ask the same question for some seconds, and wait for the last answers."""
    questions = folder / "questions"
    questions.write_text("www.example.test A\n")
    host, port = target.place
    command = [find_program("dnsperf"), "-s", host, "-p", str(port), "-d", str(questions), "-c", str(CLIENTS)]
    command += ["-l", str(seconds), *options]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def number(what: str) -> float:
        found = re.search(rf"{what}:\s+([0-9.]+)", said)
        if found is None:
            raise SystemExit(f"dnsperf did not say '{what}': {said[-500:]}")
        return float(found[1])

    sent, answered = int(number("Queries sent")), int(number("Queries completed"))
    return Load(sent, answered, answered / number("Queries per second") if answered else seconds)


class Clients:
    """Asks each question from a source port that no question came from before."""

    def __init__(self) -> None:
        self._sources = (
            (f"127.77.{number >> 8}.{number & 0xFF}", port) for number in count(1) for port in range(1024, 65536)
        )

    def ask(self, queries: int, target: Target) -> Load:
        """Ask so often, with some queries under way; give up once as many are lost as may be under way."""
        started = time.monotonic()
        waiting: deque[socket.socket] = deque()
        sent = answered = 0
        while sent < queries and sent - answered - len(waiting) < IN_FLIGHT:
            if len(waiting) == IN_FLIGHT:
                answered += self._collect(waiting.popleft())
            sock = self._open()
            sock.sendto(QUERY, target.place)
            waiting.append(sock)
            sent += 1
        while waiting:
            answered += self._collect(waiting.popleft())
        return Load(sent, answered, time.monotonic() - started)

    def ask_and_wait(self, queries: int, target: Target) -> Load:
        """Ask, and wait for the end of the flows, which is not part of the duration."""
        load = self.ask(queries, target)
        threading.Event().wait(NEW_FLOW_TIMEOUT_S + SETTLE_S)
        return load

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        for source in self._sources:
            with suppress(OSError):  # some other program has the port at all addresses
                sock.bind(source)
                break
        return sock

    @staticmethod
    def _collect(sock: socket.socket) -> bool:
        with sock:
            try:
                sock.recv(512)
            except BlockingIOError:
                return bool(select.select([sock], [], [], ANSWER_TIMEOUT_S)[0])
        return True


def measure(targets: list[Target], rounds: int, load: Callable[[Target], Load]) -> dict[str, Figures]:
    """Put load on each in turn; the first round warms up and does not count."""
    figures = {target.name: Figures() for target in targets}
    for turn in range(rounds + 1):
        for target in targets:
            user, system = cpu_s(target.pid)
            seen = load(target)
            user, system = (after - before for after, before in zip(cpu_s(target.pid), (user, system), strict=True))
            if not seen.answered:
                raise SystemExit(f"{target.name} answered nothing: the figures would mean nothing")
            if turn:
                of_target = figures[target.name]
                of_target.rate.append(seen.answered / seen.duration_s)
                of_target.cpu_us.append((user + system) / seen.answered * 1e6)
                of_target.user_us.append(user / seen.answered * 1e6)
                of_target.sent += seen.sent
                of_target.lost += seen.sent - seen.answered
    return figures


def spread(values: list[float], digits: int = 0) -> str:
    """Return the median, the least and the greatest."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def print_table(title: str, rows: list[list[str]]) -> None:
    """Print rows, of which the first is the header; all but the first column to the right."""
    print(f"\n{title}")
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print(f"  {first.ljust(widths[0])}  {'  '.join(cells)}".rstrip())


def print_figures(title: str, figures: dict[str, Figures]) -> None:
    """Print what was measured, and how this proxy stands to the others."""
    rows = [["", "queries/s", "CPU us/query", "of it user", "lost"]]
    rows += [
        [name, spread(each.rate), spread(each.cpu_us, 1), spread(each.user_us, 1), f"{each.lost:,} of {each.sent:,}"]
        for name, each in figures.items()
    ]
    print_table(title, rows)
    ours = figures[OURS]
    for name in (NGINX, DNSDIST):
        other = figures[name]
        rate, cpu = _ratio(ours.rate, other.rate), _ratio(ours.cpu_us, other.cpu_us)
        print(f"  {OURS} to {name}: {rate} x queries/s, {cpu} x CPU per query")


def _ratio(ours: list[float], theirs: list[float]) -> str:
    """Return the ratio of the medians, and the least and the greatest of those round by round."""
    by_round = [one / other if other else float("nan") for one, other in zip(ours, theirs, strict=True)]
    medians = statistics.median(ours) / (statistics.median(theirs) or float("nan"))
    return f"{medians:.2f} ({min(by_round):.2f}-{max(by_round):.2f})"


def print_system_calls(folder: Path, targets: list[Target], load: Callable[[Target], Load]) -> None:
    """Print the most frequent system calls of each proxy per query, if strace is there and may look."""
    if shutil.which("strace") is None:
        return
    for target in targets:
        report = folder / "strace"
        pids = family_of_processes(target.pid)
        attach = [part for pid in pids for part in ("-p", str(pid))]
        with subprocess.Popen(
            ["strace", "-f", "-c", "-U", "name,calls", "-S", "calls", "-o", str(report), *attach],
            stderr=subprocess.PIPE,
            text=True,
        ) as tracer:
            assert tracer.stderr is not None
            try:
                is_attached = all("attached" in tracer.stderr.readline() for _ in pids)
                answered = load(target).answered if is_attached else 1
            finally:
                tracer.send_signal(signal.SIGINT)
                tracer.stderr.read()
        calls = re.findall(r"^\s*([a-z]\w+)\s+(\d+)$", report.read_text(), re.MULTILINE) if is_attached else []
        per_query = [(name, int(number) / answered) for name, number in calls if name != "total"]
        listed = ", ".join(f"{number:.2f} {name}" for name, number in per_query if number >= 0.01)
        total = sum(number for _, number in per_query)
        print(f"  system calls per query, {target.name}: {total:.2f}: {listed}")


def measure_memory(folder: Path, backend: int) -> None:
    """Print what idle flows take."""
    rows = [["", "flows", "descriptors", "memory MB", "bytes/flow"]]
    for name in (NGINX, OURS):
        with ExitStack() as stack:
            setup = Setup(idle_timeout_s=600, max_flows=FLOW_CAP)
            (target,) = run_proxies(stack, folder / f"memory-{name}", backend, setup, [name])
            clients = Clients()
            clients.ask(IN_FLIGHT, target)
            before, flows = memory_bytes(target.pid), 0
            rows.append([name, "0", _descriptors(target), f"{before / 1e6:.1f}", ""])
            for wanted in IDLE_FLOWS:
                clients.ask(wanted - flows, target)
                flows = wanted
                now = memory_bytes(target.pid)
                rows.append(
                    [name, f"{flows:,}", _descriptors(target), f"{now / 1e6:.1f}", f"{(now - before) / flows:,.0f}"]
                )
    print_table(f"memory: flows that rest, beside {IN_FLIGHT} to warm up", rows)


def _descriptors(target: Target) -> str:
    pids = family_of_processes(target.pid)
    return f"{sum(1 for pid in pids for _ in Path(f'/proc/{pid}/fd').iterdir()):,}"


def machine() -> str:
    """Return versions and machine in one line."""

    def version(pattern: str, *command: str) -> str:
        said = subprocess.run([find_program(command[0]), *command[1:]], capture_output=True, text=True, check=False)
        found = re.search(pattern, said.stdout + said.stderr)
        return f"{command[0]} {found[1] if found else '?'}"

    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return ", ".join(
        [
            version(r"nginx/(\S+)", "nginx", "-v"),
            version(r"dnsdist (\S+)", "dnsdist", "--version"),
            version(r"NSD version (\S+)", "nsd", "-v"),
            version(r"Version (\S+)", "dnsperf", "-h"),
            f"Python {platform.python_version()}, Linux {platform.release()}",
            f"{len(os.sched_getaffinity(0))} x {model[1] if model else platform.machine()}",
            f"load average before {os.getloadavg()[0]:.1f}",
        ]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of dnsperf, per proxy and round")
    arguments = parser.parse_args()
    for program in ("nsd", "dnsperf", "nginx", "dnsdist"):
        find_program(program)
    # A run that is ended leaves no process behind either.
    signal.signal(signal.SIGTERM, _exit)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
    print(machine())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # nginx's worker gives root up
        run_parts(stack, folder, arguments.parts, arguments.rounds, arguments.seconds)


def run_parts(stack: ExitStack, folder: Path, parts: list[str], rounds: int, seconds: float) -> None:
    """Measure and print the parts."""
    nsd = run_nsd(stack, folder)
    start = partial(run_proxies, backend=nsd.place[1])
    maximum_load = partial(run_dnsperf, folder, seconds)
    if "flows" in parts or "loss" in parts:
        with ExitStack() as these:
            proxies = start(these, folder / "flows", setup=Setup(), names=PROXIES)
            figures = measure([nsd, *proxies], rounds, maximum_load)
            print_figures(f"flows: {CLIENTS} that last", figures)
            print_system_calls(folder, proxies, partial(run_dnsperf, folder, TRACED_S))
            if "loss" in parts:
                rate = int(statistics.median(figures[OURS].rate) / 2)
                figures = measure(proxies, rounds, lambda target: maximum_load(target, "-Q", str(rate)))
                print_figures(f"loss: at {rate:,} queries/s", figures)
    if "wildcard" in parts:
        with ExitStack() as these:
            proxies = start(these, folder / "wildcard", setup=Setup(is_wildcard=True), names=PROXIES)
            print_figures("wildcard: the same at the wildcard address", measure(proxies, rounds, maximum_load))
    if "new" in parts:
        with ExitStack() as these:
            clients = Clients()
            setup = Setup(idle_timeout_s=NEW_FLOW_TIMEOUT_S, max_flows=FLOW_CAP)
            proxies = start(these, folder / "new", setup=setup, names=PROXIES)
            figures = measure([nsd, *proxies], rounds, partial(clients.ask_and_wait, NEW_FLOWS))
            print_figures("new: a flow per query", figures)
            print_system_calls(folder, proxies, partial(clients.ask_and_wait, TRACED_QUERIES))
    if "memory" in parts:
        measure_memory(folder, nsd.place[1])


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()

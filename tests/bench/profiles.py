"""Shows where the CPU time of each proxy goes: system calls per short connection, and kinds of work by sampling.

Run: ``python tests/bench/profiles.py [--proxies PROXY ...] [--output docs]``. Needs strace; perf and py-spy add their
part where they are. Tracing makes a proxy slow: its counts mean something, its times do not. It uses loopback only.
"""

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.backends import backends_running, forked
from bench.load import Target, short_connections
from bench.meters import CpuMeter
from bench.processes import end_cleanly_at_sigterm, family_of_processes
from bench.proxies import HAPROXY, HOST, NGINX, OURS, PROXIES, Frontend, free_ports, proxy_running, version_of
from bench.results import TITLES, table

CLIENTS = (1, 32)
SECONDS = 2.0
SAMPLES_PER_S = 2000
SHOWN_CALLS = 0.05
"""Calls per connection; below that they have nothing to do with connections."""
FUNCTIONS = 12
"""Shown of those that py-spy finds."""
ATTACH_TIMEOUT_S = 10.0
LOAD_S = 60.0
"""Longer than any look at a proxy; the load is ended with the look."""
ACCEPTS = ("accept", "accept4")
KINDS = {
    "locks": ("raw_spin", "raw_callee_save___pv_queued_spin", "pv_queued_spin", "raw_read", "raw_write"),
    "TCP/IP": (
        *(
            "tcp_",
            "ip_",
            "ipv4_",
            "inet_",
            "sk_",
            "skb_",
            "sock_",
            "net_",
            "nf_",
            "nft_",
            "fib_",
            "dst_",
            "dev_",
            "eth_",
        ),
        *("loopback_", "bbr_", "cubictcp_", "csum_", "lock_sock", "release_sock", "handle_softirqs", "local_bh_"),
        *("sys_recv", "sys_send", "sys_connect", "sys_accept", "validate_xmit", "process_backlog", "neigh_", "rt_"),
    ),
    "epoll": ("ep_", "epoll", "eventpoll", "do_epoll", "sys_epoll"),
    "waking and switching": (
        *("sched", "schedule", "try_to_wake", "ttwu", "wake", "enqueue", "dequeue", "pick_", "update_", "finish_task"),
        *("prepare_to", "switch_", "select_task", "set_next", "put_prev", "resched", "autoremove", "place_entity"),
    ),
    "memory and descriptors": (
        *("kmem", "kmalloc", "kfree", "kvfree", "slab", "free_", "alloc_", "memcg", "obj_", "account_obj", "refill_"),
        *("mem", "copy_", "fput", "fget", "fdget", "file", "fd_", "dentry", "d_", "dput", "inode", "rcu_"),
        *("call_rcu", "task_work", "lockref", "splice", "pipe", "page", "clear_", "rep_"),
    ),
    "entry and exit": (
        "do_syscall",
        "x64_sys",
        "entry_",
        "syscall",
        "exit_to",
        "x86_indirect",
        "its_",
    ),
}
"""How names of functions of the kernel begin, without underscores, by what they are for: the first that fits."""


def main() -> None:
    """Profile, print, and write a file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxies", nargs="+", choices=list(PROXIES), default=[OURS, HAPROXY, NGINX])
    parser.add_argument("--output", type=Path, help="folder for benchmark-profile.md")
    arguments = parser.parse_args()
    end_cleanly_at_sigterm()
    if shutil.which("strace") is None:
        raise SystemExit("strace is not on PATH: apt-get install strace")
    names = [name for name in arguments.proxies if version_of(PROXIES[name]) is not None]
    calls: dict[str, dict[str, float]] = {}
    kinds: dict[str, dict[str, float]] = {}
    functions: dict[str, float] = {}
    with backends_running() as ports:
        for name in names:
            listening = free_ports(1)
            with proxy_running(PROXIES[name], [Frontend(listening[0], ports.echo)]) as pids:
                target = Target([(HOST, listening[0])], CpuMeter(pids))
                family = [pid for each in pids for pid in family_of_processes(each)]
                for clients in CLIENTS:
                    with loaded(target, clients):
                        calls[f"{TITLES[name]}, {clients} client{'s' * (clients > 1)}"] = count_calls(family)
                if shutil.which("perf"):
                    with loaded(target, max(CLIENTS)):
                        kinds[TITLES[name]] = sample_kinds(family)
                if name == OURS and shutil.which("py-spy"):
                    with loaded(target, max(CLIENTS)):
                        functions = sample_functions(family[-1])
    page = markdown(calls, kinds, functions)
    print(page)
    if arguments.output is not None:
        (arguments.output / "benchmark-profile.md").write_text(page, encoding="utf-8")


@contextmanager
def loaded(target: Target, clients: int) -> Iterator[None]:
    """Make short connections until the end of the block."""

    def load() -> None:
        short_connections(target, clients, LOAD_S)

    with forked(load):
        yield


def count_calls(pids: Sequence[int]) -> dict[str, float]:
    """Return how often processes make each system call, per connection that they accept."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as counted:
        command = ["strace", "-c", "-f", "-qq", "-o", counted.name]
        for pid in pids:
            command += ["-p", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as strace:
            _wait_until(lambda: all(_is_traced(pid) for pid in pids), "strace does not attach")
            threading.Event().wait(SECONDS)
            strace.send_signal(signal.SIGINT)
        lines = counted.read().splitlines()
    calls: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for line in lines:
        # Share of time, seconds, microseconds per call, calls, errors if any, name.
        if found := re.fullmatch(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(\d+)?\s*(\w+)", line):
            calls[found[3]] += int(found[1])
            failed[found[3]] += int(found[2] or 0)
    connections = sum(calls[name] - failed[name] for name in ACCEPTS)
    if connections <= 0:
        raise SystemExit("no connection was accepted while strace was looking")
    return {name: count / connections for name, count in calls.items() if name != "total"}


def sample_kinds(pids: Sequence[int]) -> dict[str, float]:
    """Return which part of their CPU time processes spend with what."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "perf.data"
        who = ",".join(map(str, pids))
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_PER_S), "-p", who, "-o", str(data)]
        _run([*record, "--", "sleep", str(SECONDS)])
        samples = _run(["perf", "script", "-i", str(data), "-F", "ip,sym,dso"])
    found = Counter(_kind(line) for line in samples.splitlines() if line.strip())
    return {kind: count / found.total() for kind, count in found.most_common()}


def _kind(sample: str) -> str:
    _, symbol, program = sample.strip().split(maxsplit=2)
    if "kernel" not in program and not program.startswith("(["):
        return "the program itself" if "libc" not in program and "ld-linux" not in program else "the C library"
    name = symbol.lstrip("_")
    return "kernel: " + next((kind for kind, names in KINDS.items() if name.startswith(names)), "the rest")


def sample_functions(pid: int) -> dict[str, float]:
    """Return in which functions a Python process spends its time, those that take most of it first."""
    with tempfile.TemporaryDirectory() as folder:
        stacks = Path(folder) / "stacks"
        spy = ["py-spy", "record", "-p", str(pid), "-d", str(int(SECONDS)), "-r", "500", "-f", "raw", "-o", str(stacks)]
        _run(spy)
        found: Counter[str] = Counter()
        for line in stacks.read_text(encoding="utf-8").splitlines():
            stack, _, count = line.rpartition(" ")
            found[stack.rpartition(";")[2].rpartition(":")[0].removesuffix(")") + ")"] += int(count)
    return {name: count / found.total() for name, count in found.most_common(FUNCTIONS)}


def markdown(
    calls: dict[str, dict[str, float]], kinds: dict[str, dict[str, float]], functions: dict[str, float]
) -> str:
    """Return the profiles as a page."""
    by_name: Counter[str] = Counter()
    for each in calls.values():
        by_name.update(each)
    rows = [[name, *(f"{each.get(name, 0):.2f}" for each in calls.values())] for name, _ in by_name.most_common()]
    rows = [row for row in rows if any(float(cell) >= SHOWN_CALLS for cell in row[1:])]
    total = ["**all**", *(f"**{sum(each.values()):.1f}**" for each in calls.values())]
    parts = [
        "# Benchmark: where the CPU time goes",
        "Made by `tests/bench/profiles.py`; see [benchmark.md](benchmark.md).",
        "## System calls per short connection",
        table(["", *calls], [*rows, total]),
    ]
    if kinds:
        names = list(dict.fromkeys(kind for each in kinds.values() for kind in each))
        shares = [[kind, *(f"{each.get(kind, 0):.0%}" for each in kinds.values())] for kind in names]
        parts += [f"## CPU time by kind, short connections, {max(CLIENTS)} clients", table(["", *kinds], shares)]
    if functions:
        rows = [[f"`{name}`", f"{share:.0%}"] for name, share in functions.items()]
        parts += ["## Time of the worker by function, system calls included", table(["function", "share"], rows)]
    return "\n\n".join(parts) + "\n"


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} has failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _is_traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")


def _wait_until(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + ATTACH_TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise SystemExit(otherwise)
        threading.Event().wait(0.01)


if __name__ == "__main__":
    main()

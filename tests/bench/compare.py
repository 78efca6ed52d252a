"""Compares this proxy with HAProxy, nginx (stream) and socat, and with no proxy at all.

Run: ``python tests/bench/compare.py [--quick] [--rounds 5] [--only WORK ...] [--proxies PROXY ...] [--output docs]``

It installs nothing and leaves out what is not there. All proxies have the same backends and get the same load in turn
(A B C A B C ...), so that a machine that changes its speed changes all of them; what counts is the ratio of medians.
What is measured, how, and what that does not tell: ``docs/benchmark.md``. It uses loopback only. As root it also limits
the workers of this proxy to parts of a core, for the works called ``workers...``.
"""

import argparse
import importlib.util
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attrs import evolve, fields_dict
from bench.backends import ADDRESSES, Ports, backends_running
from bench.limits import each_limited, why_not
from bench.load import Figures, Target, in_own_process
from bench.meters import CpuMeter
from bench.processes import end_cleanly_at_sigterm, family_of_processes
from bench.proxies import DIRECT, HAPROXY, HOST, NGINX, OURS, PROXIES, Frontend, free_ports, proxy_running, version_of
from bench.results import Results, Row, markdown
from bench.works import FULL, QUICK, Settings, Work, all_works

CAPACITY_WORK = "round-trips-64"
HALF_LOAD_WORK = "half-load"
FILES_BESIDE = 1000
"""Open files that a proxy or a client may need beside those that are counted."""
LEAST_FILES = 4096
"""For 1,000 connections through a proxy, which has two descriptors for each."""
_CORES = os.sched_getaffinity(0)
Standing = Mapping[str, Mapping[str, Target]]
"""Where proxies that run all the time are reached: by name and kind of backend."""


def main() -> None:
    """Measure, print, and write files if asked to."""
    arguments = _parser().parse_args()
    settings = evolve(
        QUICK if arguments.quick else FULL,
        **{name: value for name in ("rounds", "seconds") if (value := getattr(arguments, name)) is not None},
    )
    if arguments.idle is not None:
        settings = evolve(settings, idle_connections=arguments.idle)
    if arguments.listeners:
        settings = evolve(settings, listeners=tuple(arguments.listeners))
    end_cleanly_at_sigterm()
    settings = _within_files_limit(settings)
    works = _chosen(all_works(settings), arguments.only)
    versions = {name: version_of(proxy) for name, proxy in PROXIES.items()}
    for name, version in versions.items():
        if version is None:
            _say(f"{name} is not installed: left out")
    contestants = {name for name in arguments.proxies if name == DIRECT or versions[name] is not None}
    facts = {**_machine(), **{name: str(versions[name]) for name in versions if name in contestants}}
    results = Results(facts, _measure(works, contestants, settings))
    print(markdown(results))
    if arguments.output is not None:
        _write(results, arguments.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [work.name for work in all_works(FULL)]
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all of it works")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each load in each round")
    parser.add_argument("--idle", type=int, help="idle connections to weigh")
    parser.add_argument("--listeners", type=int, nargs="+", help="of the works first-byte-N")
    parser.add_argument("--only", nargs="+", metavar="WORK", help=f"of these, or how they begin: {' '.join(names)}")
    parser.add_argument("--proxies", nargs="+", choices=[*PROXIES, DIRECT], default=[*PROXIES, DIRECT])
    parser.add_argument("--output", type=Path, help="folder for benchmark.csv, benchmark-results.md and benchmark.svg")
    return parser


def _within_files_limit(settings: Settings) -> Settings:
    """Raise the soft limit of open files to the hard one, and leave out what does not fit."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most < LEAST_FILES:
        raise SystemExit(f"only {most} files may be open: the benchmark needs {LEAST_FILES}, see ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    left = most - FILES_BESIDE
    fitting = tuple(count for count in settings.listeners if count <= left)
    if fitting != settings.listeners or 2 * settings.idle_connections > left:
        _say(f"only {most} files may be open (ulimit -Hn): fewer listeners or idle connections than asked for")
    return evolve(settings, listeners=fitting, idle_connections=min(settings.idle_connections, left // 2))


def _chosen(works: Sequence[Work], only: Sequence[str] | None) -> list[Work]:
    chosen = [work for work in works if only is None or work.name.startswith(tuple(only))]
    if not chosen:
        raise SystemExit(f"no work is called {' or '.join(only or ())}: see --help")
    if any(work.name == HALF_LOAD_WORK for work in chosen) and all(work.name != CAPACITY_WORK for work in chosen):
        chosen.insert(0, next(work for work in works if work.name == CAPACITY_WORK))
    return chosen


def _measure(works: Sequence[Work], contestants: set[str], settings: Settings) -> list[Row]:
    rows: list[Row] = []
    with backends_running() as ports, _all_running(works, contestants, ports) as standing:
        for work in works:
            if work.worker_share is not None and (reason := why_not()):
                _say(f"{work.name} is left out: {reason}")
                continue
            if work.name == HALF_LOAD_WORK:
                settings = evolve(settings, half_load_per_s=_half_load(rows))
            for number in range(1, settings.rounds + 1):
                for name in work.contestants:
                    if name in contestants:
                        figures = _turn(work, name, standing, ports, settings)
                        rows.append(Row(work.name, work.title, name, number, figures))
                        _say(f"{work.name} {number} {name}: " + _brief(figures))
    return rows


@contextmanager
def _all_running(works: Sequence[Work], contestants: set[str], ports: Ports) -> Iterator[Standing]:
    """Run all proxies that are measured while others run too; yields where they are reached."""
    needed = {name for work in works if work.anew_with is None for name in work.contestants} & contestants
    kinds = list(fields_dict(Ports))
    with ExitStack() as stack:
        standing = {}
        for name in needed - {DIRECT}:
            listening = free_ports(len(kinds))
            frontends = [Frontend(port, getattr(ports, kind)) for port, kind in zip(listening, kinds, strict=True)]
            meter = CpuMeter(stack.enter_context(proxy_running(PROXIES[name], frontends)))
            standing[name] = {kind: Target([(HOST, port)], meter) for kind, port in zip(kinds, listening, strict=True)}
        standing[DIRECT] = {kind: _direct(ports, kind) for kind in kinds}
        yield standing


def _direct(ports: Ports, kind: str) -> Target:
    return Target([(address, getattr(ports, kind)) for address in ADDRESSES], CpuMeter(()))


def _turn(work: Work, name: str, standing: Standing, ports: Ports, settings: Settings) -> Figures:
    """Return what one proxy shows in one round."""
    with ExitStack() as stack:
        if name == DIRECT:
            target = _direct(ports, work.backend)
        elif work.anew_with is None:
            target = standing[name][work.backend]
        else:
            listening = free_ports(work.anew_with)
            frontends = [Frontend(port, getattr(ports, work.backend)) for port in listening]
            pids = stack.enter_context(proxy_running(PROXIES[name], frontends))
            random.Random(0).shuffle(listening)  # noqa: S311  neighbours are not to be asked one after another
            target = Target([(HOST, port) for port in listening], CpuMeter(pids))
        _pin(target.meter.pids if work.is_pinned else ())
        if work.worker_share is not None:
            workers = [pid for each in target.meter.pids for pid in family_of_processes(each)[1:]]
            stack.enter_context(each_limited(workers, work.worker_share))
        figures = in_own_process(partial(work.load, target, settings))
    if name == DIRECT:
        return {key: value for key, value in figures.items() if not key.startswith(("cpu_", "user_", "workers_"))}
    return figures


def _pin(pids: Sequence[int]) -> None:
    """Give a proxy a core that it shares with none of the other processes here; without pids: let them be anywhere.

    With nothing pinned a part of the machine may be idle for minutes while the proxy does not get a whole core: then
    rates tell of that.
    """
    cores = sorted(_CORES)
    own = set(cores[-1:]) if pids and len(cores) > 1 else set()
    pinned = {pid for each in pids for pid in family_of_processes(each)}
    for pid in family_of_processes(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), own if own and pid in pinned else _CORES - own)


def _half_load(rows: Sequence[Row]) -> float:
    """Return half of what the slowest of those that are compared can do."""
    compared = {row.proxy for row in rows if row.proxy in (OURS, HAPROXY, NGINX)} or {DIRECT}
    capacities = Results({}, rows)
    return min(statistics.median(capacities.of(CAPACITY_WORK, name, "rate_per_s")) for name in compared) / 2


def _machine() -> dict[str, str]:
    cpu = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{cpu}, {len(_CORES)} cores, {memory_gb:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "load average before": f"{os.getloadavg()[0]:.1f}",
    }


def _write(results: Results, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    results.write(folder / "benchmark.csv")
    (folder / "benchmark-results.md").write_text(markdown(results), encoding="utf-8")
    if importlib.util.find_spec("matplotlib") is None:
        _say("no plot: matplotlib is missing; pip install 'userspace-proxy[bench]'")
        return
    plot = Path(__file__).with_name("plot.py")
    subprocess.run([sys.executable, str(plot), str(folder / "benchmark.csv")], check=True)


def _brief(figures: Figures) -> str:
    return ", ".join(f"{name} {value:,.1f}" for name, value in figures.items())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

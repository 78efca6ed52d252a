"""The benchmark as its users start it, with tiny counts: that all of it works, not how fast anything is."""

import csv
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from attrs import evolve
from bench.limits import why_not
from bench.proxies import HAPROXY, OURS
from bench.works import FULL, all_works

BENCH = Path(__file__).resolve().parents[1] / "bench"
DEADLINE_S = 110.0
LISTENERS = (1, 3)
TINY = ("--quick", "--seconds", "0.02", "--idle", "20", "--listeners", *map(str, LISTENERS))


@pytest.mark.slow
def test_benchmark_with_tiny_counts_has_figures_of_each_work_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Each work gives figures for this proxy and HAProxy, on page and in file; all that was started has ended."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    ours = {name: value for name, value in os.environ.items() if not name.startswith("USERSPACE_PROXY_")}

    done = subprocess.run(
        [sys.executable, str(BENCH / "compare.py"), *TINY, "--output", str(tmp_path)],
        cwd=tmp_path,
        env={**ours, "TMPDIR": str(tmp_path)},  # so that what it starts can be told by its files
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "benchmark.csv").read_text(encoding="utf-8").splitlines()
    measured = {(row["work"], row["proxy"]) for row in csv.DictReader(line for line in lines if line[0] != "#")}
    assert measured >= {
        (work.name, proxy)
        for work in all_works(evolve(FULL, listeners=LISTENERS))
        if work.worker_share is None or why_not() is None
        for proxy in {OURS, HAPROXY} & set(work.contestants)
    }
    assert (tmp_path / "benchmark-results.md").read_text(encoding="utf-8") in done.stdout
    assert [command for command in _commands() if str(tmp_path) in command] == []


def _commands() -> list[str]:
    """Return the command lines of all processes."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            commands.append(path.read_text(encoding="utf-8", errors="replace").replace("\0", " "))
    return commands

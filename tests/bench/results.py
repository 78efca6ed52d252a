"""What was measured: rows, the file they are kept in, and the table that is made of them.

Run ``python tests/bench/results.py docs/benchmark.csv`` to make the table again. Entry points: ``Results``, ``Row``.
"""

import csv
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attrs import frozen
from bench.proxies import BARE_LOOP, DIRECT, HAPROXY, HAPROXY_COPYING, NGINX, OURS, OURS_TWICE, SOCAT

TITLES = {
    OURS: "this proxy",
    HAPROXY: "HAProxy",
    HAPROXY_COPYING: "HAProxy, no splice",
    NGINX: "nginx",
    SOCAT: "socat",
    BARE_LOOP: "bare Python loop",
    DIRECT: "no proxy",
}


@frozen
class Figure:
    """How one kind of figure is shown."""

    title: str
    digits: int = 1
    more_is_better: bool = False
    shown: bool = True
    """In the table; all are in the file."""
    compared: bool = True
    """It says something about the proxy, not about the load that it got."""


FIGURES = {
    "rate_per_s": Figure("per second", 0, more_is_better=True),
    "cpu_us": Figure("CPU, µs each"),
    "user_us": Figure("CPU in user mode, µs each", shown=False),
    "workers_us": Figure("CPU of the workers, µs each", shown=False),
    "offered_per_s": Figure("requests sent per second", 0, compared=False),
    "p50_us": Figure("p50, µs", 0),
    "p99_us": Figure("p99, µs", 0),
    "p999_us": Figure("p99.9, µs", 0),
    "late_p99_us": Figure("client itself late, p99, µs", 0, compared=False),
    "gbit_per_s": Figure("Gbit/s", more_is_better=True),
    "cpu_ms_per_gb": Figure("CPU, ms per GB", 0),
    "user_ms_per_gb": Figure("CPU in user mode, ms per GB", shown=False),
    "kb_per_connection": Figure("memory, KB each", 2),
    "start_mb": Figure("memory before, MB"),
    "idle_percent": Figure("machine idle, %", 0, shown=False),
}


_CPU = {"cpu_us": (1.0, 1.1)}
_BULK_1 = {"gbit_per_s": (1.1, 1.8), "cpu_ms_per_gb": (0.9, 0.35)}
_BULK_8 = {"gbit_per_s": (1.3, 1.8), "cpu_ms_per_gb": (0.6, 0.35)}
WANTED: dict[str, dict[str, tuple[float, float]]] = {
    "short-1": _CPU,
    "short-32": {**_CPU, "rate_per_s": (1.0, 1.0)},
    "round-trips-1": {"cpu_us": (1.15, 1.15)},
    "round-trips-64": _CPU,
    "round-trips-1000": {"rate_per_s": (1.2, 1.2)},
    "half-load": {"p99_us": (1.0, 1.0)},
    **{f"bulk-{source}-1-to-{end}": _BULK_1 for source in ("memory", "file") for end in ("client", "backend")},
    **{f"bulk-{source}-8-to-{end}": _BULK_8 for source in ("memory", "file") for end in ("client", "backend")},
    "idle": {"kb_per_connection": (0.25, 0.5)},
}
"""What this proxy is to reach, by work and figure: its median in relation to HAProxy's and to nginx's."""


@frozen
class Row:
    """What one round of one work has shown of one proxy."""

    work: str
    title: str
    """Of the work."""
    proxy: str
    round: int
    figures: Mapping[str, float]


@frozen
class Results:
    """All rows of one measurement."""

    facts: Mapping[str, str]
    """Machine, versions and date."""
    rows: Sequence[Row]

    def of(self, work: str, proxy: str, figure: str) -> list[float]:
        """Return a figure in each round; empty: it was not measured."""
        return [
            row.figures[figure] for row in self.rows if (row.work, row.proxy) == (work, proxy) and figure in row.figures
        ]

    def ratio(self, work: str, proxy: str, other: str, figure: str) -> float | None:
        """Return the median of one proxy in relation to that of another; None: there are not both."""
        ours, theirs = self.of(work, proxy, figure), self.of(work, other, figure)
        if not ours or not theirs or not statistics.median(theirs):
            return None
        return statistics.median(ours) / statistics.median(theirs)

    def write(self, path: Path) -> None:
        """Write a CSV file; the facts are comments at its start."""
        with path.open("w", newline="", encoding="utf-8") as file:
            file.writelines(f"# {name}: {value}\n" for name, value in self.facts.items())
            writer = csv.DictWriter(file, ["work", "title", "proxy", "round", *FIGURES], lineterminator="\n")
            writer.writeheader()
            for row in self.rows:
                figures = {name: round(value, 3) for name, value in row.figures.items()}
                writer.writerow(
                    {"work": row.work, "title": row.title, "proxy": row.proxy, "round": row.round, **figures}
                )

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Return what ``write`` has written."""
        lines = path.read_text(encoding="utf-8").splitlines()
        facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
        rows = [
            Row(
                line["work"],
                line["title"],
                line["proxy"],
                int(line["round"]),
                {name: float(line[name]) for name in FIGURES if line[name]},
            )
            for line in csv.DictReader(line for line in lines if not line.startswith("# "))
        ]
        return cls(facts, rows)


def markdown(results: Results) -> str:
    """Return the results as a page."""
    titles = {row.work: row.title for row in results.rows}
    of_workers = [work for work in titles if OURS_TWICE in {row.proxy for row in results.rows if row.work == work}]
    of_all = [work for work in titles if work not in of_workers]
    rounds = max(row.round for row in results.rows)
    lines = [
        "# Benchmark: results",
        "",
        "Made by `tests/bench/compare.py`. What is measured and how is in [benchmark.md](benchmark.md), each round in",
        "[benchmark.csv](benchmark.csv).",
        "",
        *(f"- {name}: {value}" for name, value in results.facts.items()),
        "",
        "![this proxy in relation to HAProxy and nginx](benchmark.svg)",
        "",
        f"Median (least-most) of {rounds} rounds. The last columns are this proxy's median in relation to the other's;",
        "in brackets is what we want of it, and what was not reached is **bold**.",
    ]
    if of_all:
        lines += ["", _comparison(results, {work: titles[work] for work in of_all})]
    if of_workers:
        lines += ["", "## Two workers", "", _workers(results, {work: titles[work] for work in of_workers})]
    return "\n".join([*lines, ""])


def _comparison(results: Results, titles: Mapping[str, str]) -> str:
    rows = []
    for work, title in titles.items():
        for name, figure in FIGURES.items():
            cells = [_spread(results.of(work, proxy, name), figure) for proxy in TITLES]
            if not figure.shown or not any(cells):
                continue
            bars = WANTED.get(work, {}).get(name, (None, None))
            ratios = [
                _ratio(results.ratio(work, OURS, other, name), bar, figure) if figure.compared else ""
                for other, bar in zip((HAPROXY, NGINX), bars, strict=True)
            ]
            rows.append([title, figure.title, *cells, *ratios])
    return table(["work", "figure", *TITLES.values(), "to HAProxy", "to nginx"], rows)


def _workers(results: Results, titles: Mapping[str, str]) -> str:
    rows = []
    for work, title in titles.items():
        for name in ("rate_per_s", "workers_us", "idle_percent"):
            cells = [_spread(results.of(work, proxy, name), FIGURES[name]) for proxy in (OURS, OURS_TWICE)]
            ratio = _ratio(results.ratio(work, OURS_TWICE, OURS, name), None, FIGURES[name])
            rows.append([title, FIGURES[name].title, *cells, ratio])
    return table(["work", "figure", "1 worker", "2 workers", "ratio"], rows)


def _spread(values: Sequence[float], figure: Figure) -> str:
    if not values:
        return ""
    median, least, most = (
        f"{each:,.{figure.digits}f}" for each in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({least}-{most})"


def _ratio(ratio: float | None, bar: float | None, figure: Figure) -> str:
    if ratio is None:
        return ""
    if bar is None:
        return f"{ratio:.2f}"
    reached = ratio >= bar if figure.more_is_better else ratio <= bar
    text = f"{ratio:.2f} ({'≥' if figure.more_is_better else '≤'} {bar})"
    return text if reached else f"**{text}**"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.with_name("benchmark-results.md").write_text(markdown(Results.read(path)), encoding="utf-8")

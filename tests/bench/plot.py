"""Draws what this proxy does in relation to HAProxy and nginx, from the file that ``compare.py`` has written.

Run: ``python tests/bench/plot.py docs/benchmark.csv``; the drawing gets the same name with ``.svg``. Needs matplotlib.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib as mpl
from bench.proxies import HAPROXY, NGINX, OURS
from bench.results import FIGURES, TITLES, Results
from matplotlib.figure import Figure

COLOURS = {HAPROXY: "#2b6cb0", NGINX: "#2f855a"}
SHOWN = (
    ("how much it does", ("rate_per_s", "gbit_per_s"), "more"),
    ("what it needs for it", ("cpu_us", "cpu_ms_per_gb", "kb_per_connection"), "less"),
    ("how long clients wait", ("p50_us", "p99_us"), "less"),
)
"""Title, figures, and what is better."""
HEIGHT_PER_BAR_IN = 0.24


def draw(results: Results, path: Path) -> None:
    """Write a drawing, one group of bars for each work and figure."""
    groups = [(title, _ratios(results, names), better) for title, names, better in SHOWN]
    groups = [group for group in groups if group[1]]
    heights = [len(ratios) for _, ratios, _ in groups]
    figure = Figure(figsize=(9, 1.5 + HEIGHT_PER_BAR_IN * 2 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (title, ratios, better) in zip(panels, groups, strict=True):
        for place, of in enumerate(ratios.values()):
            for offset, other in ((-0.2, HAPROXY), (0.2, NGINX)):
                if other in of:
                    label = None if place else TITLES[other]
                    bars = panel.barh(place + offset, of[other], height=0.38, color=COLOURS[other], label=label)
                    panel.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
            panel.set_yticks(range(len(ratios)), list(ratios), fontsize=8)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(f"{title} ({better} is better)", fontsize=10, loc="left")
        panel.invert_yaxis()
        panel.margins(x=0.1)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"this proxy with 1 worker in relation to others, {results.facts.get('date', '')}", fontsize=11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", fontsize=8)
    # The same figures are to give the same file, and words are to stay words.
    mpl.rcParams.update({"svg.hashsalt": "userspace-proxy", "svg.fonttype": "none"})
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _ratios(results: Results, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return the ratios to others, by work and figure."""
    found = {}
    for work, title in {row.work: row.title for row in results.rows}.items():
        for name in names:
            ratios = {other: results.ratio(work, OURS, other, name) for other in COLOURS}
            known = {other: ratio for other, ratio in ratios.items() if ratio is not None}
            if known:
                found[f"{title}: {FIGURES[name].title}"] = known
    return found


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(Results.read(source), source.with_suffix(".svg"))

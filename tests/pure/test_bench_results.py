"""What the benchmark makes of what it has measured: percentiles, ratios, and the file and the page that hold them."""

from pathlib import Path

import pytest
from bench.load import percentile
from bench.proxies import HAPROXY, NGINX, OURS
from bench.results import Results, Row, markdown


def rows(work: str, proxy: str, figure: str, *values: float) -> list[Row]:
    """Return a row for each value, as of one round after another."""
    return [Row(work, f"title of {work}", proxy, number, {figure: value}) for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(50, 50), (99, 99), (99.9, 100), (100, 100), (0.5, 1)],
)
def test_percentile_of_one_to_hundred_is_the_least_that_so_many_do_not_exceed(percent: float, expected: float) -> None:
    """The nearest-rank percentile is one of the values, whatever their order."""
    values = [float(number) for number in range(100, 0, -1)]

    assert percentile(values, percent) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    """A single value is each of its percentiles."""
    assert percentile([7.0], 99.9) == 7.0


def test_ratio_is_that_of_the_medians() -> None:
    """One round out of line changes no ratio."""
    results = Results(
        {}, [*rows("short-1", OURS, "cpu_us", 10, 11, 900), *rows("short-1", HAPROXY, "cpu_us", 1, 22, 23)]
    )

    assert results.ratio("short-1", OURS, HAPROXY, "cpu_us") == 0.5


def test_ratio_to_a_proxy_that_was_not_measured_is_none() -> None:
    """A proxy that is not installed has no figures, and nothing is related to it."""
    results = Results({}, rows("short-1", OURS, "cpu_us", 10))

    assert results.ratio("short-1", OURS, HAPROXY, "cpu_us") is None


def test_results_written_and_read_are_the_same(tmp_path: Path) -> None:
    """The file holds all that the page and the drawing are made of."""
    path = tmp_path / "benchmark.csv"
    results = Results(
        {"machine": "2 cores: small", "date": "2026-11-22"},
        [*rows("short-32", OURS, "rate_per_s", 12345.678, 9.5), *rows("idle", NGINX, "kb_per_connection", 0.25)],
    )

    results.write(path)

    assert Results.read(path) == results


def test_markdown_shows_medians_with_spread_and_marks_what_was_not_reached() -> None:
    """A reader sees how far figures were apart, and which of them fall short of what is wanted."""
    results = Results(
        {"date": "2026-11-22"},
        [
            *rows("round-trips-64", OURS, "cpu_us", 10, 12, 11),
            *rows("round-trips-64", HAPROXY, "cpu_us", 10, 10, 10),
            *rows("round-trips-64", NGINX, "cpu_us", 20, 20, 20),
            *rows("round-trips-1000", OURS, "rate_per_s", 130_000),
            *rows("round-trips-1000", HAPROXY, "rate_per_s", 100_000),
            *rows("round-trips-1000", NGINX, "rate_per_s", 125_000),
        ],
    )

    page = markdown(results)

    assert "| title of round-trips-64 | CPU, µs each | 11.0 (10.0-12.0) | 10.0 (10.0-10.0) |" in page
    assert "| **1.10 (≤ 1.0)** | 0.55 (≤ 1.1) |" in page
    assert "| 1.30 (≥ 1.2) | **1.04 (≥ 1.2)** |" in page
    assert "- date: 2026-11-22" in page

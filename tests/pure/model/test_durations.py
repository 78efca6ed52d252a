"""Tests of model.durations."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.durations import parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("+0", 0.0),
        ("90s", 90.0),
        ("1m30s", 90.0),
        ("1h1m1s", 3661.0),
        ("1s1s", 2.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("5.s", 5.0),
        ("-1m", -60.0),
        ("2us", 2e-6),
        ("2µs", 2e-6),
        ("2μs", 2e-6),
        ("2ns", 2e-9),
        (f"{'9' * 400}h", math.inf),
    ],
)
def test_parse_duration_is_in_seconds(text: str, seconds: float) -> None:
    """Numbers with their units add up."""
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "s", ".s", "1", "1.5", "-", "+-1s", "1s1", "1d", "1S", "1 s", " 1s", "1s ", "1s\n", "1e3s", "1_0s"),
        *("٣s", "1m-30s", "nan", "inf", "infs", "0x1s", "1,5s"),
    ],
)
def test_parse_duration_of_anything_else_is_none(text: str) -> None:
    """A number without a unit too, unless it is 0."""
    assert parse_duration_s(text) is None


@pytest.mark.parametrize("text", ["1" * 20_000, "1.1" * 7_000, "1ms" * 7_000 + "x", "1m" * 10_000])
def test_parse_duration_of_a_long_text_takes_linear_time(text: str) -> None:
    """An annotation has up to 256 KiB, written by anybody: an expression that backtracks would take minutes for it."""
    begun_s = time.perf_counter()
    parse_duration_s(text)
    assert time.perf_counter() - begun_s < 1


@given(hours=st.integers(0, 10**6), minutes=st.integers(0, 59), thousandths=st.integers(0, 59999))
def test_parse_duration_reads_what_go_prints(hours: int, minutes: int, thousandths: int) -> None:
    """As ``72h3m0.5s``."""
    text = f"{hours}h{minutes}m{thousandths / 1000:g}s"
    assert parse_duration_s(text) == pytest.approx(hours * 3600 + minutes * 60 + float(f"{thousandths / 1000:g}"))

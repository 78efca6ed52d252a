"""The plain counters."""

import pytest

from userspace_proxy.dataplane.counters import DIAL_DURATION_BOUNDS_S, EngineCounters, Histogram, ServiceCounters
from userspace_proxy.model.names import Protocol


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        pytest.param(0.0, 0, id="zero"),
        pytest.param(0.1, 0, id="on a bound"),
        pytest.param(0.10001, 1, id="above a bound"),
        pytest.param(1.0, 1, id="on the last bound"),
        pytest.param(5.0, 2, id="above all"),
    ],
)
def test_histogram_observe_counts_in_the_bucket_whose_bound_is_not_less(seconds: float, bucket: int) -> None:
    """A value equal to a bound belongs below it, as ``le`` says."""
    histogram = Histogram((0.1, 1.0))
    histogram.observe(seconds)
    assert [i for i, count in enumerate(histogram.counts) if count] == [bucket]
    assert histogram.sum_s == seconds


def test_histogram_add_sums_buckets_and_sum() -> None:
    """Adding another one is as if all had been observed here; the other one stays as it is."""
    first, second, both = Histogram((0.1,)), Histogram((0.1,)), Histogram((0.1,))
    for target, seconds in ((first, 0.0625), (second, 0.0625), (second, 3.0)):
        target.observe(seconds)
        both.observe(seconds)
    first.add(second)
    assert (first.counts, first.sum_s) == (both.counts, both.sum_s)
    assert second.counts == [1, 1]


def test_dial_duration_bounds_rise_to_the_dial_time_out() -> None:
    """The bounds are sorted, and the last one lies past the default dial time-out."""
    assert list(DIAL_DURATION_BOUNDS_S) == sorted(DIAL_DURATION_BOUNDS_S)
    assert DIAL_DURATION_BOUNDS_S[-1] > 2.0


def test_counters_of_two_services_are_independent() -> None:
    """Every key starts at zero, and no two Services share a dict."""
    engine = EngineCounters()
    first = engine.services["shop/web:http", Protocol.TCP]
    second = engine.services["shop/db", Protocol.TCP]
    first.connections += 1
    first.closed["C", "O"] += 1
    first.dials["ok"] += 2
    assert (first.connections, first.closed, first.dials) == (1, {("C", "O"): 1}, {"ok": 2})
    assert (second.connections, second.closed, second.dials) == (0, {}, {})
    assert engine.services["shop/web:http", Protocol.TCP] is first


def test_service_counters_attributes_are_slots_without_hooks() -> None:
    """An increment is a plain attribute write: no dict, no setter."""
    counters = ServiceCounters()
    assert not hasattr(counters, "__dict__")
    assert ServiceCounters.__setattr__ is object.__setattr__

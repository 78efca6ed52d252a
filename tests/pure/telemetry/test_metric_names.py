"""The house rules of metric names, over all of them."""

import re

import pytest

from userspace_proxy.telemetry import metric_names
from userspace_proxy.telemetry.metric_names import MetricName, MetricType

KUBE_PROXY = "kubeproxy_"
every_metric = pytest.mark.parametrize("metric", metric_names.ALL, ids=lambda metric: metric.name)
every_metric_of_ours = pytest.mark.parametrize(
    "metric",
    [metric for metric in metric_names.ALL if not metric.name.startswith(KUBE_PROXY)],
    ids=lambda metric: metric.name,
)

BASE_UNITS = ("seconds", "bytes")
OTHER_UNITS = re.compile(r"_(ms|milliseconds|minutes|kb|mb|kilobytes|megabytes|bits|percent)(_|$)")


def test_all_holds_every_constant_once() -> None:
    """No metric can escape the rules below, and none stands twice."""
    constants = [value for value in vars(metric_names).values() if isinstance(value, MetricName)]
    assert sorted(constants, key=str) == sorted(metric_names.ALL, key=str)
    assert len({metric.name for metric in constants}) == len(constants)


@every_metric_of_ours
def test_name_has_prefix_and_legal_characters(metric: MetricName) -> None:
    """One prefix, lower snake case."""
    assert re.fullmatch(r"userspace_proxy(_[a-z0-9]+)+", metric.name)


@every_metric_of_ours
def test_name_ends_with_total_exactly_on_counters(metric: MetricName) -> None:
    """``_total`` says counter."""
    assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)


def test_names_of_kube_proxy_are_those_that_it_has() -> None:
    """They are its own, so they are not to be thought of here (``pkg/proxy/metrics/metrics.go``)."""
    names = {metric.name.removeprefix(KUBE_PROXY): metric.labels for metric in metric_names.ALL}
    kept = {name: labels for name, labels in names.items() if not name.startswith("userspace_proxy")}
    sync = "sync_proxy_rules"
    assert kept == {
        f"{sync}_duration_seconds": ("ip_family",),
        f"{sync}_last_timestamp_seconds": ("ip_family",),
        f"{sync}_last_queued_timestamp_seconds": ("ip_family",),
        f"{sync}_endpoint_changes_pending": (),
        f"{sync}_endpoint_changes_total": (),
        f"{sync}_service_changes_pending": (),
        f"{sync}_service_changes_total": (),
        f"{sync}_no_local_endpoints_total": ("traffic_policy", "ip_family"),
        "network_programming_duration_seconds": ("ip_family",),
        "proxy_healthz_total": ("code",),
        "proxy_livez_total": ("code",),
    }


@every_metric
def test_name_ends_with_no_suffix_that_the_format_reserves(metric: MetricName) -> None:
    """The suffixes of histogram and summary samples belong to the format."""
    assert not metric.name.endswith(("_bucket", "_count", "_sum", "_created"))


@every_metric
def test_name_uses_base_units_as_suffix(metric: MetricName) -> None:
    """Seconds and bytes only, at the end of the name (before ``_total``)."""
    assert not OTHER_UNITS.search(metric.name)
    bare = metric.name.removesuffix("_total")
    assert all(unit not in bare or bare.endswith(f"_{unit}") for unit in BASE_UNITS)


@every_metric_of_ours
def test_labels_are_not_in_the_name_and_hold_no_addresses(metric: MetricName) -> None:
    """No label name inside the metric name, no label whose values have no bound, no reserved label.

    What is counted may have the name of a label that says which one: restarts of workers are that summed over all, too.
    """
    counted = {"worker"} if metric is metric_names.WORKER_RESTARTS else set()
    assert not set(metric.labels) & set(metric.name.split("_")) - counted
    assert not set(metric.labels) & {"client", "backend", "address", "frontend", "le", "quantile", "job", "instance"}
    assert all(re.fullmatch(r"[a-z]+", label) for label in metric.labels)


@every_metric
def test_help_is_a_sentence(metric: MetricName) -> None:
    """A help text is one line that ends with a full stop."""
    assert metric.help.endswith(".")
    assert metric.help.isprintable()

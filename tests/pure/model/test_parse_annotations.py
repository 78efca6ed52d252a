"""Tests of model.parse_annotations, by way of the Services they stand at."""

import pytest
from attrs import evolve

from userspace_proxy.model import api_types
from userspace_proxy.model.findings import quote
from userspace_proxy.model.parse import parse_service
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Balance, Service, UdpBalance

_ORIGIN = "shop.yaml, document 1, line 1"
_PREFIX = "userspace-proxy.io/"
_TIMEOUT_HINT = (
    "cannot be used, so the default is used; write a number of seconds, as 90, or a duration, as 1m30s, above 0 and at "
    "most 86400 (24h)"
)


def _parse(
    annotations: dict[str, str | None], *, protocols: str = "TCP UDP", origin: str = _ORIGIN
) -> tuple[Service, tuple[Problem, ...]]:
    """Parse a Service with these annotations, given without their prefix, and a port of each protocol."""
    obj = api_types.Service(
        metadata=api_types.ObjectMeta(
            name="web", namespace="shop", annotations={f"{_PREFIX}{key}": value for key, value in annotations.items()}
        ),
        spec=api_types.ServiceSpec(
            cluster_ip="10.96.0.10",
            ports=[
                api_types.ServicePort(name=protocol.lower(), port=53, protocol=protocol)
                for protocol in protocols.split()
            ],
        ),
    )
    found, problems = parse_service(obj, origin)
    assert found is not None
    return found, problems


def _warnings(problems: tuple[Problem, ...]) -> list[tuple[str, str]]:
    """Return field and text of each Problem."""
    assert all(one.severity is Severity.WARNING for one in problems)
    return [(one.field, one.text) for one in problems]


def test_parse_annotations_are_those_of_the_service() -> None:
    """All at once; each is for itself."""
    found, problems = _parse(
        {"balance": "least-connections", "udp-balance": "datagram", "udp-idle-timeout": "1m30s"},
    )
    assert problems == ()
    assert (found.balance, found.udp_balance, found.udp_idle_timeout_s) == (
        *(Balance.LEAST_CONNECTIONS, UdpBalance.DATAGRAM),
        90.0,
    )
    assert evolve(found, balance=None, udp_balance=UdpBalance.FLOW, udp_idle_timeout_s=None) == _parse({})[0]


@pytest.mark.parametrize("value", ["random", "", None, "Round-Robin"])
def test_parse_annotations_unknown_balance_warns_and_leaves_the_default(value: str | None) -> None:
    """The accepted values are named."""
    found, problems = _parse({"balance": value})
    assert found.balance is None
    text = f"{value or ''!r} is unknown, so the default is used; write round-robin or least-connections"
    assert _warnings(problems) == [(f"metadata.annotations[{_PREFIX}balance]", text)]


@pytest.mark.parametrize("word", UdpBalance)
def test_f_5_udp_balance_is_by_flow_or_by_datagram(word: UdpBalance) -> None:
    """As the annotation says."""
    found, problems = _parse({"udp-balance": word.value})
    assert (found.udp_balance, problems) == (word, ())


@pytest.mark.parametrize("value", ["packet", "", None, "Flow", "round-robin"])
@pytest.mark.parametrize("origin", ["", _ORIGIN])
def test_f_5_unknown_udp_balance_warns_and_is_by_flow(value: str | None, origin: str) -> None:
    """The accepted values are named."""
    found, problems = _parse({"udp-balance": value}, origin=origin)
    assert found.udp_balance is UdpBalance.FLOW
    text = f"{value or ''!r} is unknown, so the default is used; write flow or datagram"
    assert _warnings(problems) == [(f"metadata.annotations[{_PREFIX}udp-balance]", text)]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("90", 90.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("007", 7.0),
        ("90s", 90.0),
        ("1m30s", 90.0),
        ("250ms", 0.25),
        ("+2s", 2.0),
        ("86400", 86400.0),
        ("24h", 86400.0),
        ("0.001", 0.001),
    ],
)
def test_f_4_udp_idle_timeout_is_seconds_or_a_duration(value: str, seconds: float) -> None:
    """Up to a day."""
    found, problems = _parse({"udp-idle-timeout": value})
    assert found.udp_idle_timeout_s == pytest.approx(seconds)
    assert problems == ()


@pytest.mark.parametrize(
    "value",
    [
        *("", None, "0", "0s", "0.0", "-1", "-1s", "-0", "86400.1", "24h1s", "86400001ms", "soon", "nan", "inf"),
        *("1e3", "1_0", " 90", "90 s", "1m30", "1d", "٣", "9" * 400, f"{'9' * 400}h", f".{'0' * 400}1"),
    ],
)
@pytest.mark.parametrize("origin", ["", _ORIGIN])
def test_f_4_udp_idle_timeout_that_cannot_be_used_warns_and_is_the_default(value: str | None, origin: str) -> None:
    """One sentence, with what would be right; it stays readable, whatever the value."""
    found, problems = _parse({"udp-idle-timeout": value}, origin=origin)
    assert found.udp_idle_timeout_s is None
    text = f"{quote(value or '')} {_TIMEOUT_HINT}"
    assert _warnings(problems) == [(f"metadata.annotations[{_PREFIX}udp-idle-timeout]", text)]


@pytest.mark.parametrize("key", ["udp-balance", "udp-idle-timeout"])
@pytest.mark.parametrize("protocols", ["TCP", "TCP SCTP"])
@pytest.mark.parametrize("value", ["datagram", "5s"])
def test_parse_annotations_for_udp_without_a_udp_port_warn_their_author(key: str, protocols: str, value: str) -> None:
    """Whether the value is right does not matter then."""
    found, problems = _parse({key: value}, protocols=protocols)
    assert found == _parse({}, protocols=protocols)[0]
    text = "does nothing, as the Service has no port with protocol UDP; take it out"
    assert _warnings(problems) == [(f"metadata.annotations[{_PREFIX}{key}]", text)]


def test_parse_annotations_for_udp_without_a_udp_port_are_no_problem_in_a_cluster() -> None:
    """One template for many Services is nobody's mistake."""
    found, problems = _parse({"udp-balance": "datagram", "udp-idle-timeout": "5s"}, protocols="TCP", origin="")
    assert (found.udp_balance, found.udp_idle_timeout_s) == (UdpBalance.DATAGRAM, 5.0)
    assert problems == ()


def test_parse_annotations_for_udp_are_not_blamed_for_a_bad_port() -> None:
    """The port that cannot be served is told already."""
    obj = api_types.Service(
        metadata=api_types.ObjectMeta(name="web", annotations={f"{_PREFIX}udp-idle-timeout": "5s"}),
        spec=api_types.ServiceSpec(cluster_ip="10.96.0.10", ports=[api_types.ServicePort(port=0, protocol="UDP")]),
    )
    assert [one.field for one in parse_service(obj, _ORIGIN)[1]] == ["spec.ports[0].port"]


@pytest.mark.parametrize("origin", ["", _ORIGIN])
def test_parse_annotations_unknown_one_of_ours_warns_and_names_the_known(origin: str) -> None:
    """A misspelt annotation is named."""
    found, problems = _parse({"balanse": "round-robin"}, origin=origin)
    assert found == _parse({}, origin=origin)[0]
    text = (
        "'userspace-proxy.io/balanse' is an unknown annotation, so it does nothing; this release knows "
        "userspace-proxy.io/balance, userspace-proxy.io/udp-balance and userspace-proxy.io/udp-idle-timeout"
    )
    assert _warnings(problems) == [("metadata.annotations", text)]


def test_parse_annotations_of_others_are_none_of_our_business() -> None:
    """Whatever they are called."""
    obj = api_types.Service(
        metadata=api_types.ObjectMeta(
            name="web",
            annotations={"example.com/balance": "odd", "udp-balance": "odd", "userspace-proxy.iot/balance": None},
        ),
        spec=api_types.ServiceSpec(cluster_ip="10.96.0.10", ports=[api_types.ServicePort(port=80)]),
    )
    found, problems = parse_service(obj, _ORIGIN)
    assert found is not None
    assert (found.balance, problems) == (None, ())

"""Tests of the half of model.parse that reads EndpointSlices; ``test_parse`` has the other."""

from typing import Any

import msgspec
import pytest
from builders import endpoint, endpoint_port, endpoint_slice
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model import api_types
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.model.parse import parse_endpoint_slice
from userspace_proxy.model.problem import Problem, Severity

_ORIGIN = "shop.yaml, document 1, line 1"


def _parse_slice(
    *, metadata: dict[str, Any] | None = None, **fields: Any
) -> tuple[EndpointSlice | None, tuple[Problem, ...]]:
    """Parse the EndpointSlice shop/web-1 of Service web: 10.0.1.1, port ``http`` 8080, but for the fields given."""
    document = {
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}
        | (metadata or {}),
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.1.1"]}],
    } | fields
    return parse_endpoint_slice(msgspec.convert(document, type=api_types.EndpointSlice, strict=True), _ORIGIN)


def _places(problems: tuple[Problem, ...]) -> list[str]:
    return [f"{one.severity} {one.field}" for one in problems]


def test_parse_endpoint_slice_whole_object_gives_all_that_is_used() -> None:
    """An EndpointSlice as an API server writes it."""
    found = _parse_slice(
        ports=[{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        endpoints=[
            {"addresses": ["10.0.1.1", "10.0.9.9"], "conditions": {"ready": True}, "nodeName": "node-1", "zone": "a"},
            {"addresses": ["10.0.1.02"], "conditions": {"ready": False, "serving": True, "terminating": True}},
        ],
    )
    expected = endpoint_slice(
        "shop/web-1",
        endpoint("10.0.1.1", node_name="node-1"),
        endpoint("10.0.1.2", ready=False, terminating=True),
        ports=[endpoint_port(), endpoint_port("dns", 53, Protocol.UDP)],
        origin=_ORIGIN,
    )
    assert found == (expected, ())


def test_parse_endpoint_slice_ipv6_is_of_that_family() -> None:
    """The family is that of addressType."""
    found, problems = _parse_slice(addressType="IPv6", endpoints=[{"addresses": ["fd00::1"]}])
    assert found == endpoint_slice("shop/web-1", "fd00::1", family=Family.IPV6, origin=_ORIGIN)
    assert problems == ()


def test_parse_endpoint_slice_placeholder_without_endpoints_is_fine() -> None:
    """A cluster keeps an EndpointSlice with null for both lists where a Service has no pods."""
    assert _parse_slice(ports=None, endpoints=None) == (endpoint_slice(ports=[], origin=_ORIGIN), ())


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False}, (False, True, False)),
        ({"ready": True, "serving": False}, (True, False, False)),
        ({"terminating": True}, (True, True, True)),
        ({"ready": False, "serving": False, "terminating": True}, (False, False, True)),
    ],
)
def test_parse_endpoint_slice_unset_conditions_have_their_api_meaning(
    conditions: dict[str, bool | None] | None, expected: tuple[bool, bool, bool]
) -> None:
    """Unset means ready, serving and not terminating, each by itself."""
    found, _ = _parse_slice(endpoints=[{"addresses": ["10.0.1.1"], "conditions": conditions}])
    assert found is not None
    one = found.endpoints[0]
    assert (one.ready, one.serving, one.terminating) == expected


@pytest.mark.parametrize(
    "labels", [None, {}, {"app": "web"}, {"kubernetes.io/service-name": ""}, {"kubernetes.io/service-name": None}]
)
def test_parse_endpoint_slice_without_its_label_warns_with_the_label(labels: dict[str, str | None] | None) -> None:
    """The commonest first mistake is told by name."""
    found, problems = _parse_slice(metadata={"labels": labels})
    assert found is None
    assert _places(problems) == ["warning metadata.labels[kubernetes.io/service-name]"]
    assert problems[0].text.startswith("the label is missing")
    assert problems[0].text.endswith("write the label kubernetes.io/service-name: NAME")


def test_parse_endpoint_slice_with_a_label_that_names_no_service_warns() -> None:
    """A value that can be no name of a Service is quoted."""
    found, problems = _parse_slice(metadata={"labels": {"kubernetes.io/service-name": "Web Shop"}})
    assert found is None
    assert _places(problems) == ["warning metadata.labels[kubernetes.io/service-name]"]
    assert problems[0].text.startswith("'Web Shop' is no name of a Service")


def test_parse_endpoint_slice_of_headless_service_is_left_out_without_a_problem() -> None:
    """They come along when a whole cluster is dumped; the value of the label means nothing."""
    labels = {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}
    assert _parse_slice(metadata={"labels": labels}) == (None, ())


@pytest.mark.parametrize("address_type", ["FQDN", "ipv4", "", None])
def test_parse_endpoint_slice_of_another_address_type_warns(address_type: str | None) -> None:
    """Only IPv4 and IPv6 can be used."""
    found, problems = _parse_slice(addressType=address_type)
    assert found is None
    assert _places(problems) == ["warning addressType"]
    assert problems[0].text == f"{address_type or ''!r} is not IPv4 or IPv6, so the EndpointSlice is not used"


def test_parse_endpoint_slice_without_name_is_a_problem_of_the_place() -> None:
    """Where no name is known, the origin alone says which object it is."""
    found, problems = parse_endpoint_slice(api_types.EndpointSlice(), _ORIGIN)
    assert found is None
    assert [(one.severity, one.subject, one.field) for one in problems] == [(Severity.ERROR, "", "metadata.name")]


@pytest.mark.parametrize(
    ("port", "place"),
    [
        ({"name": "b", "port": 0}, "error ports[1].port"),
        ({"name": "b", "port": 65536}, "error ports[1].port"),
        ({"name": "b"}, "warning ports[1].port"),
        ({"name": "b", "port": 81, "protocol": "QUIC"}, "error ports[1].protocol"),
        ({"name": "a", "port": 81}, "error ports[1].name"),
        ({"name": "B!", "port": 81}, "error ports[1].name"),
    ],
)
def test_parse_endpoint_slice_bad_port_costs_that_port_alone(port: dict[str, Any], place: str) -> None:
    """The ports before and after a bad one are used; the number may be the same."""
    found, problems = _parse_slice(ports=[{"name": "a", "port": 80}, port, {"port": 80}])
    assert found == endpoint_slice(
        "shop/web-1", "10.0.1.1", ports=[endpoint_port("a", 80), endpoint_port("", 80)], origin=_ORIGIN
    )
    assert _places(problems) == [place]


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        ({"addresses": ["10.0.1.300"]}, "endpoints[1].addresses[0]"),
        ({"addresses": ["fd00::1"]}, "endpoints[1].addresses[0]"),
        ({"addresses": ["web.example.com"]}, "endpoints[1].addresses[0]"),
        ({"addresses": ["0.0.0.0"]}, "endpoints[1].addresses[0]"),
        ({"addresses": []}, "endpoints[1].addresses"),
        ({}, "endpoints[1].addresses"),
    ],
)
def test_parse_endpoint_slice_bad_endpoint_costs_that_endpoint_alone(bad: dict[str, Any], place: str) -> None:
    """The endpoints before and after a bad one are used."""
    found, problems = _parse_slice(endpoints=[{"addresses": ["10.0.1.1"]}, bad, {"addresses": ["127.0.0.1"]}])
    assert found == endpoint_slice("shop/web-1", "10.0.1.1", "127.0.0.1", origin=_ORIGIN)
    assert _places(problems) == [f"error {place}"]


def test_parse_endpoint_slice_a_thousand_bad_endpoints_are_told_in_eleven_problems() -> None:
    """The first ten are shown, the rest are counted."""
    found, problems = _parse_slice(endpoints=[{"addresses": ["x"]}] * 1000)
    assert found == endpoint_slice(origin=_ORIGIN)
    assert [one.text for one in problems[9:]] == ["'x' is not an IP address", "and 990 more"]


_TEXTS = st.none() | st.sampled_from(["", "IPv4", "IPv6", "TCP", "web"]) | st.text()
_NUMBERS = st.none() | st.integers()


@given(
    obj=st.builds(
        api_types.EndpointSlice,
        metadata=st.just(api_types.ObjectMeta(name="web-1", labels={"kubernetes.io/service-name": "web"})),
        address_type=st.sampled_from(["IPv4", "IPv6"]) | _TEXTS,
        ports=st.none() | st.lists(st.builds(api_types.EndpointPort, name=_TEXTS, protocol=_TEXTS, port=_NUMBERS)),
        endpoints=st.lists(
            st.builds(
                api_types.Endpoint,
                addresses=st.none()
                | st.lists(st.ip_addresses().map(str) | st.text() | st.just("10.0.1.1"), max_size=2),
            )
        ),
    )
)
def test_parse_endpoint_slice_any_values_give_a_sound_slice_or_none(obj: api_types.EndpointSlice) -> None:
    """It never raises, and all that it lets through is of the family it says."""
    found, problems = parse_endpoint_slice(obj, _ORIGIN)
    assert len(problems) <= 11
    assert all(str(one).isprintable() for one in problems)
    if found is not None:
        assert {one.address.version for one in found.endpoints} <= {4 if found.family is Family.IPV4 else 6}
        assert all(1 <= one.port <= 65535 for one in found.ports)

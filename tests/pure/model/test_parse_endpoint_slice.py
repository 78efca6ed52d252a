"""Tests of model.parse_endpoint_slice, documents as a user or an API server writes them."""

import math
from datetime import UTC, datetime
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
_TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
_LABELLED = {"labels": {"kubernetes.io/service-name": "web"}}


def _parse_slice(
    *, metadata: dict[str, Any] | None = None, origin: str = _ORIGIN, **fields: Any
) -> tuple[EndpointSlice | None, tuple[Problem, ...]]:
    """Parse the EndpointSlice shop/web-1 of Service web: 10.0.1.1, port ``http`` 8080, but for the fields given."""
    document = {
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}
        | (metadata or {}),
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.1.1"]}],
    } | fields
    return parse_endpoint_slice(msgspec.convert(document, type=api_types.EndpointSlice, strict=True), origin)


def _triggered_at(text: str | None) -> float | None:
    """Return what becomes of the annotation with the time of the change."""
    found, problems = _parse_slice(metadata=_LABELLED | {"annotations": {_TRIGGER_TIME: text}})
    assert found is not None
    assert problems == ()
    return found.triggered_at_s


def _places(problems: tuple[Problem, ...]) -> list[str]:
    return [f"{one.severity} {one.field}" for one in problems]


def test_parse_endpoint_slice_whole_object_gives_all_that_is_used() -> None:
    """An EndpointSlice as an API server writes it."""
    found = _parse_slice(
        ports=[{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        endpoints=[
            {
                "addresses": ["10.0.1.1", "10.0.9.9"],
                "conditions": {"ready": True},
                "nodeName": "node-1",
                "zone": "a",
                "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "node-1"}]},
            },
            {"addresses": ["10.0.1.02"], "conditions": {"ready": False, "serving": True, "terminating": True}},
        ],
    )
    expected = endpoint_slice(
        "shop/web-1",
        endpoint("10.0.1.1", node_name="node-1", hinted_zones=["a", "b"], hinted_nodes=["node-1"]),
        endpoint("10.0.1.2", ready=False, terminating=True),
        ports=[endpoint_port(), endpoint_port("dns", 53, Protocol.UDP)],
        origin=_ORIGIN,
    )
    assert found == (expected, ())


def test_b_2_ipv6_slice_is_of_that_family() -> None:
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
def test_b_6_unset_conditions_have_their_api_meaning(
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
def test_b_1_slice_without_its_label_belongs_to_no_service(labels: dict[str, str | None] | None) -> None:
    """The commonest first mistake is told by name to who wrote it; on an API server it is nobody's mistake."""
    assert _parse_slice(metadata={"labels": labels}, origin="") == (None, ())
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


def test_b_1_label_names_whatever_service_an_api_server_has_let_in() -> None:
    """Names are for the API server to judge."""
    found, problems = _parse_slice(metadata={"labels": {"kubernetes.io/service-name": "webShop"}}, origin="")
    assert found == endpoint_slice("shop/web-1", "10.0.1.1", service="shop/webShop")
    assert problems == ()


def test_b_1_slice_belongs_to_the_service_of_its_label_in_its_namespace() -> None:
    """Whoever manages or owns it does not matter."""
    labels = {"kubernetes.io/service-name": "db", "endpointslice.kubernetes.io/managed-by": "somebody"}
    owner = [{"apiVersion": "v1", "kind": "Service", "name": "other", "uid": "1"}]
    found = _parse_slice(metadata={"namespace": "back", "labels": labels, "ownerReferences": owner})
    assert found == (endpoint_slice("back/web-1", "10.0.1.1", service="back/db", origin=_ORIGIN), ())


@pytest.mark.parametrize("value", ["", "false", None])
@pytest.mark.parametrize("origin", ["", _ORIGIN])
def test_a_3_slice_of_headless_service_is_left_out_without_a_problem(value: str | None, origin: str) -> None:
    """They come along when a whole cluster is dumped; the value of the label means nothing."""
    labels = {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": value}
    assert _parse_slice(metadata={"labels": labels}, origin=origin) == (None, ())


def test_a_3_label_for_another_proxy_on_a_slice_means_nothing() -> None:
    """It speaks for a Service; the EndpointSlice only has a copy of it."""
    labels = {"kubernetes.io/service-name": "web", "service.kubernetes.io/service-proxy-name": "x"}
    found = _parse_slice(metadata={"labels": labels})
    assert found == (endpoint_slice("shop/web-1", "10.0.1.1", origin=_ORIGIN), ())


@pytest.mark.parametrize("address_type", ["FQDN", "ipv4", "", None])
def test_b_2_slice_of_another_address_type_is_not_used(address_type: str | None) -> None:
    """Only IPv4 and IPv6 can be; who wrote another is told, while an API server may well hold one."""
    assert _parse_slice(addressType=address_type, origin="") == (None, ())
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
def test_b_3_bad_port_costs_that_port_alone(port: dict[str, Any], place: str) -> None:
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
def test_b_4_bad_endpoint_costs_that_endpoint_alone(bad: dict[str, Any], place: str) -> None:
    """The endpoints before and after a bad one are used."""
    found, problems = _parse_slice(endpoints=[{"addresses": ["10.0.1.1"]}, bad, {"addresses": ["127.0.0.1"]}])
    assert found == endpoint_slice("shop/web-1", "10.0.1.1", "127.0.0.1", origin=_ORIGIN)
    assert _places(problems) == [f"error {place}"]


def test_parse_endpoint_slice_a_thousand_bad_endpoints_are_told_in_eleven_problems() -> None:
    """The first ten are shown, the rest are counted."""
    found, problems = _parse_slice(endpoints=[{"addresses": ["x"]}] * 1000)
    assert found == endpoint_slice(origin=_ORIGIN)
    assert [one.text for one in problems[9:]] == ["'x' is not an IP address", "and 990 more"]


@pytest.mark.parametrize("further", ["10.0.9.9", "x", "fd00::1"])
def test_b_4_only_the_first_address_of_an_endpoint_is_used(further: str) -> None:
    """The API promises that the others lead to the same place."""
    found = _parse_slice(endpoints=[{"addresses": ["10.0.1.1", further]}])
    assert found == (endpoint_slice("shop/web-1", "10.0.1.1", origin=_ORIGIN), ())


@pytest.mark.parametrize(("node_name", "expected"), [("node-1", "node-1"), ("", None), (None, None)])
def test_b_9_node_of_an_endpoint_is_as_said_or_unknown(node_name: str | None, expected: str | None) -> None:
    """An empty name is none."""
    found, _ = _parse_slice(endpoints=[{"addresses": ["10.0.1.1"], "nodeName": node_name}])
    assert found == endpoint_slice("shop/web-1", endpoint("10.0.1.1", node_name=expected), origin=_ORIGIN)


@pytest.mark.parametrize(
    ("hints", "zones", "nodes"),
    [
        (None, (), ()),
        ({}, (), ()),
        ({"forZones": None, "forNodes": None}, (), ()),
        ({"forZones": [], "forNodes": []}, (), ()),
        ({"forZones": [{"name": "a"}]}, ("a",), ()),
        ({"forNodes": [{"name": "node-1"}, {"name": "node-2"}]}, (), ("node-1", "node-2")),
        ({"forZones": [{"name": "b"}, {"name": "a"}], "forNodes": [{"name": "b"}]}, ("b", "a"), ("b",)),
        ({"forZones": [{"name": ""}, {"name": None}, {}, {"name": "a"}]}, ("a",), ()),
    ],
)
def test_b_12_hints_are_names_of_zones_and_nodes(
    hints: dict[str, Any] | None, zones: tuple[str, ...], nodes: tuple[str, ...]
) -> None:
    """All of them, in their order; an empty name is none."""
    found, problems = _parse_slice(endpoints=[{"addresses": ["10.0.1.1"], "hints": hints}])
    assert found is not None
    assert (found.endpoints[0].hinted_zones, found.endpoints[0].hinted_nodes) == (zones, nodes)
    assert problems == ()


@pytest.mark.parametrize("zone", ["a", "", None])
def test_b_10_zone_of_an_endpoint_is_ignored(zone: str | None) -> None:
    """Only hints say who should use it."""
    assert _parse_slice(endpoints=[{"addresses": ["10.0.1.1"], "zone": zone}]) == _parse_slice()


def test_parse_endpoint_slice_shares_the_names_that_endpoints_have_in_common() -> None:
    """A hundred thousand endpoints on a hundred nodes hold a hundred names of nodes, whatever decoded them."""
    one, two = (
        _parse_slice(
            endpoints=[
                {
                    "addresses": ["10.0.1.1"],
                    "nodeName": f"node-{number}",
                    "hints": {"forZones": [{"name": f"zone-{number}"}], "forNodes": []},
                }
            ]
        )[0]
        for number in (1, 1)
    )
    assert one is not None
    assert two is not None
    assert one.endpoints[0].node_name is two.endpoints[0].node_name
    assert one.endpoints[0].hinted_zones is two.endpoints[0].hinted_zones
    assert one.endpoints[0].hinted_nodes is two.endpoints[0].hinted_nodes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T03:04:05.5Z", 1767323045.5),
        ("2026-01-02T03:04:05.123456789Z", 1767323045.123456),
        ("2026-01-02T04:04:05+01:00", 1767323045.0),
        ("2026-01-02T03:04:05", None),
        ("2026-13-02T03:04:05Z", None),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_h_8_time_of_the_change_is_that_of_the_annotation(text: str | None, expected: float | None) -> None:
    """RFC 3339, down to microseconds; anything else, a time without zone too, is no time and no Problem."""
    assert _triggered_at(text) == expected


def test_h_8_without_the_annotation_there_is_no_time_of_the_change() -> None:
    """As in a manifest; other annotations mean nothing."""
    found, problems = _parse_slice(metadata=_LABELLED | {"annotations": {"userspace-proxy.io/balance": "odd"}})
    assert found is not None
    assert found.triggered_at_s is None
    assert problems == ()


@given(st.datetimes(timezones=st.timezones()))
def test_h_8_time_of_the_change_is_read_back(when: datetime) -> None:
    """Any time with any offset is the same second since the epoch."""
    found = _triggered_at(when.isoformat())
    assert found is not None
    assert math.isclose(found, (when - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds(), abs_tol=1e-5)


@given(text=st.text())
def test_h_8_any_text_is_a_time_or_none(text: str) -> None:
    """What others write there never costs the EndpointSlice."""
    assert _triggered_at(text) is None or text


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
                node_name=_TEXTS,
                hints=st.none()
                | st.builds(
                    api_types.EndpointHints,
                    for_zones=st.none() | st.lists(st.builds(api_types.Hint, name=_TEXTS), max_size=2),
                    for_nodes=st.none() | st.lists(st.builds(api_types.Hint, name=_TEXTS), max_size=2),
                ),
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
        assert all(all((*one.hinted_zones, *one.hinted_nodes)) for one in found.endpoints)

"""Tests of model.parse, documents as a user or an API server writes them: Services.

``test_parse_endpoint_slice`` has the other half.
"""

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from builders import named, service, service_port
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model import api_types
from userspace_proxy.model.names import Protocol
from userspace_proxy.model.parse import parse_service
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Balance, Service

_ORIGIN = "shop.yaml, document 1, line 1"
_HTTP = {"name": "http", "port": 80}
_DUAL = ["IPv4", "IPv6"]


def _parse_service(
    *, metadata: dict[str, Any] | None = None, **spec: Any
) -> tuple[Service | None, tuple[Problem, ...]]:
    """Parse the Service shop/web with the address 10.96.0.10 and port ``http``, but for the fields given."""
    document = {
        "metadata": {"name": "web", "namespace": "shop"} | (metadata or {}),
        "spec": {"clusterIP": "10.96.0.10", "ports": [_HTTP]} | spec,
    }
    return parse_service(msgspec.convert(document, type=api_types.Service, strict=True), _ORIGIN)


def _places(problems: tuple[Problem, ...]) -> list[str]:
    return [f"{one.severity} {one.field}" for one in problems]


def test_parse_service_whole_object_gives_all_that_is_served() -> None:
    """A Service as an API server writes it, of both families, with three protocols."""
    found = _parse_service(
        metadata={"annotations": {"userspace-proxy.io/balance": "least-connections", "example.com/x": "y"}},
        type="NodePort",
        clusterIP="10.96.0.10",
        clusterIPs=["10.96.0.10", "fd00::a"],
        ipFamilies=_DUAL,
        ports=[
            {"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"},
            {"name": "dns", "port": 53, "nodePort": 30053, "protocol": "UDP"},
            {"name": "sig", "port": 80, "nodePort": 30080, "protocol": "SCTP"},
        ],
    )
    expected = service(
        "shop/web",
        service_port("http", 80, node_port=30080),
        service_port("dns", 53, node_port=30053, protocol=Protocol.UDP),
        service_port("sig", 80, node_port=30080, protocol=Protocol.SCTP),
        cluster_ips=["10.96.0.10", "fd00::a"],
        balance=Balance.LEAST_CONNECTIONS,
        origin=_ORIGIN,
    )
    assert found == (expected, ())


def test_parse_service_least_of_a_service_takes_the_defaults_of_the_api() -> None:
    """Namespace default, protocol TCP, one unnamed port, no NodePort, no balance of its own."""
    obj = api_types.Service(
        metadata=api_types.ObjectMeta(name="web"),
        spec=api_types.ServiceSpec(cluster_ip="10.96.0.10", ports=[api_types.ServicePort(port=80)]),
    )
    assert parse_service(obj, "") == (service("default/web", service_port("", 80)), ())


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None"},
        {"clusterIP": "None", "clusterIPs": ["None"], "type": "ClusterIP", "ports": []},
        {"type": "ExternalName", "clusterIP": None, "ports": None},
        {"type": "ExternalName", "clusterIP": ""},
        {"type": "ExternalName", "clusterIP": "10.96.0.10"},
    ],
)
def test_parse_service_headless_or_external_name_is_left_out_without_a_problem(spec: dict[str, Any]) -> None:
    """There is nothing to serve for them, and nothing wrong with them."""
    assert _parse_service(**spec) == (None, ())


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": None},
        {"clusterIP": ""},
        {"clusterIP": None, "type": "NodePort"},
        {"clusterIP": None, "clusterIPs": ["10.96.0.10"]},
    ],
)
def test_parse_service_without_cluster_ip_says_to_write_one(spec: dict[str, Any]) -> None:
    """A manifest written by hand has no address, as no API server assigned one; nothing of it is served."""
    found, problems = _parse_service(**spec)
    assert found is None
    assert _places(problems) == ["error spec.clusterIP"]
    assert problems[0].subject == "Service shop/web"
    assert problems[0].text == "is missing, and no API server assigns one here; write the address to serve"


@pytest.mark.parametrize(
    "obj", [api_types.Service(), api_types.Service(spec=api_types.ServiceSpec(cluster_ip="10.96.0.1"))]
)
def test_parse_service_without_name_is_a_problem_of_the_place(obj: api_types.Service) -> None:
    """Where no name is known, the origin alone says which object it is."""
    found, problems = parse_service(obj, _ORIGIN)
    assert found is None
    assert [(one.subject, one.field, one.origin) for one in problems] == [("", "metadata.name", _ORIGIN)]


def test_parse_service_without_spec_lacks_its_address() -> None:
    """An empty object is told what it needs first."""
    found, problems = parse_service(api_types.Service(metadata=api_types.ObjectMeta(name="web")), _ORIGIN)
    assert found is None
    assert _places(problems) == ["error spec.clusterIP"]


@pytest.mark.parametrize(
    ("spec", "addresses"),
    [
        # objects older than dual stack: clusterIP alone, of its own family
        ({"clusterIP": "10.96.0.10"}, ["10.96.0.10"]),
        ({"clusterIP": "fd00::a"}, ["fd00::a"]),
        ({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"]}, ["10.96.0.10"]),
        # by ipFamilies
        ({"clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"]}, ["10.96.0.10"]),
        (
            {"clusterIP": "fd00::a", "clusterIPs": ["fd00::a", "10.96.0.10"], "ipFamilies": ["IPv6", "IPv4"]},
            ["fd00::a", "10.96.0.10"],
        ),
        # clusterIPs is made of clusterIP, as an API server does
        ({"clusterIP": "10.96.0.10", "ipFamilies": ["IPv4"]}, ["10.96.0.10"]),
        # written sloppily, as stored objects may be
        ({"clusterIP": "10.096.0.010"}, ["10.96.0.10"]),
    ],
)
def test_parse_service_cluster_ips_follow_ip_families(spec: dict[str, Any], addresses: list[str]) -> None:
    """The addresses served, canonical, in the order of the object."""
    found, problems = _parse_service(**spec)
    assert found is not None
    assert [str(one) for one in found.cluster_ips] == addresses
    assert problems == ()


@pytest.mark.parametrize(
    ("spec", "addresses", "places"),
    [
        ({"clusterIP": "10.96.0.300"}, [], ["error spec.clusterIP"]),
        ({"clusterIP": "10.96.0.300", "ipFamilies": ["IPv4"]}, [], ["error spec.clusterIP"]),
        (
            {"clusterIPs": ["10.96.0.10", "x"], "ipFamilies": _DUAL},
            ["10.96.0.10"],
            ["error spec.clusterIPs[1]"],
        ),
        (
            {"clusterIPs": ["10.96.0.10", "10.96.0.11"], "ipFamilies": _DUAL},
            ["10.96.0.10"],
            ["error spec.clusterIPs[1]"],
        ),
        (
            {"clusterIPs": ["10.96.0.10", "10.96.0.11"], "ipFamilies": ["IPv4", "IPv4"]},
            ["10.96.0.10"],
            ["error spec.clusterIPs[1]"],
        ),
        (
            {"clusterIPs": ["10.96.0.10", "fd00::a"], "ipFamilies": ["ipv4", "IPv6"]},
            ["fd00::a"],
            ["error spec.ipFamilies[0]"],
        ),
        ({"clusterIPs": ["10.96.0.10"], "ipFamilies": _DUAL}, ["10.96.0.10"], ["error spec.ipFamilies[1]"]),
        (
            {"clusterIPs": ["10.96.0.10", "fd00::a"], "ipFamilies": ["IPv4"]},
            ["10.96.0.10"],
            ["error spec.clusterIPs[1]"],
        ),
        ({"clusterIPs": ["10.96.0.10", "fd00::a"]}, ["10.96.0.10"], ["error spec.clusterIPs[1]"]),
        ({"clusterIPs": ["10.96.0.11"], "ipFamilies": ["IPv4"]}, ["10.96.0.11"], ["warning spec.clusterIPs[0]"]),
        ({"clusterIPs": ["10.96.0.11"]}, ["10.96.0.10"], ["warning spec.clusterIPs[0]"]),
    ],
)
def test_parse_service_bad_cluster_ip_costs_that_address_alone(
    spec: dict[str, Any], addresses: list[str], places: list[str]
) -> None:
    """What is wrong with one address is said at its place; the other is served; with none the Service is left out."""
    found, problems = _parse_service(**spec)
    assert [str(one) for one in (found.cluster_ips if found else ())] == addresses
    assert (found is None) == (not addresses)
    assert _places(problems) == places


@pytest.mark.parametrize(
    ("port", "place"),
    [
        ({"name": "b", "port": 0}, "spec.ports[1].port"),
        ({"name": "b", "port": 65536}, "spec.ports[1].port"),
        ({"name": "b"}, "spec.ports[1].port"),
        ({"name": "b", "port": 80}, "spec.ports[1].port"),
        ({"name": "b", "port": 81, "protocol": "QUIC"}, "spec.ports[1].protocol"),
        ({"name": "a", "port": 81}, "spec.ports[1].name"),
        ({"name": "a", "port": 81, "protocol": "UDP"}, "spec.ports[1].name"),
        ({"name": "B!", "port": 81}, "spec.ports[1].name"),
    ],
)
def test_parse_service_bad_port_costs_that_port_alone(port: dict[str, Any], place: str) -> None:
    """The ports before and after a bad one are served."""
    found, problems = _parse_service(ports=[{"name": "a", "port": 80}, port, {"name": "c", "port": 82}])
    assert found == service("shop/web", service_port("a", 80), service_port("c", 82), origin=_ORIGIN)
    assert _places(problems) == [f"error {place}"]


def test_parse_service_port_with_several_faults_tells_them_all() -> None:
    """An author need not repair one value to hear of the next."""
    found, problems = _parse_service(ports=[{"name": "B!", "port": 0, "protocol": "QUIC"}])
    assert found == Service(named("shop/web"), (ip_address("10.96.0.10"),), (), None, _ORIGIN)
    assert _places(problems) == ["error spec.ports[0].name", "error spec.ports[0].protocol", "error spec.ports[0].port"]


def test_parse_service_same_number_with_other_protocol_is_another_port() -> None:
    """TCP and UDP may share a port number and a nodePort number."""
    found, problems = _parse_service(
        ports=[
            {"name": "a", "port": 53, "nodePort": 30053, "protocol": "UDP"},
            {"name": "b", "port": 53, "nodePort": 30053, "protocol": "TCP"},
        ]
    )
    assert problems == ()
    assert found is not None
    assert [(one.port, one.node_port) for one in found.ports] == [(53, 30053)] * 2


@pytest.mark.parametrize("ports", [None, []])
def test_parse_service_without_ports_is_a_problem(ports: list[Any] | None) -> None:
    """A Service without ports exists, so that its EndpointSlices are not called lost, but serves nothing."""
    found, problems = _parse_service(ports=ports)
    assert found is not None
    assert found.ports == ()
    assert _places(problems) == ["error spec.ports"]


@pytest.mark.parametrize(
    ("type_", "number", "node_port", "places"),
    [
        ("NodePort", 30080, 30080, []),
        ("LoadBalancer", 30080, 30080, []),
        (None, 30080, 30080, []),
        ("ClusterIP", None, None, []),
        ("ClusterIP", 0, None, []),
        ("LoadBalancer", None, None, []),
        ("NodePort", None, None, ["error spec.ports[0].nodePort"]),
        ("NodePort", 0, None, ["error spec.ports[0].nodePort"]),
        ("NodePort", 70000, None, ["error spec.ports[0].nodePort"]),
        ("NodePort", -1, None, ["error spec.ports[0].nodePort"]),
    ],
)
def test_parse_service_node_port_is_taken_as_said_and_missed_where_the_type_asks_for_it(
    type_: str | None, number: int | None, node_port: int | None, places: list[str]
) -> None:
    """A bad or missing nodePort costs the NodePort; the cluster address is served all the same."""
    found, problems = _parse_service(type=type_, ports=[{"name": "http", "port": 80, "nodePort": number}])
    assert found == service("shop/web", service_port("http", 80, node_port=node_port), origin=_ORIGIN)
    assert _places(problems) == places


def test_parse_service_node_port_twice_goes_to_the_first_port() -> None:
    """Two ports of one Service cannot share a nodePort of one protocol; the second keeps its cluster address."""
    found, problems = _parse_service(
        ports=[
            {"name": "a", "port": 80, "nodePort": 30080},
            {"name": "b", "port": 81, "nodePort": 30080},
            {"name": "c", "port": 82},
            {"name": "d", "port": 83},
        ]
    )
    assert found is not None
    assert [one.node_port for one in found.ports] == [30080, None, None, None]
    assert _places(problems) == ["error spec.ports[1].nodePort"]


@pytest.mark.parametrize("value", ["random", "", None, "Round-Robin"])
def test_parse_service_unknown_balance_warns_and_leaves_the_default(value: str | None) -> None:
    """The accepted values are named."""
    found, problems = _parse_service(metadata={"annotations": {"userspace-proxy.io/balance": value}})
    assert found == service(origin=_ORIGIN)
    assert _places(problems) == ["warning metadata.annotations[userspace-proxy.io/balance]"]
    text = f"{value or ''!r} is unknown, so the default is used; write round-robin or least-connections"
    assert problems[0].text == text


def test_parse_service_unknown_annotation_of_ours_warns() -> None:
    """A misspelt annotation is named; those of other programs are none of our business."""
    found, problems = _parse_service(
        metadata={"annotations": {"userspace-proxy.io/balanse": "round-robin", "example.com/balance": "odd"}}
    )
    assert found == service(origin=_ORIGIN)
    assert _places(problems) == ["warning metadata.annotations"]
    assert problems[0].text.startswith("'userspace-proxy.io/balanse' is an unknown annotation")


def test_parse_service_many_ports_take_linear_time_and_few_problems() -> None:
    """Twenty thousand ports, half of them bad, are twenty thousand steps and eleven Problems."""
    found, problems = _parse_service(ports=[{"name": f"p{i}", "port": i} for i in range(0, 131072, 6)])
    assert found is not None
    assert len(found.ports) == len(range(6, 65536, 6))
    assert len(problems) == 11


_TEXTS = st.none() | st.sampled_from(["", "None", "10.96.0.10", "fd00::a", "IPv4", "IPv6", "TCP", "web"]) | st.text()
_NUMBERS = st.none() | st.integers()


@given(
    obj=st.builds(
        api_types.Service,
        metadata=st.builds(
            api_types.ObjectMeta,
            name=st.just("web") | _TEXTS,
            annotations=st.none() | st.dictionaries(st.text() | st.just("userspace-proxy.io/balance"), _TEXTS),
        ),
        spec=st.builds(
            api_types.ServiceSpec,
            type=_TEXTS,
            cluster_ip=_TEXTS,
            cluster_ips=st.none() | st.lists(_TEXTS.map(str), max_size=3),
            ip_families=st.none() | st.lists(_TEXTS.map(str), max_size=3),
            ports=st.lists(
                st.builds(api_types.ServicePort, name=_TEXTS, protocol=_TEXTS, port=_NUMBERS, node_port=_NUMBERS)
            ),
        ),
    )
)
def test_parse_service_any_values_give_a_sound_service_or_none(obj: api_types.Service) -> None:
    """It never raises, and what it lets through is within the bounds that all other code relies on."""
    found, problems = parse_service(obj, _ORIGIN)
    assert len(problems) <= 11
    assert all(str(one).isprintable() for one in problems)
    if found is not None:
        assert 1 <= len({one.version for one in found.cluster_ips}) == len(found.cluster_ips)
        assert len({one.name.port for one in found.ports}) == len(found.ports)
        assert all(1 <= one.port <= 65535 for one in found.ports)
        assert all(one.node_port is None or 1 <= one.node_port <= 65535 for one in found.ports)

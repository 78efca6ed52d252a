"""Tests of model.parse_service, documents as a user or an API server writes them.

``test_parse_service_addresses`` has the addresses beside those of the cluster, ``test_parse_policies`` the fields
that ``model.parse_policies`` reads, ``test_parse_annotations`` the annotations.
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
from userspace_proxy.model.service_port import Balance, Service, TrafficPolicy, UdpBalance

_ORIGIN = "shop.yaml, document 1, line 1"
_HTTP = {"name": "http", "port": 80}
_DUAL = ["IPv4", "IPv6"]


_REACHABLE: dict[str, Any] = {
    "ports": [_HTTP | {"nodePort": 30080}],
    "externalIPs": ["192.0.2.1"],
    "externalTrafficPolicy": "Local",
    "healthCheckNodePort": 31000,
}
"""All by which a Service can be reached from outside, but for load balancer addresses."""


def _parse_service(
    *,
    metadata: dict[str, Any] | None = None,
    ingress: list[dict[str, Any]] | None = None,
    origin: str = _ORIGIN,
    **spec: Any,
) -> tuple[Service | None, tuple[Problem, ...]]:
    """Parse the Service shop/web with the address 10.96.0.10 and port ``http``, but for the fields given."""
    document = {
        "metadata": {"name": "web", "namespace": "shop"} | (metadata or {}),
        "spec": {"clusterIP": "10.96.0.10", "ports": [_HTTP]} | spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    return parse_service(msgspec.convert(document, type=api_types.Service, strict=True), origin)


def _places(problems: tuple[Problem, ...]) -> list[str]:
    return [f"{one.severity} {one.field}" for one in problems]


def test_parse_service_whole_object_gives_all_that_is_served() -> None:
    """A Service as an API server writes it, of both families, with three protocols and all ways to reach it."""
    found = _parse_service(
        metadata={
            "annotations": {
                "userspace-proxy.io/balance": "least-connections",
                "userspace-proxy.io/udp-balance": "datagram",
                "userspace-proxy.io/udp-idle-timeout": "1m30s",
                "example.com/x": "y",
            }
        },
        ingress=[{"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "2001:db8::1"}],
        type="LoadBalancer",
        clusterIP="10.96.0.10",
        clusterIPs=["10.96.0.10", "fd00::a"],
        ipFamilies=_DUAL,
        ports=[
            {"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"},
            {"name": "dns", "port": 53, "nodePort": 30053, "protocol": "UDP"},
            {"name": "sig", "port": 80, "nodePort": 30080, "protocol": "SCTP"},
        ],
        externalIPs=["192.0.2.1", "2001:db8::2"],
        loadBalancerSourceRanges=["203.0.113.0/24", "2001:db8:1::/48"],
        internalTrafficPolicy="Local",
        externalTrafficPolicy="Local",
        healthCheckNodePort=31000,
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
    )
    expected = service(
        "shop/web",
        service_port("http", 80, node_port=30080),
        service_port("dns", 53, node_port=30053, protocol=Protocol.UDP),
        service_port("sig", 80, node_port=30080, protocol=Protocol.SCTP),
        cluster_ips=["10.96.0.10", "fd00::a"],
        balance=Balance.LEAST_CONNECTIONS,
        origin=_ORIGIN,
        external_ips=["192.0.2.1", "2001:db8::2"],
        load_balancer_ips=["198.51.100.1", "2001:db8::1"],
        source_ranges=["203.0.113.0/24", "2001:db8:1::/48"],
        internal_policy=TrafficPolicy.LOCAL,
        external_policy=TrafficPolicy.LOCAL,
        affinity_timeout_s=60,
        udp_balance=UdpBalance.DATAGRAM,
        udp_idle_timeout_s=90.0,
        health_check_node_port=31000,
    )
    assert found == (expected, ())


def test_parse_service_least_of_a_service_takes_the_defaults_of_the_api() -> None:
    """Namespace default, protocol TCP, one unnamed port, no NodePort, no balance of its own."""
    obj = api_types.Service(
        metadata=api_types.ObjectMeta(name="web"),
        spec=api_types.ServiceSpec(cluster_ip="10.96.0.10", ports=[api_types.ServicePort(port=80)]),
    )
    assert parse_service(obj, "") == (service("default/web", service_port("", 80)), ())


@pytest.mark.parametrize("origin", ["", _ORIGIN])
@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None"},
        {"clusterIP": "None", "clusterIPs": ["None"], "type": "ClusterIP", "ports": []},
        {"clusterIP": "None", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"]},
        {"type": "ExternalName", "clusterIP": None, "ports": None},
        {"type": "ExternalName", "clusterIP": ""},
        {"type": "ExternalName", "clusterIP": "10.96.0.10"},
    ],
)
def test_a_1_headless_and_external_name_services_are_left_out_without_a_problem(
    spec: dict[str, Any], origin: str
) -> None:
    """There is nothing to serve for them, and nothing wrong with them; ``clusterIP`` decides, not ``clusterIPs``."""
    assert _parse_service(origin=origin, **spec) == (None, ())


@pytest.mark.parametrize("spec", [{"clusterIP": None}, {"clusterIP": ""}, {"clusterIP": "", "type": "NodePort"}])
def test_a_1_service_of_the_api_server_without_address_is_left_out_without_a_problem(spec: dict[str, Any]) -> None:
    """An API server assigns addresses; where it has not, the Service is not to be proxied."""
    assert _parse_service(origin="", **spec) == (None, ())


@pytest.mark.parametrize("type_", ["ClusterIP", "NodePort", "LoadBalancer", None])
def test_a_1_services_of_all_other_types_are_served(type_: str | None) -> None:
    """An address of its own is all that a Service needs."""
    found, problems = _parse_service(type=type_, ports=[_HTTP | {"nodePort": 30080}])
    assert found == service("shop/web", service_port(node_port=30080), origin=_ORIGIN)
    assert problems == ()


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "ExternalName", "clusterIP": "10.96.0.10"},
        {"type": "LoadBalancer", "clusterIP": "None"},
        {"type": "LoadBalancer", "clusterIP": ""},
    ],
)
def test_a_2_service_left_out_contributes_nothing(spec: dict[str, Any]) -> None:
    """No NodePort, external or load balancer address and no health check is left of it."""
    assert _parse_service(origin="", ingress=[{"ip": "198.51.100.1"}], **_REACHABLE | spec) == (None, ())


@pytest.mark.parametrize("label", ["service.kubernetes.io/headless", "kubernetes.io/service-name"])
def test_a_3_label_of_endpoint_slices_on_a_service_means_nothing(label: str) -> None:
    """Only an EndpointSlice is left out for the label of headless Services."""
    assert _parse_service(metadata={"labels": {label: ""}}) == (service(origin=_ORIGIN), ())


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": None},
        {"clusterIP": ""},
        {"clusterIP": None, "type": "NodePort"},
        {"clusterIP": None, "clusterIPs": ["10.96.0.10"]},
    ],
)
def test_parse_service_by_hand_without_cluster_ip_says_to_write_one(spec: dict[str, Any]) -> None:
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
    ],
)
def test_a_5_cluster_ips_follow_ip_families(spec: dict[str, Any], addresses: list[str]) -> None:
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
    "spec",
    [
        {"loadBalancerClass": "example.com/x"},
        {"loadBalancerIP": "198.51.100.9"},
        {"allocateLoadBalancerNodePorts": False},
        {"publishNotReadyAddresses": True},
        {"selector": {"app": "web"}},
        {"ports": [_HTTP | {"targetPort": "web"}]},
        {"trafficDistribution": "PreferClose"},
        {"ipFamilyPolicy": "RequireDualStack"},
    ],
)
def test_a_8_fields_that_a_proxy_does_not_read_change_nothing(spec: dict[str, Any]) -> None:
    """Only what they make others write counts."""
    assert _parse_service(type="LoadBalancer", **spec) == (service(origin=_ORIGIN), ())


def test_a_8_annotations_of_others_change_nothing() -> None:
    """Not even the one that was once a field for source ranges."""
    annotations = {"service.beta.kubernetes.io/load-balancer-source-ranges": "203.0.113.0/24"}
    assert _parse_service(type="LoadBalancer", metadata={"annotations": annotations}) == (service(origin=_ORIGIN), ())


@pytest.mark.parametrize("internal", list(TrafficPolicy))
@pytest.mark.parametrize("external", list(TrafficPolicy))
def test_d_1_policies_of_internal_and_external_traffic_are_apart(
    internal: TrafficPolicy, external: TrafficPolicy
) -> None:
    """Neither says anything of the other."""
    found = _parse_service(type="NodePort", internalTrafficPolicy=internal, externalTrafficPolicy=external, origin="")
    assert found == (service(internal_policy=internal, external_policy=external), ())


@pytest.mark.parametrize("status", [None, api_types.ServiceStatus()])
def test_d_6_service_without_status_has_no_load_balancer_addresses(status: api_types.ServiceStatus | None) -> None:
    """As before a load balancer was made."""
    spec = api_types.ServiceSpec(
        cluster_ip="10.96.0.10", type="LoadBalancer", ports=[api_types.ServicePort(name="http", port=80)]
    )
    obj = api_types.Service(metadata=api_types.ObjectMeta(name="web", namespace="shop"), spec=spec, status=status)
    assert parse_service(obj, "") == (service(), ())


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


@pytest.mark.parametrize("number", [None, 0])
def test_parse_service_of_the_api_server_without_node_port_is_no_problem(number: int | None) -> None:
    """An API server assigns NodePorts; where it has not, there is none."""
    found = _parse_service(origin="", type="NodePort", ports=[_HTTP | {"nodePort": number}])
    assert found == (service(), ())


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


def test_parse_service_many_ports_take_linear_time_and_few_problems() -> None:
    """Twenty thousand ports, half of them bad, are twenty thousand steps and eleven Problems."""
    found, problems = _parse_service(ports=[{"name": f"p{i}", "port": i} for i in range(0, 131072, 6)])
    assert found is not None
    assert len(found.ports) == len(range(6, 65536, 6))
    assert len(problems) == 11


_TEXTS = st.none() | st.sampled_from(["", "None", "10.96.0.10", "fd00::a", "IPv4", "IPv6", "TCP", "web"]) | st.text()
_NUMBERS = st.none() | st.integers()
_ANNOTATIONS = st.sampled_from(["", "udp-", "idle-timeout", "udp-idle-timeout", "balance", "udp-balance"]).map(
    "userspace-proxy.io/{}".format
)
_TIMES = st.integers().map("{}s".format) | st.floats().map(str) | st.floats().map("{:f}h".format)
_ADDRESSES = st.none() | st.lists(
    st.ip_addresses().map(str) | st.ip_addresses().map(lambda one: f"{one}/24") | _TEXTS.map(str), max_size=3
)


@given(
    obj=st.builds(
        api_types.Service,
        metadata=st.builds(
            api_types.ObjectMeta,
            name=st.just("web") | _TEXTS,
            annotations=st.none() | st.dictionaries(st.text() | _ANNOTATIONS, _TEXTS | _TIMES),
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
            external_ips=_ADDRESSES,
            session_affinity=_TEXTS | st.just("ClientIP"),
            session_affinity_config=st.none()
            | st.builds(
                api_types.SessionAffinityConfig,
                client_ip=st.none() | st.builds(api_types.ClientIPConfig, timeout_seconds=_NUMBERS),
            ),
            internal_traffic_policy=_TEXTS | st.just("Local"),
            external_traffic_policy=_TEXTS | st.just("Local"),
            load_balancer_source_ranges=_ADDRESSES,
            health_check_node_port=_NUMBERS,
        ),
        status=st.builds(
            api_types.ServiceStatus,
            load_balancer=st.builds(
                api_types.LoadBalancerStatus,
                ingress=st.lists(st.builds(api_types.LoadBalancerIngress, ip=_TEXTS, ip_mode=_TEXTS), max_size=3),
            ),
        ),
    ),
    origin=st.sampled_from(["", _ORIGIN]),
)
def test_parse_service_any_values_give_a_sound_service_or_none(obj: api_types.Service, origin: str) -> None:
    """It never raises, and what it lets through is within the bounds that all other code relies on."""
    found, problems = parse_service(obj, origin)
    assert len(problems) <= 11
    assert all(str(one).isprintable() for one in problems)
    if found is not None:
        assert 1 <= len({one.version for one in found.cluster_ips}) == len(found.cluster_ips)
        assert len({one.name.port for one in found.ports}) == len(found.ports)
        assert all(1 <= one.port <= 65535 for one in found.ports)
        assert all(one.node_port is None or 1 <= one.node_port <= 65535 for one in found.ports)
        families = {one.version for one in found.cluster_ips}
        assert {one.version for one in (*found.external_ips, *found.load_balancer_ips)} <= families
        assert found.affinity_timeout_s is None or 1 <= found.affinity_timeout_s <= 86400
        assert found.udp_idle_timeout_s is None or 0 < found.udp_idle_timeout_s <= 86400
        assert found.health_check_node_port is None or 1 <= found.health_check_node_port <= 65535

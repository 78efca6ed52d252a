"""What the API server fills in a Service and what it refuses: the same on the double and on a real server.

Source of the rules: Kubernetes 1.36 ``pkg/apis/core/validation/validation.go``, ``pkg/apis/core/v1/defaults.go``.
"""

from pathlib import Path
from typing import Any

import pytest
from apiserver.access import ADMIN_TOKEN
from apiserver.cluster import Cluster, Manifest, service_manifest
from apiserver.double import ApiServer
from apiserver.kube_client import KubeClient, RefusedError

HTTP = {"name": "http", "port": 80}
LOCAL_LOAD_BALANCER = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}


DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "type": ({}, {"type": "ClusterIP"}),
    "session affinity": ({}, {"sessionAffinity": "None"}),
    "affinity timeout": (
        {"sessionAffinity": "ClientIP"},
        {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}},
    ),
    "internal policy": ({}, {"internalTrafficPolicy": "Cluster"}),
    "external policy of a NodePort": ({"type": "NodePort"}, {"externalTrafficPolicy": "Cluster"}),
    "external policy with external IPs": ({"externalIPs": ["192.0.2.7"]}, {"externalTrafficPolicy": "Cluster"}),
    "external policy where not external": ({}, {"externalTrafficPolicy": None}),
    "node ports of a load balancer": ({"type": "LoadBalancer"}, {"allocateLoadBalancerNodePorts": True}),
    "affinity config without affinity": (
        {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}},
        {"sessionAffinityConfig": None},
    ),
    "headless": ({"clusterIP": "None"}, {"clusterIPs": ["None"]}),
    "an external name": (
        {"type": "ExternalName", "externalName": "example.org", "ports": []},
        {"clusterIP": None, "clusterIPs": None, "internalTrafficPolicy": None},
    ),
}


@pytest.mark.parametrize(("given", "kept"), DEFAULTS.values(), ids=DEFAULTS.keys())
def test_service_field_not_given_is_filled_in(given: dict[str, Any], kept: dict[str, Any], cluster: Cluster) -> None:
    """A Service read back has what the author left out."""
    spec = cluster.create(service_manifest("web", **given))["spec"]
    assert {name: spec.get(name) for name in kept} == kept


def test_service_port_of_numbers_only_is_filled_in(cluster: Cluster) -> None:
    """Protocol and target port of a Service port have defaults."""
    (port,) = cluster.create(service_manifest("web", {"port": 80}))["spec"]["ports"]
    assert port == {"port": 80, "protocol": "TCP", "targetPort": 80}


def test_service_gets_an_address_and_its_family(cluster: Cluster) -> None:
    """A ClusterIP Service gets one address; two never get the same."""
    first, second = (cluster.create(service_manifest(name))["spec"] for name in ("one", "two"))
    assert first["clusterIPs"] == [first["clusterIP"]] != second["clusterIPs"]
    assert first["ipFamilyPolicy"] == "SingleStack"
    assert len(first["ipFamilies"]) == 1


def test_service_of_both_families_gets_an_address_of_each(double_cluster: Cluster) -> None:
    """A dual-stack cluster gives a dual-stack Service both families, in the order the author wants."""
    made = double_cluster.create(service_manifest(ipFamilyPolicy="RequireDualStack", ipFamilies=["IPv6"]))["spec"]
    assert made["ipFamilies"] == ["IPv6", "IPv4"]
    assert [":" in address for address in made["clusterIPs"]] == [True, False]


def test_service_with_node_ports_gets_numbers_of_the_range(cluster: Cluster) -> None:
    """Each port gets a node port; one number serves both protocols of a port."""
    dns = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}]
    ports = cluster.create(service_manifest("web", HTTP, *dns, type="NodePort"))["spec"]["ports"]
    numbers = [port["nodePort"] for port in ports]
    assert all(30000 <= number <= 32767 for number in numbers)
    assert numbers[1] == numbers[2] != numbers[0]


def test_load_balancer_without_node_ports_has_none(cluster: Cluster) -> None:
    """``allocateLoadBalancerNodePorts: false`` is obeyed."""
    made = cluster.create(service_manifest(type="LoadBalancer", allocateLoadBalancerNodePorts=False))
    assert "nodePort" not in made["spec"]["ports"][0]


def test_local_load_balancer_gets_a_health_check_port(cluster: Cluster) -> None:
    """Type LoadBalancer with the external policy Local has a healthCheckNodePort."""
    made = cluster.create(service_manifest(**LOCAL_LOAD_BALANCER))["spec"]
    assert made["healthCheckNodePort"] not in {0, None, made["ports"][0]["nodePort"]}


REFUSED: dict[str, tuple[str, Manifest]] = {
    "no ports": ("spec.ports", {**service_manifest(), "spec": {"ports": []}}),
    "ports without names": ("spec.ports[0].name", service_manifest("web", {"port": 80}, {"name": "b", "port": 81})),
    "same name twice": ("spec.ports[1].name", service_manifest("web", HTTP, {**HTTP, "port": 81})),
    "same port and protocol twice": ("spec.ports[1]", service_manifest("web", HTTP, {**HTTP, "name": "b"})),
    "name of a port": ("spec.ports[0].name", service_manifest("web", {"name": "HTTP", "port": 80})),
    "number of a port": ("spec.ports[0].port", service_manifest("web", {"name": "http", "port": 70000})),
    "protocol": ("spec.ports[0].protocol", service_manifest("web", {**HTTP, "protocol": "ICMP"})),
    "name of the Service": ("metadata.name", service_manifest("Web")),
    "type": ("spec.type", service_manifest(type="Portal")),
    "node port on type ClusterIP": ("spec.ports[0].nodePort", service_manifest("web", {**HTTP, "nodePort": 30080})),
    "node port out of range": (
        "spec.ports[0].nodePort",
        service_manifest("web", {**HTTP, "nodePort": 80}, type="NodePort"),
    ),
    "same node port twice": (
        "spec.ports[1].nodePort",
        service_manifest(
            "web", {**HTTP, "nodePort": 30777}, {"name": "b", "port": 81, "nodePort": 30777}, type="NodePort"
        ),
    ),
    "external policy where not external": (
        "spec.externalTrafficPolicy",
        service_manifest(externalTrafficPolicy="Local"),
    ),
    "external policy unknown": (
        "spec.externalTrafficPolicy",
        service_manifest(type="NodePort", externalTrafficPolicy="Global"),
    ),
    "internal policy unknown": ("spec.internalTrafficPolicy", service_manifest(internalTrafficPolicy="Global")),
    "health check port on NodePort": (
        "spec.healthCheckNodePort",
        service_manifest(type="NodePort", healthCheckNodePort=30999),
    ),
    "health check port with policy Cluster": (
        "spec.healthCheckNodePort",
        service_manifest(type="LoadBalancer", healthCheckNodePort=30999),
    ),
    "source ranges on NodePort": (
        "spec.LoadBalancerSourceRanges",
        service_manifest(type="NodePort", loadBalancerSourceRanges=["10.0.0.0/8"]),
    ),
    "source ranges that are none": (
        "spec.LoadBalancerSourceRanges[0]",
        service_manifest(type="LoadBalancer", loadBalancerSourceRanges=["10.0.0.1"]),
    ),
    "source ranges that are no address": (
        "spec.LoadBalancerSourceRanges[0]",
        service_manifest(type="LoadBalancer", loadBalancerSourceRanges=["web/8"]),
    ),
    "health check port out of range": (
        "spec.healthCheckNodePort",
        service_manifest(**LOCAL_LOAD_BALANCER, healthCheckNodePort=80),
    ),
    "source ranges with host bits": (
        "spec.LoadBalancerSourceRanges[0]",
        service_manifest(type="LoadBalancer", loadBalancerSourceRanges=["10.0.0.1/8"]),
    ),
    "allocateLoadBalancerNodePorts on NodePort": (
        "spec.allocateLoadBalancerNodePorts",
        service_manifest(type="NodePort", allocateLoadBalancerNodePorts=False),
    ),
    "class on NodePort": ("spec.loadBalancerClass", service_manifest(type="NodePort", loadBalancerClass="a/b")),
    "external name with cluster IPs": (
        "spec.clusterIPs",
        service_manifest(type="ExternalName", externalName="example.org", clusterIP="10.96.0.77"),
    ),
    "external name without a name": ("spec.externalName", service_manifest(type="ExternalName")),
    "headless NodePort": ("spec.clusterIPs[0]", service_manifest(type="NodePort", clusterIP="None")),
    "affinity unknown": ("spec.sessionAffinity", service_manifest(sessionAffinity="Cookie")),
    "affinity timeout of a week": (
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        service_manifest(
            sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 7 * 86_400}}
        ),
    ),
    "traffic distribution unknown": ("spec.trafficDistribution", service_manifest(trafficDistribution="Random")),
    "external IP with leading zeros": ("spec.externalIPs[0]", service_manifest(externalIPs=["192.0.2.010"])),
    "external IP mapped into IPv6": ("spec.externalIPs[0]", service_manifest(externalIPs=["::ffff:192.0.2.1"])),
    "external IP that is loopback": ("spec.externalIPs[0]", service_manifest(externalIPs=["127.0.0.1"])),
    "external IP with a zone": ("spec.externalIPs[0]", service_manifest(externalIPs=["2001:db8::1%eth0"])),
    "cluster IP that is none": ("spec.clusterIPs[0]", service_manifest(clusterIP="web")),
    "two cluster IPs of a family": (
        "spec.clusterIPs",
        service_manifest(
            clusterIP="10.96.1.1", clusterIPs=["10.96.1.1", "10.96.1.2"], ipFamilyPolicy="PreferDualStack"
        ),
    ),
    "cluster IPs that do not agree": (
        "spec.clusterIPs",
        service_manifest(clusterIP="10.96.1.1", clusterIPs=["10.96.1.2"]),
    ),
    "cluster IPs without the first alone": ("spec.clusterIPs", service_manifest(clusterIPs=["10.96.1.1"])),
    "cluster IP out of range": ("spec.clusterIPs", service_manifest(clusterIP="203.0.113.9")),
    "family unknown": ("spec.ipFamilies[0]", service_manifest(ipFamilies=["IPv5"])),
    "two families on single stack": (
        "spec.ipFamilyPolicy",
        service_manifest(ipFamilyPolicy="SingleStack", ipFamilies=["IPv4", "IPv6"]),
    ),
    "same family twice": (
        "spec.ipFamilies[1]",
        service_manifest(ipFamilyPolicy="PreferDualStack", ipFamilies=["IPv4", "IPv4"]),
    ),
    "family policy unknown": ("spec.ipFamilyPolicy", service_manifest(ipFamilyPolicy="TripleStack")),
    "headless and an address": (
        "spec.clusterIPs",
        service_manifest(clusterIP="None", clusterIPs=["None", "10.96.1.1"]),
    ),
    "external name that is no name": (
        "spec.externalName",
        service_manifest(type="ExternalName", externalName="Web 1"),
    ),
    "target port": ("spec.ports[0].targetPort", service_manifest("web", {**HTTP, "targetPort": 70000})),
    "family of a cluster IP": ("spec.clusterIPs[0]", service_manifest(clusterIP="10.96.1.1", ipFamilies=["IPv6"])),
}


@pytest.mark.parametrize(("field", "manifest"), REFUSED.values(), ids=REFUSED.keys())
def test_service_that_breaks_a_rule_is_refused(field: str, manifest: Manifest, cluster: Cluster) -> None:
    """The server refuses a Service with 422 and names the field."""
    with pytest.raises(RefusedError) as caught:
        cluster.create(manifest)
    assert caught.value.code == 422
    assert field in caught.value.fields


CHANGES_REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cluster IP": ("spec.clusterIPs[0]", {}, {"clusterIP": "10.96.200.1", "clusterIPs": ["10.96.200.1"]}),
    "health check port": ("spec.healthCheckNodePort", LOCAL_LOAD_BALANCER, {"healthCheckNodePort": 30999}),
    "load balancer class": (
        "spec.loadBalancerClass",
        {"type": "LoadBalancer", "loadBalancerClass": "example.org/a"},
        {"loadBalancerClass": "example.org/b"},
    ),
    "source ranges after the type": (
        "spec.LoadBalancerSourceRanges",
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"]},
        {"type": "ClusterIP"},
    ),
}


@pytest.mark.parametrize(("field", "given", "change"), CHANGES_REFUSED.values(), ids=CHANGES_REFUSED.keys())
def test_service_change_that_breaks_a_rule_is_refused(
    field: str, given: dict[str, Any], change: dict[str, Any], cluster: Cluster
) -> None:
    """What may not change does not."""
    service = cluster.create(service_manifest(**given))
    with pytest.raises(RefusedError) as caught:
        cluster.patch(service, {"spec": change})
    assert caught.value.code == 422
    assert field in caught.value.fields
    assert cluster.get(service) == service


@pytest.mark.parametrize("name", ["clusterIPs", "ipFamilies"])
def test_service_of_both_families_loses_one_only_by_its_policy(name: str, double_cluster: Cluster) -> None:
    """An address or family left out is refused; the policy SingleStack gives up both."""
    service = double_cluster.create(service_manifest(ipFamilyPolicy="RequireDualStack"))
    with pytest.raises(RefusedError) as caught:
        double_cluster.patch(service, {"spec": {name: service["spec"][name][:1]}})
    assert caught.value.fields == {"spec.ipFamilyPolicy"}
    changed = double_cluster.patch(service, {"spec": {"ipFamilyPolicy": "SingleStack"}})["spec"]
    assert changed["clusterIPs"] == service["spec"]["clusterIPs"][:1]
    assert changed["ipFamilies"] == service["spec"]["ipFamilies"][:1]


def test_service_gets_its_second_family_by_its_policy(double_cluster: Cluster) -> None:
    """An upgrade keeps the first address."""
    service = double_cluster.create(service_manifest())
    changed = double_cluster.patch(service, {"spec": {"ipFamilyPolicy": "PreferDualStack"}})["spec"]
    assert changed["clusterIPs"][0] == service["spec"]["clusterIP"]
    assert changed["ipFamilies"] == ["IPv4", "IPv6"]


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("spec.ipFamilyPolicy", {"ipFamilyPolicy": "RequireDualStack"}),
        ("spec.ipFamilies[0]", {"ipFamilies": ["IPv6"]}),
    ],
)
def test_single_stack_cluster_refuses_the_other_family(field: str, spec: dict[str, Any], tmp_path: Path) -> None:
    """A cluster with addresses of one family has no other, and gives who would like both the one."""
    with ApiServer(service_networks=("10.96.0.0/16",)) as server:
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", token=ADMIN_TOKEN)
        with Cluster(kubeconfig, KubeClient.from_file(kubeconfig)) as cluster:
            with pytest.raises(RefusedError) as caught:
                cluster.create(service_manifest(**spec))
            assert caught.value.fields == {field}
            made = cluster.create(service_manifest(ipFamilyPolicy="PreferDualStack"))["spec"]
    assert made["ipFamilies"] == ["IPv4"]


def test_service_type_that_changes_takes_its_fields_along(cluster: Cluster) -> None:
    """From LoadBalancer to ClusterIP, all that the new type may not have is wiped, also the status."""
    service = cluster.create(service_manifest(**LOCAL_LOAD_BALANCER))
    cluster.set_load_balancer(service, {"ip": "192.0.2.9"})
    changed = cluster.patch(service, {"spec": {"type": "ClusterIP"}})
    for name in ("externalTrafficPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts"):
        assert name not in changed["spec"]
    assert "nodePort" not in changed["spec"]["ports"][0]
    assert changed["status"]["loadBalancer"] == {}
    assert changed["spec"]["clusterIP"] == service["spec"]["clusterIP"]


def test_service_type_that_changes_to_external_name_gives_its_address_back(cluster: Cluster) -> None:
    """An ExternalName Service has no address; that of before can be had by another Service."""
    service = cluster.create(service_manifest())
    changed = cluster.patch(service, {"spec": {"type": "ExternalName", "externalName": "example.org"}})
    assert "clusterIP" not in changed["spec"]
    other = cluster.create(service_manifest("other", clusterIP=service["spec"]["clusterIP"]))
    assert other["spec"]["clusterIP"] == service["spec"]["clusterIP"]


def test_service_replaced_by_its_first_manifest_keeps_what_it_was_given(cluster: Cluster) -> None:
    """Address and node port stay where a replacement does not say them."""
    manifest = service_manifest(type="NodePort")
    service = cluster.create(manifest)
    assert cluster.replace(manifest)["spec"] == service["spec"]


def test_service_released_node_port_can_be_had_again(cluster: Cluster) -> None:
    """A node port is free once its Service is deleted, and only then."""
    service = cluster.create(service_manifest(type="NodePort"))
    again = service_manifest("again", {**HTTP, "nodePort": service["spec"]["ports"][0]["nodePort"]}, type="NodePort")
    with pytest.raises(RefusedError) as caught:
        cluster.create(again)
    assert caught.value.fields == {"spec.ports[0].nodePort"}
    cluster.delete(service)
    assert cluster.create(again)["spec"]["ports"][0]["nodePort"] == service["spec"]["ports"][0]["nodePort"]


def test_service_address_is_had_once(cluster: Cluster) -> None:
    """A cluster IP that another Service has is refused."""
    service = cluster.create(service_manifest())
    with pytest.raises(RefusedError) as caught:
        cluster.create(service_manifest("other", clusterIP=service["spec"]["clusterIP"]))
    assert caught.value.fields == {"spec.clusterIPs"}


def test_load_balancer_address_is_taken_by_the_status_alone(cluster: Cluster) -> None:
    """A write to the Service leaves its status out; the subresource takes it and adds ``ipMode``."""
    service = cluster.create(service_manifest(type="LoadBalancer"))
    cluster.patch(service, {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}})
    assert cluster.get(service)["status"]["loadBalancer"] == {}
    changed = cluster.set_load_balancer(service, {"ip": "192.0.2.9"}, {"ip": "192.0.2.10", "ipMode": "Proxy"})
    assert [one["ipMode"] for one in changed["status"]["loadBalancer"]["ingress"]] == ["VIP", "Proxy"]


@pytest.mark.parametrize(
    ("type_", "ingress"),
    [
        ("ClusterIP", {"ip": "192.0.2.9"}),
        ("LoadBalancer", {"ip": "192.0.2.09"}),
        ("LoadBalancer", {"ip": "192.0.2.9", "ipMode": "DSR"}),
        ("LoadBalancer", {"hostname": "lb.example.org", "ipMode": "VIP"}),
        ("LoadBalancer", {"hostname": "192.0.2.9"}),
        ("LoadBalancer", {"hostname": "Lb_1"}),
    ],
)
def test_load_balancer_address_that_breaks_a_rule_is_refused(
    type_: str, ingress: dict[str, Any], cluster: Cluster
) -> None:
    """The status is checked, too."""
    service = cluster.create(service_manifest(type=type_))
    with pytest.raises(RefusedError) as caught:
        cluster.set_load_balancer(service, ingress)
    assert any(field.startswith("status.loadBalancer.ingress") for field in caught.value.fields)

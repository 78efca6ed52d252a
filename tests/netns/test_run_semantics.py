"""Who reaches which endpoint: every kind of address, dialled by every kind of client, under every policy.

An API server on the node has one Service for each case, and one run serves them all; each client dials all of them, in
both families and by both protocols, and the tests look at what answered. Dialling by UDP is to send a datagram from a
connected socket: an answer counts only from the address that was dialled, and a refusal (ICMP) is told as by TCP.
Endpoints are in the pod of this node and on the host outside, which stands for another node. The bare pod is in no pod
network that the proxy is told of, and so counts as a client from outside.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from apiserver.cluster import node_manifest
from attrs import field, frozen
from netns.node_run import NodeRun, start_backend
from netns.nodes import Node, open_node

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HERE, ELSEWHERE, BOTH = frozenset({"pod"}), frozenset({"outside"}), frozenset({"pod", "outside"})
REFUSED, DROPPED = frozenset({"ConnectionRefusedError"}), frozenset({"TimeoutError"})
DIALS = 2
"""Of each address by each client, one after the other: as many as it takes to see two Backends in turn."""
INSIDERS, OUTSIDERS = ("node", "pod"), ("bare pod", "outside")
PLACES = {"n1": ("10.0.1.2", "fd00:1::2"), "n2": ("10.0.0.2", "fd00::2")}
"""Where endpoints are, by node, in the order of FAMILIES."""
CLIENTS = (*INSIDERS, *OUTSIDERS)
FAMILIES = ("IPv4", "IPv6")
PROTOCOLS = ("TCP", "UDP")

# Dials lists of addresses given as JSON, all lists at once and each in its order; prints what came of each dial.
_DIAL_ALL = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def dial(protocol, address, port):
    try:
        if protocol == "UDP":
            with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(2)
                client.connect((address, port))
                client.send(b"")
                return client.recv(65535).decode()
        with socket.create_connection((address, port), timeout=2) as client:
            with client.makefile() as stream:
                return stream.read()
    except OSError as error:
        return type(error).__name__

def dial_each(targets):
    return [dial(*target) for target in targets]

lists = json.load(sys.stdin)
with ThreadPoolExecutor(len(lists)) as pool:
    print(json.dumps(list(pool.map(dial_each, lists))))
"""


# Creates the objects given as JSON with the credentials of a kubeconfig, their status by its own path.
_CREATE = """
import json, sys
from pathlib import Path
from apiserver.cluster import Cluster
from apiserver.kube_client import KubeClient

kubeconfig = Path(sys.argv[1])
with KubeClient.from_file(kubeconfig) as client:
    cluster = Cluster(kubeconfig, client)
    for each in json.load(sys.stdin):
        cluster.create(each)
        if each["kind"] == "Service":
            cluster.patch_status(each, each["status"])
"""
TESTS = Path(__file__).parents[1]


class Kind(StrEnum):
    """What kind of address a client dials."""

    CLUSTER_IP = "ClusterIP"
    EXTERNAL_IP = "external IP"
    LOAD_BALANCER = "load balancer"
    NODE_PORT = "NodePort"


EXTERNAL = (Kind.EXTERNAL_IP, Kind.LOAD_BALANCER, Kind.NODE_PORT)
READY = {"ready": True, "serving": True, "terminating": False}
TERMINATING = {"ready": False, "serving": True, "terminating": True}
BROKEN = {"ready": False, "serving": False, "terminating": False}
HERE_READY, HERE_TERMINATING = ("n1", READY), ("n1", TERMINATING)
ELSEWHERE_READY, ELSEWHERE_BROKEN = ("n2", READY), ("n2", BROKEN)


@frozen
class Case:
    """A Service, its endpoints, and what clients are to find."""

    name: str
    endpoints: tuple[tuple[str, Mapping[str, bool]], ...]
    """Node and conditions of each."""
    cluster_ip: frozenset[str]
    """What answers at cluster addresses, whoever dials."""
    insiders: frozenset[str]
    """What answers the node and its pod at external addresses."""
    outsiders: frozenset[str]
    """What answers all others there."""
    spec: Mapping[str, Any] = field(factory=dict)
    only: Mapping[tuple[str, Kind], frozenset[str]] = field(factory=dict)
    """What is otherwise, by client and kind of address."""

    def expected(self, client: str, kind: Kind) -> frozenset[str]:
        """Return what a client is to find."""
        usual = self.insiders if client in INSIDERS else self.outsiders
        return self.only.get((client, kind), self.cluster_ip if kind is Kind.CLUSTER_IP else usual)


LOCAL_INSIDE, LOCAL_OUTSIDE = {"internalTrafficPolicy": "Local"}, {"externalTrafficPolicy": "Local"}
EVERYWHERE = (HERE_READY, ELSEWHERE_READY)
RANGES = {"loadBalancerSourceRanges": ["10.0.0.0/24", "fd00::/64"]}
"""The node's network with the host outside, not the pods'."""

CASES = (
    Case("d-1-default", EVERYWHERE, BOTH, BOTH, BOTH),
    Case("d-2-itp-local", EVERYWHERE, HERE, BOTH, BOTH, LOCAL_INSIDE),
    Case("d-2-itp-local-none-here", (ELSEWHERE_READY,), DROPPED, ELSEWHERE, ELSEWHERE, LOCAL_INSIDE),
    Case("d-2-itp-local-none-at-all", (ELSEWHERE_BROKEN,), REFUSED, REFUSED, REFUSED, LOCAL_INSIDE),
    Case("d-3-etp-local", EVERYWHERE, BOTH, BOTH, HERE, LOCAL_OUTSIDE),
    Case("d-3-etp-local-none-here", (ELSEWHERE_READY,), ELSEWHERE, ELSEWHERE, DROPPED, LOCAL_OUTSIDE),
    Case("d-3-etp-local-none-at-all", (), REFUSED, REFUSED, REFUSED, LOCAL_OUTSIDE),
    Case("d-3-both-local", EVERYWHERE, HERE, BOTH, HERE, {**LOCAL_INSIDE, **LOCAL_OUTSIDE}),
    Case("b-11-fallback", (HERE_TERMINATING, ELSEWHERE_BROKEN), HERE, HERE, HERE),
    Case("b-11-fallback-here", (HERE_TERMINATING, ELSEWHERE_READY), ELSEWHERE, ELSEWHERE, HERE, LOCAL_OUTSIDE),
    Case(
        "d-6-ranges",
        EVERYWHERE,
        BOTH,
        BOTH,
        BOTH,
        RANGES,
        {("pod", Kind.LOAD_BALANCER): DROPPED, ("bare pod", Kind.LOAD_BALANCER): DROPPED},
    ),
    Case(
        "d-6-ranges-and-etp-local",
        (ELSEWHERE_READY,),
        ELSEWHERE,
        ELSEWHERE,
        DROPPED,
        {**RANGES, **LOCAL_OUTSIDE},
        {("pod", Kind.LOAD_BALANCER): DROPPED},
    ),
    Case("d-6-ranges-no-endpoints", (), REFUSED, REFUSED, REFUSED, RANGES),
    Case("e-1-no-endpoints", (), REFUSED, REFUSED, REFUSED),
)
NODE = node_manifest("n1", "10.0.0.1", "fd00::1")
NUMBERS = {case.name: number for number, case in enumerate(CASES, start=1)}


def address(case: Case, kind: Kind, family: str) -> str:
    """Return where a Service is dialled."""
    number = NUMBERS[case.name]
    if kind is Kind.NODE_PORT:
        return "10.0.0.1" if family == "IPv4" else "fd00::1"
    network = {
        Kind.CLUSTER_IP: ("10.96.1.{}", "fd00:10:96::1{:02x}"),
        Kind.EXTERNAL_IP: ("192.0.2.{}", "2001:db8:1::{:x}"),
        Kind.LOAD_BALANCER: ("203.0.113.{}", "2001:db8:2::{:x}"),
    }[kind]
    return network[FAMILIES.index(family)].format(number)


def port(case: Case, kind: Kind) -> int:
    """Return the port there."""
    return 30100 + NUMBERS[case.name] if kind is Kind.NODE_PORT else 80


def objects(case: Case) -> Iterator[dict[str, Any]]:
    """Yield the Service of a case and its EndpointSlices, as the API has them."""
    cluster_ips = [address(case, Kind.CLUSTER_IP, family) for family in FAMILIES]
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": case.name, "namespace": "shop"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": cluster_ips[0],
            "clusterIPs": cluster_ips,
            "ipFamilies": list(FAMILIES),
            "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": [address(case, Kind.EXTERNAL_IP, family) for family in FAMILIES],
            "ports": [
                {"name": protocol.lower(), "protocol": protocol, "port": 80, "nodePort": port(case, Kind.NODE_PORT)}
                for protocol in PROTOCOLS
            ],
            **case.spec,
        },
        "status": {
            "loadBalancer": {
                "ingress": [{"ip": address(case, Kind.LOAD_BALANCER, family), "ipMode": "VIP"} for family in FAMILIES]
            }
        },
    }
    for number, family in enumerate(FAMILIES):
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{case.name}-{family.lower()}",
                "namespace": "shop",
                "labels": {"kubernetes.io/service-name": case.name},
            },
            "addressType": family,
            "ports": [{"name": protocol.lower(), "protocol": protocol, "port": 8080} for protocol in PROTOCOLS],
            "endpoints": [
                {"addresses": [PLACES[node][number]], "nodeName": node, "conditions": conditions}
                for node, conditions in case.endpoints
            ],
        }


Found = Mapping[tuple[str, str, Kind, str, str], frozenset[str]]
"""What answered, by client, case, kind of address, family and protocol."""


@pytest.fixture(scope="module")
def found(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """Serve all cases on a node, and have every client dial everything."""
    directory = tmp_path_factory.mktemp("semantics")
    with open_node() as node:
        kubeconfig = start_api_server(node, directory)
        start_backend(node.pod, "pod")
        start_backend(node.outside, "outside")
        node.allow_all_icmp()
        for backend in (*PLACES["n1"], *PLACES["n2"]):
            node.dial(backend, 8080)  # so that the neighbours are known, and no first dial takes long for it
        identity = ("--hostname-override", "n1", "--cluster-cidr", "10.0.1.0/24,fd00:1::/64")
        run = NodeRun(node, directory, "--kubeconfig", str(kubeconfig), *identity)
        yield {key: answers for client in CLIENTS for key, answers in dial_all(node, client)}
        assert run.terminate() == 0
        assert node.ruleset() == []


def start_api_server(node: Node, directory: Path) -> Path:
    """Start an API server on a node that has the objects of all cases; return the path of a kubeconfig for it."""
    kubeconfig = directory / "kubeconfig"
    options = ("--kubeconfig", kubeconfig, "--user", "admin", "--port", "6443")
    server = node.start(sys.executable, TESTS / "apiserver" / "main.py", *options)
    assert server.stdout is not None
    assert server.stdout.readline().startswith("listening ")
    shop = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    everything = [shop, NODE, *(each for case in CASES for each in objects(case))]
    env = {"PYTHONPATH": str(TESTS)}
    node.run(sys.executable, "-c", _CREATE, kubeconfig, text=json.dumps(everything), env=env)
    return kubeconfig


def dial_all(node: Node, client: str) -> Iterator[tuple[tuple[str, str, Kind, str, str], frozenset[str]]]:
    """Yield what a client finds at each address of each case."""
    services = list(product(CASES, FAMILIES, PROTOCOLS))
    places = [
        [(protocol, address(case, kind, family), port(case, kind)) for kind in Kind for _ in range(DIALS)]
        for case, family, protocol in services
    ]
    done = node.client(client).run(sys.executable, "-I", "-S", "-c", _DIAL_ALL, text=json.dumps(places))
    for (case, family, protocol), answers in zip(services, json.loads(done.stdout), strict=True):
        for number, kind in enumerate(Kind):
            yield (client, case.name, kind, family, protocol), frozenset(answers[number * DIALS : (number + 1) * DIALS])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_clients_reach_what_the_policies_say(found: Found, case: Case, family: str, protocol: str) -> None:
    """The same endpoints as with kube-proxy, and the same two ways of being turned away."""
    expected = {(client, kind): case.expected(client, kind) for client in CLIENTS for kind in Kind}
    answered = {(client, kind): found[client, case.name, kind, family, protocol] for client in CLIENTS for kind in Kind}
    assert {key: sorted(answers) for key, answers in answered.items()} == {
        key: sorted(answers) for key, answers in expected.items()
    }

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
from netns.dials import Answers, Dial, dial_each
from netns.dual_stack import FAMILIES, PROTOCOLS, READY, At, dual_stack_slices, service_with_all_addresses
from netns.kinds import KINDS, RULE_KINDS
from netns.node_run import NodeRun, start_backend
from netns.nodes import Node, open_node

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HERE, ELSEWHERE, BOTH = frozenset({"pod"}), frozenset({"outside"}), frozenset({"pod", "outside"})
REFUSED, RESET, DROPPED = (frozenset({f"{what}Error"}) for what in ("ConnectionRefused", "ConnectionReset", "Timeout"))
DIALS = 2
"""Of each address by each client: as many as it takes to see two Backends in turn."""
INSIDERS, OUTSIDERS = ("node", "pod"), ("bare pod", "outside")
PLACES = {"n1": ("10.0.1.2", "fd00:1::2"), "n2": ("10.0.0.2", "fd00::2")}
"""Where endpoints are, by node, in the order of FAMILIES."""
CLIENTS = (*INSIDERS, *OUTSIDERS)

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


def dial(case: Case, kind: Kind, family: str, protocol: str) -> Dial:
    """Return what a client does to reach a Service."""
    return Dial(protocol, address(case, kind, family), port(case, kind))


def objects(case: Case) -> Iterator[dict[str, Any]]:
    """Yield the Service of a case and its EndpointSlices, as the API has them."""
    yield service_with_all_addresses(
        case.name,
        cluster_ips=[address(case, Kind.CLUSTER_IP, family) for family in FAMILIES],
        external_ips=[address(case, Kind.EXTERNAL_IP, family) for family in FAMILIES],
        load_balancer_ips=[address(case, Kind.LOAD_BALANCER, family) for family in FAMILIES],
        node_port=port(case, Kind.NODE_PORT),
        spec=case.spec,
    )
    yield from dual_stack_slices(case.name, [At(node, PLACES[node], conditions) for node, conditions in case.endpoints])


@frozen
class Observed:
    """What answered clients on a node that is served by one kind of steering."""

    drops: bool
    """Whether that kind can keep packets from a Listener; else a Listener turns clients away."""
    answers: Answers


@pytest.fixture(scope="module", params=["iptables-nft", "nftables", "local-route"])
def observed(
    namespaces: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Observed]:
    """Serve all cases on a node, and have every client dial everything."""
    directory = tmp_path_factory.mktemp("semantics")
    with open_node() as node:
        kubeconfig = start_api_server(node, directory)
        start_backend(node.pod, "pod")
        start_backend(node.outside, "outside")
        node.allow_all_icmp()
        for backend in (*PLACES["n1"], *PLACES["n2"]):
            node.dial(backend, 8080)  # so that the neighbours are known, and no first dial takes long for it
        before = node.routes()
        options = ("--hostname-override", "n1", "--cluster-cidr", "10.0.1.0/24,fd00:1::/64", "--drain-timeout", "0")
        steering = KINDS[request.param].steering
        # One worker, so that two connections are enough to see two endpoints.
        one = ("--workers", "1")
        run = NodeRun(node, directory, "--kubeconfig", str(kubeconfig), *one, *options, steering=steering)
        yield observe(node, drops=request.param in RULE_KINDS)
        assert run.terminate() == 0
        assert node.ruleset() == []
        assert node.routes() == before


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


def observe(node: Node, *, drops: bool) -> Observed:
    """Have all clients dial everything.

    Those who should be answered at one kind of address come one after the other, so that each sees Backends in turn;
    all others wait at the same time.
    """
    answers: dict[tuple[str, Dial], frozenset[str]] = {}
    silent: dict[str, list[Dial]] = {client: [] for client in CLIENTS}
    for client, kind in product(CLIENTS, Kind):
        answered: list[Dial] = []
        for case, family, protocol in product(CASES, FAMILIES, PROTOCOLS):
            dropped = expected(case, client, kind, protocol, drops=drops) == DROPPED
            (silent[client] if dropped else answered).append(dial(case, kind, family, protocol))
        answers.update(dial_each(node, {client: answered}, times=DIALS))
    return Observed(drops, {**answers, **dial_each(node, silent)})


def expected(case: Case, client: str, kind: Kind, protocol: str, *, drops: bool) -> frozenset[str]:
    """Return what a client is to find: without rules a Listener has to turn away those who should be dropped.

    It takes a connection before it can reset it; one that is there for nobody refuses all.
    """
    answers = case.expected(client, kind)
    if answers != DROPPED or drops:
        return answers
    if all(case.expected(each, kind) == DROPPED for each in CLIENTS):
        return REFUSED
    return RESET if protocol == "TCP" else DROPPED


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_clients_reach_what_the_policies_say(observed: Observed, case: Case, family: str, protocol: str) -> None:
    """The same endpoints as with kube-proxy, and the same two ways of being turned away, as far as there are rules."""
    drops, answers = observed.drops, observed.answers
    both = {
        (client, kind): (
            expected(case, client, kind, protocol, drops=drops),
            answers[client, dial(case, kind, family, protocol)],
        )
        for client, kind in product(CLIENTS, Kind)
    }
    assert {key: sorted(answered) for key, (_, answered) in both.items()} == {
        key: sorted(wanted) for key, (wanted, _) in both.items()
    }

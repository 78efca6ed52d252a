"""Every kind of steering in one table: who reaches which Backend at which address, and how the others are turned away.

A run of each kind serves the same Services on a node where another proxy has rules of its own; each client dials all of
their addresses, in both families and by both protocols. What policies mean in all their cases is the matter of
``test_run_semantics``; here it matters that each kind gets every packet to the right Listener, and keeps away whom it
should. The second pod and the bare pod are in no pod network that the proxy is told of: they are clients from outside.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest
from attrs import field, frozen
from cli_driver import write_manifests
from netns.dials import Answers, Dial, dial_each
from netns.dual_stack import FAMILIES, PROTOCOLS, At, dual_stack_slices, service_with_all_addresses
from netns.kinds import KINDS, RULE_KINDS, add_foreign_rules
from netns.node_run import NodeRun, start_backend
from netns.nodes import Node, open_node

pytestmark = [pytest.mark.netns, pytest.mark.slow]

CLIENTS = ("node", "pod", "pod2", "bare pod", "outside")
OUTSIDERS = CLIENTS[2:]
CLUSTER_IP, EXTERNAL_IP, LOAD_BALANCER, NODE_PORT = PLACES = ("ClusterIP", "external IP", "load balancer", "NodePort")
EXTERNAL = PLACES[1:]
ENDPOINTS = {
    "pod": At("n1", ("10.0.1.2", "fd00:1::2")),
    "pod2": At("n1", ("10.0.5.2", "fd00:5::2")),
    "outside": At("n2", ("10.0.0.2", "fd00::2")),
}
"""By what they say."""
NODE_ADDRESSES = ("10.0.0.1", "fd00::1")
REFUSED, RESET, TIMEOUT = "ConnectionRefusedError", "ConnectionResetError", "TimeoutError"


@frozen
class KindFacts:
    """Where kinds differ by nature: all of it."""

    dropped: Mapping[str, str]
    """What becomes of those who are to be dropped where others are served."""
    dropped_all: Mapping[str, str]
    """What becomes of them where nobody is served."""
    serves: frozenset[tuple[str, str, str]] = frozenset(product(CLIENTS, PLACES, FAMILIES))
    """Whom, where; all other dials end at the host outside, which is silent."""


BY_RULES = {"TCP": TIMEOUT, "UDP": TIMEOUT}, {"TCP": TIMEOUT, "UDP": TIMEOUT}
BY_LISTENERS = {"TCP": RESET, "UDP": TIMEOUT}, {"TCP": REFUSED, "UDP": REFUSED}
NODE_PORTS = frozenset(product(CLIENTS, [NODE_PORT], FAMILIES))
FACTS: Mapping[str, KindFacts] = {
    **dict.fromkeys(RULE_KINDS, KindFacts(*BY_RULES)),
    "local-route": KindFacts(*BY_LISTENERS),
    "loopback": KindFacts(*BY_LISTENERS, NODE_PORTS | {("node", CLUSTER_IP, "IPv4")}),
    "none": KindFacts(*BY_LISTENERS, NODE_PORTS),
}


@frozen
class Case:
    """A Service, and what clients are to find."""

    name: str
    number: int
    """The last part of its addresses."""
    serves: str
    """What they find."""
    endpoint: str = ""
    """Its only one, by what it says; empty: it has none."""
    spec: Mapping[str, Any] = field(factory=dict)
    dropped: frozenset[tuple[str, str]] = frozenset()
    """Who is dropped where, by client and kind of address."""

    @property
    def node_port(self) -> int:
        """The port at the node's own addresses."""
        return 30000 + self.number

    def address(self, place: str, family: str) -> str:
        """Return where it is dialled."""
        patterns = {
            CLUSTER_IP: ("10.96.7.{}", "fd00:10:96::7{:02x}"),
            EXTERNAL_IP: ("192.0.2.{}", "2001:db8:1::{:x}"),
            LOAD_BALANCER: ("203.0.113.{}", "2001:db8:2::{:x}"),
            NODE_PORT: ("10.0.0.1", "fd00::1"),
        }[place]
        return patterns[FAMILIES.index(family)].format(self.number)

    def dial(self, place: str, family: str, protocol: str) -> Dial:
        """Return where it is dialled, with the port."""
        return Dial(protocol, self.address(place, family), self.node_port if place == NODE_PORT else 80)

    def expected(self, facts: KindFacts, client: str, at: str, family: str, protocol: str) -> str:
        """Return what a client is to find."""
        if (client, at, family) not in facts.serves:
            return TIMEOUT
        if (client, at) not in self.dropped:
            return self.serves
        is_for_nobody = all((each, at) in self.dropped for each in CLIENTS)
        return facts.dropped_all[protocol] if is_for_nobody else facts.dropped[protocol]

    def objects(self) -> Iterator[dict[str, Any]]:
        """Yield the Service and its EndpointSlices."""
        yield service_with_all_addresses(
            self.name,
            cluster_ips=[self.address(CLUSTER_IP, family) for family in FAMILIES],
            external_ips=[self.address(EXTERNAL_IP, family) for family in FAMILIES],
            load_balancer_ips=[self.address(LOAD_BALANCER, family) for family in FAMILIES],
            node_port=self.node_port,
            spec=self.spec,
        )
        yield from dual_stack_slices(self.name, [ENDPOINTS[self.endpoint]] if self.endpoint else ())


CASES = (
    Case("web", 2, "pod", "pod"),
    Case("next-address", 3, "pod2", "pod2"),
    Case("same-low-bits", 130, "outside", "outside"),  # as number 2, for who looks at 7 of them
    Case("no-endpoints", 4, REFUSED),
    Case(
        "internal-local",
        *(5, "outside", "outside", {"internalTrafficPolicy": "Local"}),
        frozenset(product(CLIENTS, [CLUSTER_IP])),
    ),
    Case(
        "external-local",
        *(6, "outside", "outside", {"externalTrafficPolicy": "Local"}),
        frozenset(product(OUTSIDERS, EXTERNAL)),
    ),
    Case(
        "source-ranges",
        *(7, "pod", "pod", {"loadBalancerSourceRanges": ["10.0.0.0/24", "fd00::/64"]}),
        frozenset(product(["pod", "pod2", "bare pod"], [LOAD_BALANCER])),
    ),
)


@frozen
class Observed:
    """What clients have found on a node that is served by one kind."""

    kind: str
    answers: Answers
    own: Mapping[Dial, Dial]
    """Where the node dials instead under loopback steering."""
    private: tuple[Dial, ...]
    """Ports of the run at addresses of the node where nobody should reach them."""

    def outcome(self, client: str, dial: Dial) -> str:
        """Return what came of a dial."""
        (outcome,) = self.answers[client, self.own.get(dial, dial) if client == "node" else dial]
        return outcome


@pytest.fixture(scope="module", params=FACTS)
def observed(
    namespaces: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Observed]:
    """Serve all cases, have all clients dial everything, and stop; nobody's rules and routes have changed then."""
    directory = tmp_path_factory.mktemp(request.param)
    write_manifests(directory / "shop.yaml", [each for case in CASES for each in case.objects()])
    with open_node() as node:
        if kind := KINDS.get(request.param):
            add_foreign_rules(node, kind)
        for name, at in ENDPOINTS.items():
            start_backend(node.client(name), name)
            for address in at.addresses:
                node.dial(address, 8080)  # so that the neighbours are known, and no first dial takes long for it
        node.allow_all_icmp()
        before = node.ruleset(), node.routes()
        options = ("--hostname-override", "n1", "--cluster-cidr", "10.0.1.0/24,fd00:1::/64", "--drain-timeout", "0")
        run = NodeRun(node, directory, *options, steering=kind.steering if kind else request.param)
        yield observe(node, request.param, run)
        assert set(before[0]) <= set(node.ruleset())
        assert run.terminate() == 0
        assert (node.ruleset(), node.routes()) == before


def observe(node: Node, kind: str, run: NodeRun) -> Observed:
    """Have all clients dial all places."""
    assert node.run("curl", "-s", "http://127.0.0.1:10249/livez").stdout == "ok\n"
    rows = [
        (Dial(protocol, address.strip("[]"), int(port)), Dial(protocol, at.strip("[]"), int(at_port)))
        for address, port, protocol, at, at_port in re.findall(
            r"(?m)^shop/\S+ +([\d.]+|\[\S+\]):(\d+)/(\w+) +(\S+):(\d+)$", run.output
        )
    ]
    private = {Dial("TCP", address, 10249) for address in NODE_ADDRESSES}
    private |= {Dial(at.protocol, address, at.port) for _, at in rows for address in NODE_ADDRESSES}
    own = dict(rows) if kind == "loopback" else {}
    dials = [case.dial(*where) for case in CASES for where in product(PLACES, FAMILIES, PROTOCOLS)]
    everything = (*dials, *own.values(), *private)
    return Observed(kind, dial_each(node, dict.fromkeys(CLIENTS, everything)), own, tuple(private))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_clients_find_the_right_backend_or_are_turned_away(
    observed: Observed, case: Case, family: str, protocol: str
) -> None:
    """The same by every kind, from everywhere, but for what the table of kinds says."""
    facts = FACTS[observed.kind]
    expected, found = {}, {}
    for client, place in product(CLIENTS, PLACES):
        expected[client, place] = case.expected(facts, client, place, family, protocol)
        found[client, place] = observed.outcome(client, case.dial(place, family, protocol))
    assert found == expected


def test_ports_of_the_run_are_closed_to_who_was_not_led_there(observed: Observed) -> None:
    """Also where whom a policy drops would be led; metrics are served on localhost only."""
    assert len(observed.private) > len(NODE_ADDRESSES) or observed.kind == "none"
    outcomes = {(client, dial): observed.outcome(client, dial) for client in CLIENTS for dial in observed.private}
    assert {key: outcome for key, outcome in outcomes.items() if outcome != REFUSED} == {}

"""The text of the rules that guard proxy ports and keep clients away."""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest
from builders import pool_key, route

from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import Route, Verdict
from userspace_proxy.steering.iptables.chain_set import Chains, ChainSet
from userspace_proxy.steering.iptables.filter import build_filter_probe, build_filter_rules, build_health_check_rules
from userspace_proxy.steering.iptables.rules import OwnRules, parse_saved, replace_text
from userspace_proxy.steering.rule_steering import PortRule

POOL = pool_key()
DROPPED = route(Verdict.DROP)
REFUSED = route(Verdict.REJECT)
NOT_OUTSIDE = Route(POOL, POOL, Verdict.DROP)
RANGES = ("192.0.2.0/24", "198.51.100.7/32")
PODS = ("10.0.0.0/16", "fd00:1::/64")
STEERED = (
    "-m conntrack --ctstate DNAT -j ACCEPT",
    "-p tcp -j REJECT --reject-with tcp-reset",
    "-j REJECT --reject-with icmp-port-unreachable",
)
ONLY_STEERED = "-m conntrack ! --ctstate DNAT -g USP-STEERED"
NOT_STEERED = "-m conntrack --ctstate DNAT -j RETURN"
DISPATCH = "-p tcp -m tcp --dport 11776:12031 -g USP-PORTS-T-2E"


def proxy_port(port: int = 12000, route: Route | None = None, protocol: Protocol = Protocol.TCP) -> PortRule:
    """Return the rule of a proxy port."""
    return PortRule(protocol, None, port, is_proxy_port=True, route=route)


def node_port(port: int = 30080, route: Route = NOT_OUTSIDE, address: str | None = None) -> PortRule:
    """Return the rule of a NodePort."""
    at = None if address is None else ip_address(address)
    return PortRule(Protocol.TCP, at, port, is_proxy_port=False, route=route)


def build(*ports: PortRule, family: Family = Family.IPV4, health_check_ports: Iterable[int] = ()) -> Chains:
    """Return the chains for some ports, each of a Service of its own."""
    networks = [ip_network(one) for one in PODS]
    chains = ChainSet[int | None]()
    chains.replace({number: build_filter_rules(family, [port], networks) for number, port in enumerate(ports)})
    chains.replace({None: build_health_check_rules(health_check_ports)})
    return chains.chains()


def only_route_chain(chains: Chains) -> tuple[str, tuple[str, ...]]:
    """Return the name and the rules of the one chain that is for a Route."""
    ((name, rules),) = ((name, rules) for name, rules in chains.items() if name.startswith("USP-ROUTE-"))
    return name, rules


@pytest.mark.parametrize("open_route", [None, route(), REFUSED, route(Verdict.REJECT, source_ranges=RANGES)])
def test_proxy_port_for_everybody_is_guarded_and_accepted_by_one_shared_chain(open_route: Route | None) -> None:
    """Who is refused meets a closed port, in the name of the address that was dialled."""
    assert build(proxy_port(12000, open_route), proxy_port(12001)) == {
        "USP-INPUT": (DISPATCH,),
        "USP-PORTS-T-2E": (
            "-p tcp -m tcp --dport 12000 -g USP-STEERED",
            "-p tcp -m tcp --dport 12001 -g USP-STEERED",
        ),
        "USP-STEERED": STEERED,
    }


def test_ports_are_dispatched_by_protocol_and_high_byte() -> None:
    """A connection to any other port of the node passes some rules, not all."""
    chains = build(proxy_port(12031), proxy_port(12032), proxy_port(12032, protocol=Protocol.UDP), proxy_port(255))
    assert chains["USP-INPUT"] == (
        "-p tcp -m tcp --dport 0:255 -g USP-PORTS-T-00",
        DISPATCH,
        "-p tcp -m tcp --dport 12032:12287 -g USP-PORTS-T-2F",
        "-p udp -m udp --dport 12032:12287 -g USP-PORTS-U-2F",
    )
    assert chains["USP-PORTS-U-2F"] == ("-p udp -m udp --dport 12032 -g USP-STEERED",)


def test_refusal_of_ipv6_is_its_own() -> None:
    """ICMP has other messages there."""
    assert (
        build(proxy_port(), family=Family.IPV6)["USP-STEERED"][-1] == "-j REJECT --reject-with icmp6-port-unreachable"
    )


def test_proxy_port_that_nobody_reaches_is_dropped_for_whom_it_is_not_refused() -> None:
    """Neither pods nor the node are let through, whatever its source ranges say."""
    for one in (DROPPED, route(Verdict.DROP, source_ranges=RANGES)):
        chains = build(proxy_port(12000, one))
        name, rules = only_route_chain(chains)
        assert rules == (ONLY_STEERED, "-j DROP")
        assert chains["USP-PORTS-T-2E"] == (f"-p tcp -m tcp --dport 12000 -g {name}",)
        assert chains["USP-STEERED"] == STEERED


@pytest.mark.parametrize("one", [NOT_OUTSIDE, Route(Verdict.REJECT, Verdict.REJECT, Verdict.DROP)])
def test_proxy_port_closed_to_outsiders_lets_the_node_and_pods_of_its_family_through(one: Route) -> None:
    """Networks of the other family would not load; whom the Listener refuses is let through to it."""
    for family, pods in ((Family.IPV4, PODS[0]), (Family.IPV6, PODS[1])):
        _, rules = only_route_chain(build(proxy_port(12000, one), proxy_port(12001, one), family=family))
        assert rules == (ONLY_STEERED, "-i lo -j ACCEPT", f"-s {pods} -j ACCEPT", "-j DROP")


def test_source_ranges_let_only_themselves_through_and_are_shared() -> None:
    """Equal ranges are one chain, however many ports have them; its name fits what iptables allows."""
    chains = build(*(proxy_port(port, route(source_ranges=RANGES)) for port in (12000, 12001)), proxy_port(12002))
    name, rules = only_route_chain(chains)
    assert rules == (ONLY_STEERED, *(f"-s {one} -j ACCEPT" for one in RANGES), "-j DROP")
    assert len(name) <= 28


def test_source_range_of_everything_needs_no_match() -> None:
    """iptables-save leaves it out, too; else what is read would never be what was written."""
    _, rules = only_route_chain(build(proxy_port(12000, route(source_ranges=["0.0.0.0/0"]))))
    assert rules == (ONLY_STEERED, "-j ACCEPT", "-j DROP")


def test_source_range_of_ipv6_is_written_as_iptables_reads_it_back() -> None:
    """IPv4-mapped addresses have a notation of their own."""
    one = route(source_ranges=["::ffff:192.0.2.0/120"])
    _, rules = only_route_chain(build(proxy_port(12000, one), family=Family.IPV6))
    assert rules[1] == "-s ::ffff:192.0.2.0/120 -j ACCEPT"


def test_source_ranges_of_a_port_closed_to_outsiders_pass_on_whom_they_cover() -> None:
    """Who is not covered is dropped even if a pod; who is covered must be a pod or the node as well."""
    chains = build(proxy_port(12000, Route(POOL, POOL, Verdict.DROP, (ip_network("10.0.0.0/8"),))))
    by_rules = {rules: name for name, rules in chains.items() if name.startswith("USP-ROUTE-")}
    insiders = by_rules["-i lo -j ACCEPT", f"-s {PODS[0]} -j ACCEPT", "-j DROP"]
    assert by_rules.keys() - {chains[insiders]} == {(ONLY_STEERED, f"-s 10.0.0.0/8 -g {insiders}", "-j DROP")}


def test_node_port_leaves_to_later_rules_whom_it_does_not_drop() -> None:
    """It is no business of ours whom a firewall lets in there; what others have led there is for them as well."""
    chains = build(node_port(), node_port(30081, DROPPED, address="192.0.2.2"), node_port(30082, REFUSED))
    by_rules = {rules: name for name, rules in chains.items() if name.startswith("USP-ROUTE-")}
    outside = by_rules[NOT_STEERED, "-i lo -j RETURN", f"-s {PODS[0]} -j RETURN", "-j DROP"]
    nobody = by_rules[NOT_STEERED, "-j DROP"]
    assert chains.keys() == {"USP-INPUT", "USP-PORTS-T-75", outside, nobody}
    assert chains["USP-PORTS-T-75"] == (
        f"-d 192.0.2.2/32 -p tcp -m tcp --dport 30081 -g {nobody}",
        f"-p tcp -m tcp --dport 30080 -g {outside}",
    )


@pytest.mark.parametrize("family", list(Family))
def test_health_checks_come_before_all_that_drops_in_both_families(family: Family) -> None:
    """Load balancers ask over either."""
    chains = build(proxy_port(), family=family, health_check_ports=[32001, 32000])
    assert chains["USP-INPUT"] == (
        "-p tcp -m tcp --dport 32000 -j ACCEPT",
        "-p tcp -m tcp --dport 32001 -j ACCEPT",
        DISPATCH,
    )


def test_nothing_to_guard_or_keep_away_means_no_chain_at_all() -> None:
    """A node with NodePorts for everybody has no rule of ours in table filter."""
    assert build(node_port(route=route()), node_port(route=REFUSED)) == {}


@pytest.mark.parametrize("family", list(Family))
def test_probe_tries_what_the_rules_use_and_only_for_an_address_nobody_dials(family: Family) -> None:
    """It works where they work, a run beside it leaves it alone, and nobody is kept away by it."""
    install, remove = build_filter_probe(family, 4711)
    ports = (proxy_port(12000, NOT_OUTSIDE), proxy_port(12001), node_port())
    words = {word for rules in build(*ports, family=family).values() for rule in rules for word in rule.split()}
    needed = {word for word in words if word.startswith("--") or word in ("!", "lo", "DNAT", "conntrack")}
    needed |= {"ACCEPT", "DROP", "REJECT", "tcp-reset", STEERED[2].split()[-1].replace("icmp-", _icmp(family))}
    assert needed <= set(install.split())
    (own,) = parse_saved(install.replace("-I ", "-A ")).values()
    assert (own.chains, len(own.jumps)) == ({"USP-PROBE-4711": 4}, 1)
    address = "-d 192.0.2.0/32 " if family is Family.IPV4 else "-d 100::/128 "
    assert all(address in rule for rule in own.rules["USP-PROBE-4711"])
    assert own.without_probes() == OwnRules()
    assert remove == replace_text("filter", own, {})


def _icmp(family: Family) -> str:
    return "icmp-" if family is Family.IPV4 else "icmp6-"

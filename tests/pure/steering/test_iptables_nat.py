"""The text of the rules that lead packets."""

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address

import pytest
from builders import frontend, node_port_frontend

from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import SteeringRule
from userspace_proxy.steering.base import Surroundings
from userspace_proxy.steering.iptables.chain_set import Chains, ChainSet
from userspace_proxy.steering.iptables.nat import (
    build_entry_rules,
    build_nat_probe,
    build_nat_rules,
    parse_proxy_ports,
)
from userspace_proxy.steering.iptables.rules import OwnRules, parse_saved, replace_text
from userspace_proxy.steering.rule_steering import Conditions

NODE = IPv4Address("192.0.2.2")
WEB = SteeringRule(frontend("10.96.0.10:80"), 12080)
DNS = SteeringRule(frontend("10.96.0.138:53", protocol=Protocol.UDP), 12053)
OTHER = SteeringRule(frontend("10.96.0.128:80"), 12090)
WEB6 = SteeringRule(frontend("[fd00::a]:80"), 12081)
LOW6 = SteeringRule(frontend("[fd00::1:0]:80"), 12082)


def build(
    rules: Iterable[SteeringRule],
    *,
    family: Family = Family.IPV4,
    interfaces: Iterable[str] = ("lo", "eth0"),
    node_address: IPv4Address | None = NODE,
) -> Chains:
    """Return the chains for some Frontends."""
    conditions = Conditions(Surroundings(), tuple(interfaces), node_address)
    chains = ChainSet[int]()
    target = node_address if family is Family.IPV4 else None
    chains.replace({0: build_nat_rules(rules, target), 1: build_entry_rules(family, conditions)})
    return chains.chains()


def test_chains_of_ipv4_send_addressed_interfaces_to_redirect_and_others_to_dnat() -> None:
    """Only interfaces known to have an address get REDIRECT; whatever else appears is led to the node's address."""
    assert build([WEB, DNS, OTHER]) == {
        "USP-PREROUTING": ("-i eth0 -g USP-REDIRECT", "-i lo -g USP-REDIRECT", "-g USP-DNAT"),
        "USP-REDIRECT": (
            "-d 0.0.0.0/0.0.0.127 -g USP-REDIRECT-00",
            "-d 0.0.0.10/0.0.0.127 -g USP-REDIRECT-0A",
        ),
        "USP-REDIRECT-00": ("-d 10.96.0.128/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 12090",),
        "USP-REDIRECT-0A": (
            "-d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 12080",
            "-d 10.96.0.138/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 12053",
        ),
        "USP-DNAT": ("-d 0.0.0.0/0.0.0.127 -g USP-DNAT-00", "-d 0.0.0.10/0.0.0.127 -g USP-DNAT-0A"),
        "USP-DNAT-00": ("-d 10.96.0.128/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.2:12090",),
        "USP-DNAT-0A": (
            "-d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.2:12080",
            "-d 10.96.0.138/32 -p udp -m udp --dport 53 -j DNAT --to-destination 192.0.2.2:12053",
        ),
    }


def test_chains_of_ipv6_use_redirect_alone() -> None:
    """All its interfaces have an address."""
    assert build([WEB6, LOW6], family=Family.IPV6) == {
        "USP-PREROUTING": ("-g USP-REDIRECT",),
        "USP-REDIRECT": ("-d ::/::7f -g USP-REDIRECT-00", "-d ::a/::7f -g USP-REDIRECT-0A"),
        "USP-REDIRECT-00": ("-d fd00::1:0/128 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 12082",),
        "USP-REDIRECT-0A": ("-d fd00::a/128 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 12081",),
    }


def test_chains_without_a_node_address_use_redirect_alone() -> None:
    """DNAT would have no target."""
    assert build([WEB], node_address=None).keys() == {"USP-PREROUTING", "USP-REDIRECT", "USP-REDIRECT-0A"}


def test_node_port_is_bound_and_needs_no_rule() -> None:
    """It is dialled as it is."""
    assert build_nat_rules([SteeringRule(node_port_frontend(), 30080)], NODE) == []


def test_chains_use_only_what_needs_no_extension_and_names_fit() -> None:
    """Apart from the port match of the protocol no match module is asked for: any may be missing."""
    chains = build([WEB, DNS])
    words = [rule.split() for rules in chains.values() for rule in rules]
    assert {rule[rule.index("-m") + 1] for rule in words if "-m" in rule} == {"tcp", "udp"}
    assert all(rule.count("-m") <= 1 for rule in words)
    assert max(map(len, chains)) <= 28


@pytest.mark.parametrize("family", list(Family))
def test_no_chain_of_ten_thousand_addresses_is_long(family: Family) -> None:
    """That is what a new connection costs: the last Service must not be slower than the first."""
    rules = [
        SteeringRule(
            frontend(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:80")
            if family is Family.IPV4
            else frontend(f"[fd00::{number:x}]:80"),
            12000 + number,
        )
        for number in range(10_000)
    ]
    assert max(map(len, build(rules, family=family).values())) <= 128


@pytest.mark.parametrize("name", ["eth+", "+", 'a"b', "a'b", "a b", "\\", "ä"])
def test_chains_leave_out_interfaces_whose_name_iptables_would_misread(name: str) -> None:
    """A wildcard or a quote in an interface's name counts as an unknown interface."""
    chains = build([WEB], interfaces=[name, "eth0"])
    assert chains["USP-PREROUTING"] == ("-i eth0 -g USP-REDIRECT", "-g USP-DNAT")


def test_proxy_ports_are_read_back_from_what_is_written() -> None:
    """A run that has lost its state directory finds where it was."""
    for rules in ([WEB, DNS, OTHER], [WEB6, LOW6]):
        family = rules[0].frontend.family
        saved = replace_text("nat", OwnRules(), build(rules, family=family))
        assert parse_proxy_ports(saved) == {
            (rule.frontend.address, rule.frontend.port, rule.frontend.protocol): rule.proxy_port for rule in rules
        }


def test_proxy_ports_of_the_layout_without_buckets_are_read_and_foreign_rules_are_not() -> None:
    """So an upgrade keeps them; what others redirect is theirs."""
    saved = """\
*nat
:USP-REDIRECT - [0:0]
-A PREROUTING -d 10.96.0.11/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 12001
-A KUBE-USP -d 10.96.0.12/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 12002
-A USP-REDIRECT -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 12080
-A USP-REDIRECT -d 10.96.0.0/24 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 12003
-A USP-DNAT -d 10.96.0.13/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.2:12004
COMMIT
"""
    assert parse_proxy_ports(saved) == {(ip_address("10.96.0.10"), 80, Protocol.TCP): 12080}


@pytest.mark.parametrize("family", list(Family))
def test_probe_tries_what_the_rules_use_and_only_for_an_address_nobody_dials(family: Family) -> None:
    """It works where they work, a run beside it leaves it alone, and nobody is led anywhere by it."""
    install, remove = build_nat_probe(family, 4711)
    rules = [WEB] if family is Family.IPV4 else [WEB6]
    words = {word for texts in build(rules, family=family).values() for text in texts for word in text.split()}
    options = {word for word in words if word.startswith("-") or word in ("REDIRECT", "DNAT")}
    assert options <= set(install.split())
    (own,) = parse_saved(install.replace("-I ", "-A ")).values()
    assert own.chains == {"USP-PROBE-4711": 2, "USP-PROBE-4711-00": 2 if family is Family.IPV4 else 1}
    address = "192.0.2.0/32" if family is Family.IPV4 else "100::/128"
    assert all(text.startswith(f"-d {address} ") for text in own.rules["USP-PROBE-4711-00"])
    assert own.without_probes() == OwnRules()
    assert remove == replace_text("nat", own, {})

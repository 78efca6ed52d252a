"""The text of the iptables rules that guard proxy ports and keep clients away. Pure: knows no node.

Table nat cannot drop, so they are in table filter, and go by the port of this node that a new connection has come to::

    INPUT -> USP-INPUT -> USP-PORTS-T-2E   (a port by its high byte, here TCP 11776 to 12031)
    USP-PORTS-.. --------> USP-STEERED     (a proxy port for everybody)
                 --------> USP-ROUTE-..    (a port that does not serve everybody; equal Routes share a chain)

To a proxy port only those come that a rule of table nat has led there; others are refused, as if nobody listened. Who
may come in is accepted before others get to see him: a node whose policy is to drop serves its Services all the same.
A NodePort is dialled as it is, so what has been led there dialled something else. Where nothing is to answer at all no
rule refuses either: the port is closed, so the kernel does, in the name of the address that was dialled.

Entry points: ``build_filter_rules``, ``build_health_check_rules``, ``build_filter_probe``. Source:
iptables-extensions(8), conntrack and REJECT.
"""

from collections.abc import Iterable
from hashlib import blake2b

from userspace_proxy.model.names import Family, IPNetwork, Protocol, family_of
from userspace_proxy.plan.state import Route, SourceClass, Verdict
from userspace_proxy.steering.iptables.chain_set import ChainRule
from userspace_proxy.steering.iptables.rules import (
    FROM_INPUT,
    INPUT,
    PREFIX,
    PROBE_PREFIX,
    PROBED_ADDRESS,
    PROBED_PORT,
    OwnRules,
    destination_match,
    remove_text,
    source_match,
)
from userspace_proxy.steering.rule_steering import PortRule

STEERED = f"{PREFIX}STEERED"
PORTS_PREFIX = f"{PREFIX}PORTS-"
ROUTE_PREFIX = f"{PREFIX}ROUTE-"
_DIGEST_BYTES = 8
"""Arbitrary, but a name of a chain has 28 characters at most."""
_PORTS = 0x100
"""In one chain; arbitrary: about the square root of all ports."""
_UNREACHABLE = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}


def build_filter_rules(family: Family, ports: Iterable[PortRule], pod_networks: Iterable[IPNetwork]) -> list[ChainRule]:
    """Return the rules that decide who may open connections at some ports of this node.

    Args:
        family: That of the ports.
        ports: In any order.
        pod_networks: Those of the other family are passed over.
    """
    pods = sorted(source_match(network) for network in pod_networks if family_of(network) is family)
    shared: dict[str, tuple[str, ...]] = {}
    built = []
    for port in ports:
        target = _target(port, pods, shared)
        if port.is_proxy_port:
            shared[STEERED] = (
                "-m conntrack --ctstate DNAT -j ACCEPT",
                "-p tcp -j REJECT --reject-with tcp-reset",
                f"-j REJECT --reject-with {_UNREACHABLE[family]}",
            )
        if target is None:
            continue
        protocol, bucket = port.protocol.lower(), port.port // _PORTS
        name = f"{PORTS_PREFIX}{'T' if port.protocol is Protocol.TCP else 'U'}-{bucket:02X}"
        low = bucket * _PORTS
        built += [
            ChainRule(INPUT, 1, f"-p {protocol} -m {protocol} --dport {low}:{low + _PORTS - 1} -g {name}"),
            ChainRule(name, 0, f"{destination_match(port.protocol, port.address, port.port)} -g {target}"),
        ]
    built += [ChainRule(name, rank, text) for name, rules in shared.items() for rank, text in enumerate(rules)]
    return built


def build_health_check_rules(ports: Iterable[int]) -> list[ChainRule]:
    """Return the rules that let everybody in at some TCP ports."""
    return [ChainRule(INPUT, 0, f"-p tcp -m tcp --dport {port} -j ACCEPT") for port in ports]


def build_filter_probe(family: Family, process_id: int) -> tuple[str, str]:
    """Return inputs for ``iptables-restore --noflush``: the least that keeping away needs, and its removal."""
    name = f"{PROBE_PREFIX}{process_id}"
    match = f"-d {PROBED_ADDRESS[family]} -p tcp"
    port = f"-m tcp --dport {PROBED_PORT}:{PROBED_PORT + 1}"
    rules = (
        f"{match} {port} -m conntrack --ctstate DNAT -j ACCEPT",
        f"{match} -m conntrack ! --ctstate DNAT -j DROP",
        f"{match} -j REJECT --reject-with tcp-reset",
        f"-i lo {match} -j REJECT --reject-with {_UNREACHABLE[family]}",
    )
    jump = f"{FROM_INPUT} {name}"
    lines = ["*filter", f":{name} - [0:0]", *(f"-A {name} {rule}" for rule in rules), f"-I {jump}"]
    return "\n".join([*lines, "COMMIT", ""]), remove_text("filter", OwnRules({name: []}, [jump]))


def _target(port: PortRule, pods: list[str], shared: dict[str, tuple[str, ...]]) -> str | None:
    """Return the chain that decides who may come to a port; None: it is open to everybody and needs no guard.

    Args:
        port: Which one.
        pods: The matches for pods.
        shared: Chains that several ports may share; one that is missing is added.
    """
    let_in = "-j ACCEPT" if port.is_proxy_port else "-j RETURN"
    by_source = None if port.route is None else _by_source(port.route, let_in, pods, shared)
    if by_source is None:
        return STEERED if port.is_proxy_port else None
    other = f"! --ctstate DNAT -g {STEERED}" if port.is_proxy_port else "--ctstate DNAT -j RETURN"
    return _share((f"-m conntrack {other}", *by_source), shared)


def _by_source(
    route: Route, let_in: str, pods: list[str], shared: dict[str, tuple[str, ...]]
) -> tuple[str, ...] | None:
    """Return the rules that drop whom a Route drops and let all others in; None: it drops nobody."""
    targets = {route.target(source) for source in SourceClass}
    if targets == {Verdict.DROP}:
        return ("-j DROP",)
    if targets == {Verdict.REJECT}:
        return None
    if route.outside is not Verdict.DROP:
        ranges = [f"{source_match(network)}{let_in}" for network in route.source_ranges]
        return (*ranges, "-j DROP") if ranges else None
    insiders = (f"-i lo {let_in}", *(f"{pod}{let_in}" for pod in pods), "-j DROP")
    if not route.source_ranges:
        return insiders
    name = _share(insiders, shared)
    return (*(f"{source_match(network)}-g {name}" for network in route.source_ranges), "-j DROP")


def _share(rules: tuple[str, ...], shared: dict[str, tuple[str, ...]]) -> str:
    """Return the name of the chain with some rules."""
    name = f"{ROUTE_PREFIX}{blake2b(repr(rules).encode(), digest_size=_DIGEST_BYTES).hexdigest()}"
    shared[name] = rules
    return name

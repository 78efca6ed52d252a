"""The text of the iptables rules that lead packets to proxy ports. Pure: knows no node.

All of them are in table nat::

    PREROUTING -> USP-PREROUTING -> USP-REDIRECT -> USP-REDIRECT-0A   (from interfaces with an address)
                                 -> USP-DNAT     -> USP-DNAT-0A       (from all others)
    OUTPUT     -> USP-REDIRECT

The two hexadecimal digits are the low bits of the address that was dialled, so that of 10,000 addresses only some
hundred are looked at for each connection.

REDIRECT takes the address of the interface a packet came in by, and drops the packet where there is none: pods whose
interface on the node has no address (Calico) need DNAT to an address of the node. DNAT works for every interface, so
it is for those that appear after the rules were written, too. IPv6 interfaces always have an address, and so need
REDIRECT only. Source: Linux net/netfilter/nf_nat_redirect.c.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address

from userspace_proxy.model.names import Family, IPAddress, Protocol
from userspace_proxy.plan.state import SteeringRule
from userspace_proxy.steering.iptables.chain_set import ChainRule
from userspace_proxy.steering.iptables.rules import (
    PREROUTING,
    PROBE_PREFIX,
    PROBED_ADDRESS,
    PROBED_PORT,
    REDIRECT,
    OwnRules,
    destination_match,
    remove_text,
)
from userspace_proxy.steering.rule_steering import Conditions, ProxyPorts

DNAT = "USP-DNAT"
_BUCKETS = 0x80
"""Arbitrary: about the square root of the addresses that there are at most."""
_PROBED_TARGET = "192.0.2.0:9"
_SAFE_INTERFACE = re.compile(r"[A-Za-z0-9_.@:-]+")
"""Others, with ``+`` (iptables' wildcard) or quotes, count as unknown interfaces."""
_REDIRECTED = re.compile(
    r"-A USP-\S+ -d (\S+)/(?:32|128) -p (tcp|udp) -m \2 --dport (\d+) -j REDIRECT --to-ports (\d+)"
)
"""A rule as ``build_nat_rules`` makes it and iptables-save writes it, whichever chain it is in."""


def build_nat_rules(rules: Iterable[SteeringRule], node_address: IPv4Address | None) -> list[ChainRule]:
    """Return the rules that lead Frontends to their proxy ports.

    Args:
        rules: In any order; Frontends at every address of the node, which are bound, are passed over.
        node_address: Where IPv4 packets from interfaces without an address are led; None: they cannot be led anywhere.
    """
    built: list[ChainRule] = []
    for rule in rules:
        frontend = rule.frontend
        if frontend.address is None:
            continue
        bucket = frontend.address.packed[-1] % _BUCKETS
        match = destination_match(frontend.protocol, frontend.address, frontend.port)
        built += _in_bucket(REDIRECT, frontend.family, bucket, f"{match} -j REDIRECT --to-ports {rule.proxy_port}")
        if frontend.family is Family.IPV4 and node_address is not None:
            target = f"{node_address}:{rule.proxy_port}"
            built += _in_bucket(DNAT, frontend.family, bucket, f"{match} -j DNAT --to-destination {target}")
    return built


def build_entry_rules(family: Family, conditions: Conditions) -> list[ChainRule]:
    """Return the rules that send packets of one family from the network to where ``build_nat_rules`` has its rules."""
    if family is Family.IPV6 or conditions.node_address is None:
        return [ChainRule(PREROUTING, 0, f"-g {REDIRECT}")]
    names = (name for name in conditions.interfaces if _SAFE_INTERFACE.fullmatch(name))
    by_interface = [ChainRule(PREROUTING, 0, f"-i {name} -g {REDIRECT}") for name in names]
    return [*by_interface, ChainRule(PREROUTING, 1, f"-g {DNAT}")]


def build_nat_probe(family: Family, process_id: int) -> tuple[str, str]:
    """Return inputs for ``iptables-restore --noflush``: the least that steering needs, and its removal.

    TCP stands for UDP, too: the matches of both are in one kernel module. Source: Linux net/netfilter/xt_tcpudp.c.
    """
    name = f"{PROBE_PREFIX}{process_id}"
    in_bucket = f"{name}-00"
    jumps = [f"PREROUTING -j {name}", f"OUTPUT -j {name}"]
    match = f"-d {PROBED_ADDRESS[family]} -p tcp -m tcp --dport {PROBED_PORT}"
    lines = ["*nat", f":{name} - [0:0]", f":{in_bucket} - [0:0]"]
    lines += [f"-A {name} {_dispatch(family, 0, in_bucket)}", f"-A {name} -i lo -g {in_bucket}"]
    lines += [f"-A {in_bucket} {match} -j REDIRECT --to-ports {PROBED_PORT}"]
    if family is Family.IPV4:
        lines += [f"-A {in_bucket} {match} -j DNAT --to-destination {_PROBED_TARGET}"]
    lines += [f"-I {jump}" for jump in jumps]
    return "\n".join([*lines, "COMMIT", ""]), remove_text("nat", OwnRules({name: [], in_bucket: []}, jumps))


def parse_proxy_ports(saved: str) -> ProxyPorts:
    """Return where our rules in the output of iptables-save lead, those of all our releases."""
    ports: dict[tuple[IPAddress, int, Protocol], int] = {}
    for line in saved.splitlines():
        if found := _REDIRECTED.fullmatch(line):
            address, protocol, port, proxy_port = found.groups()
            ports[ip_address(address), int(port), Protocol(protocol.upper())] = int(proxy_port)
    return ports


def _in_bucket(chain: str, family: Family, bucket: int, text: str) -> tuple[ChainRule, ChainRule]:
    """Return a rule in the chain of a bucket, and the one that leads there."""
    name = f"{chain}-{bucket:02X}"
    return ChainRule(chain, 0, _dispatch(family, bucket, name)), ChainRule(name, 0, text)


def _dispatch(family: Family, bucket: int, target: str) -> str:
    if family is Family.IPV4:
        return f"-d 0.0.0.{bucket}/0.0.0.{_BUCKETS - 1} -g {target}"
    return f"-d ::{bucket:x}/::{_BUCKETS - 1:x} -g {target}" if bucket else f"-d ::/::{_BUCKETS - 1:x} -g {target}"

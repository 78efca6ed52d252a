"""The text of our iptables rules, written and read back. Pure: runs nothing and knows no node.

What leads packets is in table nat; ``iptables_filter`` has what keeps clients away::

    PREROUTING -> USP-PREROUTING -> USP-REDIRECT (from interfaces with an address)
                                 -> USP-DNAT     (from all others)
    OUTPUT     -> USP-REDIRECT

REDIRECT takes the address of the interface a packet came in by, and drops the packet where there is none: pods whose
interface on the node has no address (Calico) need DNAT to an address of the node. DNAT works for every interface, so
it is for those that appear after the rules were written, too. IPv6 interfaces always have an address, and so need
REDIRECT only. Source: Linux net/netfilter/nf_nat_redirect.c.
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from itertools import pairwise

from attrs import field, frozen

from userspace_proxy.model.names import Family
from userspace_proxy.plan.state import Frontend, SteeringRule

PREFIX = "USP-"
"""All our chains start with it, and no others may."""
PROBE_PREFIX = f"{PREFIX}PROBE-"
"""Chains that exist for milliseconds, each owned by the process whose id follows."""
PREROUTING = f"{PREFIX}PREROUTING"
REDIRECT = f"{PREFIX}REDIRECT"
DNAT = f"{PREFIX}DNAT"
INPUT = f"{PREFIX}INPUT"
FROM_INPUT = "INPUT -m conntrack --ctstate NEW -j"
JUMPS = {"nat": (f"PREROUTING -j {PREROUTING}", f"OUTPUT -j {REDIRECT}"), "filter": (f"{FROM_INPUT} {INPUT}",)}
"""The rules in built-in chains, by table, without the leading ``-A`` and as iptables-save writes them."""

Chains = Mapping[str, tuple[str, ...]]
"""Our chains by name, with the text of their rules behind ``-A NAME``."""

PROBED_ADDRESS = {Family.IPV4: "192.0.2.0", Family.IPV6: "100::"}
"""Nobody dials these: RFC 5737 (documentation; the network's own address) and RFC 6666 (discard prefix)."""
PROBED_PORT = 9
_PROBED_TARGET = "192.0.2.0:9"
_SAFE_INTERFACE = re.compile(r"[A-Za-z0-9_.@:-]+")
"""Others, with ``+`` (iptables' wildcard) or quotes, count as unknown interfaces."""
_TABLE = re.compile(r"\*(\S+)")
_CHAIN = re.compile(r":(\S+) ")
_RULE = re.compile(r"-A (\S+) ")


def build_nat_chains(
    family: Family, rules: Iterable[SteeringRule], interfaces: Iterable[str], node_address: IPv4Address | None
) -> Chains:
    """Return the chains that lead the Frontends of one family to their proxy ports.

    Args:
        family: The family of all ``rules``.
        rules: In any order; the same rules give the same text.
        interfaces: Those with an IPv4 address.
        node_address: Where packets from all other interfaces are led; None: they cannot be led anywhere.
    """
    matches = sorted((match_destination(rule.frontend), rule.proxy_port) for rule in rules)
    redirect = tuple(f"{match} -j REDIRECT --to-ports {port}" for match, port in matches)
    if family is Family.IPV6 or node_address is None:
        return {PREROUTING: (f"-g {REDIRECT}",), REDIRECT: redirect}
    dispatch = [f"-i {name} -g {REDIRECT}" for name in interfaces if _SAFE_INTERFACE.fullmatch(name)]
    dnat = tuple(f"{match} -j DNAT --to-destination {node_address}:{port}" for match, port in matches)
    return {PREROUTING: (*dispatch, f"-g {DNAT}"), REDIRECT: redirect, DNAT: dnat}


@frozen
class OwnRules:
    """What one table holds of ours."""

    chains: dict[str, int] = field(factory=dict)
    """Chains by name, with the number of their rules."""
    jumps: list[str] = field(factory=list)
    """Rules of other chains that lead to ours, without the leading ``-A``; as often as they are there."""

    def without_probes(self) -> "OwnRules":
        """Return the same without the chains of probes, which may be those of a live process."""
        return OwnRules(
            {name: count for name, count in self.chains.items() if not name.startswith(PROBE_PREFIX)},
            [jump for jump in self.jumps if not _target(jump).startswith(PROBE_PREFIX)],
        )


def parse_saved(saved: str) -> Mapping[str, OwnRules]:
    """Return what is ours in the output of iptables-save, by table; tables without it are left out."""
    tables: dict[str, OwnRules] = {}
    own = OwnRules()
    for line in saved.splitlines():
        if heading := _TABLE.match(line):
            own = tables.setdefault(heading[1], OwnRules())
        elif PREFIX not in line:
            continue
        elif (chain := _CHAIN.match(line)) and chain[1].startswith(PREFIX):
            own.chains[chain[1]] = 0
        elif rule := _RULE.match(line):
            if rule[1] in own.chains:
                own.chains[rule[1]] += 1
            elif _target(line).startswith(PREFIX):
                own.jumps.append(line.removeprefix("-A "))
    return {table: own for table, own in tables.items() if own.chains or own.jumps}


def is_in_use(saved: str) -> bool:
    """Tell from the output of iptables-save whether anybody has put a rule or a chain of his own there."""
    return re.search(r"^(-A |:\S+ - )", saved, re.MULTILINE) is not None


def replace_text(table: str, found: OwnRules, chains: Chains) -> str:
    """Return the input for ``iptables-restore --noflush`` that makes ``chains`` all that a table has of ours.

    Args:
        table: ``nat`` or ``filter``.
        found: What is there now. Jumps that are as they should be stay where they are: whoever came in front of
            them did so on purpose.
        chains: What should be; without any there are no jumps either.
    """
    lines = [f"*{table}"]
    vanished = found.chains.keys() - chains.keys()
    lines += [f":{name} - [0:0]" for name in (*chains, *sorted(vanished))]
    lines += [f"-A {name} {rule}" for name, rules in chains.items() for rule in rules]
    jumps = JUMPS[table] if chains else ()
    if sorted(found.jumps) != sorted(jumps):
        lines += [f"-D {jump}" for jump in found.jumps]
        lines += [f"-I {jump}" for jump in jumps]
    lines += [f"-X {name}" for name in sorted(vanished)]
    return "\n".join([*lines, "COMMIT", ""])


def remove_text(table: str, found: OwnRules) -> str:
    """Return the input for ``iptables-restore --noflush`` that removes ``found`` from a table, and nothing else."""
    return replace_text(table, found, {})


def build_probe(family: Family, process_id: int) -> tuple[str, str]:
    """Return inputs for ``iptables-restore --noflush``: the least that steering needs, and its removal.

    TCP stands for UDP, too: the matches of both are in one kernel module. Source: Linux net/netfilter/xt_tcpudp.c.
    """
    name = f"{PROBE_PREFIX}{process_id}"
    found = OwnRules({name: 1}, [f"PREROUTING -j {name}", f"OUTPUT -j {name}"])
    match = f"-d {PROBED_ADDRESS[family]} -p tcp -m tcp --dport {PROBED_PORT}"
    lines = ["*nat", f":{name} - [0:0]", f"-A {name} {match} -j REDIRECT --to-ports {PROBED_PORT}"]
    if family is Family.IPV4:
        lines += [f"-A {name} {match} -j DNAT --to-destination {_PROBED_TARGET}"]
    lines += [f"-I {jump}" for jump in found.jumps]
    return "\n".join([*lines, "COMMIT", ""]), remove_text("nat", found)


def match_destination(frontend: Frontend) -> str:
    """Return the match for packets that are, at this moment, on their way to the address and port of a Frontend."""
    protocol = frontend.protocol.lower()
    match = f"-p {protocol} -m {protocol} --dport {frontend.port}"
    if frontend.address is None:
        return match
    return f"-d {frontend.address}/{frontend.address.max_prefixlen} {match}"


def _target(rule: str) -> str:
    """Return the chain or target a rule leads to; ``""`` for a rule without one. Quoted texts may hold anything."""
    words = shlex.split(rule)
    for option, target in pairwise(words):
        if option in ("-j", "-g"):
            return target
    return ""

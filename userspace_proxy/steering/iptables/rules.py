"""Our chains in a table of iptables: what they are called, the text that changes them, and how they are read back.

Pure: runs nothing and knows no node. What is in the chains is the matter of ``nat`` and ``filter``.
"""

import re
import shlex
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from itertools import pairwise

from attrs import field, frozen

from userspace_proxy.model.names import Family, IPAddress, IPNetwork, Protocol
from userspace_proxy.steering.iptables.chain_set import Chains

PREFIX = "USP-"
"""All our chains start with it, and no others may. A name of a chain has 28 characters at most."""
PROBE_PREFIX = f"{PREFIX}PROBE-"
"""Chains that exist for milliseconds, each owned by the process whose id follows."""
PREROUTING = f"{PREFIX}PREROUTING"
REDIRECT = f"{PREFIX}REDIRECT"
INPUT = f"{PREFIX}INPUT"
FROM_INPUT = "INPUT -m conntrack --ctstate NEW -j"
JUMPS = {"nat": (f"PREROUTING -j {PREROUTING}", f"OUTPUT -j {REDIRECT}"), "filter": (f"{FROM_INPUT} {INPUT}",)}
"""The rules in built-in chains, by table, without the leading ``-A`` and as iptables-save writes them."""

PROBED_ADDRESS = {Family.IPV4: "192.0.2.0/32", Family.IPV6: "100::/128"}
"""Nobody dials these: RFC 5737 (documentation; the network's own address) and RFC 6666 (discard prefix)."""
PROBED_PORT = 9

_TABLE = re.compile(r"\*(\S+)")
_CHAIN = re.compile(r":(\S+) ")
_RULE = re.compile(r"-A (\S+) (.*)")


@frozen
class OwnRules:
    """What one table holds of ours."""

    rules: dict[str, list[str]] = field(factory=dict)
    """The texts of their rules, by chain, in order."""
    jumps: list[str] = field(factory=list)
    """Rules of other chains that lead to ours, without the leading ``-A``; as often as they are there."""

    @property
    def chains(self) -> Mapping[str, int]:
        """Chains by name, with the number of their rules."""
        return {name: len(rules) for name, rules in self.rules.items()}

    def without_probes(self) -> "OwnRules":
        """Return the same without the chains of probes, which may be those of a live process."""
        return OwnRules(
            {name: rules for name, rules in self.rules.items() if not name.startswith(PROBE_PREFIX)},
            [jump for jump in self.jumps if not _target(jump).startswith(PROBE_PREFIX)],
        )

    def probe_of(self, process_id: int) -> "OwnRules":
        """Return only what is of the probe of one process."""
        name = f"{PROBE_PREFIX}{process_id}"
        names = {chain for chain in self.rules if chain == name or chain.startswith(f"{name}-")}
        return OwnRules(
            {chain: rules for chain, rules in self.rules.items() if chain in names},
            [jump for jump in self.jumps if _target(jump) in names],
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
            own.rules[chain[1]] = []
        elif rule := _RULE.match(line):
            if rule[1] in own.rules:
                own.rules[rule[1]].append(rule[2])
            elif _target(line).startswith(PREFIX):
                own.jumps.append(line.removeprefix("-A "))
    return {table: own for table, own in tables.items() if own.rules or own.jumps}


def is_in_use(saved: str) -> bool:
    """Tell from the output of iptables-save whether anybody has put a rule or a chain of his own there."""
    return re.search(r"^(-A |:\S+ - )", saved, re.MULTILINE) is not None


def is_like(found: OwnRules, table: str, chains: Chains, *, to_the_letter: bool) -> bool:
    """Tell whether a table has of ours what it should have, wherever the jumps stand in their chains.

    Args:
        found: What is there.
        table: ``nat`` or ``filter``.
        chains: What should be.
        to_the_letter: Compare the texts of rules, not only how many there are.
    """
    if Counter(found.jumps) != Counter(JUMPS[table] if chains else ()) or found.rules.keys() != chains.keys():
        return False
    if to_the_letter:
        return all(tuple(found.rules[name]) == rules for name, rules in chains.items())
    return all(len(found.rules[name]) == len(rules) for name, rules in chains.items())


def change_text(table: str, changed: Chains, *, had_chains: bool, has_chains: bool) -> str:
    """Return the input for ``iptables-restore --noflush`` that changes some chains of ours.

    Args:
        table: ``nat`` or ``filter``.
        changed: What they should be; those without rules are removed.
        had_chains: Whether there is any chain of ours, and so the jumps.
        has_chains: Whether there is to be any afterwards.

    Returns:
        ``""`` if there is nothing to change.
    """
    removed = JUMPS[table] if had_chains and not has_chains else ()
    added = JUMPS[table] if has_chains and not had_chains else ()
    return _text(table, changed, removed, added)


def replace_text(table: str, found: OwnRules, chains: Chains) -> str:
    """Return the input for ``iptables-restore --noflush`` that makes ``chains`` all that a table has of ours.

    Args:
        table: ``nat`` or ``filter``.
        found: What is there now. Chains that are as they should be are not touched, and jumps stay where they are:
            whoever came in front of them did so on purpose.
        chains: What should be; without any there are no jumps either.

    Returns:
        ``""`` if there is nothing to change.
    """
    changed = {name: rules for name, rules in chains.items() if tuple(found.rules.get(name, ())) != rules}
    changed |= dict.fromkeys(sorted(found.rules.keys() - chains.keys()), ())
    there, wanted = Counter(found.jumps), Counter(JUMPS[table] if chains else ())
    return _text(table, changed, (there - wanted).elements(), (wanted - there).elements())


def remove_text(table: str, found: OwnRules) -> str:
    """Return the input for ``iptables-restore --noflush`` that removes ``found`` from a table, and nothing else."""
    return replace_text(table, found, {})


def destination_match(protocol: Protocol, address: IPAddress | None, port: int) -> str:
    """Return the match for packets that are, at this moment, on their way to a port of one or (None) any address."""
    name = protocol.lower()
    match = f"-p {name} -m {name} --dport {port}"
    return match if address is None else f"-d {_text_of(address)}/{address.max_prefixlen} {match}"


def source_match(network: IPNetwork) -> str:
    """Return the match for packets from a network, with a blank behind it; one that is everything needs none."""
    return f"-s {_text_of(network.network_address)}/{network.prefixlen} " if network.prefixlen else ""


def _text_of(address: IPAddress) -> str:
    """Return an address as iptables-save writes it."""
    return socket.inet_ntop(socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6, address.packed)


def _text(table: str, changed: Chains, removed_jumps: Iterable[str], added_jumps: Iterable[str]) -> str:
    lines = [f":{name} - [0:0]" for name in changed]  # this empties those that are there
    lines += [f"-A {name} {rule}" for name, rules in changed.items() for rule in rules]
    lines += [f"-D {jump}" for jump in removed_jumps]
    lines += [f"-I {jump}" for jump in added_jumps]
    lines += [f"-X {name}" for name, rules in changed.items() if not rules]
    return "\n".join([f"*{table}", *lines, "COMMIT", ""]) if lines else ""


def _target(rule: str) -> str:
    """Return the chain or target a rule leads to; ``""`` for a rule without one. Quoted texts may hold anything."""
    try:
        words = shlex.split(rule)
    except ValueError:  # a quoted text goes on in the next line
        return ""
    for option, target in pairwise(words):
        if option in ("-j", "-g"):
            return target
    return ""

"""What kube-proxy's userspace mode (until 1.25) has left in iptables, and the text that removes it. Pure.

Nothing else of kube-proxy: its other modes, which may be running, have other chains. Entry points: ``find_leftovers``,
``remove_text``. Source: kube-proxy 1.25, pkg/proxy/userspace/proxier.go.
"""

import re
from collections.abc import Mapping

from attrs import field, frozen

_CHAINS: Mapping[str, frozenset[str]] = {
    "nat": frozenset({"KUBE-PORTALS-CONTAINER", "KUBE-PORTALS-HOST", "KUBE-NODEPORT-CONTAINER", "KUBE-NODEPORT-HOST"}),
    "filter": frozenset({"KUBE-NODEPORT-NON-LOCAL"}),
}
_TABLE = re.compile(r"\*(\S+)")
_CHAIN = re.compile(r":(\S+) (\S+)")
_RULE = re.compile(r"-A (\S+) ")
_JUMP = re.compile(r"-A (\S+) (?:.* )?-[jg] (\S+)")
"""A rule that leads to a chain ends with its name; what a quoted comment says ends with a quote."""


@frozen
class Leftovers:
    """What one table holds."""

    chains: dict[str, int] = field(factory=dict)
    """Chains by name, with the number of their rules."""
    jumps: list[str] = field(factory=list)
    """Rules of built-in chains that lead to them, without the leading ``-A``."""


def find_leftovers(saved: str) -> Mapping[str, Leftovers]:
    """Return what is there in the output of iptables-save, by table; tables without it are left out."""
    tables: dict[str, Leftovers] = {}
    names: frozenset[str] = frozenset()
    built_in: set[str] = set()
    found = Leftovers()
    for line in saved.splitlines():
        if heading := _TABLE.match(line):
            names, built_in = _CHAINS.get(heading[1], frozenset()), set()
            found = tables.setdefault(heading[1], Leftovers())
        elif chain := _CHAIN.match(line):
            if chain[1] in names:
                found.chains[chain[1]] = 0
            elif chain[2] != "-":
                built_in.add(chain[1])
        elif (jump := _JUMP.fullmatch(line)) and jump[1] in built_in and jump[2] in names:
            found.jumps.append(line.removeprefix("-A "))
        elif (rule := _RULE.match(line)) and rule[1] in found.chains:
            found.chains[rule[1]] += 1
    return {table: each for table, each in tables.items() if each.chains}


def remove_text(table: str, found: Leftovers) -> str:
    """Return the input for ``iptables-restore --noflush`` that removes it from a table."""
    lines = [f":{name} - [0:0]" for name in found.chains]  # this empties them
    lines += [f"-D {jump}" for jump in found.jumps]
    lines += [f"-X {name}" for name in found.chains]
    return "\n".join([f"*{table}", *lines, "COMMIT", ""])

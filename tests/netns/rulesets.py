"""Netfilter rules as text: those of other programs for a node, and all of a node's in a form that can be compared.

Entry points: ``FOREIGN_IPTABLES``, ``FOREIGN_NFTABLES``, ``normalise_saved``, ``normalise_nft``.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

FOREIGN_IPTABLES = """
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -m comment --comment "kubernetes node firewall" -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-OTHER - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment "not ours: -j USP-REDIRECT" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d {other} -p tcp -m tcp --dport 80 -j KUBE-SVC-OTHER
-A KUBE-SERVICES -d {other} -p tcp -m tcp --dport 81 -j KUBE-MARK-DROP
-A KUBE-SVC-OTHER -p tcp -j DNAT --to-destination {pod}
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
"""
"""As kube-proxy writes them, for iptables-restore: ``other`` is served by ``pod``, at port 81 it drops."""

FOREIGN_NFTABLES = """
table {family} kube-proxy {{
    map service-ips {{
        type {type} . inet_proto . inet_service : verdict
        elements = {{ {other} . tcp . 82 : goto service-other }}
    }}
    chain service-other {{ meta l4proto tcp dnat to {pod}; }}
    chain services {{ {family} daddr . meta l4proto . th dport vmap @service-ips; }}
    chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain firewall {{ type filter hook input priority -110; meta mark & 0x8000 == 0x8000 drop; }}
}}
"""
"""The same by the newer way, for nft, at port 82."""

_COUNTERS = re.compile(r'"(packets|bytes)": \d+')


def normalise_saved(saved: str) -> Iterator[str]:
    """Yield the lines of iptables-save that count, each with its table.

    Comments, counters, and built-in chains that are empty with policy ACCEPT do not.
    """
    for text in re.split(r"^(?=\*)", saved, flags=re.MULTILINE)[1:]:
        table, *lines = text.splitlines()
        for line in lines:
            if line.startswith(":"):
                name, policy, _counters = line[1:].split()
                if policy != "ACCEPT" or any(other.startswith(f"-A {name} ") for other in lines):
                    yield f"{table} :{name} {policy}"
            elif line.startswith("-"):
                yield f"{table} {line}"


def normalise_nft(listed: str) -> list[str]:
    """Return the objects of ``nft -j list ruleset`` that count, and each element of a set or map, as texts.

    Handles, comments, counters, and base chains that are empty with policy accept do not.
    """
    objects: list[dict[str, Any]] = json.loads(listed)["nftables"]
    ruled = {(rule["family"], rule["table"], rule["chain"]) for entry in objects if (rule := entry.get("rule"))}
    kept: list[dict[str, Any]] = []
    for entry in objects:
        ((kind, content),) = entry.items()
        content.pop("handle", None)
        content.pop("comment", None)
        is_idle_base = content.get("policy") == "accept" and (
            (content["family"], content["table"], content["name"]) not in ruled
        )
        if kind not in ("metainfo", "table") and not (kind == "chain" and is_idle_base):
            kept.append(entry)
    used = {(content["family"], content["table"]) for entry in kept for content in entry.values()}
    kept += [entry for entry in objects if (table := entry.get("table")) and (table["family"], table["name"]) in used]
    kept += [
        {"element": element, "table": content["table"], "family": content["family"], "of": content["name"]}
        for entry in kept
        for content in entry.values()
        for element in content.pop("elem", ())
    ]
    return [_COUNTERS.sub("", json.dumps(entry, sort_keys=True)) for entry in kept]

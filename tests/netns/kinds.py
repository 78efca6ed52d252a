"""The kinds of steering that change the kernel, each on a node where another proxy has rules of its own.

Entry points: ``KINDS``, ``RULE_KINDS``, ``add_foreign_rules``, ``path_with_only``.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen
from netns.nodes import Node


@frozen
class NodeKind:
    """A kind of steering as a user asks for it, and what leads it to one variant of its tools."""

    steering: str
    """For ``--steering``."""
    iptables: str = "nft"
    """The variant of iptables that the other proxy on the node uses, and so this one too, if it uses any."""


RULE_KINDS: Mapping[str, NodeKind] = {
    "iptables-nft": NodeKind("iptables"),
    "iptables-legacy": NodeKind("iptables", iptables="legacy"),
    "nftables": NodeKind("nftables"),
}
"""Those with rules of netfilter."""
KINDS: Mapping[str, NodeKind] = {**RULE_KINDS, "local-route": NodeKind("local-route")}


def add_foreign_rules(node: Node, kind: NodeKind) -> None:
    """Add what another proxy has on a node, by iptables and by nftables."""
    node.add_foreign_rules(kind.iptables)
    node.add_foreign_tables()


def path_with_only(directory: Path, kind: NodeKind) -> dict[str, str]:
    """Return an environment whose PATH, a new directory, has the tools of one kind and no others."""
    directory.mkdir()
    names = ["nft"] if kind.steering == "nftables" else []
    if kind.steering == "iptables":
        names = [f"{ip}tables-{kind.iptables}-{what}" for ip in ("ip", "ip6") for what in ("save", "restore")]
    for name in names:
        (directory / name).symlink_to(str(shutil.which(name)))
    return {"PATH": str(directory)}

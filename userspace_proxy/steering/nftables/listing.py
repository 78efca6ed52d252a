"""Reads what ``nft -j -n list`` says. Pure; knows our tables only as far as they can be read back.

Entry points: ``parse_table``, ``parse_proxy_ports``, ``parse_tables``, ``parse_drop_policies``.
Source: libnftables-json(5).
"""

from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any

import msgspec
from attrs import field, frozen

from userspace_proxy.model.names import Protocol
from userspace_proxy.steering.nftables.rules import ADDRESSED, STEERED, Hook, Place
from userspace_proxy.steering.rule_steering import ProxyPorts

_PROTOCOLS = {6: "tcp", 17: "udp"}
_INPUT_FAMILIES = ("ip", "ip6", "inet")


class _Table(msgspec.Struct):
    family: str
    name: str
    flags: str | list[str] = ""


class _Set(msgspec.Struct):
    name: str
    elem: list[msgspec.Raw] = []
    """Decoded one by one: all at once holds the interpreter, and so all connections, for 50 ms with 10,000 of them."""


class _Chain(msgspec.Struct):
    family: str
    table: str
    name: str
    type: str = ""
    hook: str = ""
    prio: int = 0
    policy: str = ""


class _Rule(msgspec.Struct):
    chain: str
    comment: str = ""


class _Object(msgspec.Struct):
    table: _Table | None = None
    set: _Set | None = None
    map: _Set | None = None
    chain: _Chain | None = None
    rule: _Rule | None = None


class _Answer(msgspec.Struct):
    nftables: list[_Object]


_decode = msgspec.json.Decoder(_Answer).decode
_decode_element = msgspec.json.Decoder(Any).decode


@frozen
class Listed:
    """What a table holds."""

    is_dormant: bool = False
    """Whether the kernel passes over it."""
    sets: frozenset[str] = frozenset()
    """Sets and maps."""
    elements: Mapping[Place, str] = field(factory=dict)
    """With their values; those of sets have empty ones."""
    hooks: Mapping[str, Hook] = field(factory=dict)
    """Of the chains that the kernel calls, and that accept what no rule of theirs is for."""
    rules: Mapping[str, tuple[str, ...]] = field(factory=dict)
    """All chains with the comments of their rules, in order."""


def parse_table(listed: bytes) -> Listed:
    """Return what a table holds, from the output of ``nft -j -n list table``.

    Raises:
        ValueError: this is no such output.
    """
    answer = _decode(listed)
    named_sets = [found for one in answer.nftables for found in (one.set, one.map) if found is not None]
    chains = [one.chain for one in answer.nftables if one.chain is not None]
    rules: dict[str, list[str]] = {chain.name: [] for chain in chains}
    for one in answer.nftables:
        if one.rule is not None:
            rules[one.rule.chain].append(one.rule.comment)
    return Listed(
        any(one.table.flags for one in answer.nftables if one.table is not None),
        frozenset(one.name for one in named_sets),
        {(one.name, key): value for one in named_sets for key, value in _elements(one)},
        {one.name: Hook(one.type, one.hook, one.prio) for one in chains if one.hook and one.policy == "accept"},
        {name: tuple(comments) for name, comments in rules.items()},
    )


def parse_proxy_ports(listed: Listed) -> ProxyPorts:
    """Return where a table of ours leads.

    Raises:
        ValueError: this is no table of ours, or one of another release.
    """
    ports = {}
    for (name, key), value in listed.elements.items():
        if name == STEERED:
            address, protocol, port = key.split(" . ")
            ports[ip_address(address), int(port), Protocol(protocol.upper())] = int(value)
    return ports


def parse_tables(listed: bytes) -> tuple[tuple[str, str], ...]:
    """Return family and name of each table, from the output of ``nft -j list tables``.

    Raises:
        ValueError: this is no such output.
    """
    tables = (one.table for one in _decode(listed).nftables)
    return tuple((table.family, table.name) for table in tables if table is not None)


def parse_drop_policies(listed: bytes) -> tuple[tuple[str, str], ...]:
    """Return family and name of the tables that drop what comes to this node unless a rule of theirs accepts it.

    Args:
        listed: The output of ``nft -j list chains``.

    Raises:
        ValueError: this is no such output.
    """
    chains = (one.chain for one in _decode(listed).nftables)
    found = (
        (chain.family, chain.table)
        for chain in chains
        if chain is not None and chain.hook == "input" and chain.policy == "drop" and chain.family in _INPUT_FAMILIES
    )
    return tuple(dict.fromkeys(found))


def _elements(listed: _Set) -> Iterator[tuple[str, str]]:
    """Yield key and value of each element, as ``rules`` writes them."""
    for raw in listed.elem:
        element = _decode_element(raw)
        key, value = element if isinstance(element, list) else (element, "")
        if isinstance(key, dict) and "elem" in key:  # with a comment or a counter
            key = key["elem"]["val"]
        yield _key(listed.name, key), _value(value)


def _key(set_name: str, key: Any) -> str:
    if set_name == ADDRESSED:
        return f'"{key}"'
    if not (isinstance(key, dict) and "concat" in key):
        return str(key)  # not ours
    *address, protocol, port = key["concat"]
    return " . ".join([*map(_address, address), _PROTOCOLS.get(protocol, str(protocol)), str(port)])


def _address(listed: Any) -> str:
    """Return an address as Python writes it: libc writes some IPv6 addresses otherwise."""
    return str(IPv6Address(listed)) if ":" in str(listed) else str(listed)


def _value(value: Any) -> str:
    match value:
        case {"goto": {"target": chain}}:
            return f"goto {chain}"
        case {"drop": None}:
            return "drop"
        case _:
            return str(value)

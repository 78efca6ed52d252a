"""What is read from the listings of nft."""

import json
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from userspace_proxy.model.names import Protocol
from userspace_proxy.steering.nftables.listing import (
    Listed,
    parse_drop_policies,
    parse_proxy_ports,
    parse_table,
    parse_tables,
)
from userspace_proxy.steering.nftables.rules import Hook

OWN = {"family": "ip", "table": "own"}


def listing(*objects: dict[str, Any]) -> bytes:
    """Return the output of ``nft -j list``."""
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *objects]}).encode()


def test_table_is_read_with_all_that_counts() -> None:
    """Elements are as they are written, whether plain or with counter and comment; rules are their comments."""
    plain = [{"concat": ["10.96.0.1", 6, 80]}, 12345]
    counted = [{"elem": {"val": {"concat": ["10.96.0.2", 17, 53]}, "comment": "a/b", "counter": {"packets": 7}}}, 12346]
    dropped = [{"concat": [6, 12345]}, {"drop": None}]
    ranged = [{"concat": [6, 12346]}, {"goto": {"target": "ranges-1"}}]
    listed = listing(
        {"table": {"family": "ip", "name": "own", "handle": 1}},
        {"map": {**OWN, "name": "steered", "elem": [plain, counted]}},
        {"map": {**OWN, "name": "restricted-proxy-ports", "elem": [dropped, ranged]}},
        {"set": {**OWN, "name": "proxy-ports", "elem": [{"concat": [6, 12345]}]}},
        {"set": {**OWN, "name": "addressed", "elem": ["lo"]}},
        {"set": {**OWN, "name": "empty"}},
        {"chain": {**OWN, "name": "input", "type": "filter", "hook": "input", "prio": 0, "policy": "accept"}},
        {"chain": {**OWN, "name": "strict", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
        {"chain": {**OWN, "name": "steer", "handle": 3}},
        {"rule": {**OWN, "chain": "steer", "comment": "0123", "expr": [{"drop": None}]}},
        {"rule": {**OWN, "chain": "steer", "expr": [{"drop": None}]}},
    )
    assert parse_table(listed) == Listed(
        is_dormant=False,
        sets=frozenset({"steered", "restricted-proxy-ports", "proxy-ports", "addressed", "empty"}),
        elements={
            ("steered", "10.96.0.1 . tcp . 80"): "12345",
            ("steered", "10.96.0.2 . udp . 53"): "12346",
            ("restricted-proxy-ports", "tcp . 12345"): "drop",
            ("restricted-proxy-ports", "tcp . 12346"): "goto ranges-1",
            ("proxy-ports", "tcp . 12345"): "",
            ("addressed", '"lo"'): "",
        },
        hooks={"input": Hook("filter", "input", 0)},
        rules={"input": (), "strict": (), "steer": ("0123", "")},
    )


@pytest.mark.parametrize("flags", ["dormant", ["dormant", "owner"]])
def test_table_that_the_kernel_passes_over_shows(flags: str | list[str]) -> None:
    """The flag is a text or a list, by the release of nft."""
    assert parse_table(listing({"table": {"family": "ip", "name": "own", "flags": flags}})).is_dormant


def test_proxy_ports_are_read_back_in_both_families() -> None:
    """IPv6 addresses are recognised however libc writes them."""
    elements = [[{"concat": [address, 6, 80]}, 12345] for address in ("10.96.0.1", "::ffff:10.0.0.1", "fd00::a")]
    assert parse_proxy_ports(parse_table(listing({"map": {"name": "steered", "elem": elements}}))) == {
        (IPv4Address("10.96.0.1"), 80, Protocol.TCP): 12345,
        (IPv6Address("::ffff:a00:1"), 80, Protocol.TCP): 12345,
        (IPv6Address("fd00::a"), 80, Protocol.TCP): 12345,
    }


@pytest.mark.parametrize(
    "elements",
    [["lo"], [[{"concat": ["10.96.0.1", 6, 80]}, {"drop": None}]], [[{"concat": ["10.96.0.1", "gre", 80]}, 1]]],
    ids=["set", "verdicts", "protocol"],
)
def test_map_of_another_shape_is_told_from_ours(elements: list[Any]) -> None:
    """Whatever is there under the name of ours is refused in one way."""
    with pytest.raises(ValueError, match=r"."):
        parse_proxy_ports(parse_table(listing({"map": {"name": "steered", "elem": elements}})))


def test_tables_are_listed_with_their_families() -> None:
    """Each is known by both."""
    tables = [{"table": {"family": family, "name": "own"}} for family in ("ip", "inet")]
    assert parse_tables(listing(*tables)) == (("ip", "own"), ("inet", "own"))


def test_drop_policies_are_those_of_chains_for_what_comes_to_this_node() -> None:
    """Each table is named once; forwarding, accepting chains, and other families do not matter."""

    def chain(family: str, table: str, hook: str, policy: str) -> dict[str, Any]:
        return {
            "chain": {
                "family": family,
                "table": table,
                "name": "any",
                "type": "filter",
                "hook": hook,
                "prio": 0,
                "policy": policy,
            }
        }

    listed = listing(
        chain("ip", "filter", "input", "drop"),
        chain("ip", "filter", "input", "drop"),
        chain("ip", "filter", "forward", "drop"),
        chain("ip6", "filter", "input", "accept"),
        chain("bridge", "filter", "input", "drop"),
        chain("inet", "firewall", "input", "drop"),
        {"chain": {**OWN, "name": "regular"}},
    )
    assert parse_drop_policies(listed) == (("ip", "filter"), ("inet", "firewall"))

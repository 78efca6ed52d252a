"""Groups of sockets by the address of the client, as netfilter leads it there: the same engine for each client."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from netns.nodes import Node

pytestmark = pytest.mark.netns

_HELPER = Path(__file__).with_name("group_helper.py")
PORT, ENGINES, TIMES = 12345, 3, 4
VIRTUAL = ("10.96.0.10", "fd00:96::a")
OF_NODE = ("10.0.1.1", "fd00:1::1")
SOURCES = ([f"10.0.1.{number}" for number in range(10, 70)], [f"fd00:1::{number:x}" for number in range(0x10, 0x4C)])
_DIAL_FROM = """
import socket, sys
kind, address, port, times, *sources = sys.argv[1:]
for _ in range(int(times)):
    for source in sources:
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if kind == "TCP" else socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.bind((source, 0))
            client.connect((address, int(port)))
            client.send(b"hello")
            assert client.recv(100) == b"hello", source
"""
_IPTABLES = """*nat
-A PREROUTING -d {virtual} -p tcp -m tcp --dport 80 -j REDIRECT --to-ports {port}
-A PREROUTING -d {virtual} -p udp -m udp --dport 80 -j REDIRECT --to-ports {port}
COMMIT
"""
_NFTABLES = """
table {family} test {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {family} daddr {virtual} meta l4proto {{ tcp, udp }} th dport 80 redirect to :{port}
  }}
}}
"""


def steer(node: Node, variant: str) -> None:
    """Redirect port 80 of the virtual addresses."""
    for virtual, command, family in zip(VIRTUAL, ("iptables", "ip6tables"), ("ip", "ip6"), strict=True):
        if variant == "nftables":
            text = _NFTABLES.format(family=family, virtual=virtual, port=PORT)
            node.run("nft", "-f", "-", text=text)
        else:
            text = _IPTABLES.format(virtual=virtual, port=PORT)
            node.run(f"{command}-{variant}-restore", "--noflush", text=text)


@pytest.mark.parametrize("variant", ["direct", "nft", "legacy", "nftables"])
def test_d_5_client_with_affinity_is_served_by_the_same_engine_however_it_is_steered(variant: str, node: Node) -> None:
    """Of TCP and UDP, of IPv4 and IPv6, by REDIRECT or not; and all engines have their share of the clients."""
    for sources, length in zip(SOURCES, (24, 64), strict=True):
        nodad = " nodad" if length == 64 else ""
        node.pod.ip("\n".join(f"address add {one}/{length} dev eth0{nodad}" for one in sources))
    search_path = os.pathsep.join([str(_HELPER.parents[1]), *filter(None, sys.path)])
    command = (sys.executable, "-W", "error", _HELPER, str(PORT), str(ENGINES))
    helper = node.start(*command, env={"PYTHONPATH": search_path})
    assert helper.stdin is not None
    assert helper.stdout is not None
    assert helper.stdout.readline() == "ready\n"
    address, port = OF_NODE, PORT
    if variant != "direct":
        steer(node, variant)
        address, port = VIRTUAL, 80
    for one, sources in zip(address, SOURCES, strict=True):
        for kind in ("TCP", "UDP"):
            node.pod.run(sys.executable, "-I", "-S", "-c", _DIAL_FROM, kind, one, str(port), str(TIMES), *sources)
    helper.stdin.write("\n")
    owners: dict[str, list[int]] = json.loads(helper.stdout.readline())
    for sources in SOURCES:
        assert [len(owners[source]) for source in sources] == [1] * len(sources)
        counts = Counter(owners[source][0] for source in sources)
        assert len(counts) == ENGINES
        assert min(counts.values()) > 0.5 * len(sources) / ENGINES, counts

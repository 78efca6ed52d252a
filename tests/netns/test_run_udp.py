"""The real command on a node with pods, steered by iptables: what comes back by UDP, and from which address.

Whatever an answer needs to be taken for one is held against the proxy: ``dig`` and connected sockets take answers from
the address they have asked only, and the node's routes prefer other source addresses than that.
"""

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import backend
from cli_driver import service_object, slice_objects, write_manifests
from netns.node_run import NodeRun, wait_until
from netns.nodes import Node, open_node
from netns.udp_driver import LARGEST_DATAGRAM, UdpBackend, exchange

from userspace_proxy.model.names import Protocol

pytestmark = [pytest.mark.netns, pytest.mark.slow]

FAMILIES = ("IPv4", "IPv6")
CLIENTS = ("node", "pod", "bare pod", "outside")
DNS_NODE_PORT, ECHO_NODE_PORT = 30053, 30007
DNS_ADDRESSES = {
    "ClusterIP IPv4": ("10.96.0.53", 53),
    "ClusterIP IPv6": ("fd00:96::35", 53),
    "external IP IPv4": ("192.0.2.53", 53),
    "external IP IPv6": ("2001:db8:1::35", 53),
    "load balancer IPv4": ("203.0.113.53", 53),
    "load balancer IPv6": ("2001:db8:2::35", 53),
    "NodePort IPv4": ("10.0.0.1", DNS_NODE_PORT),
    "NodePort IPv6": ("fd00::1", DNS_NODE_PORT),
}
ECHO_CLUSTER_IPS = ("10.96.0.7", "fd00:96::7")
NODE_ADDRESSES = ("10.0.0.1", "10.0.0.9", "10.0.1.1", "fd00::1", "fd00::9", "fd00:1::1")
"""Two on one interface, one on another."""
SIZES = (0, 1, 1472, 1473, 4097, LARGEST_DATAGRAM)

# More addresses for the node; and towards each neighbour its kernel would rather send from another one's interface.
_SEVERAL_ADDRESSES = """
address add 10.0.0.9/24 dev eth0
address add fd00:0::9/64 dev eth0 nodad
route replace 10.0.0.0/24 dev eth0 src 10.0.1.1
route replace 10.0.1.0/24 dev vethpod src 10.0.0.9
route replace fd00:0::/64 dev eth0 src fd00:1::1
route replace fd00:1::/64 dev vethpod src fd00:0::9
"""
_NSD = """
server:
    username: ""
    pidfile: ""
    database: ""
    zonesdir: "{directory}"
    xfrdir: "{directory}"
    xfrdfile: ""
    zonelistfile: "{directory}/zone.list"
    port: 5300
    rrl-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: example.test
    zonefile: zone
"""
_ZONE = """$ORIGIN example.test.
$TTL 3600
@ SOA ns hostmaster 1 3600 600 86400 60
@ NS ns
ns A 192.0.2.1
www A 192.0.2.80
"""


def start_name_server(node: Node, directory: Path) -> None:
    """Start NSD on port 5300 of the pod."""
    (directory / "nsd.conf").write_text(_NSD.format(directory=directory))
    (directory / "zone").write_text(_ZONE)
    with (directory / "nsd.log").open("w") as log:
        node.pod.start("nsd", "-d", "-c", directory / "nsd.conf", stderr=log)
    wait_until(lambda: "192.0.2.80" in dig(node, "pod", "10.0.1.2", 5300))


def dig(node: Node, client: str, address: str, port: int, *options: str) -> str:
    """Return what dig prints for the name www.example.test, asked for once."""
    command = ("dig", f"@{address}", "-p", str(port), "+short", "+tries=1", "+timeout=5", *options, "www.example.test")
    return node.client(client).run(*command, check=False).stdout


def dns_service() -> dict[str, Any]:
    """Return a Service with all kinds of addresses, for UDP and TCP."""
    service = service_object("shop/dns", cluster_ips=[DNS_ADDRESSES[f"ClusterIP {family}"][0] for family in FAMILIES])
    service["spec"] |= {
        "type": "LoadBalancer",
        "externalIPs": [DNS_ADDRESSES[f"external IP {family}"][0] for family in FAMILIES],
        "ports": [
            {"name": protocol.lower(), "protocol": protocol, "port": 53, "nodePort": DNS_NODE_PORT}
            for protocol in (Protocol.UDP, Protocol.TCP)
        ],
    }
    ingress = [{"ip": DNS_ADDRESSES[f"load balancer {family}"][0], "ipMode": "VIP"} for family in FAMILIES]
    return {**service, "status": {"loadBalancer": {"ingress": ingress}}}


def dns_slices() -> list[dict[str, Any]]:
    """Return its EndpointSlices."""
    slices = slice_objects("shop/dns", backend("10.0.1.2:5300"), backend("[fd00:1::2]:5300"))
    ports = [{"name": name.lower(), "protocol": name, "port": 5300} for name in (Protocol.UDP, Protocol.TCP)]
    return [{**each, "ports": ports} for each in slices]


@pytest.fixture(scope="module")
def serving_node(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that serves shop/dns and shop/echo, for tests that only ask."""
    missing = [tool for tool in ("nsd", "dig", "dnsperf") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not on PATH: {', '.join(missing)}")
    directory = tmp_path_factory.mktemp("shop")
    udp = Protocol.UDP
    echo = service_object("shop/echo", cluster_ips=ECHO_CLUSTER_IPS, port=7, node_port=ECHO_NODE_PORT, protocol=udp)
    echo_slices = slice_objects("shop/echo", backend("10.0.1.2:9000"), backend("[fd00:1::2]:9000"), protocol=udp)
    write_manifests(directory / "shop.yaml", [dns_service(), *dns_slices(), echo, *echo_slices])
    with open_node() as node:
        node.ip(_SEVERAL_ADDRESSES)
        UdpBackend(node.pod, "", 9000)
        start_name_server(node, directory)
        run = NodeRun(node, directory)
        yield node
        assert "Traceback" not in run.log


@pytest.mark.parametrize("options", [(), ("+tcp",)], ids=["UDP", "TCP"])
@pytest.mark.parametrize("address", DNS_ADDRESSES)
@pytest.mark.parametrize("client", CLIENTS)
def test_dig_takes_the_answer(serving_node: Node, client: str, address: str, options: tuple[str, ...]) -> None:
    """It comes from the address that was asked, whoever asks, at every kind of address, and with the first try."""
    assert dig(serving_node, client, *DNS_ADDRESSES[address], *options) == "192.0.2.80\n"


@pytest.mark.parametrize("address", NODE_ADDRESSES)
@pytest.mark.parametrize("client", CLIENTS)
def test_node_port_answers_from_each_address_of_the_node(serving_node: Node, client: str, address: str) -> None:
    """Also from one that the route back to the client does not prefer, and that is on another interface."""
    assert exchange(serving_node.client(client), address, ECHO_NODE_PORT, [b"hello"]) == [b"hello"]


def test_node_port_answers_from_a_link_local_address(serving_node: Node) -> None:
    """The client has a link-local address too: the interface is all that tells where the answer goes."""
    assert exchange(serving_node.bare_pod, "fe80::1%eth0", ECHO_NODE_PORT, [b"hello"]) == [b"hello"]


def test_node_port_answers_on_localhost(serving_node: Node) -> None:
    """It is a real socket; that needs no sysctl."""
    for address in ("127.0.0.1", "127.0.0.2", "::1"):
        assert exchange(serving_node, address, ECHO_NODE_PORT, [b"hello"]) == [b"hello"]


@pytest.mark.parametrize("address", ECHO_CLUSTER_IPS)
@pytest.mark.parametrize("client", CLIENTS)
def test_datagrams_of_all_sizes_come_back_whole(serving_node: Node, client: str, address: str) -> None:
    """From none to as many bytes as there can be, in pieces on their way, through REDIRECT and DNAT."""
    datagrams = [random.Random(size).randbytes(size) for size in SIZES]  # noqa: S311 - no secret
    assert exchange(serving_node.client(client), address, 7, datagrams) == datagrams


@pytest.mark.parametrize("address", ["ClusterIP IPv4", "ClusterIP IPv6"])
def test_dnsperf_loses_no_query_at_a_modest_rate(serving_node: Node, tmp_path: Path, address: str) -> None:
    """Twenty clients at once ask up to 1,000 times a second, and each gets the right answers."""
    (tmp_path / "queries").write_text("www.example.test A\n")
    host, port = DNS_ADDRESSES[address]
    command = ("dnsperf", "-s", host, "-p", str(port), "-d", tmp_path / "queries", "-c", "20", "-Q", "1000", "-l", "3")
    said = serving_node.outside.run(*command).stdout
    completed = re.search(r"Queries completed: +(\d+)", said)
    assert completed, said
    assert int(completed[1]) > 1000, said
    assert re.search(r"Queries lost: +0 ", said), said
    assert re.search(r"Response codes: +NOERROR \d+ \(100\.00%\)", said), said

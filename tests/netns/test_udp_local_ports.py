"""More UDP flows than local ports: each flow has a port of the whole node to itself, whatever Backend it leads to.

Without this, a node with the usual 28,232 local ports (net.ipv4.ip_local_port_range) would stop to serve new clients
before the cap of flows is reached. All runs in one process, in a namespace with a narrow range.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns.nodes import Namespace, open_namespace

pytestmark = pytest.mark.netns

HELPER = Path(__file__).with_name("udp_local_ports_helper.py")
PORTS = 16


@pytest.fixture
def namespace(namespaces: None) -> Iterator[Namespace]:
    """Yield a namespace with a loopback interface."""
    with open_namespace("udpports") as namespace:
        namespace.ip("link set lo up")
        yield namespace


def test_flows_without_local_ports_end_the_oldest_and_lose_no_datagram(namespace: Namespace) -> None:
    """As without descriptors: the flow that was silent for longest gives way, and it is no bug."""
    search_path = os.pathsep.join([str(HELPER.parents[1]), *filter(None, sys.path)])
    command = (sys.executable, "-W", "error", HELPER, str(PORTS))
    facts = json.loads(namespace.run(*command, env={"PYTHONPATH": search_path}).stdout)
    assert facts == {
        "bugs": [],
        "arrived": 3 * PORTS,
        "open": PORTS,
        "ended": {"evicted": 2 * PORTS},
        "dropped": {},
    }

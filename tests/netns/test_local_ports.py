"""Running out of local ports towards one endpoint stops no traffic to others.

The kernel keeps a local port for each remote address and port, so that connections to one Backend use up a range of
their own. Loopback addresses would hide this: there, a port in TIME_WAIT is reused (net.ipv4.tcp_tw_reuse = 2). So the
proxy and all peers run, in one process, in a namespace that has other addresses.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns.nodes import Namespace, open_namespace

pytestmark = [pytest.mark.netns, pytest.mark.slow]

HELPER = Path(__file__).with_name("local_ports_helper.py")
PORTS = 16


@pytest.fixture
def namespace(namespaces: None) -> Iterator[Namespace]:
    """Yield a namespace with a few addresses that are not loopback ones."""
    with open_namespace("ports") as namespace:
        namespace.ip("link set lo up\n" + "\n".join(f"address add 10.77.0.{one}/32 dev lo" for one in range(1, 5)))
        yield namespace


@pytest.mark.parametrize("held", ["by open connections", "in TIME_WAIT"])
def test_local_ports_that_run_out_towards_one_backend_stop_no_traffic_to_others(
    namespace: Namespace, held: str
) -> None:
    """A client whose only Backend has no port left is reset and counted; all others get through."""
    search_path = os.pathsep.join([str(HELPER.parents[1]), *filter(None, sys.path)])
    facts = json.loads(
        namespace.run(sys.executable, "-W", "error", HELPER, held, str(PORTS), env={"PYTHONPATH": search_path}).stdout
    )
    assert facts == {
        "served while there were ports": PORTS,
        "end of a client without a port": "RST",
        "reasons": {"RD": 1},
        "dials": {"connected": PORTS, "no_local_port": 1},
        "served beside another Backend": PORTS,
        "reasons beside another Backend": {},
        # Round robin comes back to the one without a port each time after the other one was used.
        "dials beside another Backend": {"connected": PORTS, "no_local_port": PORTS},
        "served at another port of the same address": PORTS,
    }

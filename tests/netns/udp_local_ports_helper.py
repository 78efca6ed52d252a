"""Runs in a network namespace: has more UDP flows wanted than there are local ports, and prints how clients fare.

Argument: how many local ports there are to be.
"""

import json
import sys
from pathlib import Path

from engine_driver import stepped_proxy
from udp_peers import flush_loopback, open_udp_peers

FIRST_LOCAL_PORT = 20_000
FIRST_CLIENT_PORT = 30_000
PROXY_PORT = 5353


def run(ports: int) -> dict[str, object]:
    """Return the facts."""
    bugs: list[str] = []
    with stepped_proxy(report_bug=lambda bug: bugs.append(repr(bug))) as proxy, open_udp_peers() as peers:
        flush_loopback()  # its own sockets are to have ports before the range is narrow
        server = peers.server(port=PROXY_PORT + 1)
        address = proxy.serve_udp(server.backend, port=PROXY_PORT)
        clients = [peers.client(address, ("127.0.0.1", FIRST_CLIENT_PORT + one)) for one in range(3 * ports)]
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(
            f"{FIRST_LOCAL_PORT} {FIRST_LOCAL_PORT + ports - 1}", encoding="ascii"
        )
        for client in clients:
            proxy.advance(1.0)
            client.send(b"ping")
            proxy.pass_on()
        counters = proxy.flow_counters()
        return {
            "bugs": bugs,
            "arrived": len(server.take()),
            "open": counters.active,
            "ended": {str(reason): count for reason, count in counters.ended.items()},
            "dropped": {str(reason): count for reason, count in counters.dropped.items() if count},
        }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]))))

"""Runs in a network namespace: clients at two links that have the same address at each, and prints how they fare.

Arguments: the names of the interfaces.
"""

import json
import sys

from engine_driver import stepped_proxy
from udp_peers import open_udp_peers

ADDRESS = "fe80::1"
CLIENT_PORT = 4242


def run(interfaces: list[str]) -> dict[str, object]:
    """Return the facts."""
    with stepped_proxy() as proxy, open_udp_peers() as peers:
        server = peers.server("::1")
        _, port = proxy.serve_udp(server.backend, host="::")
        clients = []
        for name in interfaces:
            client = peers.client((f"{ADDRESS}%{name}", port), (f"{ADDRESS}%{name}", CLIENT_PORT))
            client.send(name.encode())
            clients.append(client)
        proxy.pass_on()
        arrived = server.take()
        for datagram, sender in zip(arrived, server.senders, strict=True):
            server.answer(b"to " + datagram, to=sender)
        proxy.pass_on()
        counters = proxy.flow_counters()
        return {
            "flows": counters.flows,
            "answers": [[answer.decode() for answer in client.take()] for client in clients],
            "dropped": {str(reason): count for reason, count in counters.dropped.items() if count},
        }


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1:])))

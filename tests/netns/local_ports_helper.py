"""Runs in a network namespace: uses up the local ports towards one Backend and prints how others fare.

Arguments: how the ports are held (``by open connections`` or ``in TIME_WAIT``), and how many there are to be.
"""

import json
import sys
from pathlib import Path

import trio
from engine_driver import Proxy, open_proxy
from peers import End, Peer, Peers, echo, open_peers

from userspace_proxy.config import RelayLimits

PROXY, FULL, OTHER, CLIENT = (f"10.77.0.{number}" for number in range(1, 5))
FIRST_LOCAL_PORT = 20_000
FIRST_CLIENT_PORT = 25_000
LIMITS = RelayLimits(dial_next_after_s=20.0, dial_timeout_s=20.0)
"""Nobody is to be helped by time going by."""


class Clients:
    """Makes clients whose own ports are outside the range that is to run out."""

    def __init__(self, peers: Peers) -> None:
        """Have ``peers`` own the clients."""
        self._peers = peers
        self._port = FIRST_CLIENT_PORT

    async def connect(self, address: tuple[str, int]) -> Peer:
        """Return a new client."""
        self._port += 1
        return await self._peers.connect(address, source=(CLIENT, self._port))

    async def count_served(self, address: tuple[str, int], count: int, *, end: bool = False) -> int:
        """Return how many of that many new clients get an echo, and have them end their connections if asked."""
        served = 0
        for _ in range(count):
            client = await self.connect(address)
            await client.send(b"ping")
            served += await client.receive(4) == b"ping"
            if end:
                # The client ends first, and so the proxy does towards the Backend: its port stays in TIME_WAIT.
                client.fin()
                assert await client.receive_to_end() == (b"", End.FIN)
        return served

    async def end_of_one(self, address: tuple[str, int]) -> End:
        """Return how the connection of a new client ends that says nothing."""
        try:
            return (await (await self.connect(address)).receive_to_end())[1]
        except ConnectionResetError:  # before trio has looked whether it is connected
            return End.RST


def reasons(proxy: Proxy, name: str) -> dict[str, int]:
    """Return how many connections ended other than as they should, by the text of the reason."""
    return {str(reason): count for reason, count in proxy.closed(name).items() if str(reason) != "--"}


def set_local_ports(count: int) -> None:
    """Have the kernel choose local ports from a range of that many."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(
        f"{FIRST_LOCAL_PORT} {FIRST_LOCAL_PORT + count - 1}", encoding="ascii"
    )


async def run(held: str, ports: int) -> dict[str, object]:
    """Return the facts."""
    async with open_proxy(LIMITS) as proxy, open_peers() as peers:
        clients = Clients(peers)
        full = peers.listen(echo, host=FULL).backend
        alone = proxy.serve(full, name="shop/alone:http", host=PROXY)
        beside = proxy.serve(full, peers.listen(echo, host=OTHER).backend, name="shop/beside:http", host=PROXY)
        elsewhere = proxy.serve(peers.listen(echo, host=FULL).backend, name="shop/elsewhere:http", host=PROXY)
        # Only now, as the ports of all these listeners are not to come from the range.
        set_local_ports(ports)
        return {
            "served while there were ports": await clients.count_served(alone, ports, end=held == "in TIME_WAIT"),
            "end of a client without a port": (await clients.end_of_one(alone)).value,
            "reasons": reasons(proxy, "shop/alone:http"),
            "dials": proxy.counters("shop/alone:http").dials,
            "served beside another Backend": await clients.count_served(beside, ports),
            "reasons beside another Backend": reasons(proxy, "shop/beside:http"),
            "dials beside another Backend": proxy.counters("shop/beside:http").dials,
            "served at another port of the same address": await clients.count_served(elsewhere, ports),
        }


if __name__ == "__main__":
    print(json.dumps(trio.run(run, sys.argv[1], int(sys.argv[2]))))

"""Runs in a network namespace: has the listeners that it is told, and tells how they fare.

Each line read is a JSON list of listeners that are wanted, all there are: ``protocol``, ``host``, ``port``, and what is
true of ``is_virtual``, ``only_steered`` and ``is_empty`` (no Backend). For each line one is written: ``failures``, and
why TCP connections have ended so far (``closed``). Backends greet by TCP and echo by UDP.
"""

import json
import select
import socket
import sys
from collections import Counter
from ipaddress import ip_address
from threading import Thread
from typing import Any

from builders import listener_key, pool_key, route
from engine_driver import Proxy, raise_bug

from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.model.names import Protocol, family_of
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import Backend, ListenerKey, ListenerSpec, Pool, UdpSettings


def greet(server: socket.socket) -> None:
    """Say hello to everybody who connects."""
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(b"hello")


def echo(server: socket.socket) -> None:
    """Send back every datagram."""
    while True:
        server.sendto(*server.recvfrom(1 << 16))


def start_backend(protocol: Protocol) -> Backend:
    """Start a Backend that lives as long as this process."""
    is_udp = protocol is Protocol.UDP
    server = socket.socket(type=socket.SOCK_DGRAM if is_udp else socket.SOCK_STREAM)
    server.bind(("127.0.0.1", 0))
    if not is_udp:
        server.listen()
    Thread(target=echo if is_udp else greet, args=(server,), daemon=True).start()
    return Backend(ip_address("127.0.0.1"), server.getsockname()[1])


def apply_all(proxy: Proxy, wanted: list[dict[str, Any]], backends: dict[Protocol, Backend]) -> list[str]:
    """Have these listeners and no others; return what has failed."""
    listeners = proxy.listeners
    keys = set[ListenerKey]()
    for each in wanted:
        protocol, address = Protocol(each["protocol"]), ip_address(each["host"])
        name = f"shop/{each['host'].replace(':', '-').replace('.', '-')}:p{each['port']}"
        pool = pool_key(name, family=family_of(address), protocol=protocol)
        key = listener_key(name, family=pool.family, protocol=protocol)
        udp = UdpSettings() if protocol is Protocol.UDP else None
        members = () if each.get("is_empty") else (backends[protocol],)
        listeners.apply_pool(Pool(pool, members, Balance.ROUND_ROBIN, None, udp))
        is_virtual, only_steered = each.get("is_virtual", False), each.get("only_steered", False)
        spec = ListenerSpec(key, address, each["port"], is_virtual=is_virtual, only_steered=only_steered)
        listeners.apply_listener(spec, route(pool))
        keys.add(key)
    for gone in listeners._wanted.keys() - keys:
        listeners.remove_listener(gone)
    return [str(error) for error in listeners.open_missing(retry=True).values() if error]


def run() -> None:
    """Serve until there is nothing more to be read."""
    proxy = Proxy(RelayLimits(), FlowLimits(), lambda: 0.0, raise_bug)
    backends = {protocol: start_backend(protocol) for protocol in (Protocol.TCP, Protocol.UDP)}
    while True:
        readable, _, _ = select.select([sys.stdin, proxy.engine], [], [])
        while proxy.engine.poll(0):
            pass
        if sys.stdin in readable:
            line = sys.stdin.readline()
            if not line:
                break
            failures = apply_all(proxy, json.loads(line), backends)
            closed: Counter[str] = Counter()
            for service in proxy.engine.counters.services.values():
                closed.update({who + phase: count for (who, phase), count in service.closed.items()})
            print(json.dumps({"failures": failures, "closed": closed}), flush=True)
    proxy.close()


if __name__ == "__main__":
    run()

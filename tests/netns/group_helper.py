"""Runs in a network namespace: several engines that serve listeners with affinity, at all addresses of both families.

Arguments: the port, and how many engines. It says ``ready``, and for each line read which engines have served each
client so far, by its address, as JSON. Backends greet by TCP and echo by UDP.
"""

import json
import select
import sys
from collections import defaultdict

from engine_driver import DNS, WEB
from group_driver import Group, open_group, spec_of
from netns.listener_helper import start_backend

from userspace_proxy.model.names import Protocol


def note_clients(group: Group, owners: dict[str, set[int]]) -> None:
    """Have the engines do what there is to do, and note who is served by whom."""
    is_busy = True
    while is_busy:
        is_busy = False
        for number, member in enumerate(group.all):
            if member.engine.poll(0):
                is_busy = True
                for address, _ in member.clients:
                    owners[address].add(number)


def run(port: int, size: int) -> None:
    """Serve until there is nothing more to be read."""
    owners = defaultdict[str, set[int]](set)
    with open_group(size) as group:
        for protocol, name in ((Protocol.TCP, WEB), (Protocol.UDP, DNS)):
            backend = start_backend(protocol)
            for host in ("0.0.0.0", "::"):
                group.serve_all(spec_of(host, port, name, protocol), backend, affinity=True)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([sys.stdin, *(member.engine for member in group.all)], [], [])
            note_clients(group, owners)
            if sys.stdin in readable:
                if not sys.stdin.readline():
                    break
                print(json.dumps({address: sorted(numbers) for address, numbers in owners.items()}), flush=True)


if __name__ == "__main__":
    run(*map(int, sys.argv[1:]))

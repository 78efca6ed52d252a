"""Steering as a process of its own, with a Listener for each Placement that says which Frontend it serves.

Run inside a namespace. ``steering_driver.py KIND STATE_DIR FIRST_PORT LAST_PORT SERVICE_CIDR...`` prints how steering
was chosen as JSON, then reads lines of JSON from its input (see ``steering_process.Driver``). One with all Frontends
there are: it opens and closes Listeners, applies what differs, and answers with the Placements as JSON. One that is
empty: it refreshes and answers with the repairs so far. Meanwhile it refreshes all the time, too; what fails then is
tried again.

SIGTERM closes steering. ``steering_driver.py cleanup|dry-run`` cleans up and prints the report. A SteeringError is
printed as JSON, too, and ends it with status 1.
"""

import json
import signal
import socket
import struct
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

import trio
from attrs import asdict

sys.path.insert(0, str(Path(__file__).parents[1]))

from builders import frontend, node_port_frontend, pool_key

from userspace_proxy.config import Config, SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, NamespacedName, Protocol
from userspace_proxy.plan.state import (
    Frontend,
    FrontendKind,
    ListenerSpec,
    Route,
    SourceClass,
    Target,
    Verdict,
)
from userspace_proxy.steering.base import ServiceSteering, Steering, Surroundings
from userspace_proxy.steering.cleanup import cleanup
from userspace_proxy.steering.probe import choose_steering

REFRESH_INTERVAL_S = 0.1
IP_PKTINFO = 8
"""Module socket has it since Python 3.13."""
IP_FREEBIND = 15
"""For both families; source: Linux include/uapi/linux/in.h. Module socket does not have it."""


async def run_driver(config: Config) -> None:
    """Steer until SIGTERM."""
    chosen = await choose_steering(config)
    steering = chosen.steering
    say({"kind": steering.kind, "explained": chosen.explain()})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_sigterm, nursery.cancel_scope)
            nursery.start_soon(run_refresh, steering)
            await run_commands(steering, nursery)
    finally:
        await steering.aclose()


async def run_commands(steering: Steering, nursery: trio.Nursery) -> None:
    """Do what each line asks for."""
    services = Services(steering, nursery)
    async with aclosing(read_lines()) as lines:
        async for line in lines:
            command = json.loads(line)
            say(await (services.bring_into_force(command) if command else refresh(steering)))


async def refresh(steering: Steering) -> dict[str, Any]:
    """Let steering follow the node once, and return the repairs so far."""
    try:
        await steering.refresh()
    except SteeringError as error:
        return {"error": str(error)}
    return dict(steering.repairs)


class Services:
    """What is asked for, and the Listeners that are open for it."""

    def __init__(self, steering: Steering, nursery: trio.Nursery) -> None:
        self._steering = steering
        self._nursery = nursery
        self._opened: dict[ListenerSpec, trio.CancelScope] = {}
        self._applied: dict[NamespacedName, ServiceSteering] = {}
        self._failed: set[NamespacedName] = set()

    async def bring_into_force(self, command: dict[str, Any]) -> dict[str, str]:
        """Serve all Frontends of a command and no others; return where each is listened for."""
        routes = {build_frontend(asked): build_route(asked) for asked in command["frontends"]}
        services = self._place(routes)
        placements = [one for service in services.values() for one in service.placements]
        await self._open({one.listener: str(one.frontend) for one in placements if routes[one.frontend].pools})
        names = {**services, **self._applied}
        changed = {
            name: services.get(name, ServiceSteering())
            for name in names
            if name in self._failed or services.get(name) != self._applied.get(name)
        }
        surroundings = Surroundings(
            tuple(ip_network(one) for one in command["pod_networks"]), frozenset(command["health_check_ports"])
        )
        try:
            await self._steering.apply(changed, surroundings)
        except SteeringError as error:
            self._failed |= changed.keys()
            return {"error": str(error)}
        self._failed.clear()
        self._applied = services
        return {str(one.frontend): one.listens_at for one in placements}

    def _place(self, routes: dict[Frontend, Route]) -> dict[NamespacedName, ServiceSteering]:
        frontends: dict[NamespacedName, list[Frontend]] = {}
        for one in routes:
            frontends.setdefault(one.service_port.service, []).append(one)
        restricted = {at: route for at, route in routes.items() if not route.is_same_for_all or not route.pools}
        return {
            name: ServiceSteering(
                self._steering.place(of_service), {at: restricted[at] for at in of_service if at in restricted}
            )
            for name, of_service in frontends.items()
        }

    async def _open(self, wanted: dict[ListenerSpec, str]) -> None:
        """Make the Listeners that are open those, each with its greeting."""
        for spec in self._opened.keys() - wanted.keys():
            self._opened.pop(spec).cancel()
        for spec, greeting in wanted.items():
            if spec not in self._opened:
                is_udp = spec.key.service_port.protocol is Protocol.UDP
                run = run_udp_listener if is_udp else run_listener
                self._opened[spec] = await self._nursery.start(run, spec, greeting)


def build_frontend(asked: dict[str, Any]) -> Frontend:
    """Return the Frontend a command asks for; a NodePort is at all addresses if its own is unspecified."""
    name = f"{asked['service']}:{asked['at']}"
    protocol = Protocol(asked["protocol"])
    found = frontend(asked["at"], name, FrontendKind(asked["kind"]), protocol)
    if found.kind is FrontendKind.NODE_PORT and found.address is not None and found.address.is_unspecified:
        return node_port_frontend(found.port, name, found.family, protocol)
    return found


def build_route(asked: dict[str, Any]) -> Route:
    """Return the Route a command asks for: those it does not serve are dropped, or refused if it serves nobody."""
    pool = pool_key(family=Family.IPV6 if asked["at"].startswith("[") else Family.IPV4)
    other = Verdict.REJECT if asked["is_refused"] else Verdict.DROP
    targets: dict[str, Target] = {name: pool if name in asked["serves"] else other for name in SourceClass}
    return Route(
        targets["pod"], targets["host"], targets["outside"], tuple(ip_network(one) for one in asked["source_ranges"])
    )


async def run_listener(spec: ListenerSpec, greeting: str, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    """Greet each client and close, until the scope that is reported is cancelled."""
    family = socket.AF_INET if isinstance(spec.address, IPv4Address) else socket.AF_INET6
    with trio.CancelScope() as scope, trio.socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if spec.is_virtual:
            listening.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        await listening.bind((str(spec.address), spec.port))
        listening.listen()
        task_status.started(scope)
        while True:
            client, _ = await listening.accept()
            with client:
                await client.send(greeting.encode())


async def run_udp_listener(
    spec: ListenerSpec, greeting: str, *, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    """Answer each datagram with the greeting, from the address it was led to, until the scope is cancelled."""
    is_ipv4 = isinstance(spec.address, IPv4Address)
    family = socket.AF_INET if is_ipv4 else socket.AF_INET6
    with trio.CancelScope() as scope, trio.socket.socket(family, socket.SOCK_DGRAM) as bound:
        if is_ipv4:
            bound.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        else:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        if spec.is_virtual:
            bound.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        await bound.bind((str(spec.address), spec.port))
        task_status.started(scope)
        while True:
            _, [(level, kind, led_to)], _, client = await bound.recvmsg(1500, 100)
            if is_ipv4:  # struct in_pktinfo: interface, address to answer from, address it was sent to
                led_to = struct.pack("=i4s4s", 0, led_to[8:12], b"")
            await bound.sendmsg([greeting.encode()], [(level, kind, led_to)], 0, client)


async def run_refresh(steering: Steering) -> None:
    """Let steering follow the node."""
    while True:
        await trio.sleep(REFRESH_INTERVAL_S)
        with suppress(SteeringError):
            await steering.refresh()


async def run_until_sigterm(scope: trio.CancelScope) -> None:
    """Cancel when asked to end."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def read_lines() -> AsyncGenerator[str, None]:
    """Yield the lines of standard input, then wait for ever."""
    rest = b""
    async with trio.lowlevel.FdStream(sys.stdin.fileno()) as stream:
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode()
        await trio.sleep_forever()


def say(value: dict[str, Any]) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do what the arguments say."""
    try:
        match sys.argv[1:]:
            case ["cleanup" | "dry-run" as how]:
                runtime_dir = Path("/run/userspace-proxy")
                say(asdict(trio.run(partial(cleanup, dry_run=how == "dry-run", runtime_dir=runtime_dir))))
            case [kind, state_dir, first_port, last_port, *service_cidrs]:
                config = Config(
                    manifests=(),
                    state_dir=Path(state_dir),
                    runtime_dir=Path(state_dir),
                    steering=SteeringKind(kind),
                    service_cidrs=tuple(ip_network(one) for one in service_cidrs),
                    proxy_port_range=range(int(first_port), int(last_port) + 1),
                )
                trio.run(run_driver, config)
    except SteeringError as error:
        say({"error": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()

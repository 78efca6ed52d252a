"""A Pipeline between scripted WatchEvents, a fake Steering and real listening sockets. Entry point: ``open_flow``."""

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from random import Random
from typing import Any, ClassVar

import trio
from builders import plan_settings
from cli_driver import free_port

from userspace_proxy.config import FlowLimits, RelayLimits, SteeringKind
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.engines import Engines
from userspace_proxy.control.local_engine import NAME
from userspace_proxy.control.pipeline import Pipeline
from userspace_proxy.dataplane.base import DataPlane
from userspace_proxy.dataplane.counters import EngineCounters
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.engine_listeners import EngineListeners
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.node import Node
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Service
from userspace_proxy.plan.state import (
    Frontend,
    FrontendKind,
    ListenerKey,
    ListenerSpec,
    PlanSettings,
    Route,
    SourceAddresses,
)
from userspace_proxy.sources.base import Applied, Removed, Synced
from userspace_proxy.steering.base import (
    Placement,
    ServiceSteering,
    Steering,
    Surroundings,
    listener_key,
    node_port_placement,
)

SETTLE_S = 0.1
"""Virtual seconds in which all that can be done at once is done."""
DEADLINE_S = 1000.0
"""Virtual, too."""


class FakeSteering(Steering):
    """Steering that leads nothing anywhere: Listeners on 127.0.0.1, shared as those of iptables are.

    It notes what is asked of it, together with the Listeners that are open at that moment, and fails when told to.
    """

    kind: ClassVar[SteeringKind] = SteeringKind.IPTABLES

    def __init__(self) -> None:
        super().__init__()
        self.listeners: ListenerSet | None = None
        self.changed: list[set[str]] = []
        """The Services of each ``apply``."""
        self.applied: list[list[str]] = []
        """The Frontends that are to be steered after each ``apply``, as texts."""
        self.led_to: list[set[ListenerKey]] = []
        """The Listeners they are to be led to."""
        self.restricted: list[dict[Frontend, Route]] = []
        """The Routes of those that do not serve everybody."""
        self.surroundings: list[Surroundings] = []
        """Those of each ``apply``."""
        self.open_at_apply: list[set[ListenerKey]] = []
        """Those that were open when it began."""
        self.refreshes = 0
        self.failure = ""
        """What ``apply`` and ``refresh`` fail with."""
        self.unplaceable: set[str] = set()
        """Services that ``place`` fails for."""
        self.held: trio.Event | None = None
        """``apply`` waits for it."""
        self.on_place: Callable[[], object] = lambda: None
        """Called by each ``place``."""
        self.bug_in = ""
        """The method that is to raise what no caller expects, once."""
        self.refuses: dict[Frontend, str] = {}
        """What ``place`` leaves out, with the reasons."""
        self._services: dict[NamespacedName, ServiceSteering] = {}
        self._ports: dict[ListenerKey, int] = {}

    def place(self, frontends: Iterable[Frontend]) -> tuple[Placement, ...]:
        """Return shared Listeners, but for NodePorts and load balancer addresses."""
        frontends = tuple(frontends)
        self._strike("place")
        self.on_place()
        for frontend in frontends:
            if str(frontend.service_port.service) in self.unplaceable:
                raise SteeringError(f"no proxy port is left for {frontend.service_port.service}")
        served = (frontend for frontend in frontends if frontend not in self.refuses)
        return tuple(node_port_placement(frontend) or self._place(frontend) for frontend in served)

    def refused(self, frontends: Iterable[Frontend]) -> Mapping[Frontend, str]:
        """Return what the test has said."""
        return {frontend: self.refuses[frontend] for frontend in frontends if frontend in self.refuses}

    async def apply(self, changed: Mapping[NamespacedName, ServiceSteering], surroundings: Surroundings) -> None:
        """Note it, or fail."""
        assert self.listeners is not None
        after = {**self._services, **changed}
        services = [after[name] for name in sorted(after)]
        placements = [placement for service in services for placement in service.placements]
        self.changed.append({str(name) for name in changed})
        self.applied.append([str(placement.frontend) for placement in placements])
        self.restricted.append({key: route for service in services for key, route in service.restricted.items()})
        self.surroundings.append(surroundings)
        self.led_to.append({placement.listener.key for placement in placements})
        self.open_at_apply.append(set(self.listeners._serving))
        await trio.lowlevel.checkpoint()
        if self.held is not None:
            await self.held.wait()
        self._strike("apply")
        self._fail()
        self._services = after  # not before: it is to be asked again for what has failed

    async def refresh(self) -> None:
        """Note it, or fail."""
        await trio.lowlevel.checkpoint()
        self.refreshes += 1
        self._fail()

    async def aclose(self) -> None:
        """Do nothing."""
        await trio.lowlevel.checkpoint()

    def _place(self, frontend: Frontend) -> Placement:
        key = listener_key(frontend, is_shared=frontend.kind is not FrontendKind.LOAD_BALANCER)
        port = self._ports.get(key) or self._ports.setdefault(key, free_port())
        return Placement(frontend, ListenerSpec(key, IPv4Address("127.0.0.1"), port))

    def _fail(self) -> None:
        if self.failure:
            raise SteeringError(self.failure)

    def _strike(self, method: str) -> None:
        if self.bug_in == method:
            self.bug_in = ""
            raise RuntimeError(f"a bug in {method}")


class BuggyListenerSet(ListenerSet):
    """A ListenerSet whose methods raise once, when told to, what no caller expects."""

    bug_in = ""

    def __init__(self, plane: DataPlane, limits: RelayLimits) -> None:
        super().__init__(plane, limits)
        self.sources: list[SourceAddresses] = []
        """Those that were applied, in order."""

    def apply_sources(self, sources: SourceAddresses) -> None:
        """Note them, too."""
        self.sources.append(sources)
        super().apply_sources(sources)

    def __getattribute__(self, name: str) -> Any:
        """Return an attribute, or strike."""
        if name != "bug_in" and self.bug_in == name:
            self.bug_in = ""
            raise RuntimeError(f"a bug in {name}")
        return super().__getattribute__(name)


class SteppedEngines(Engines):
    """One engine that moves only when told to, of which a test says what is in force where."""

    failures = ()
    serves = True

    def __init__(self, engine: Engine, listeners: EngineListeners) -> None:
        self._engine = engine
        self._listeners = listeners
        self.in_force: dict[str, bool] = {NAME: True}
        """What ``settle`` returns."""

    @property
    def plane(self) -> EngineListeners:
        """What it serves."""
        return self._listeners

    @property
    def open_now(self) -> tuple[int, int]:
        """Connections and flows that are open."""
        return self._listeners.open_relays, self._listeners.open_flows

    async def run(self) -> None:
        """Do nothing, for ever."""
        await trio.sleep_forever()

    async def settle(self) -> Mapping[str, bool]:
        """Return what the test has said."""
        await trio.lowlevel.checkpoint()
        return dict(self.in_force)

    async def counters(self) -> Mapping[str, EngineCounters]:
        """Return the counters, up to date."""
        await trio.lowlevel.checkpoint()
        self._listeners.report()
        return {NAME: self._engine.counters}

    async def wait_empty(self) -> None:
        """Do nothing, for ever: nothing ends by itself here."""
        await trio.sleep_forever()

    async def log_state(self) -> None:
        """Say nothing."""
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """End all connections and flows."""
        self._listeners.abort()
        self._engine.close()


class Flow:
    """A Pipeline with what it works on."""

    def __init__(self) -> None:
        """Connect the parts; nothing runs yet."""
        self.steering = FakeSteering()
        self.engine = Engine(trio.current_time, _raise)
        flow_limits = FlowLimits(max_total_flows=100)
        self.served = EngineListeners(
            self.engine,
            RelayLimits(),
            flow_limits,
            Random(0).random,  # noqa: S311
            self._listen_again,
        )
        self.engines = SteppedEngines(self.engine, self.served)
        self.listeners = BuggyListenerSet(self.served, RelayLimits())
        self.steering.listeners = self.listeners
        self.counters = ControlCounters()
        self.settings = plan_settings()
        self.settings_failure: OSError | None = None
        """What it fails with to read them."""
        self.nodes: list[Node | None] = []
        """Those that settings were asked for."""
        self.wall_s = 1_700_000_000.0
        self.problems: list[Problem] = []
        """Those the Pipeline has told of."""
        self.pipeline = Pipeline(
            steering=self.steering,
            listeners=self.listeners,
            engines=self.engines,
            settings=self._read_settings,
            counters=self.counters,
            wall_clock=lambda: self.wall_s,
            on_problem=self.problems.append,
        )

    def _listen_again(self, key: ListenerKey) -> None:
        self.listeners.listen_again(key)

    def _read_settings(self, node: Node | None) -> PlanSettings:
        self.nodes.append(node)
        if self.settings_failure is not None:
            raise self.settings_failure
        return self.settings

    async def feed(self, *objects: Service | EndpointSlice | Node) -> None:
        """Feed objects that are new or have changed, as one batch."""
        await self.pipeline.feed([Applied(one) for one in objects])

    async def remove(self, *objects: Service | EndpointSlice) -> None:
        """Feed that objects are gone, as one batch."""
        await self.pipeline.feed([Removed(type(one), one.name) for one in objects])

    async def sync(self, *objects: Service | EndpointSlice) -> None:
        """Feed the first complete list, and let it come into force."""
        await self.feed(*objects)
        await self.pipeline.feed([Synced()])
        await self.settle()

    async def settle(self) -> None:
        """Let all happen that happens at once."""
        await trio.sleep(SETTLE_S)

    async def gather(self) -> None:
        """Bring the Pipeline to where it rests after a reconcile: what is fed from here on is one change."""
        await self.pipeline.feed([Synced()])
        await trio.testing.wait_all_tasks_blocked()

    def sockets(self) -> dict[str, int]:
        """Return the listening sockets that are open: ServicePort and port to a number that no other socket has."""
        return {
            f"{key.service_port} {sock.getsockname()[1]}": os.fstat(sock.fileno()).st_ino
            for key in self.listeners._serving
            for sock in self.listeners._sockets[key]
        }

    def backends(self) -> dict[str, list[str]]:
        """Return the Backends in force, by ServicePort and scope."""
        return {
            f"{key.service_port} {key.scope}": [str(member.backend) for member in pool.members]
            for key, pool in self.served.pools()
        }

    def close(self) -> None:
        """Close all sockets."""
        self.listeners.close_listeners()
        self.engines.abort()
        self.listeners.close()


def _raise(error: Exception) -> None:
    raise error


@asynccontextmanager
async def open_flow(*, running: bool = True) -> AsyncIterator[Flow]:
    """Yield a Flow, its Pipeline ``running``; at the end it is cancelled and all sockets are closed."""
    flow = Flow()
    try:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                if running:
                    nursery.start_soon(flow.pipeline.run)
                yield flow
                nursery.cancel_scope.cancel()
    finally:
        flow.close()

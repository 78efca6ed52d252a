"""Pipeline: from WatchEvents to what is in force, again and again.

Events are folded into the objects as they are now; a reconcile then plans the Services that changed, opens what is
new, has steering lead to it, and closes what is gone, in this order, so that no packet is led to where nobody listens.
A change of endpoints replaces a Pool or a Route and touches no socket and no rule.

What fails stays on the list and is tried again every few seconds; it never stops the rest. Nothing is opened or
steered before the source is synced: half a list would tear down what a run before has left in force.
"""

import logging
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping

import trio

from userspace_proxy.control.applied_state import AppliedState
from userspace_proxy.control.backlog import Backlog, Batch
from userspace_proxy.control.cooperate import cooperate
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.engines import Engines
from userspace_proxy.control.problem_log import ProblemLog
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.node import Node
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Service
from userspace_proxy.plan.build import build_steps, orphan_problems
from userspace_proxy.plan.state import DesiredState, HealthCheck, PlanSettings
from userspace_proxy.sources.base import Applied, ProblemsFound, Removed, Synced, WatchEvents
from userspace_proxy.steering.base import Placement, Steering

LOG = logging.getLogger(__name__)

COALESCE_S = 0.01
"""Rest after a reconcile in which further events gather; arbitrary: far below what a user notices."""
RETRY_S = 5.0
"""Between two attempts at what has failed, and two looks at the node's addresses; as kube-proxy for a port in use."""
REFRESH_S = 2.0
"""Between two looks at whether what steering has brought into force is still there; arbitrary, far below the time-outs
of clients."""

ObjectType = type[Service] | type[EndpointSlice] | type[Node]


class Pipeline:
    """Owns the objects, the DesiredState, and what has been applied of it."""

    def __init__(
        self,
        *,
        steering: Steering,
        listeners: ListenerSet,
        engines: Engines,
        settings: Callable[[Node | None], PlanSettings],
        counters: ControlCounters,
        wall_clock: Callable[[], float],
        on_problem: Callable[[Problem], None],
    ) -> None:
        """Connect the parts.

        Args:
            steering: Leads packets to the listeners.
            listeners: Opens and closes them.
            engines: Serve them.
            settings: Returns what plans depend on besides Services and EndpointSlices, for the Node as it is known;
                asked again when that changes, and every few seconds.
            counters: Gets what happens here.
            wall_clock: Seconds since the epoch.
            on_problem: Called with each Problem that has not been there before, once it is logged.
        """
        self._steering = steering
        self._engines = engines
        self._engines_in_force: Mapping[str, bool] = {}
        """By name: whether all is in force there."""
        self._read_settings = settings
        self._counters = counters
        self._wall_clock = wall_clock
        self._started_at_s = wall_clock()
        self._node: Node | None = None
        self._settings = settings(None)
        self._settings_are_due = False
        self._has_stale_settings = False
        """They could not be read when they were last asked for."""
        self._changes = Changes()
        self._problems = ProblemLog(on_problem)
        self._planning = trio.Lock()
        """Held while plans are made from the objects: events wait."""
        self._reconciling = trio.Lock()
        """Held during a reconcile: what is placed may not be open yet."""
        self._wake = trio.Event()
        self._synced = trio.Event()
        self._generation = 0
        self._backlog = Backlog()
        self._dirty: set[NamespacedName] = set()
        """Services that have changed and are not planned yet."""
        self._desired = DesiredState()
        self._applied = AppliedState(steering, listeners, counters)
        self._steer_wake = trio.Event()
        self._is_steering = False
        self.steering_failure = ""
        """Why packets do not reach the listeners as they should; empty when they do."""
        self.in_force = trio.Event()
        """Set once the first complete list has been applied, but for listeners that could not be opened."""

    @property
    def desired(self) -> DesiredState:
        """What should be."""
        return self._desired

    @property
    def settings(self) -> PlanSettings:
        """What the plans depend on besides Services and EndpointSlices."""
        return self._settings

    @property
    def services(self) -> Mapping[NamespacedName, Service]:
        """The Services there are: a live view."""
        return self._changes.services

    @property
    def node(self) -> Node | None:
        """The Node this runs on, None while it is not known."""
        return self._node

    @property
    def failures(self) -> tuple[str, ...]:
        """What is not in force though it should be, a sentence each; empty when all is well."""
        steering = (self.steering_failure,) if self.steering_failure else ()
        return (*steering, *self._applied.failures)

    @property
    def pending_since_s(self) -> float | None:
        """When the oldest change came that is not in force, or since when steering fails, in seconds since the epoch.

        None when all is in force. Single listeners that cannot be placed or opened do not count: see ``failures``.
        """
        return self._backlog.pending_since_s

    @property
    def updated_at_s(self) -> float | None:
        """When a change last came into force, in seconds since the epoch; None: never."""
        return self._counters.updated_at_s

    @property
    def health_checks(self) -> Mapping[NamespacedName, HealthCheck]:
        """What load balancers are told that ask for this node, by Service; a live view."""
        return self._applied.facts.health_checks

    @property
    def health_checks_changed(self) -> trio.Event:
        """The Event that is set when ``health_checks`` or ``settings`` next change; a new one takes its place then."""
        return self._applied.facts.health_checks_changed

    @property
    def placements_version(self) -> int:
        """A number that grows with each change of ``placements``."""
        return self._applied.placements_version

    def placements(self) -> Iterator[Placement]:
        """Iterate over where all Frontends are served, Service by Service in the order of their names."""
        return self._applied.placements()

    async def feed(self, events: WatchEvents) -> None:
        """Take in a batch of events, which takes effect as a whole; it is in force some milliseconds later."""
        async with self._planning:
            await cooperate(self._take_in(events))

    async def retain(self, names: Container[tuple[ObjectType, NamespacedName]]) -> None:
        """Forget all objects but these: a source that starts anew cannot say what it does not know of."""
        async with self._planning:
            for kind, name in list(self._changes.names()):
                if (kind, name) not in names:
                    self._remove(kind, name)
            if self._node is not None and (Node, NamespacedName("", self._node.name)) not in names:
                self._set_node(None)

    async def run(self) -> None:
        """Reconcile whenever something has changed or is to be tried again, for ever.

        Steering has a task of its own: a Pool must not wait for a command that waits for a lock.
        """
        await self._synced.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reconcile_for_ever)
            nursery.start_soon(self._steer_for_ever)
            nursery.start_soon(self._refresh_for_ever)

    def _take_in(self, events: WatchEvents) -> Generator[None, None, None]:
        for event in events:
            match event:
                case Applied(Node() as node):
                    self._set_node(node)
                case Applied(Service() | EndpointSlice() as obj):
                    if self._changes.apply(obj):
                        self._note_change(type(obj), obj)
                case Removed(kind, name):
                    self._remove(kind, name)
                case ProblemsFound():
                    yield from self._problems.replace(event.origin, event.problems)
                case Synced():
                    self._synced.set()
                    self._wake.set()
            yield

    def _remove(self, kind: ObjectType, name: NamespacedName) -> None:
        if kind is Node:
            self._set_node(None)
        elif kind is EndpointSlice:
            owner = self._changes.owner_of(name)
            if owner is not None and self._changes.remove(EndpointSlice, name):
                self._backlog.queued.triggers.pop(owner, None)
                self._note_change(EndpointSlice, None)
        elif self._changes.remove(Service, name):
            self._note_change(Service, None)

    def _set_node(self, node: Node | None) -> None:
        if node != self._node:
            self._node = node
            self._settings_are_due = True
            self._queue()

    def _note_change(self, kind: ObjectType, obj: Service | EndpointSlice | None) -> None:
        if kind is Service:
            self._backlog.queued.service_changes += 1
            self._counters.service_changes += 1
        else:
            self._backlog.queued.endpoint_changes += 1
            self._counters.endpoint_changes += 1
        if isinstance(obj, EndpointSlice) and (obj.triggered_at_s or 0.0) >= self._started_at_s:
            self._backlog.queued.triggers[obj.service].append((obj.family, obj.triggered_at_s or 0.0))
        self._queue()

    def _queue(self) -> None:
        now_s = self._wall_clock()
        self._backlog.queue(now_s)
        self._counters.queued_at_s = now_s
        self._tell_backlog()
        self._wake.set()

    async def _reconcile_for_ever(self) -> None:
        retry_at = trio.current_time()  # at once: this may be a start after a bug, with work left undone
        while True:
            with trio.move_on_at(retry_at):
                await self._wake.wait()
            retry = trio.current_time() >= retry_at
            if retry:
                retry_at = trio.current_time() + RETRY_S
            async with self._reconciling:
                await self._reconcile(retry=retry)
            await trio.sleep(COALESCE_S)

    async def _reconcile(self, *, retry: bool) -> None:
        """Bring what changed into force; ``retry``: try again what has failed, and look at the node."""
        started = trio.current_time()
        async with self._planning:
            self._wake = trio.Event()
            self._backlog.start_reconcile(started)
            if retry or self._settings_are_due:
                self._renew_settings()
            self._dirty |= self._changes.checkout()
            before = self._desired
            self._desired = await cooperate(build_steps(before, self._changes, self._dirty, self._settings))
            self._applied.want(self._desired, self._settings.sources)
            self._dirty.clear()
        for name, error in self._desired.failed.items():
            LOG.error("a bug in planning a Service; it stays as it was", extra={"service": str(name)}, exc_info=error)
            self._counters.unexpected_errors += 1
        replanned = self._desired.replanned
        changed = not self._applied.is_complete
        if replanned:
            await cooperate(self._say_problems(before, replanned))
        await cooperate(self._applied.apply(retry=retry))
        self._generation += changed
        self._applied.open_listeners(retry=retry)
        self._engines_in_force = await self._engines.settle()
        self._note_in_force(self._backlog.end_reconcile(replanned, self._applied.unsteered))
        if retry or (self._applied.steering_is_due and not self.steering_failure):
            self._steer_wake.set()
        self._account()
        if changed:
            self._counters.reconcile_duration.observe(trio.current_time() - started)

    def _renew_settings(self) -> None:
        try:
            settings = self._read_settings(self._node)
        except OSError as error:  # no file descriptor is left
            if not self._has_stale_settings:
                LOG.error(  # noqa: TRY400 - a known failure
                    "the addresses of this node cannot be read: %s; until they can, those known before count",
                    error.strerror,
                )
            self._has_stale_settings = self._settings_are_due = True
            return
        self._has_stale_settings = self._settings_are_due = False
        if settings != self._settings:
            self._settings = settings
            self._applied.facts.note_health_check_change()  # load balancers may have to ask elsewhere

    def _say_problems(self, before: DesiredState, replanned: Iterable[NamespacedName]) -> Generator[None, None, None]:
        for name in replanned:
            plan = self._desired.services.get(name)
            yield from self._problems.replace(f"plan {name}", plan.problems if plan else ())
            yield
        if any(name not in before.services or name not in self._desired.services for name in replanned):
            yield from self._problems.replace("orphans", orphan_problems(self._changes))

    def _note_in_force(self, batch: Batch) -> None:
        now_s = self._wall_clock()
        if batch.since_s is not None:
            self._counters.updated_at_s = now_s
        if batch.begun_s is not None:
            self._counters.sync_duration.observe(trio.current_time() - batch.begun_s)
        for family, triggered_at_s in batch.all_triggers():
            self._counters.network_programming_duration[family].observe(max(now_s - triggered_at_s, 0.0))

    def _account(self) -> None:
        """Note how far what is in force has come, once all of it is."""
        self._tell_backlog()
        is_due = self._applied.steering_is_due or self._is_steering or not self._applied.is_complete
        if not (self.failures or is_due):
            for name, is_in_force in self._engines_in_force.items():
                if is_in_force:
                    self._counters.applied_generation[name] = self._generation

    def _tell_backlog(self) -> None:
        self._counters.service_changes_pending = self._backlog.service_changes
        self._counters.endpoint_changes_pending = self._backlog.endpoint_changes
        if not self._applied.failures or self._counters.oldest_unapplied_change is None:
            self._counters.oldest_unapplied_change = self._backlog.pending_since_s

    async def _refresh_for_ever(self) -> None:
        """Have steering look after what it has brought into force; what has failed waits for the next retry."""
        while True:
            await trio.sleep(REFRESH_S)
            if not self.steering_failure:
                self._steer_wake.set()

    async def _steer_for_ever(self) -> None:
        while True:
            await self._steer_wake.wait()
            self._steer_wake = trio.Event()
            self._is_steering = True
            works = await self._steer()
            self._is_steering = False
            if works:
                async with self._reconciling:
                    self._account()
                self.in_force.set()

    async def _steer(self) -> bool:
        """Have packets led to the listeners, then close those nothing leads to any more; return whether it worked."""
        async with self._reconciling:
            work = self._applied.start_steering()
            self._backlog.start_steering()
        try:
            if work.is_due:
                await self._steering.apply(work.changed, work.surroundings)
            else:
                await self._steering.refresh()
        except BaseException as error:
            self._applied.fail_steering(work)
            self._backlog.fail_steering(self._wall_clock())
            self._tell_backlog()
            if not isinstance(error, SteeringError):
                raise
            self._counters.reconcile_failures["steering"] += 1
            if self.steering_failure != str(error):
                LOG.error("%s", error)  # noqa: TRY400 - a known failure
            self.steering_failure = str(error)
            return False
        if self.steering_failure:
            self.steering_failure = ""
            LOG.info("steering is in force after all")
        self._note_in_force(self._backlog.end_steering())
        if self._counters.updated_at_s is None:
            self._counters.updated_at_s = self._wall_clock()
        self._applied.end_steering(work)
        return True

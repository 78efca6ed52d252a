"""Pipeline: from WatchEvents to what is in force, again and again.

Events are folded into the objects as they are now; a reconcile then plans the Services that changed, opens what is
new, has steering lead to it, and closes what is gone, in this order, so that no packet is led to where nobody listens.
A change of endpoints replaces a Pool and touches no socket and no rule.

What fails stays on the list and is tried again every few seconds; it never stops the rest. Nothing is opened or
steered before the source is synced: half a list would tear down what a run before has left in force.
"""

import logging
from collections.abc import Callable, Container, Generator, Iterable

import trio

from userspace_proxy.control.cooperate import cooperate
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.problem_log import ProblemLog
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.service_port import Service
from userspace_proxy.plan.build import build_steps, orphan_problems
from userspace_proxy.plan.diff import diff_states
from userspace_proxy.plan.state import DesiredState, ListenerKey, PlanSettings, PoolKey
from userspace_proxy.sources.base import Applied, ProblemsFound, Removed, Synced, WatchEvent
from userspace_proxy.steering.base import Placement, Steering

LOG = logging.getLogger(__name__)

COALESCE_S = 0.01
"""Rest after a reconcile in which further events gather; arbitrary: far below what a user notices."""
RETRY_S = 5.0
"""Between two attempts at what has failed, and two looks at the node's addresses; as kube-proxy for a port in use."""


class Pipeline:
    """Owns the objects, the DesiredState, and what has been applied of it."""

    def __init__(
        self,
        *,
        steering: Steering,
        listeners: ListenerSet,
        settings: Callable[[], PlanSettings],
        counters: ControlCounters,
        wall_clock: Callable[[], float],
    ) -> None:
        """Connect the parts.

        Args:
            steering: Leads packets to the listeners.
            listeners: Opens and closes them.
            settings: Returns what plans depend on besides the objects; asked again every few seconds.
            counters: Gets what happens here.
            wall_clock: Seconds since the epoch, for metrics.
        """
        self._steering = steering
        self._listeners = listeners
        self._read_settings = settings
        self._settings = settings()
        self._counters = counters
        self._wall_clock = wall_clock
        self._changes = Changes()
        self._problems = ProblemLog()
        self._planning = trio.Lock()
        """Held while plans are made from the objects: events wait."""
        self._reconciling = trio.Lock()
        """Held during a reconcile: what is placed may not be open yet."""
        self._wake = trio.Event()
        self._synced = trio.Event()
        self._generation = 0
        self._oldest_since_checkout: float | None = None
        self._dirty: set[NamespacedName] = set()
        """Services that have changed and are not planned yet."""
        self._desired = DesiredState()
        self._applied = DesiredState()
        self._unapplied: set[NamespacedName] = set()
        """Services whose plan may differ between the two."""
        self._placements: dict[NamespacedName, tuple[Placement, ...]] = {}
        self._unplaced: dict[NamespacedName, str] = {}
        self._steering_is_due = True
        """What should be steered has changed since steering was last told."""
        self._steer_wake = trio.Event()
        self._is_steering = False
        self.steering_failure = ""
        """Why packets do not reach the listeners as they should; empty when they do."""
        self._listen_failures: dict[ListenerKey, str] = {}
        self._listeners_to_remove: set[ListenerKey] = set()
        self._pools_to_remove: set[PoolKey] = set()
        self.in_force = trio.Event()
        """Set once the first complete list has been applied, but for listeners that could not be opened."""

    @property
    def desired(self) -> DesiredState:
        """What should be."""
        return self._desired

    @property
    def failures(self) -> tuple[str, ...]:
        """What is not in force though it should be, a sentence each; empty when all is well."""
        steering = (self.steering_failure,) if self.steering_failure else ()
        return (*steering, *self._unplaced.values(), *self._listen_failures.values())

    def placements(self) -> Iterable[Placement]:
        """Iterate over where all Frontends are served, Service by Service in the order of their names."""
        for name in sorted(self._placements):
            yield from self._placements[name]

    async def feed(self, event: WatchEvent) -> None:
        """Take in one event; it is in force some milliseconds later."""
        async with self._planning:
            match event:
                case Applied():
                    self._changes.apply(event.object)
                case Removed():
                    self._changes.remove(event.type, event.name)
                case ProblemsFound():
                    await cooperate(self._problems.replace(event.origin, event.problems))
                    return
                case Synced():
                    self._synced.set()
            if self._oldest_since_checkout is None:
                self._oldest_since_checkout = self._wall_clock()
                if self._counters.oldest_unapplied_change is None:
                    self._counters.oldest_unapplied_change = self._oldest_since_checkout
            self._wake.set()

    async def retain(self, names: Container[tuple[type[Service] | type[EndpointSlice], NamespacedName]]) -> None:
        """Forget all objects but these: a source that starts anew cannot say what it does not know of."""
        async with self._planning:
            for kind, name in list(self._changes.names()):
                if (kind, name) not in names:
                    self._changes.remove(kind, name)
                    self._wake.set()

    async def run(self) -> None:
        """Reconcile whenever something has changed or is to be tried again, for ever.

        Steering has a task of its own: a Pool must not wait for a command that waits for a lock.
        """
        await self._synced.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reconcile_for_ever)
            nursery.start_soon(self._steer_for_ever)

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
        in_doubt = frozenset(self._unapplied)  # of a reconcile that a bug cut short: nobody knows how far it came
        async with self._planning:
            self._wake = trio.Event()
            self._oldest_since_checkout = None
            if retry:
                self._settings = self._read_settings()
            self._dirty |= self._changes.checkout()
            self._desired = await cooperate(build_steps(self._desired, self._changes, self._dirty, self._settings))
            self._dirty.clear()
        self._unapplied |= self._desired.replanned
        changed = bool(self._unapplied)
        if self._desired.replanned:
            await cooperate(self._say_problems(self._desired.replanned))
        await cooperate(self._apply_plans(in_doubt, self._unplaced.keys() if retry else ()))
        self._applied = self._desired
        self._unapplied.clear()
        self._generation += changed
        self._open_listeners(retry=retry)
        if retry or (self._steering_is_due and not self.steering_failure):
            self._steer_wake.set()
        self._account()
        if changed:
            self._counters.reconcile_duration.observe(trio.current_time() - started)

    def _say_problems(self, replanned: Iterable[NamespacedName]) -> Generator[None, None, None]:
        for name in replanned:
            plan = self._desired.services.get(name)
            yield from self._problems.replace(f"plan {name}", plan.problems if plan else ())
            yield
        yield from self._problems.replace("orphans", orphan_problems(self._changes))

    def _apply_plans(
        self, in_doubt: Iterable[NamespacedName], unplaced: Iterable[NamespacedName]
    ) -> Generator[None, None, None]:
        """Change Pools and the places of listeners, a Service at each step; may be repeated.

        Args:
            in_doubt: Services that something may have been done for which ``_applied`` does not know of.
            unplaced: Services to place again, though nothing has changed for them.
        """
        again = {*in_doubt, *unplaced}
        for name in in_doubt:
            self._apply_pools_anew(name)
            yield
        for name in self._unapplied:
            diff = diff_states(self._applied, self._desired, (name,))
            for pool in diff.pools_replaced:
                self._pools_to_remove.discard(pool.key)
                self._listeners.apply_pool(pool)
            self._pools_to_remove.update(diff.pools_removed)
            if diff.frontends_added or diff.frontends_removed:
                self._place(name)
                again.discard(name)
            yield
        for name in again:
            self._place(name)
            yield

    def _apply_pools_anew(self, name: NamespacedName) -> None:
        plan = self._desired.services.get(name)
        pools = plan.pools if plan else {}
        there = {key for key, _ in self._listeners.pools() if key.service_port.service == name}
        self._pools_to_remove |= there
        self._pools_to_remove -= pools.keys()
        for pool in pools.values():
            self._listeners.apply_pool(pool)

    def _place(self, name: NamespacedName) -> None:
        plan = self._desired.services.get(name)
        try:
            placements = self._steering.place(plan.frontends) if plan else ()
        except SteeringError as error:
            self._counters.reconcile_failures["place"] += 1
            if self._unplaced.get(name) != str(error):
                LOG.error("%s", error)  # noqa: TRY400 - a known failure
            self._unplaced[name] = str(error)
            return
        if self._unplaced.pop(name, None):
            LOG.info("has its place after all", extra={"service": str(name)})
        wanted = {placement.listener.key: placement.listener for placement in placements}
        self._listeners_to_remove -= wanted.keys()
        for spec in wanted.values():
            self._listeners.apply_listener(spec)
        for placement in self._placements.get(name, ()):
            key = placement.listener.key
            if key in wanted:
                continue
            if key.frontend is None:
                self._listeners_to_remove.add(key)  # rules still lead to it
            else:
                self._forget_listener(key)  # another Service may get its address in this very reconcile
        if placements:
            self._placements[name] = placements
        else:
            self._placements.pop(name, None)
        self._steering_is_due = True

    def _forget_listener(self, key: ListenerKey) -> None:
        self._listeners.remove_listener(key)
        self._listen_failures.pop(key, None)

    def _open_listeners(self, *, retry: bool) -> None:
        for key, error in self._listeners.open_missing(retry=retry).items():
            if error is None:
                LOG.info("listening after all", extra={"service": str(key.pool.service_port)})
                continue
            self._counters.listen_failures += 1
            if key not in self._listen_failures:
                self._listen_failures[key] = str(error)
                LOG.error("%s", error)
        for key in self._listen_failures.keys() - self._listeners.failed:
            del self._listen_failures[key]  # open now, or not wanted any more

    def _account(self) -> None:
        """Note how far what is in force has come, once all of it is."""
        if not (self.failures or self._steering_is_due or self._is_steering or self._unapplied):
            self._counters.oldest_unapplied_change = self._oldest_since_checkout
            self._counters.applied_generation["control"] = self._generation

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
            placements = list(self.placements()) if self._steering_is_due else None
            gone_listeners, gone_pools = set(self._listeners_to_remove), set(self._pools_to_remove)
            self._steering_is_due = False  # what changes from here on is for the next time
        try:
            if placements is not None:
                await self._steering.apply(placements)
            else:
                await self._steering.refresh()
        except BaseException as error:
            self._steering_is_due = True
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
        for key in gone_listeners & self._listeners_to_remove:
            self._forget_listener(key)
            self._listeners_to_remove.discard(key)
        for pool_key in gone_pools & self._pools_to_remove:
            self._listeners.remove_pool(pool_key)
            self._pools_to_remove.discard(pool_key)
        return True

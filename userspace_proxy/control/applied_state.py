"""AppliedState: what is in force of the DesiredState in this process, and what steering has to be told.

It opens what is new and replaces Pools and Routes at once; listeners and Pools that rules still lead to are closed
only once steering has been told, but for those of UDP. A change of one Service costs in proportion to it. It never
calls ``Steering.apply``, and plans nothing. Entry point: ``AppliedState``.
"""

import logging
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping

from attrs import frozen

from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.plan_facts import PlanFacts
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import NamespacedName, Protocol
from userspace_proxy.plan.claims import by_name
from userspace_proxy.plan.diff import diff_states
from userspace_proxy.plan.state import DesiredState, Frontend, ListenerKey, PoolKey, SourceAddresses
from userspace_proxy.steering.base import Placement, ServiceSteering, Steering, Surroundings

LOG = logging.getLogger(__name__)


@frozen
class SteeringWork:
    """What one run of steering is to do, and what it makes superfluous."""

    changed: Mapping[NamespacedName, ServiceSteering]
    """What is asked for now by the Services for which that may have changed."""
    surroundings: Surroundings
    is_due: bool
    """Whether there is anything new; else steering has only to follow the node."""
    listeners: frozenset[ListenerKey]
    """To be closed once nothing leads to them any more."""
    pools: frozenset[PoolKey]
    """To be forgotten after that."""


class AppliedState:
    """Owns what has been applied."""

    def __init__(self, steering: Steering, listeners: ListenerSet, counters: ControlCounters) -> None:
        """Start with nothing.

        Args:
            steering: Says where listeners are to be opened.
            listeners: Opens and closes them.
            counters: Gets what fails.
        """
        self._steering = steering
        self._listeners = listeners
        self._counters = counters
        self._state = DesiredState()
        self._desired = DesiredState()
        self._sources = SourceAddresses()
        self._unapplied: set[NamespacedName] = set()
        """Services whose plan may differ between ``_state`` and ``_desired``."""
        self._in_doubt: set[NamespacedName] = set()
        """Those of an ``apply`` that a bug cut short: nobody knows how far it came."""
        self._placements: dict[NamespacedName, tuple[Placement, ...]] = {}
        self._unplaced: dict[NamespacedName, str] = {}
        self._refused: dict[NamespacedName, Mapping[Frontend, str]] = {}
        """Frontends that are left out because of this node, with the reasons; Services without any are missing."""
        self._listen_failures: dict[ListenerKey, str] = {}
        self._listeners_to_remove: set[ListenerKey] = set()
        self._pools_to_remove: set[PoolKey] = set()
        self.facts = PlanFacts(counters)
        self.placements_version = 0
        """Grows with each change of ``placements``."""
        self.unsteered: set[NamespacedName] = set()
        """Services for which something has changed that steering has not been told of."""
        self.steering_is_due = True
        """What should be steered has changed since steering was last told."""

    @property
    def is_complete(self) -> bool:
        """Whether all that was wanted has been applied."""
        return not self._unapplied

    @property
    def failures(self) -> tuple[str, ...]:
        """What could not be placed or opened, a sentence each."""
        refused = (sentence for sentences in self._refused.values() for sentence in sentences.values())
        return (*self._unplaced.values(), *refused, *self._listen_failures.values())

    def placements(self) -> Iterator[Placement]:
        """Iterate over where all Frontends are served, Service by Service in the order of their names."""
        for name in sorted(self._placements, key=by_name):
            yield from self._placements[name]

    def want(self, desired: DesiredState, sources: SourceAddresses) -> None:
        """Take note of what should be; ``apply`` brings it into force."""
        self._in_doubt |= self._unapplied
        self._unapplied |= desired.replanned
        self._desired = desired
        if sources != self._sources:
            self._listeners.apply_sources(sources)
            self.steering_is_due |= sources.pod_networks != self._sources.pod_networks
            self._sources = sources

    def apply(self, *, retry: bool) -> Generator[None, None, None]:
        """Change Pools, Routes and the places of listeners, a Service at each step; may be repeated.

        Args:
            retry: Place those Services again of which not all found a place, if there may be one now.
        """
        again = {*self._in_doubt, *((*self._unplaced, *self._find_other_refusals()) if retry else ())}
        if self._in_doubt:
            yield from self._apply_pools_anew(self._in_doubt)
        for name in self._unapplied:
            diff = diff_states(self._state, self._desired, (name,))
            for pool in diff.pools_replaced:
                self._pools_to_remove.discard(pool.key)
                self._listeners.apply_pool(pool)
            if name in again or diff.frontends_added or diff.frontends_removed:
                self._place(name)
                again.discard(name)
            elif diff.routes_replaced:
                self._apply_routes(name)
            self._drop_pools(diff.pools_removed)
            if self.facts.update(name, self._desired.services.get(name)):
                self._note_unsteered(name)
            yield
        for name in again:
            self._place(name)
            yield
        self._state = self._desired
        self._unapplied.clear()
        self._in_doubt.clear()

    def open_listeners(self, *, retry: bool) -> None:
        """Open the listeners that should be open and are not.

        Args:
            retry: Those too that could not be opened before.
        """
        for key, error in self._listeners.open_missing(retry=retry).items():
            if error is None:
                LOG.info("has its port after all", extra={"service": str(key.service_port)})
                continue
            self._counters.listen_failures += 1
            if key not in self._listen_failures:
                self._listen_failures[key] = str(error)
                LOG.error("%s", error)
        for key in self._listen_failures.keys() - self._listeners.failed:
            del self._listen_failures[key]  # open now, or not wanted any more

    def start_steering(self) -> SteeringWork:
        """Return what steering is to do; what changes from here on is for the next time."""
        work = SteeringWork(
            changed={
                name: ServiceSteering(self._placements.get(name, ()), self.facts.restricted(name))
                for name in self.unsteered
            },
            surroundings=Surroundings(self._sources.pod_networks, self.facts.health_check_ports),
            is_due=self.steering_is_due,
            listeners=frozenset(self._listeners_to_remove),
            pools=frozenset(self._pools_to_remove),
        )
        self.steering_is_due = False
        self.unsteered.clear()
        return work

    def fail_steering(self, work: SteeringWork) -> None:
        """Note that steering has failed: all of it is due again."""
        self.steering_is_due = True
        self.unsteered |= work.changed.keys()

    def end_steering(self, work: SteeringWork) -> None:
        """Close what nothing leads to any more, unless it is wanted again."""
        for key in work.listeners & self._listeners_to_remove:
            self._forget_listener(key)
            self._listeners_to_remove.discard(key)
        for pool_key in work.pools & self._pools_to_remove:
            self._listeners.remove_pool(pool_key)
            self._pools_to_remove.discard(pool_key)

    def _apply_pools_anew(self, names: Iterable[NamespacedName]) -> Generator[None, None, None]:
        there = defaultdict(set)
        for key in self._listeners.pools:
            there[key.service_port.service].add(key)
        for name in names:
            plan = self._desired.services.get(name)
            pools = plan.pools if plan else {}
            self._pools_to_remove -= pools.keys()
            for pool in pools.values():
                self._listeners.apply_pool(pool)
            self._drop_pools(there[name] - pools.keys())
            yield

    def _drop_pools(self, keys: Iterable[PoolKey]) -> None:
        """Have Pools forgotten: those of TCP once nothing leads to them any more.

        Those of UDP at once. A client may send on and on, and none of that may reach what was a Backend of a Service
        that is no more, however long steering takes and whether it fails.
        """
        for key in keys:
            if key.service_port.protocol is Protocol.UDP:
                self._listeners.remove_pool(key)
            else:
                self._pools_to_remove.add(key)

    def _apply_routes(self, name: NamespacedName) -> None:
        routes = self._desired.services[name].routes
        found = {placement.listener.key: routes.get(placement.frontend) for placement in self._placements.get(name, ())}
        for key, route in found.items():  # Frontends that share a listener have equal Routes
            if route is not None:  # else it is there only because nothing else was found a place for
                self._listeners.apply_route(key, route)

    def _place(self, name: NamespacedName) -> None:
        plan = self._desired.services.get(name)
        try:
            placements = self._steering.place(plan.frontends) if plan else ()
        except SteeringError as error:
            self._counters.reconcile_failures["place"] += 1
            if self._unplaced.get(name) != str(error):
                LOG.error("%s", error)  # noqa: TRY400 - a known failure
            self._unplaced[name] = str(error)
            self._apply_routes(name)
            return
        self._note_refused(name, self._steering.refused(plan.frontends) if plan else {})
        routes = plan.routes if plan else {}
        wanted = {placement.listener.key: placement for placement in placements}
        before = self._placements.get(name, ())
        for key, placement in wanted.items():
            self._listeners.apply_listener(placement.listener, routes[placement.frontend])
            if placement not in before:  # noted at once: a bug below must not leave a listener that nobody knows of
                self._placements[name] = (*self._placements.get(name, ()), placement)
            self._listeners_to_remove.discard(key)
        for placement in before:
            key = placement.listener.key
            if key in wanted:
                continue
            if key.frontend is None and key.service_port.protocol is not Protocol.UDP:
                self._listeners_to_remove.add(key)  # rules still lead to it
            else:  # another Service may get its address in this very reconcile; of UDP see _drop_pools
                self._forget_listener(key)
        if placements:
            self._placements[name] = placements
        else:
            self._placements.pop(name, None)
        self.placements_version += placements != before
        if self._unplaced.pop(name, None):
            LOG.info("has its place after all", extra={"service": str(name)})
        self._note_unsteered(name)

    def _note_refused(self, name: NamespacedName, refused: Mapping[Frontend, str]) -> None:
        before = self._refused.pop(name, {})
        for frontend, sentence in refused.items():
            if before.get(frontend) != sentence:
                LOG.warning("%s", sentence)
        if refused:
            self._refused[name] = refused

    def _find_other_refusals(self) -> list[NamespacedName]:
        """Return the Services of which steering would refuse other Frontends now."""
        return [
            name
            for name, refused in self._refused.items()
            if (plan := self._state.services.get(name)) and self._steering.refused(plan.frontends) != refused
        ]

    def _note_unsteered(self, name: NamespacedName) -> None:
        self.unsteered.add(name)
        self.steering_is_due = True

    def _forget_listener(self, key: ListenerKey) -> None:
        self._listeners.remove_listener(key)
        self._listen_failures.pop(key, None)

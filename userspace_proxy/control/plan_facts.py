"""What follows from the plans of all Services together, kept up to date Service by Service.

Each update costs in proportion to the one Service. Entry point: ``PlanFacts``.
"""

from collections.abc import Mapping

import trio
from attrs import frozen

from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.model.names import Family, NamespacedName, Protocol
from userspace_proxy.plan.state import Frontend, HealthCheck, PolicyClass, Route, ServicePlan, Verdict


@frozen
class _Facts:
    """What one Service contributes."""

    restricted: Mapping[Frontend, Route] = {}
    """The Routes that need rules."""
    no_local_endpoints: tuple[tuple[PolicyClass, Family], ...] = ()
    """One for each ServicePort."""
    unserved: tuple[Protocol, ...] = ()
    """One for each ServicePort."""
    health_check: HealthCheck | None = None


_NONE = _Facts()


class PlanFacts:
    """Sums and selections over the plans that are in force."""

    def __init__(self, counters: ControlCounters) -> None:
        """Start without plans; ``counters`` gets the sums."""
        self._counters = counters
        self._facts: dict[NamespacedName, _Facts] = {}
        """Without those of Services that contribute nothing."""
        self._health_checks: dict[NamespacedName, HealthCheck] = {}
        self.health_checks_changed = trio.Event()
        """Set when ``health_checks`` changes; then another one takes its place."""

    @property
    def health_checks(self) -> Mapping[NamespacedName, HealthCheck]:
        """What load balancers are told, by Service: a live view."""
        return self._health_checks

    def update(self, name: NamespacedName, plan: ServicePlan | None) -> bool:
        """Take in the plan of a Service, None for one that is gone; return whether steering has to be told."""
        new = _facts_of(plan) if plan else _NONE
        old = self._facts.pop(name, _NONE)
        if new != _NONE:
            self._facts[name] = new
        for counted in new.no_local_endpoints:
            self._counters.no_local_endpoints[counted] += 1
        for counted in old.no_local_endpoints:
            self._counters.no_local_endpoints[counted] -= 1
        for protocol in new.unserved:
            self._counters.unserved_ports[protocol] += 1
        for protocol in old.unserved:
            self._counters.unserved_ports[protocol] -= 1
        self._replace_health_check(name, old.health_check, new.health_check)
        return new.restricted != old.restricted or _port(new.health_check) != _port(old.health_check)

    @property
    def health_check_ports(self) -> frozenset[int]:
        """The ports at which load balancers ask for this node."""
        return frozenset(check.port for check in self._health_checks.values())

    def restricted(self, name: NamespacedName) -> Mapping[Frontend, Route]:
        """Return the Routes of a Service that do not serve everybody.

        Those that refuse everybody are not among them: there is no need of a rule, as nobody listens.
        """
        return self._facts.get(name, _NONE).restricted

    def note_health_check_change(self) -> None:
        """Have whoever waits for ``health_checks_changed`` look again."""
        self.health_checks_changed.set()
        self.health_checks_changed = trio.Event()

    def _replace_health_check(self, name: NamespacedName, old: HealthCheck | None, new: HealthCheck | None) -> None:
        if new == old:
            return
        if new is None:
            del self._health_checks[name]
        else:
            self._health_checks[name] = new
        self.note_health_check_change()


def _facts_of(plan: ServicePlan) -> _Facts:
    dropping = {
        (frontend.service_port, frontend.policy, frontend.family)
        for frontend, route in plan.routes.items()
        if _drops(route)
    }
    return _Facts(
        restricted={
            frontend: route
            for frontend, route in plan.routes.items()
            if _drops(route) or (route.source_ranges and route.pools)
        },
        no_local_endpoints=tuple((policy, family) for _, policy, family in dropping),
        unserved=tuple(service_port.protocol for service_port in plan.unserved),
        health_check=plan.health_check,
    )


def _drops(route: Route) -> bool:
    return Verdict.DROP in (route.pod, route.host, route.outside)


def _port(check: HealthCheck | None) -> int | None:
    return None if check is None else check.port

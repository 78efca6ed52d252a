"""Builds plans for tests and says in few words what they do with a client."""

from collections.abc import Iterable

from builders import named, plan_settings

from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.service_port import Service
from userspace_proxy.plan.build import build_steps
from userspace_proxy.plan.state import DesiredState, Frontend, PlanSettings, ServicePlan, SourceClass, Verdict

SETTINGS = plan_settings(local_addresses=["192.0.2.1"], node_name="here", zone="near", node_addresses=["192.0.2.1"])
"""Of a node ``here`` in the zone ``near``, with one address."""


def changes_of(*objects: Service | EndpointSlice) -> Changes:
    """Return the fold of objects."""
    changes = Changes()
    for obj in objects:
        changes.apply(obj)
    return changes


def build_state(
    previous: DesiredState, changes: Changes, dirty: Iterable[NamespacedName], settings: PlanSettings
) -> DesiredState:
    """Return the result of ``build_steps``, all at once."""
    steps = build_steps(previous, changes, dirty, settings)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            desired: DesiredState = stop.value
            return desired


def build(*objects: Service | EndpointSlice, settings: PlanSettings = SETTINGS) -> DesiredState:
    """Return the state built of objects, from nothing."""
    changes = changes_of(*objects)
    return build_state(DesiredState(), changes, changes.checkout(), settings)


def plan_of(*objects: Service | EndpointSlice, of: str = "shop/web", settings: PlanSettings = SETTINGS) -> ServicePlan:
    """Return the plan of one of the Services among some objects."""
    return build(*objects, settings=settings).services[named(of)]


def frontend_of(plan: ServicePlan, text: str) -> Frontend:
    """Return the Frontend that prints as a text."""
    (found,) = [one for one in plan.routes if str(one) == text]
    return found


def reached(plan: ServicePlan, text: str, source: SourceClass) -> str:
    """Return the addresses a client of a class is led to at the Frontend that prints so, else the Verdict."""
    target = plan.routes[frontend_of(plan, text)].target(source)
    if isinstance(target, Verdict):
        return str(target)
    return " ".join(str(one.address) for one in plan.pools[target].backends)


def problem_texts(plan: ServicePlan) -> list[str]:
    """Return the Problems of a plan without what they are about."""
    return [f"{one.severity} {one.field}: {one.text}" for one in plan.problems]

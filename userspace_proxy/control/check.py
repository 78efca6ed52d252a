"""What a run would do with some manifests or the objects of the API server, and all that is wrong; opens nothing.

Entry point: ``run_check``. Steering is probed, as that is part of the answer; the probe leaves nothing behind.
"""

from collections.abc import Sequence

from attrs import frozen

from userspace_proxy.config import Config
from userspace_proxy.control.cooperate import cooperate
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.node import Node
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Service
from userspace_proxy.plan.build import build_steps, orphan_problems
from userspace_proxy.plan.settings import plan_settings_for
from userspace_proxy.plan.state import DesiredState
from userspace_proxy.sources.api_source import read_api
from userspace_proxy.sources.base import Applied, ProblemsFound, WatchEvent
from userspace_proxy.sources.manifests import read_manifests
from userspace_proxy.steering.base import Placement
from userspace_proxy.steering.node_state import read_local_addresses
from userspace_proxy.steering.probe import choose_steering


@frozen
class CheckResult:
    """The answer of ``run_check``."""

    desired: DesiredState
    placements: tuple[Placement, ...]
    """Service by Service in the order of their names."""
    steering: tuple[str, ...]
    """What is to be known of the steering chosen, a line each."""
    clients_dial_listener: bool
    """See ``Steering``."""
    problems: tuple[Problem, ...]
    """Errors first, then by origin."""

    @property
    def has_errors(self) -> bool:
        """Whether something that the objects ask for is not served."""
        return any(problem.severity is Severity.ERROR for problem in self.problems)


async def run_check(config: Config) -> CheckResult:
    """Return what a run with this configuration would do.

    Raises:
        ConfigError: a path does not exist, or the API server cannot be found by what the configuration names.
        ApiError: the API server gives no complete answer.
        SteeringError: the steering asked for does not work here.
    """
    changes = Changes()
    problems: list[Problem] = []
    node: Node | None = None
    for event in await _read(config):
        match event:
            case Applied(Node() as node):
                pass
            case Applied(Service() | EndpointSlice() as obj):
                changes.apply(obj)
            case ProblemsFound():
                problems.extend(event.problems)
    settings = plan_settings_for(config, node, read_local_addresses())
    desired = await cooperate(build_steps(DesiredState(), changes, changes.checkout(), settings))
    for error in desired.failed.values():
        raise error
    problems.extend(orphan_problems(changes))
    chosen = await choose_steering(config)
    placements: list[Placement] = []
    for name, plan in sorted(desired.services.items()):
        problems.extend(plan.problems)
        try:
            placements.extend(chosen.steering.place(plan.frontends))
        except SteeringError as error:
            problems.append(Problem(Severity.ERROR, f"Service {name}", "", str(error)))
        else:
            refused = chosen.steering.refused(plan.frontends).values()
            problems.extend(Problem(Severity.WARNING, f"Service {name}", "", sentence) for sentence in refused)
    problems.sort(key=lambda problem: (problem.severity is not Severity.ERROR, problem.origin, problem))
    return CheckResult(
        desired, tuple(placements), chosen.explain(), chosen.steering.clients_dial_listener, tuple(problems)
    )


async def _read(config: Config) -> Sequence[WatchEvent]:
    if config.manifests:
        return await read_manifests(config.manifests)
    return read_api(config.api, node_name=config.node_name)  # it blocks, and nobody waits here

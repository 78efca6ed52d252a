"""What a run would do with some manifests, and everything that is wrong with them; opens nothing.

Entry point: ``run_check``. Steering is probed, as that is part of the answer; the probe leaves nothing behind.
"""

from attrs import frozen

from userspace_proxy.config import Config
from userspace_proxy.control.cooperate import cooperate
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.changes import Changes
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.plan.build import build_steps, orphan_problems
from userspace_proxy.plan.state import DesiredState, PlanSettings
from userspace_proxy.sources.base import Applied, ProblemsFound
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
        """Whether something that the manifests ask for is not served."""
        return any(problem.severity is Severity.ERROR for problem in self.problems)


async def run_check(config: Config) -> CheckResult:
    """Return what a run with this configuration would do.

    Raises:
        ConfigError: a path does not exist.
        SteeringError: the steering asked for does not work here.
    """
    changes = Changes()
    problems: list[Problem] = []
    for event in await read_manifests(config.manifests):
        if isinstance(event, Applied):
            changes.apply(event.object)
        elif isinstance(event, ProblemsFound):
            problems.extend(event.problems)
    settings = PlanSettings(config.balance, read_local_addresses())
    desired = await cooperate(build_steps(DesiredState(), changes, changes.checkout(), settings))
    problems.extend(orphan_problems(changes))
    chosen = await choose_steering(config)
    placements: list[Placement] = []
    for name, plan in sorted(desired.services.items()):
        problems.extend(plan.problems)
        try:
            placements.extend(chosen.steering.place(plan.frontends))
        except SteeringError as error:
            problems.append(Problem(Severity.ERROR, f"Service {name}", "", str(error)))
    problems.sort(key=lambda problem: (problem.severity is not Severity.ERROR, problem.origin, problem))
    return CheckResult(
        desired, tuple(placements), chosen.explain(), chosen.steering.clients_dial_listener, tuple(problems)
    )

"""Which kind of steering: the one asked for, or the first that works here. Entry point: ``choose_steering``."""

from collections.abc import Iterable
from ipaddress import IPv4Network

from attrs import frozen

from userspace_proxy.config import Config, SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.base import Steering
from userspace_proxy.steering.iptables.steering import open_iptables
from userspace_proxy.steering.local_route.steering import open_local_route
from userspace_proxy.steering.loopback import open_loopback
from userspace_proxy.steering.low_ports import find_first_port
from userspace_proxy.steering.nftables.steering import open_nftables
from userspace_proxy.steering.none import NoSteering

_AUTO_ORDER = (SteeringKind.IPTABLES, SteeringKind.NFTABLES, SteeringKind.LOCAL_ROUTE, SteeringKind.LOOPBACK)
"""Kinds that can keep clients away come first, the one that asks something of clients last. ``none`` is never chosen:
that is the user's to say."""
_LOOPBACK = IPv4Network("127.0.0.0/8")


@frozen
class Refusal:
    """A kind that does not work here."""

    kind: SteeringKind
    reason: str
    """One clause."""

    def __str__(self) -> str:
        """Return ``iptables: not permitted (needs NET_ADMIN)``."""
        return f"{self.kind}: {self.reason}"


@frozen
class Chosen:
    """The kind that is to be used, and why not an earlier one."""

    steering: Steering
    refusals: tuple[Refusal, ...]
    """In the order in which they were tried; empty for a kind that was asked for by name."""
    costs: tuple[str, ...] = ()
    """What rights or settings that are missing cost, a sentence each."""

    def explain(self) -> tuple[str, ...]:
        """Return what a user should know about the choice, one line each, for the log and for ``check``."""
        return (
            *(f"steering {refusal.kind} does not work here: {refusal.reason}" for refusal in self.refusals),
            f"steering {self.steering.kind} is used",
            *(
                f"{family} addresses of Services are not served: {reason}"
                for family, reason in self.steering.refused_families.items()
            ),
            *(
                f"{family} clients that a traffic policy or source ranges keep away are reset, not dropped: {reason}"
                for family, reason in self.steering.unfiltered_families.items()
            ),
            *self.steering.remarks,
            *self.costs,
        )


async def choose_steering(config: Config) -> Chosen:
    """Return the steering for a run, found by really doing the smallest thing it would do, and undoing it.

    Nothing is left in the kernel and nothing is written to the state directory before ``Steering.apply``.

    Raises:
        SteeringError: what was asked for does not work here, or nothing does; the sentence says why and what else.
    """
    assignments = Assignments(config)
    if config.steering is not SteeringKind.AUTO:
        try:
            return _chosen(await _open(config.steering, config, assignments))
        except SteeringError as error:
            raise SteeringError(
                f"--steering {config.steering} does not work here: {error}; --steering auto finds what does"
            ) from error
    refusals: list[Refusal] = []
    for kind in _AUTO_ORDER:
        try:
            return _chosen(await _open(kind, config, assignments), refusals)
        except SteeringError as error:
            refusals.append(Refusal(kind, str(error)))
    reasons = "; ".join(str(refusal) for refusal in refusals)
    raise SteeringError(f"no kind of steering works here: {reasons}; --steering none serves NodePorts alone")


def _chosen(steering: Steering, refusals: Iterable[Refusal] = ()) -> Chosen:
    cost = _cost_of_missing_ports() if steering.kind is SteeringKind.LOCAL_ROUTE else ""
    return Chosen(steering, tuple(refusals), (cost,) if cost else ())


def _cost_of_missing_ports() -> str:
    """Return what it costs that low ports may not be bound, for a kind that binds those of Services; empty: nothing."""
    try:
        first_port = find_first_port(_LOOPBACK)
    except OSError:  # it says nothing about other addresses
        return ""
    if first_port == 1:
        return ""
    return (
        f"ports of Services below {first_port} are not served, as this process may not bind them: give it "
        "CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start"
    )


async def _open(kind: SteeringKind, config: Config, assignments: Assignments) -> Steering:
    match kind:
        case SteeringKind.IPTABLES:
            return await open_iptables(assignments, config.runtime_dir)
        case SteeringKind.NFTABLES:
            return await open_nftables(assignments)
        case SteeringKind.LOCAL_ROUTE:
            return await open_local_route(config.service_cidrs)
        case SteeringKind.LOOPBACK:
            return open_loopback(assignments)
        case _:
            return NoSteering()

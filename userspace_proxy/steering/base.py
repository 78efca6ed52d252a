"""The interface of every kind of steering.

A kind answers two questions: where are the Listeners for the Frontends of a Service to be opened (``place``, no
effect outside the process), and what has to be in force so that packets get there (``apply``). It never opens a
Listener itself.
"""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from attrs import field, frozen

from userspace_proxy.config import SteeringKind
from userspace_proxy.model.names import Family, IPAddress, IPNetwork, NamespacedName
from userspace_proxy.plan.state import Frontend, FrontendKind, ListenerKey, ListenerSpec, Route

_log = logging.getLogger(__name__)

WILDCARD: Mapping[Family, IPAddress] = {Family.IPV4: IPv4Address("0.0.0.0"), Family.IPV6: IPv6Address("::")}  # noqa: S104


@frozen
class Placement:
    """Where connections for one Frontend arrive."""

    frontend: Frontend
    listener: ListenerSpec
    """Frontends that share a Listener have equal ones."""

    @property
    def listens_at(self) -> str:
        """The Listener's address and port, as ``127.96.3.4:80`` or ``[::]:30080``."""
        address = self.listener.address
        host = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
        return f"{host}:{self.listener.port}"

    def __str__(self) -> str:
        """Return ``10.96.0.10:80/TCP -> 127.96.3.4:80``."""
        return f"{self.frontend} -> {self.listens_at}"


@frozen
class ServiceSteering:
    """What steering has to do for one Service."""

    placements: tuple[Placement, ...] = ()
    """Where its Frontends are served."""
    restricted: Mapping[Frontend, Route] = field(factory=dict)
    """The Routes of those that do not serve everybody, whether for want of a Pool or by ``source_ranges``. A kind with
    rules keeps away whom they drop; Listeners reset what comes through."""


@frozen
class Surroundings:
    """What steering has to know besides Services."""

    pod_networks: tuple[IPNetwork, ...] = ()
    """See ``SourceAddresses``."""
    health_check_ports: frozenset[int] = frozenset()
    """TCP ports of this node that must be reachable for load balancers."""


class Steering(ABC):
    """One kind of steering, from its start to ``aclose``.

    The methods may be called from several tasks; those with effects wait for each other.
    """

    kind: ClassVar[SteeringKind]
    clients_dial_listener: ClassVar[bool] = False
    """True: nothing leads from a cluster address to its Listener, so users have to be told where to dial instead."""
    refused_families: Mapping[Family, str] = {}
    """Families whose cluster, external and load balancer addresses this kind cannot serve here, each with the reason;
    ``place`` leaves them out."""
    unfiltered_families: Mapping[Family, str] = {}
    """Families in which this kind cannot drop packets here, each with the reason; Listeners reset instead."""
    remarks: tuple[str, ...] = ()
    """What else a user should know of this kind on this node, a sentence each."""

    def __init__(self) -> None:
        self.repairs: Counter[str] = Counter()
        """How often something of ours was found missing or changed by others and was put back, by where it was."""

    def _note_repair(self, where: str) -> None:
        """Count that something was put back, and say so.

        Args:
            where: As ``IPv4 nat`` or ``IPv6 routes``.
        """
        self.repairs[where] += 1
        _log.warning("what others had removed or changed is back", extra={"resource": where})

    @abstractmethod
    def place(self, frontends: Iterable[Frontend]) -> tuple[Placement, ...]:
        """Return where the Listeners for Frontends are to be opened, always the same for the same Frontends.

        Args:
            frontends: All Frontends of one Service: a kind may have to choose between them.

        Returns:
            In the order of ``frontends``, without those that this kind does not serve: under ``none`` all but
            NodePorts, those of a refused family, under ``loopback`` external and load balancer addresses, and the IPv6
            ones of a port that has an IPv4 one.

        Raises:
            SteeringError: no proxy port or address is left; the sentence names the setting.
        """

    def refused(self, frontends: Iterable[Frontend]) -> Mapping[Frontend, str]:  # noqa: ARG002 - most kinds need none
        """Return the Frontends that ``place`` leaves out because of this node, each with a sentence that says why."""
        return {}

    @abstractmethod
    async def apply(self, changed: Mapping[NamespacedName, ServiceSteering], surroundings: Surroundings) -> None:
        """Bring into force what some Services ask for; what all others asked for before stays.

        Args:
            changed: Each replaces what its Service asked for before; an empty one is for a Service that is gone. At the
                first call it has all Services there are: what an earlier run has left besides is removed.
            surroundings: As they are now.

        Raises:
            SteeringError: not all of it is in force; what was before may be. To be called again with at least the same.
        """

    @abstractmethod
    async def refresh(self) -> None:
        """Follow the node, and put back what others have removed. To be called every few seconds; cheap if idle.

        Does nothing before the first ``apply``.

        Raises:
            SteeringError: as ``apply``.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Remove all that ``apply`` brought into force, and nothing if it was never called.

        Cancellation: it still does its work, which is bounded in time.

        Raises:
            SteeringError: something was left; the sentence says what, and how to remove it.
        """


def listener_key(frontend: Frontend, *, is_shared: bool) -> ListenerKey:
    """Return the key of the Listener for a Frontend: one of its own, or that of all with the same Route."""
    return ListenerKey(frontend.service_port, frontend.policy, frontend.family, None if is_shared else frontend)


def node_port_placement(frontend: Frontend) -> Placement | None:
    """Return where a NodePort is bound, in every kind: directly, on its addresses; None for other Frontends."""
    if frontend.kind is not FrontendKind.NODE_PORT:
        return None
    address = WILDCARD[frontend.family] if frontend.address is None else frontend.address
    return Placement(frontend, ListenerSpec(listener_key(frontend, is_shared=False), address, frontend.port))

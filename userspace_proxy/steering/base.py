"""The interface of every kind of steering.

A kind answers two questions: where are the Listeners for the Frontends of a Service to be opened (``place``, no
effect outside the process), and what has to be in force so that packets get there (``apply``). It never opens a
Listener itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar

from attrs import frozen

from userspace_proxy.config import SteeringKind
from userspace_proxy.model.names import Family, IPAddress
from userspace_proxy.plan.state import Frontend, FrontendKind, ListenerKey, ListenerSpec, Restrictions

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
    """Families in which this kind would drop packets but cannot here, each with the reason; Listeners reset instead."""

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

    @abstractmethod
    async def apply(self, placements: Iterable[Placement], restrictions: Restrictions) -> None:
        """Bring the whole of ``placements`` into force, and nothing else; a repeated call changes nothing.

        Args:
            placements: Those of all Services, in any order. What was placed and is not among them counts as gone.
            restrictions: Who is to be kept away from some of them. A kind without rules leaves that to Listeners.

        Raises:
            SteeringError: it is not in force; what was in force before still is, and a later call may succeed.
        """

    @abstractmethod
    async def refresh(self) -> None:
        """Follow the node: bring into force again what it has outdated. To be called every few seconds; cheap if idle.

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

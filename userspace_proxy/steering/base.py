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
from userspace_proxy.plan.state import Frontend, FrontendKind, ListenerKey, ListenerSpec, PoolKey

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
    """Families whose cluster addresses this kind cannot serve here, each with the reason; ``place`` leaves them out."""

    @abstractmethod
    def place(self, frontends: Iterable[Frontend]) -> tuple[Placement, ...]:
        """Return where the Listeners for Frontends are to be opened, always the same for the same Frontends.

        Args:
            frontends: All Frontends of one Service: a kind may have to choose between them.

        Returns:
            In the order of ``frontends``, without those that this kind does not serve: cluster addresses under
            ``none``, those of a refused family, the IPv6 ones of a port under ``loopback`` if it has an IPv4 one.

        Raises:
            SteeringError: no proxy port or address is left; the sentence names the setting.
        """

    @abstractmethod
    async def apply(self, placements: Iterable[Placement]) -> None:
        """Bring the whole of ``placements`` into force, and nothing else; a repeated call changes nothing.

        Args:
            placements: Those of all Services. What was placed and is not among them counts as gone.

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


def pool_key(frontend: Frontend) -> PoolKey:
    """Return the key of the Pool behind a Frontend."""
    return PoolKey(frontend.service_port, frontend.policy, frontend.family)


def node_port_placement(frontend: Frontend) -> Placement | None:
    """Return where a NodePort is bound, in every kind: directly, on all addresses; None for other Frontends."""
    if frontend.kind is not FrontendKind.NODE_PORT:
        return None
    key = ListenerKey(pool_key(frontend), frontend)
    return Placement(frontend, ListenerSpec(key, WILDCARD[frontend.family], frontend.port))

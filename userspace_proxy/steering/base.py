"""The interface of every kind of steering.

A kind answers two questions: where is the Listener for a Frontend to be opened (``listener_for``, no effect), and
what has to be in force so that packets get there (``apply``). It never opens a Listener itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address

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


class Steering(ABC):
    """One kind of steering, from its start to ``aclose``."""

    kind: SteeringKind

    @abstractmethod
    def listener_for(self, frontend: Frontend) -> ListenerSpec | None:
        """Return where the Listener of a Frontend is to be opened, always the same for the same Frontend.

        None: this kind cannot serve it (``none`` and a cluster address; an IPv6 cluster address on loopback).

        Raises:
            SteeringError: no proxy port or address is left; the sentence names the setting.
        """

    @abstractmethod
    async def apply(self, placements: Iterable[Placement]) -> None:
        """Bring the whole of ``placements`` into force, and nothing else; a repeated call changes nothing.

        Raises:
            SteeringError: it is not in force; what was in force before still is, and a later call may succeed.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Remove all that ``apply`` brought into force.

        Raises:
            SteeringError: something was left; the sentence says what, and how to remove it.
        """


def pool_key(frontend: Frontend) -> PoolKey:
    """Return the key of the Pool behind a Frontend."""
    return PoolKey(frontend.service_port, frontend.policy, frontend.family)


def node_port_listener(frontend: Frontend) -> ListenerSpec | None:
    """Return the Listener of a NodePort, which every kind binds directly on all addresses; None for other kinds."""
    if frontend.kind is not FrontendKind.NODE_PORT:
        return None
    return ListenerSpec(ListenerKey(pool_key(frontend), frontend), WILDCARD[frontend.family], frontend.port)

"""Steering by rules of the kernel: what the kinds with rules have in common, whichever tool writes the rules.

Rules lead packets for cluster, external and load balancer addresses to proxy ports, guard these, and drop whom a
traffic policy or source ranges keep away. Each family has rules of its own and goes on without the other. Afterwards no
UDP client may stay where old rules led it: see ``conntrack``. Which text a rule has is the matter of ``FamilyRules``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

import trio
from attrs import frozen

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, IPAddress, NamespacedName, Protocol
from userspace_proxy.plan.state import Frontend, FrontendKind, ListenerSpec, Route, SteeringRule
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.base import (
    WILDCARD,
    Placement,
    ServiceSteering,
    Steering,
    Surroundings,
    listener_key,
    node_port_placement,
)
from userspace_proxy.steering.conntrack.conntrack import Conntrack
from userspace_proxy.steering.conntrack.messages import Place
from userspace_proxy.steering.conntrack.stale_entries import ANY_LOCAL
from userspace_proxy.steering.node_state import NodeAddresses, read_node_addresses

ProxyPorts = Mapping[tuple[IPAddress, int, Protocol], int]
"""Proxy ports by the address, port and protocol that rules lead to them."""


@frozen
class PortRule:
    """Who may open connections at a port of this node."""

    protocol: Protocol
    address: IPAddress | None
    """None: at every address of the node."""
    port: int
    is_proxy_port: bool
    """Only connections that rules have led here may be opened, and they may whatever later rules say."""
    route: Route | None
    """That of the Listener, if it does not serve everybody; whom it drops must not get through."""


@frozen
class ServiceRules:
    """What one Service asks of the rules of one family."""

    steered: tuple[SteeringRule, ...] = ()
    ports: tuple[PortRule, ...] = ()
    """Of proxy ports all; of NodePorts those that do not serve everybody."""


@frozen
class Conditions:
    """What rules depend on besides Services."""

    surroundings: Surroundings
    interfaces: tuple[str, ...] = ()
    """Those of this node with an IPv4 address, in any order."""
    node_address: IPv4Address | None = None
    """Where IPv4 packets from all other interfaces are led; None: they cannot be led anywhere."""


class FamilyRules(ABC):
    """The rules of one family in the kernel, and what they should be."""

    family: Family
    unfiltered_reason: str
    """Why clients cannot be kept away here, nor proxy ports guarded; empty where they can."""

    @abstractmethod
    async def read_proxy_ports(self) -> ProxyPorts:
        """Return where the rules lead that an earlier run has left; nothing where they cannot be read."""

    @abstractmethod
    async def update(self, changed: Mapping[NamespacedName, ServiceRules], conditions: Conditions) -> None:
        """Bring into force what some Services ask for, in place of what they asked for before.

        Only what differs is written, by one command; all of it at the first call and after a failure, whereby all that
        is there of ours besides is removed. What has failed is noted all the same, for the next call.

        Args:
            changed: An empty value is for a Service that is gone.
            conditions: As they are now.

        Raises:
            SteeringError: not all of it is in force; the text says of what, and why.
        """

    @abstractmethod
    async def repair(self) -> tuple[str, ...]:
        """Put back what others have removed or changed; cheap if nobody has changed any rule since the last call.

        Returns:
            Where something was put back, as ``nat`` or ``filter``; most often nowhere.

        Raises:
            SteeringError: as ``update``.
        """

    @abstractmethod
    async def remove(self) -> None:
        """Remove all that is there of ours, in this process' time or from before; nothing if nothing was written.

        Raises:
            SteeringError: something is left; one clause says why.
        """


class RuleSteering(Steering):
    """Rules of one run, in those families in which there can be some.

    Args:
        rules: By family, at least one.
        refused: Why there are none in the other families.
        assignments: Who has which proxy port.
    """

    def __init__(
        self, rules: Mapping[Family, FamilyRules], refused: Mapping[Family, str], assignments: Assignments
    ) -> None:
        super().__init__()
        self.refused_families = refused
        self.unfiltered_families = {
            family: each.unfiltered_reason for family, each in rules.items() if each.unfiltered_reason
        }
        self._rules = rules
        self._assignments = assignments
        self._conntrack = Conntrack(assignments.proxy_port_range)
        self._lock = trio.Lock()
        self._found: dict[Family, ProxyPorts] = {}
        """What an earlier run has left in force."""
        self._surroundings: Surroundings | None = None
        """None before the first ``apply``."""
        self._node_address: IPv4Address | None = None
        self._conditions: Conditions | None = None
        """Those of the rules in force; None while not all of them are in force."""
        self._names: dict[NamespacedName, frozenset[str]] = {}
        """The Listeners that have proxy ports, by Service."""
        self._vanished: set[str] = set()
        """Those that have lost theirs to a change that may not be in force yet."""
        self._udp_places: dict[NamespacedName, dict[tuple[Family, Place], int]] = {}
        """The places of the UDP Frontends with the ports of their Listeners, by Service."""
        self._udp_ports: dict[Family, dict[Place, int]] = {family: {} for family in rules}
        """The same of all Services. Two have one place while the former of them finds no other: the latter counts."""

    async def take_over(self) -> None:
        """Note what an earlier run has left in force, so that its proxy ports stay; to be called before ``place``."""
        for family, rules in self._rules.items():
            self._found[family] = await rules.read_proxy_ports()

    def place(self, frontends: Iterable[Frontend]) -> tuple[Placement, ...]:
        """Return one Listener for all cluster addresses of a ServicePort, and one for all its external IPs.

        Load balancer addresses, with source ranges that are for them alone, have one each, and so have NodePorts.
        """
        placements = (node_port_placement(frontend) or self._place(frontend) for frontend in frontends)
        return tuple(placement for placement in placements if placement is not None)

    async def apply(self, changed: Mapping[NamespacedName, ServiceSteering], surroundings: Surroundings) -> None:
        """Write the rules that differ (see ``Steering``)."""
        asked = self._assignments.asked
        rules: dict[Family, dict[NamespacedName, ServiceRules]] = {family: {} for family in self._rules}
        for name, service in changed.items():
            for family, share in rules.items():
                share[name] = _rules_of(family, service)
        async with self._lock:
            self._assignments.save()
            conditions = self._read_conditions(surroundings)
            self._surroundings = surroundings
            self._note(changed)
            await self._write(rules, conditions)
            self._assignments.release(self._vanished, asked)  # not before: until then rules may lead to them
            self._vanished.clear()

    async def refresh(self) -> None:
        """Follow the addresses of the node, write again what failed, and repair (see ``Steering``)."""
        async with self._lock:
            if self._surroundings is None:
                return
            conditions = self._read_conditions(self._surroundings)
            if conditions != self._conditions:
                await self._write({family: {} for family in self._rules}, conditions)
            failures = []
            for family, rules in self._rules.items():
                try:
                    for table in await rules.repair():
                        self._note_repair(f"{family} {table}")
                        self._conntrack.forget(family)
                except SteeringError as error:
                    self._conditions = None
                    failures.append(str(error))
                else:
                    await self._conntrack.follow(family, dict(self._udp_ports[family]))
            if failures:
                raise SteeringError("; ".join(failures))

    async def aclose(self) -> None:
        """Remove our rules (see ``Steering``)."""
        left = []
        with trio.CancelScope(shield=True):  # bounded by the commands' own time-outs
            async with self._lock:
                self._surroundings = None
                for family, rules in self._rules.items():
                    try:
                        await rules.remove()
                    except SteeringError as error:
                        left.append(f"{family} rules could not be removed: {error}")
                    else:
                        await self._conntrack.end(family)
        if left:
            raise SteeringError(f"{'; '.join(left)}; run userspace-proxy cleanup")

    def _place(self, frontend: Frontend) -> Placement | None:
        family, address = frontend.family, frontend.address
        if family not in self._rules or address is None:
            return None
        key = listener_key(frontend, is_shared=frontend.kind is not FrontendKind.LOAD_BALANCER)
        found = self._found.get(family, {}).get((address, frontend.port, frontend.protocol))
        port = self._assignments.proxy_port(str(key), frontend.protocol, preferred=found)
        only_steered = family in self.unfiltered_families
        return Placement(frontend, ListenerSpec(key, WILDCARD[family], port, only_steered=only_steered))

    def _note(self, changed: Mapping[NamespacedName, ServiceSteering]) -> None:
        """Note which Listeners of some Services have proxy ports, and where their UDP Frontends are led."""
        for name in changed:  # first: what one of them loses may be what another one gets
            self._vanished |= self._names.pop(name, frozenset())
            for (family, place), port in self._udp_places.pop(name, {}).items():
                if self._udp_ports[family].get(place) == port:
                    del self._udp_ports[family][place]
        for name, service in changed.items():
            steered: set[str] = set()
            udp_places: dict[tuple[Family, Place], int] = {}
            for placement in service.placements:
                frontend = placement.frontend
                if frontend.kind is not FrontendKind.NODE_PORT:
                    steered.add(str(placement.listener.key))
                if frontend.protocol is Protocol.UDP and frontend.family in self._rules:
                    place = (ANY_LOCAL if frontend.address is None else frontend.address.packed), frontend.port
                    port = placement.listener.port
                    udp_places[frontend.family, place] = self._udp_ports[frontend.family][place] = port
            if steered:
                self._names[name] = frozenset(steered)
                self._vanished -= steered
            if udp_places:
                self._udp_places[name] = udp_places

    async def _write(
        self, changed: Mapping[Family, Mapping[NamespacedName, ServiceRules]], conditions: Conditions
    ) -> None:
        """Bring it into force in every family; one that fails does not stop the others."""
        self._conditions = None
        failures = []
        for family, rules in self._rules.items():
            try:
                await rules.update(changed[family], conditions)
            except SteeringError as error:
                self._conntrack.forget(family)  # a command that was stopped for its time-out may have worked
                failures.append(str(error))
            else:
                await self._conntrack.follow(family, dict(self._udp_ports[family]))
        if failures:
            raise SteeringError("; ".join(failures))
        self._conditions = conditions

    def _read_conditions(self, surroundings: Surroundings) -> Conditions:
        node = _read_node()
        self._node_address = node.best(self._node_address)
        return Conditions(surroundings, tuple(sorted(node.interfaces)), self._node_address)


def _rules_of(family: Family, service: ServiceSteering) -> ServiceRules:
    """Return the share of one family in what a Service asks for."""
    steered = []
    ports: dict[PortRule, None] = {}
    for placement in service.placements:
        frontend, spec = placement.frontend, placement.listener
        if frontend.family is not family:
            continue
        route = service.restricted.get(frontend)
        if frontend.kind is not FrontendKind.NODE_PORT:
            steered.append(SteeringRule(frontend, spec.port))
            ports[PortRule(frontend.protocol, None, spec.port, is_proxy_port=True, route=route)] = None
        elif route is not None:
            address = frontend.address
            ports[PortRule(frontend.protocol, address, spec.port, is_proxy_port=False, route=route)] = None
    return ServiceRules(tuple(steered), tuple(ports))


def _read_node() -> NodeAddresses:
    try:
        return read_node_addresses()
    except OSError as error:  # no file descriptor is left
        raise SteeringError(f"the addresses of this node cannot be read: {error.strerror}") from error

"""Steering by routes: the node takes what is sent to a cluster address for itself, and Listeners are bound there.

``local`` routes lead packets in, from the node itself and from whoever sends them by way of it; no netfilter is needed.
A route is for one address, or for all addresses of Services at once. IPv4 routes name an address of the node: else
connections of the node itself would come from the very address they go to. IPv6 takes one of the node's by itself.
Entry points: ``open_local_route``; for what a killed run has left ``find_own_routes`` and
``remove_own_routes``.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from typing import ClassVar

import trio

from userspace_proxy.config import SteeringKind
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family, IPAddress, IPNetwork, NamespacedName, family_of
from userspace_proxy.plan.state import Frontend, FrontendKind, ListenerSpec
from userspace_proxy.steering.base import (
    Placement,
    ServiceSteering,
    Steering,
    Surroundings,
    listener_key,
    node_port_placement,
)
from userspace_proxy.steering.local_route.node_networks import NodeNetworks, read_node_networks
from userspace_proxy.steering.local_route.probe import probe_routes
from userspace_proxy.steering.local_route.route_messages import Prefix, prefix_of
from userspace_proxy.steering.local_route.route_table import RouteTable, list_own_routes, remove_own_routes
from userspace_proxy.steering.local_route.wildcard_listeners import WildcardListener, find_wildcard_listeners
from userspace_proxy.steering.node_state import read_node_addresses

_log = logging.getLogger(__name__)

_LOCALHOST = IPv4Address("127.0.0.1")
_MAX_INLINE = 200
"""Routes changed without a thread of their own: they take some 2 ms. Arbitrary."""
_NETWORKS_AGE_S = 1.0
"""Seconds for which the node's networks count as known. Arbitrary: many Services are placed in that time."""
_MAX_NAMED = 10
"""Programs named in a remark. Arbitrary."""


async def open_local_route(service_cidrs: tuple[IPNetwork, ...]) -> "LocalRouteSteering":
    """Return steering by routes, tried with a route for a documentation address in each family.

    Args:
        service_cidrs: What cluster addresses are from; each gets one route. None: each address gets its own.

    Raises:
        SteeringError: routes are of no use here in any family; one clause says why.
    """
    refused = {}
    for family in Family:
        try:
            await trio.to_thread.run_sync(probe_routes, family)
        except SteeringError as error:
            refused[family] = str(error)
    if len(refused) == len(Family):
        raise SteeringError("; ".join(dict.fromkeys(refused.values())))
    listeners = await trio.to_thread.run_sync(find_wildcard_listeners)
    return LocalRouteSteering(service_cidrs, refused, listeners)


def find_own_routes() -> tuple[str, ...]:
    """Return the routes there are of ours, of whatever run, as ``local 10.96.0.10 dev lo``.

    Raises:
        SteeringError: they cannot be listed.
    """
    try:
        return list_own_routes()
    except OSError as error:
        raise SteeringError(f"routes cannot be listed: {error.strerror or error}") from error


class LocalRouteSteering(Steering):
    """Local routes of one run.

    Args:
        service_cidrs: See ``open_local_route``.
        refused: Why there are none in some family.
        wildcard_listeners: Programs of others that can be reached at every address that is served.

    Raises:
        SteeringError: the networks of this node cannot be read.
    """

    kind: ClassVar[SteeringKind] = SteeringKind.LOCAL_ROUTE

    def __init__(
        self,
        service_cidrs: tuple[IPNetwork, ...],
        refused: Mapping[Family, str],
        wildcard_listeners: Sequence[WildcardListener],
    ) -> None:
        super().__init__()
        self.refused_families = refused
        self.unfiltered_families = {family: "local-route has no rules" for family in Family if family not in refused}
        self._table = RouteTable()
        self._lock = trio.Lock()
        self._is_started = False
        self._node_address: IPv4Address | None = None
        self._networks: NodeNetworks = _read_networks()
        self._networks_read_at = trio.current_time()
        self._configured_cidrs = tuple(cidr for cidr in service_cidrs if family_of(cidr) not in refused)
        self._conflicts = self._find_conflicts()
        self._addresses: dict[NamespacedName, frozenset[IPAddress]] = {}
        """What is to be led here for each Service."""
        self._uses: Counter[IPAddress] = Counter()
        """For how many Services that is, by address."""
        self.remarks = (*self._conflicts.values(), *_describe_listeners(wildcard_listeners))

    def place(self, frontends: Iterable[Frontend]) -> tuple[Placement, ...]:
        """Return one Listener for each Frontend, bound to its own address and port (see ``Steering``)."""
        placements = (node_port_placement(frontend) or self._place(frontend) for frontend in frontends)
        return tuple(placement for placement in placements if placement is not None)

    def refused(self, frontends: Iterable[Frontend]) -> Mapping[Frontend, str]:
        """Return the Frontends whose addresses belong to the node's networks, not to the cluster (see ``Steering``)."""
        reasons = {frontend: self._reason_against(frontend) for frontend in frontends}
        return {frontend: reason for frontend, reason in reasons.items() if reason}

    async def apply(
        self,
        changed: Mapping[NamespacedName, ServiceSteering],
        surroundings: Surroundings,  # noqa: ARG002 - there are no rules
    ) -> None:
        """Add and remove the routes that differ (see ``Steering``)."""
        async with self._lock:
            self._is_started = True
            for name, service in changed.items():
                self._note(name, service)
            await self._bring_into_force()

    async def refresh(self) -> None:
        """Follow the addresses of the node, and put back routes that others have removed (see ``Steering``)."""
        async with self._lock:
            if self._is_started:
                await self._bring_into_force()

    async def aclose(self) -> None:
        """Remove our routes (see ``Steering``)."""
        with trio.CancelScope(shield=True):  # bounded by the time-out of the socket
            async with self._lock:
                if not self._is_started:
                    return
                self._is_started = False
                self._table.close()
                try:
                    await trio.to_thread.run_sync(remove_own_routes)
                except SteeringError as error:
                    raise SteeringError(f"{error}; run userspace-proxy cleanup") from error

    @property
    def _cidrs(self) -> list[IPNetwork]:
        """The service CIDRs that have a route."""
        return [cidr for cidr in self._configured_cidrs if cidr not in self._conflicts]

    def _place(self, frontend: Frontend) -> Placement | None:
        address = frontend.address
        if address is None or frontend.family in self.refused_families or self._reason_against(frontend):
            return None
        is_virtual = address not in self._networks.addresses
        key = listener_key(frontend, is_shared=False)
        return Placement(frontend, ListenerSpec(key, address, frontend.port, is_virtual=is_virtual))

    def _reason_against(self, frontend: Frontend) -> str:
        """Return the sentence that says why a Frontend's address must not be led here; empty if it may be."""
        address = frontend.address
        is_elsewhere = frontend.kind is FrontendKind.NODE_PORT or frontend.family in self.refused_families
        if is_elsewhere or address is None:
            return ""
        networks = self._look_at_networks()
        what = f"{frontend.service_port} is not served at {frontend}: that is"
        if address in networks.addresses:
            return ""
        if address in networks.gateways:
            return f"{what} the default gateway of this node, which a route would cut off; choose another address"
        if frontend.kind is FrontendKind.CLUSTER_IP or any(address in cidr for cidr in self._cidrs):
            return ""
        network = networks.network_of(address)
        if network is None:
            return ""
        return (
            f"{what} in {network}, the network on {networks.on_link[network]}, where this node would answer in the "
            f"place of whoever has it; choose an address outside of that network, or one of this node"
        )

    def _look_at_networks(self) -> NodeNetworks:
        now = trio.current_time()
        if now >= self._networks_read_at + _NETWORKS_AGE_S:
            with contextlib.suppress(SteeringError):  # no file descriptor is left: those known before count
                self._networks = _read_networks()
            self._networks_read_at = now
        return self._networks

    def _note(self, name: NamespacedName, service: ServiceSteering) -> None:
        before = self._addresses.pop(name, frozenset())
        now = frozenset(placement.listener.address for placement in service.placements if placement.listener.is_virtual)
        if now:
            self._addresses[name] = now
        added, gone = now - before, before - now
        self._uses.update(added)
        self._uses.subtract(gone)
        unused = [address for address in gone if not self._uses[address]]
        for address in unused:
            del self._uses[address]
        cidrs = self._cidrs
        self._table.want(_prefixes(added, cidrs))
        self._table.drop(_prefixes(unused, cidrs))

    async def _bring_into_force(self) -> None:
        if self._table.follow():
            self._choose_routes()
            self._table.set_sources({Family.IPV4: self._read_source().packed})
        if not self._table.work:
            return
        if self._table.work > _MAX_INLINE:
            repaired = await trio.to_thread.run_sync(self._table.settle)  # not abandoned: bounded in time
        else:
            repaired = self._table.settle()
        for family in sorted(repaired):
            self._note_repair(f"{family} routes")

    def _choose_routes(self) -> None:
        """Have one route for each service CIDR that takes nothing from the node, and one for each other address."""
        self._networks = _read_networks()
        before, self._conflicts = self._conflicts, self._find_conflicts()
        for cidr in self._conflicts.keys() - before.keys():
            _log.warning("%s", self._conflicts[cidr])
        cidrs = self._cidrs
        self._table.want_only([*map(prefix_of, cidrs), *_prefixes(self._uses, cidrs)])

    def _find_conflicts(self) -> dict[IPNetwork, str]:
        """Return the service CIDRs that must not be led here as a whole, each with a sentence."""
        found = {cidr: self._networks.conflict_with(cidr) for cidr in self._configured_cidrs}
        return {
            cidr: f"each address of a Service gets a route of its own, as one for all of {cidr} would take away "
            f"{conflict}; is --service-cidr right?"
            for cidr, conflict in found.items()
            if conflict
        }

    def _read_source(self) -> IPv4Address:
        try:
            self._node_address = read_node_addresses().best(self._node_address)
        except OSError as error:  # no file descriptor is left
            raise SteeringError(f"the addresses of this node cannot be read: {error.strerror}") from error
        return self._node_address or _LOCALHOST


def _read_networks() -> NodeNetworks:
    try:
        return read_node_networks()
    except OSError as error:
        raise SteeringError(f"the networks of this node cannot be read: {error.strerror or error}") from error


def _prefixes(addresses: Iterable[IPAddress], cidrs: Sequence[IPNetwork]) -> Iterator[Prefix]:
    """Yield those of some addresses that no CIDR has a route for."""
    return (prefix_of(address) for address in addresses if not any(address in cidr for cidr in cidrs))


def _describe_listeners(listeners: Sequence[WildcardListener]) -> Iterator[str]:
    """Yield a sentence about the programs that become reachable, if there are any."""
    if listeners:
        named = ", ".join(map(str, listeners[:_MAX_NAMED]))
        rest = f" and {len(listeners) - _MAX_NAMED} more" if len(listeners) > _MAX_NAMED else ""
        yield (
            "these programs listen on all addresses, so they can be reached at every address of a Service, too: "
            f"{named}{rest}"
        )

"""The values a plan is made of. All frozen; all addresses are ``ipaddress`` objects.

``DesiredState`` is what should be; who applies it keeps what is. Values are replaced whole by their key.
"""

from collections.abc import Mapping
from enum import StrEnum

from attrs import field, frozen

from userspace_proxy.model.names import Family, IPAddress, NamespacedName, Protocol, ServicePortName
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Balance


class FrontendKind(StrEnum):
    """What kind of address a Frontend has."""

    CLUSTER_IP = "cluster-ip"
    NODE_PORT = "node-port"


class PolicyClass(StrEnum):
    """Which traffic policy of the Service applies to connections of a Frontend."""

    INTERNAL = "internal"
    """Cluster addresses: internalTrafficPolicy."""
    EXTERNAL = "external"
    """NodePorts: externalTrafficPolicy."""


@frozen(cache_hash=True)
class Frontend:
    """One address, port and protocol at which a ServicePort is reachable."""

    kind: FrontendKind
    service_port: ServicePortName
    family: Family
    address: IPAddress | None
    """None: every address of the node (NodePorts)."""
    port: int

    @property
    def protocol(self) -> Protocol:
        """The transport protocol."""
        return self.service_port.protocol

    @property
    def policy(self) -> PolicyClass:
        """The traffic policy that applies to its connections."""
        return PolicyClass.INTERNAL if self.kind is FrontendKind.CLUSTER_IP else PolicyClass.EXTERNAL

    def __str__(self) -> str:
        """Return ``10.96.0.10:53/UDP``, ``[fd00::a]:53/TCP`` or ``*:30080/TCP (IPv4)``."""
        if self.address is None:
            return f"*:{self.port}/{self.protocol} ({self.family})"
        host = f"[{self.address}]" if self.family is Family.IPV6 else str(self.address)
        return f"{host}:{self.port}/{self.protocol}"


@frozen(order=True, cache_hash=True)
class Backend:
    """An Endpoint this node has decided it may use."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        """Return ``10.0.1.1:80`` or ``[fd00::1]:80``."""
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"  # noqa: PLR2004


@frozen(cache_hash=True)
class PoolKey:
    """Which Pool: all Frontends of one ServicePort with the same policy class and family share one."""

    service_port: ServicePortName
    policy: PolicyClass
    family: Family


@frozen
class Pool:
    """The Backends behind one or more Frontends, in the order the plan gave them."""

    key: PoolKey
    backends: tuple[Backend, ...]
    """Without duplicates, sorted by their text; empty: clients are refused."""
    balance: Balance


@frozen
class ServicePlan:
    """All that one Service asks of this node."""

    frontends: tuple[Frontend, ...]
    pools: Mapping[PoolKey, Pool]
    """One for each (ServicePort, policy class, family) that a Frontend of this plan has, empty ones too."""
    problems: tuple[Problem, ...]
    denied: tuple[Frontend, ...] = ()
    """Asked for, but another Service has them; a Problem says which."""
    refused: tuple[Backend, ...] = ()
    """Usable Endpoints that are in no Pool, as a connection to them would come back here; a Problem says why."""


@frozen
class PlanSettings:
    """What a plan depends on besides the objects."""

    default_balance: Balance
    """For Services whose annotation asks for none."""
    local_addresses: frozenset[IPAddress]
    """The addresses of this node, at which its NodePorts answer; those of loopback go without saying."""


Claim = tuple[IPAddress | Family, int, Protocol]
"""What two Services cannot both have: a cluster address and its port, or (a Family) a NodePort on all addresses."""


@frozen
class PlanIndex:
    """What the next build has to know of all Services without a walk over them. Nothing else reads it."""

    settings: PlanSettings | None = None
    """Those of this build; None: there was none yet."""
    claims: Mapping[Claim, tuple[NamespacedName, ...]] = field(factory=dict)
    """The Services that ask for each Claim, sorted, never empty; the first has it."""
    neighbours: Mapping[bytes, frozenset[NamespacedName]] = field(factory=dict)
    """The Services with usable Endpoints in each network, never empty: where a new Frontend may make a loop."""


@frozen
class DesiredState:
    """What this node should do for all Services."""

    services: Mapping[NamespacedName, ServicePlan] = field(factory=dict)
    replanned: frozenset[NamespacedName] = field(default=frozenset(), eq=False)
    """The Services that the last build planned anew or dropped; the plans of all others are as in the state before."""
    index: PlanIndex = field(factory=PlanIndex, eq=False, repr=False)


@frozen(cache_hash=True)
class ListenerKey:
    """Identity of a Listener; stable over restarts, so that proxy ports and loopback addresses can be too."""

    pool: PoolKey
    frontend: Frontend | None
    """The one Frontend it serves; None where steering leads all Frontends of the Pool into one Listener."""

    def __str__(self) -> str:
        """Return a text that is unique among Listeners and stable over releases: it is kept on disk."""
        name = self.pool.service_port
        shared = f"{name.service}:{name.port}/{name.protocol}/{self.pool.policy}/{self.pool.family}"
        return shared if self.frontend is None else f"{shared}/{self.frontend.kind}/{self.frontend}"


@frozen
class ListenerSpec:
    """Where a Listener is to be opened."""

    key: ListenerKey
    address: IPAddress
    """A wildcard address (``0.0.0.0``, ``::``) or one address of this node."""
    port: int


@frozen
class SteeringRule:
    """Packets for the Frontend are led to a port of this node."""

    frontend: Frontend
    proxy_port: int

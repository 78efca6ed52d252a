"""The values a plan is made of. All frozen; all addresses are ``ipaddress`` objects.

``DesiredState`` is what should be; who applies it keeps what is. Values are replaced whole by their key.
"""

from collections.abc import Mapping
from enum import StrEnum

from attrs import field, frozen

from userspace_proxy.model.names import Family, IPAddress, IPNetwork, NamespacedName, Protocol, ServicePortName
from userspace_proxy.model.problem import Problem
from userspace_proxy.model.service_port import Balance, UdpBalance


class FrontendKind(StrEnum):
    """What kind of address a Frontend has."""

    CLUSTER_IP = "cluster-ip"
    EXTERNAL_IP = "external-ip"
    LOAD_BALANCER = "load-balancer"
    NODE_PORT = "node-port"


class PolicyClass(StrEnum):
    """Which traffic policy of the Service applies to connections of a Frontend."""

    INTERNAL = "internal"
    """Cluster addresses: internalTrafficPolicy."""
    EXTERNAL = "external"
    """NodePorts, external and load balancer addresses: externalTrafficPolicy."""


class EndpointScope(StrEnum):
    """From where the Endpoints of a Pool are taken."""

    CLUSTER = "cluster"
    """From the whole cluster, or as near as their hints ask."""
    LOCAL = "local"
    """From this node."""


@frozen(cache_hash=True)
class Frontend:
    """One address, port and protocol at which a ServicePort is reachable."""

    kind: FrontendKind
    service_port: ServicePortName
    family: Family
    address: IPAddress | None
    """None: every address of the node (NodePorts that are not restricted to some)."""
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
    """Which Pool: all Frontends of one ServicePort that may reach the same Endpoints share one."""

    service_port: ServicePortName
    scope: EndpointScope
    family: Family


@frozen
class Pool:
    """The Backends behind one or more Frontends, in the order the plan gave them."""

    key: PoolKey
    backends: tuple[Backend, ...]
    """Without duplicates, sorted by their text."""
    balance: Balance
    affinity_timeout_s: int | None = None
    """Seconds for which a client comes back to the same Backend, in all Pools of the ServicePort; None: no affinity."""
    udp: "UdpSettings | None" = None
    """Only where the protocol is UDP."""


@frozen
class UdpSettings:
    """What is said of the flows of a Pool."""

    balance: UdpBalance = UdpBalance.FLOW
    idle_timeout_s: float | None = None
    """Seconds without a datagram after which a flow ends; None: as for all."""
    serving: frozenset[Backend] = frozenset()
    """Those besides the Pool's own that serve still: no flow is led to them any more, those they have stay."""


class SourceClass(StrEnum):
    """Where a client is, as far as policies ask."""

    POD = "pod"
    """A pod, by its address (``SourceAddresses.pod_networks``)."""
    HOST = "host"
    """This node itself."""
    OUTSIDE = "outside"
    """Anywhere else."""


class Verdict(StrEnum):
    """What becomes of connections that no Pool is for."""

    REJECT = "reject"
    """Refused at once: nothing answers for this port, anywhere."""
    DROP = "drop"
    """Not answered: others can be reached, but the traffic policy keeps this class of clients from them."""


Target = PoolKey | Verdict


@frozen(cache_hash=True)
class Route:
    """What becomes of a connection to a Frontend, by where its client is. A PoolKey is that of a Pool with Backends."""

    pod: Target
    host: Target
    outside: Target
    source_ranges: tuple[IPNetwork, ...] = ()
    """Clients from elsewhere are dropped whatever their class; of the Frontend's family, sorted. Empty: none is."""

    def target(self, source: SourceClass) -> Target:
        """Return what becomes of a client of a class."""
        if source is SourceClass.OUTSIDE:
            return self.outside
        return self.pod if source is SourceClass.POD else self.host

    @property
    def pools(self) -> frozenset[PoolKey]:
        """The Pools it leads to; none: nobody is served."""
        return frozenset(target for target in (self.pod, self.host, self.outside) if isinstance(target, PoolKey))

    @property
    def is_same_for_all(self) -> bool:
        """Whether it does not matter where a client is."""
        return self.pod == self.host == self.outside and not self.source_ranges


@frozen
class SourceAddresses:
    """By what the class of a client is told."""

    pod_networks: tuple[IPNetwork, ...] = ()
    """The addresses of pods; empty: no client counts as a pod."""
    local_addresses: frozenset[IPAddress] = frozenset()
    """The addresses of this node; those of loopback go without saying."""


@frozen
class HealthCheck:
    """What load balancers are told that ask for this node (``spec.healthCheckNodePort``)."""

    port: int
    """Where they ask."""
    local_endpoints: Mapping[Family, int]
    """Distinct addresses of ready Endpoints on this node, over all ports of the Service, in each of its families: who
    asks by one family is told of that one."""


@frozen
class ServicePlan:
    """All that one Service asks of this node."""

    routes: Mapping[Frontend, Route]
    """Of all its Frontends, in the order of its ports."""
    pools: Mapping[PoolKey, Pool]
    """All that connections to a Frontend of this plan may come to need; empty ones too."""
    problems: tuple[Problem, ...]
    denied: tuple[Frontend, ...] = ()
    """Asked for, but another Service has them; a Problem says which."""
    refused: tuple[Backend, ...] = ()
    """Usable Endpoints that are in no Pool of some protocol, as a connection to them would come back here; a Problem
    says why."""
    unserved: tuple[ServicePortName, ...] = ()
    """Ports of a protocol that is not served; a Problem says so."""
    health_check: HealthCheck | None = None

    @property
    def frontends(self) -> tuple[Frontend, ...]:
        """The Frontends of ``routes``."""
        return tuple(self.routes)


@frozen
class PlanSettings:
    """What a plan depends on besides Services and EndpointSlices."""

    default_balance: Balance
    """For Services whose annotation asks for none."""
    sources: SourceAddresses = SourceAddresses()
    """The addresses of this node, at which its NodePorts answer, and of pods."""
    node_name: str = ""
    """By which Endpoints on this node are known; empty: none is."""
    zone: str = ""
    """That of this node; empty: none."""
    node_addresses: Mapping[Family, IPAddress] = field(factory=dict)
    """The primary address of the node in each family."""
    node_port_addresses: Mapping[Family, tuple[IPAddress, ...]] = field(factory=dict)
    """Where NodePorts answer; a family that is missing: at every address."""
    serves_external_ips: bool = True
    """Whether ``spec.externalIPs`` count."""


Claim = tuple[IPAddress | Family, int, Protocol]
"""What two Services cannot both have: an address and its port, or (a Family) a NodePort on all addresses."""

Holder = tuple[int, NamespacedName]
"""Who asks for a Claim, after how much that counts: the least has it."""


@frozen
class PlanIndex:
    """What the next build has to know of all Services without a walk over them. Nothing else reads it."""

    settings: PlanSettings | None = None
    """Those of this build; None: there was none yet."""
    claims: Mapping[Claim, tuple[Holder, ...]] = field(factory=dict)
    """The Services that ask for each Claim, sorted, never empty; the first has it."""
    neighbours: Mapping[bytes, frozenset[NamespacedName]] = field(factory=dict)
    """The Services with usable Endpoints in each network, never empty: where a new Frontend may make a loop."""


@frozen
class DesiredState:
    """What this node should do for all Services."""

    services: Mapping[NamespacedName, ServicePlan] = field(factory=dict)
    replanned: frozenset[NamespacedName] = field(default=frozenset(), eq=False)
    """The Services that the last build planned anew or dropped; the plans of all others are as in the state before."""
    failed: Mapping[NamespacedName, Exception] = field(factory=dict, eq=False)
    """Services that the last build could not plan because of a bug; their plans are as in the state before."""
    index: PlanIndex = field(factory=PlanIndex, eq=False, repr=False)


@frozen(cache_hash=True)
class ListenerKey:
    """Identity of a Listener; stable over restarts, so that proxy ports and loopback addresses can be too."""

    service_port: ServicePortName
    policy: PolicyClass
    family: Family
    frontend: Frontend | None
    """The one Frontend it serves; None where steering leads all Frontends with the same Route into one Listener."""

    def __str__(self) -> str:
        """Return a text that is unique among Listeners and stable over releases: it is kept on disk."""
        name = self.service_port
        shared = f"{name.service}:{name.port}/{name.protocol}/{self.policy}/{self.family}"
        return shared if self.frontend is None else f"{shared}/{self.frontend.kind}/{self.frontend}"


@frozen
class ListenerSpec:
    """Where a Listener is to be opened."""

    key: ListenerKey
    address: IPAddress
    """A wildcard address (``0.0.0.0``, ``::``) or one address of this node."""
    port: int
    is_virtual: bool = False
    """The address becomes one of this node only by steering, perhaps after the Listener is open."""
    only_steered: bool = False
    """Who dials the Listener's own port is refused, and no rule sees to that: only who was led here from another
    address or port is served."""


@frozen
class SteeringRule:
    """Packets for the Frontend are led to a port of this node."""

    frontend: Frontend
    proxy_port: int

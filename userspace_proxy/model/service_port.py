"""Service and ServicePort: the part of a Service that this proxy serves."""

from enum import StrEnum

from attrs import frozen

from userspace_proxy.model.names import IPAddress, IPNetwork, NamespacedName, ServicePortName


class Balance(StrEnum):
    """How the Backends of a Pool share the connections (annotation ``userspace-proxy.io/balance``)."""

    ROUND_ROBIN = "round-robin"
    """Each Backend in turn."""
    LEAST_CONNECTIONS = "least-connections"
    """Of two Backends drawn at random, the one with fewer open connections."""


class UdpBalance(StrEnum):
    """What goes to one Backend at a time where the protocol is UDP (annotation ``userspace-proxy.io/udp-balance``)."""

    FLOW = "flow"
    """All datagrams of a client port."""
    DATAGRAM = "datagram"
    """One datagram: for protocols in which each stands alone, so that one busy client is shared evenly too."""


class TrafficPolicy(StrEnum):
    """Which Endpoints a class of traffic may reach (internalTrafficPolicy, externalTrafficPolicy)."""

    CLUSTER = "Cluster"
    """All of the cluster."""
    LOCAL = "Local"
    """Those on this node."""


@frozen
class ServicePort:
    """One port of one Service."""

    name: ServicePortName
    port: int
    """The number clients dial at a cluster address, 1-65535."""
    node_port: int | None
    """The number clients dial at a node address, 1-65535; None where the Service has no NodePort."""


@frozen
class Service:
    """A Service that is to be proxied: neither headless nor ExternalName."""

    name: NamespacedName
    cluster_ips: tuple[IPAddress, ...]
    """At most one of each family; the families of these are the families the Service has."""
    ports: tuple[ServicePort, ...]
    balance: Balance | None
    """What the annotation asks for; None leaves it to the default."""
    origin: str
    """Where the object was read (see ``Problem.origin``)."""
    external_ips: tuple[IPAddress, ...] = ()
    """Of the families the Service has (``spec.externalIPs``)."""
    load_balancer_ips: tuple[IPAddress, ...] = ()
    """Those that the proxy is to capture: ipMode VIP, of the families the Service has."""
    source_ranges: tuple[IPNetwork, ...] = ()
    """Who may dial ``load_balancer_ips`` (``spec.loadBalancerSourceRanges``); without one of a family: everybody."""
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    """For cluster addresses."""
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    """For NodePorts, external and load balancer addresses; CLUSTER where the type of the Service knows none."""
    affinity_timeout_s: int | None = None
    """Seconds for which a client comes back to the same Endpoint (sessionAffinity ClientIP); None: no affinity."""
    udp_balance: UdpBalance = UdpBalance.FLOW
    """For the UDP ports."""
    udp_idle_timeout_s: float | None = None
    """Seconds without a datagram after which a flow ends, as the annotation asks; None leaves it to the default."""
    health_check_node_port: int | None = None
    """Where load balancers ask whether this node has Endpoints, 1-65535; only with type LoadBalancer and
    externalTrafficPolicy Local."""

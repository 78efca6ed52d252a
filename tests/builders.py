"""Builders of values for tests: everything that does not matter to a test has a default here.

Names are written as they print: ``shop/web`` for an object, ``shop/web:http`` for a ServicePort of it.
"""

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from attrs import evolve

from userspace_proxy.model.endpoint import Endpoint, EndpointPort, EndpointSlice
from userspace_proxy.model.names import Family, IPAddress, NamespacedName, Protocol, ServicePortName, family_of
from userspace_proxy.model.service_port import Balance, Service, ServicePort, TrafficPolicy, UdpBalance
from userspace_proxy.plan.state import (
    Backend,
    EndpointScope,
    Frontend,
    FrontendKind,
    ListenerKey,
    PlanSettings,
    PolicyClass,
    Pool,
    PoolKey,
    Route,
    SourceAddresses,
    Target,
    UdpSettings,
)


def named(text: str = "shop/web") -> NamespacedName:
    """Return the name ``namespace/name``."""
    namespace, _, name = text.partition("/")
    return NamespacedName(namespace, name)


def service_port_name(text: str = "shop/web:http", protocol: Protocol = Protocol.TCP) -> ServicePortName:
    """Return the name ``namespace/name:port``, or ``namespace/name`` for an unnamed port."""
    service, _, port = text.partition(":")
    return ServicePortName(named(service), port, protocol)


def service_port(
    name: str = "http",
    port: int = 80,
    *,
    node_port: int | None = None,
    protocol: Protocol = Protocol.TCP,
) -> ServicePort:
    """Return a ServicePort; ``service`` gives it the name of the Service it is put into."""
    return ServicePort(ServicePortName(named(), name, protocol), port, node_port)


def service(
    name: str = "shop/web",
    *ports: ServicePort,
    cluster_ips: Iterable[str] = ("10.96.0.10",),
    balance: Balance | None = None,
    origin: str = "",
    external_ips: Iterable[str] = (),
    load_balancer_ips: Iterable[str] = (),
    source_ranges: Iterable[str] = (),
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER,
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER,
    affinity_timeout_s: int | None = None,
    udp_balance: UdpBalance = UdpBalance.FLOW,
    udp_idle_timeout_s: float | None = None,
    health_check_node_port: int | None = None,
) -> Service:
    """Return a Service, with the one port ``http`` 80/TCP if none is given."""
    owner = named(name)
    return Service(
        owner,
        tuple(ip_address(one) for one in cluster_ips),
        tuple(evolve(one, name=evolve(one.name, service=owner)) for one in ports or (service_port(),)),
        balance,
        origin,
        external_ips=tuple(ip_address(one) for one in external_ips),
        load_balancer_ips=tuple(ip_address(one) for one in load_balancer_ips),
        source_ranges=tuple(ip_network(one) for one in source_ranges),
        internal_policy=internal_policy,
        external_policy=external_policy,
        affinity_timeout_s=affinity_timeout_s,
        udp_balance=udp_balance,
        udp_idle_timeout_s=udp_idle_timeout_s,
        health_check_node_port=health_check_node_port,
    )


def endpoint(
    address: str = "10.0.1.1",
    *,
    ready: bool = True,
    serving: bool = True,
    terminating: bool = False,
    node_name: str | None = None,
    hinted_zones: Iterable[str] = (),
    hinted_nodes: Iterable[str] = (),
) -> Endpoint:
    """Return an Endpoint, a ready one."""
    return Endpoint(
        ip_address(address), ready, serving, terminating, node_name, tuple(hinted_zones), tuple(hinted_nodes)
    )


def endpoint_port(name: str = "http", port: int = 8080, protocol: Protocol = Protocol.TCP) -> EndpointPort:
    """Return a port of an EndpointSlice."""
    return EndpointPort(name, protocol, port)


def endpoint_slice(
    name: str = "shop/web-1",
    *endpoints: str | Endpoint,
    service: str = "shop/web",
    family: Family = Family.IPV4,
    ports: Iterable[EndpointPort] = (endpoint_port(),),
    origin: str = "",
) -> EndpointSlice:
    """Return an EndpointSlice, with the one port ``http`` 8080/TCP; an endpoint given as a text is a ready one."""
    members = tuple(endpoint(one) if isinstance(one, str) else one for one in endpoints)
    return EndpointSlice(named(name), named(service), family, tuple(ports), members, origin)


def backend(text: str = "10.0.1.1:8080") -> Backend:
    """Return the Backend ``address:port`` or ``[address]:port``."""
    host, _, port = text.rpartition(":")
    return Backend(ip_address(host.strip("[]")), int(port))


def frontend(
    text: str = "10.96.0.10:80",
    service_port: str = "shop/web:http",
    kind: FrontendKind = FrontendKind.CLUSTER_IP,
    protocol: Protocol = Protocol.TCP,
) -> Frontend:
    """Return the Frontend of an address and port."""
    at = backend(text)
    return Frontend(kind, service_port_name(service_port, protocol), family_of(at.address), at.address, at.port)


def node_port_frontend(
    port: int = 30080,
    service_port: str = "shop/web:http",
    family: Family = Family.IPV4,
    protocol: Protocol = Protocol.TCP,
) -> Frontend:
    """Return the Frontend of a NodePort at all addresses."""
    return Frontend(FrontendKind.NODE_PORT, service_port_name(service_port, protocol), family, None, port)


def pool_key(
    service_port: str = "shop/web:http",
    scope: EndpointScope = EndpointScope.CLUSTER,
    family: Family = Family.IPV4,
    protocol: Protocol = Protocol.TCP,
) -> PoolKey:
    """Return the key of a Pool."""
    return PoolKey(service_port_name(service_port, protocol), scope, family)


def route(target: Target | None = None, *, source_ranges: Iterable[str] = ()) -> Route:
    """Return the Route that leads all clients to the same target, the Pool of ``pool_key()`` if none is given."""
    target = pool_key() if target is None else target
    return Route(target, target, target, tuple(ip_network(one) for one in source_ranges))


def listener_key(
    service_port: str = "shop/web:http",
    policy: PolicyClass = PolicyClass.INTERNAL,
    family: Family = Family.IPV4,
    frontend: Frontend | None = None,
    protocol: Protocol = Protocol.TCP,
) -> ListenerKey:
    """Return the key of a Listener, a shared one."""
    return ListenerKey(service_port_name(service_port, protocol), policy, family, frontend)


def pool(
    *backends: str,
    key: PoolKey | None = None,
    balance: Balance = Balance.ROUND_ROBIN,
    affinity_timeout_s: int | None = None,
    udp: UdpSettings | None = None,
) -> Pool:
    """Return a Pool of the Backends given as texts, in that order."""
    return Pool(key or pool_key(), tuple(backend(one) for one in backends), balance, affinity_timeout_s, udp)


def udp_settings(
    *serving: str, balance: UdpBalance = UdpBalance.FLOW, idle_timeout_s: float | None = None
) -> UdpSettings:
    """Return UdpSettings with the Backends that serve still."""
    return UdpSettings(balance, idle_timeout_s, frozenset(backend(one) for one in serving))


def plan_settings(
    *,
    default_balance: Balance = Balance.ROUND_ROBIN,
    local_addresses: Iterable[str | IPAddress] = (),
    pod_networks: Iterable[str] = (),
    node_name: str = "",
    zone: str = "",
    node_addresses: Iterable[str] = (),
    node_port_addresses: Mapping[Family, Iterable[str]] | None = None,
    serves_external_ips: bool = True,
) -> PlanSettings:
    """Return PlanSettings of a node with the given addresses."""
    return PlanSettings(
        default_balance,
        SourceAddresses(
            tuple(ip_network(one) for one in pod_networks), frozenset(ip_address(one) for one in local_addresses)
        ),
        node_name,
        zone,
        {family_of(one): one for one in map(ip_address, node_addresses)},
        {
            family: tuple(ip_address(one) for one in addresses)
            for family, addresses in (node_port_addresses or {}).items()
        },
        serves_external_ips,
    )

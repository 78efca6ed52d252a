"""Builders of values for tests: everything that does not matter to a test has a default here.

Names are written as they print: ``shop/web`` for an object, ``shop/web:http`` for a ServicePort of it.
"""

from collections.abc import Iterable
from ipaddress import ip_address

from attrs import evolve

from userspace_proxy.model.endpoint import Endpoint, EndpointPort, EndpointSlice
from userspace_proxy.model.names import Family, IPAddress, NamespacedName, Protocol, ServicePortName, family_of
from userspace_proxy.model.service_port import Balance, Service, ServicePort
from userspace_proxy.plan.state import Backend, Frontend, FrontendKind, PlanSettings, PolicyClass, Pool, PoolKey


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
) -> Service:
    """Return a Service, with the one port ``http`` 80/TCP if none is given."""
    owner = named(name)
    owned = tuple(evolve(one, name=evolve(one.name, service=owner)) for one in ports or (service_port(),))
    return Service(owner, tuple(ip_address(one) for one in cluster_ips), owned, balance, origin)


def endpoint(
    address: str = "10.0.1.1",
    *,
    ready: bool = True,
    serving: bool = True,
    terminating: bool = False,
    node_name: str | None = None,
) -> Endpoint:
    """Return an Endpoint, a ready one."""
    return Endpoint(ip_address(address), ready, serving, terminating, node_name)


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


def frontend(text: str = "10.96.0.10:80", service_port: str = "shop/web:http") -> Frontend:
    """Return the TCP Frontend of a cluster address and port."""
    at = backend(text)
    return Frontend(
        FrontendKind.CLUSTER_IP, service_port_name(service_port), family_of(at.address), at.address, at.port
    )


def node_port_frontend(
    port: int = 30080, service_port: str = "shop/web:http", family: Family = Family.IPV4
) -> Frontend:
    """Return the TCP Frontend of a NodePort."""
    return Frontend(FrontendKind.NODE_PORT, service_port_name(service_port), family, None, port)


def pool_key(
    service_port: str = "shop/web:http",
    policy: PolicyClass = PolicyClass.INTERNAL,
    family: Family = Family.IPV4,
) -> PoolKey:
    """Return the key of a TCP Pool."""
    return PoolKey(service_port_name(service_port), policy, family)


def pool(*backends: str, key: PoolKey | None = None, balance: Balance = Balance.ROUND_ROBIN) -> Pool:
    """Return a Pool of the Backends given as texts, in that order."""
    return Pool(key or pool_key(), tuple(backend(one) for one in backends), balance)


def plan_settings(
    *, default_balance: Balance = Balance.ROUND_ROBIN, local_addresses: Iterable[str | IPAddress] = ()
) -> PlanSettings:
    """Return PlanSettings of a node with the given addresses."""
    return PlanSettings(default_balance, frozenset(ip_address(one) for one in local_addresses))

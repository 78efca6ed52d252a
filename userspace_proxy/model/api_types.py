"""The JSON shapes of Services, Nodes (v1) and EndpointSlices (discovery.k8s.io/v1): only the fields that are read here.

For ``msgspec.json.decode`` of an answer of the API server and ``msgspec.convert`` of a YAML document alike. The types
say what JSON may hold, not what makes sense: ``model.parse`` judges values. Unknown fields are ignored and ``null``
counts as absent, as everywhere in the Kubernetes API; a value of a wrong JSON type is a ``msgspec.ValidationError``
for the whole object, as on an API server. Entry points: ``Service``, ``EndpointSlice``, ``Node``.

Source: Kubernetes API reference, Service v1, Node v1 and EndpointSlice v1 (discovery.k8s.io).
"""

import msgspec


class _ApiStruct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """The base of all: trees, which never hold cycles, so the garbage collector need not follow them."""


class ObjectMeta(_ApiStruct, frozen=True):
    """``metadata``."""

    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str | None] | None = None
    annotations: dict[str, str | None] | None = None
    deletion_timestamp: str | None = None


class ServicePort(_ApiStruct, frozen=True):
    """One of ``spec.ports`` of a Service."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None


class ClientIPConfig(_ApiStruct, frozen=True):
    """``spec.sessionAffinityConfig.clientIP`` of a Service."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(_ApiStruct, frozen=True):
    """``spec.sessionAffinityConfig`` of a Service."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(_ApiStruct, frozen=True):
    """``spec`` of a Service."""

    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ports: list[ServicePort] | None = None
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    session_affinity: str | None = None
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    load_balancer_source_ranges: list[str] | None = None
    health_check_node_port: int | None = None


class LoadBalancerIngress(_ApiStruct, frozen=True):
    """One of ``status.loadBalancer.ingress`` of a Service."""

    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(_ApiStruct, frozen=True):
    """``status.loadBalancer`` of a Service."""

    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(_ApiStruct, frozen=True):
    """``status`` of a Service."""

    load_balancer: LoadBalancerStatus | None = None


class Service(_ApiStruct, frozen=True):
    """A Service of ``v1``."""

    metadata: ObjectMeta | None = None
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class EndpointConditions(_ApiStruct, frozen=True):
    """``conditions`` of one of ``endpoints``."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(_ApiStruct, frozen=True):
    """One of ``forZones`` or ``forNodes`` of ``hints``."""

    name: str | None = None


class EndpointHints(_ApiStruct, frozen=True):
    """``hints`` of one of ``endpoints``."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class Endpoint(_ApiStruct, frozen=True):
    """One of ``endpoints`` of an EndpointSlice."""

    addresses: list[str] | None = None
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    hints: EndpointHints | None = None


class EndpointPort(_ApiStruct, frozen=True):
    """One of ``ports`` of an EndpointSlice."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(_ApiStruct, frozen=True):
    """An EndpointSlice of ``discovery.k8s.io/v1``."""

    metadata: ObjectMeta | None = None
    address_type: str | None = None
    ports: list[EndpointPort] | None = None
    endpoints: list[Endpoint] | None = None


class Taint(_ApiStruct, frozen=True):
    """One of ``spec.taints`` of a Node."""

    key: str | None = None


class NodeSpec(_ApiStruct, frozen=True):
    """``spec`` of a Node."""

    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    taints: list[Taint] | None = None


class NodeAddress(_ApiStruct, frozen=True):
    """One of ``status.addresses`` of a Node."""

    type: str | None = None
    address: str | None = None


class NodeStatus(_ApiStruct, frozen=True):
    """``status`` of a Node."""

    addresses: list[NodeAddress] | None = None


class Node(_ApiStruct, frozen=True):
    """A Node of ``v1``."""

    metadata: ObjectMeta | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None

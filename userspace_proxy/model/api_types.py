"""The JSON shapes of Services (v1) and EndpointSlices (discovery.k8s.io/v1): only the fields that are read here.

For ``msgspec.json.decode`` of an answer of the API server and ``msgspec.convert`` of a YAML document alike. The types
say what JSON may hold, not what makes sense: ``model.parse`` judges values. Unknown fields are ignored and ``null``
counts as absent, as everywhere in the Kubernetes API; a value of a wrong JSON type is a ``msgspec.ValidationError``
for the whole object, as on an API server. Entry points: ``Service``, ``EndpointSlice``.

Source: Kubernetes API reference, Service v1 and EndpointSlice v1 (discovery.k8s.io).
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


class ServicePort(_ApiStruct, frozen=True):
    """One of ``spec.ports`` of a Service."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None


class ServiceSpec(_ApiStruct, frozen=True):
    """``spec`` of a Service."""

    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: list[str] | None = None
    ports: list[ServicePort] | None = None


class Service(_ApiStruct, frozen=True):
    """A Service of ``v1``."""

    metadata: ObjectMeta | None = None
    spec: ServiceSpec | None = None


class EndpointConditions(_ApiStruct, frozen=True):
    """``conditions`` of one of ``endpoints``."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Endpoint(_ApiStruct, frozen=True):
    """One of ``endpoints`` of an EndpointSlice."""

    addresses: list[str] | None = None
    conditions: EndpointConditions | None = None
    node_name: str | None = None


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

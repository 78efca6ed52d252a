"""The resources of the API server that are watched: where they are, which of them are asked for, how they are read.

Entry points: ``services``, ``endpoint_slices``, ``node``.

Source: kube-proxy's ``cmd/kube-proxy/app/server.go``, where its informers are made.
"""

from collections.abc import Callable, Mapping
from functools import partial

import msgspec
from attrs import field, frozen

from userspace_proxy.model import api_types
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.node import Node
from userspace_proxy.model.parse import parse_endpoint_slice, parse_service
from userspace_proxy.model.parse_node import parse_node
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Service

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
"""On a Service: another proxy than kube-proxy is to serve it."""
HEADLESS_LABEL = "service.kubernetes.io/headless"

Found = Service | EndpointSlice | Node
Parsed = tuple[Found | None, tuple[Problem, ...]]


@frozen
class ApiResource:
    """One resource, and which of its objects are asked for."""

    name: str
    """In the API, as ``services``."""
    type: type[Found]
    path: str
    """On the server."""
    _parse: Callable[[msgspec.Raw], Parsed] = field(repr=False)
    """Raises ``msgspec.DecodeError``."""
    query: Mapping[str, str] = field(factory=dict)
    """The selectors."""

    def subject(self, name: NamespacedName) -> str:
        """Return how an object is named in Problems."""
        return f"{self.type.__name__} {name if name.namespace else name.name}"

    def parse(self, name: NamespacedName, raw: msgspec.Raw) -> Parsed:
        """Return an object (None: not one to be served, or not to be read) and what is wrong with it."""
        try:
            return self._parse(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return None, (Problem(Severity.ERROR, self.subject(name), "", f"cannot be read: {error}"),)


def services(service_proxy_name: str = "") -> ApiResource:
    """Return the Services that are to be served (see ``ApiAccess.service_proxy_name``)."""
    selector = f"{PROXY_NAME_LABEL}={service_proxy_name}" if service_proxy_name else f"!{PROXY_NAME_LABEL}"

    def parse(decode: Callable[[msgspec.Raw], api_types.Service], raw: msgspec.Raw) -> Parsed:
        obj = decode(raw)
        # the server has looked at the label already; a proxy between may not understand selectors
        labels = (obj.metadata.labels if obj.metadata else None) or {}
        wanted = (
            labels.get(PROXY_NAME_LABEL) == service_proxy_name if service_proxy_name else PROXY_NAME_LABEL not in labels
        )
        return parse_service(obj, "") if wanted else (None, ())

    decode = msgspec.json.Decoder(api_types.Service).decode
    query = {"labelSelector": selector, "fieldSelector": "spec.clusterIP!=None"}
    return ApiResource("services", Service, "/api/v1/services", partial(parse, decode), query)


def endpoint_slices() -> ApiResource:
    """Return the EndpointSlices of all Services that are not headless."""
    decode = msgspec.json.Decoder(api_types.EndpointSlice).decode
    path = "/apis/discovery.k8s.io/v1/endpointslices"
    query = {"labelSelector": f"!{HEADLESS_LABEL}"}
    return ApiResource("endpointslices", EndpointSlice, path, lambda raw: parse_endpoint_slice(decode(raw), ""), query)


def node(name: str) -> ApiResource:
    """Return the one Node of this name."""
    decode = msgspec.json.Decoder(api_types.Node).decode

    def parse(raw: msgspec.Raw) -> Parsed:
        found, problems = parse_node(decode(raw))
        return (found, problems) if found is None or found.name == name else (None, ())

    return ApiResource("nodes", Node, "/api/v1/nodes", parse, {"fieldSelector": f"metadata.name={name}"})

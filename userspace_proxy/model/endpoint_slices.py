"""Which Endpoints a ServicePort has, from all EndpointSlices of its Service.

The rules are kube-proxy's (``pkg/proxy/endpointslicecache.go``). Decides nothing about which of them are usable: that
is ``model.topology``'s. Entry point: ``merge_endpoints``.
"""

from collections.abc import Iterable

from attrs import frozen

from userspace_proxy.model.endpoint import Endpoint, EndpointSlice
from userspace_proxy.model.names import Family, ServicePortName


@frozen
class MergedEndpoint:
    """An Endpoint at one port of a ServicePort: what is left of all EndpointSlices that name it."""

    endpoint: Endpoint
    port: int
    """The number to dial, as its EndpointSlice says; it may differ between the endpoints of one ServicePort."""


def merge_endpoints(
    slices: Iterable[EndpointSlice], service_port: ServicePortName, family: Family
) -> tuple[MergedEndpoint, ...]:
    """Return the Endpoints of a ServicePort in one family, once each, sorted by the text of ``address:port``.

    A port matches by name and protocol, never by number. Where several EndpointSlices have the same address and port,
    a later one wins unless it is terminating; so the order of ``slices`` matters, and only for that.

    Args:
        slices: All EndpointSlices of the Service.
        service_port: The port wanted.
        family: Endpoints never cross families.
    """
    merged: dict[str, MergedEndpoint] = {}
    for endpoint_slice in slices:
        if endpoint_slice.family is not family:
            continue
        for port in endpoint_slice.ports:
            if port.name != service_port.port or port.protocol is not service_port.protocol:
                continue
            for endpoint in endpoint_slice.endpoints:
                # text order puts 10.0.1.10:80 before 10.0.1.1:80, as in kube-proxy; brackets matter to IPv6 alone
                key = f"[{endpoint.address}]:{port.port}"
                if key not in merged or not endpoint.terminating:
                    merged[key] = MergedEndpoint(endpoint, port.port)
    return tuple(merged[key] for key in sorted(merged))

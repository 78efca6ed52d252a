"""A cluster as tests use it: the API server double or a real one, told apart by nothing but the kubeconfig.

What a test makes is in a namespace of its own, or noted; all of it is deleted at the end. There need be no controllers:
Services have no selector, EndpointSlices are made by hand.

Entry points: ``Cluster``, ``service_manifest``, ``endpoint_slice_manifest``, ``node_manifest``.
"""

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from apiserver.kube_client import MERGE_PATCH, KubeClient, RefusedError
from apiserver.resources import CORE_EVENTS, ENDPOINT_SLICES, NAMESPACES, NODES, SERVICES, Resource
from attrs import define, field

Manifest = dict[str, Any]

_BY_KIND = {one.kind: one for one in (NAMESPACES, SERVICES, ENDPOINT_SLICES, NODES)}


@define(eq=False)
class Cluster:
    """Makes, changes and deletes objects; as a context it has its namespace and deletes all at the end."""

    kubeconfig: Path
    """For the program under test."""
    client: KubeClient
    """With the rights of an administrator."""
    namespace: str = field(factory=lambda: f"userspace-proxy-{secrets.token_hex(4)}")
    _others: list[tuple[Resource, str]] = field(factory=list, init=False)

    def create(self, manifest: Manifest) -> Manifest:
        """Create an object, in the namespace of the test if it names none; return it as the server keeps it.

        Raises:
            RefusedError: the server refuses it.
        """
        resource, namespace, _ = self._place(manifest)
        made = self.client.request("POST", resource.path(namespace), manifest)
        if not resource.is_namespaced:
            self._others.append((resource, made["metadata"]["name"]))
        return made

    def replace(self, manifest: Manifest) -> Manifest:
        """Replace an object; return it as the server keeps it.

        Raises:
            RefusedError: the server refuses it.
        """
        return self.client.request("PUT", self._path(manifest), manifest)

    def patch(self, manifest: Manifest, change: Mapping[str, Any]) -> Manifest:
        """Change an object by a merge patch; return it as the server keeps it.

        Args:
            manifest: names the object; nothing else of it matters.
            change: the patch; None takes a field away.

        Raises:
            RefusedError: the server refuses it.
        """
        return self.client.request("PATCH", self._path(manifest), change, MERGE_PATCH)

    def patch_status(self, manifest: Manifest, status: Mapping[str, Any]) -> Manifest:
        """Change the status of an object by a merge patch; return the object as the server keeps it."""
        return self.client.request("PATCH", f"{self._path(manifest)}/status", {"status": status}, MERGE_PATCH)

    def set_load_balancer(self, service: Manifest, *ingresses: Mapping[str, Any]) -> Manifest:
        """Give a Service its load balancer addresses, as a cloud's controller does."""
        return self.patch_status(service, {"loadBalancer": {"ingress": [dict(one) for one in ingresses]}})

    def get(self, manifest: Manifest) -> Manifest:
        """Return an object as it is now."""
        return self.client.request("GET", self._path(manifest))

    def delete(self, manifest: Manifest) -> None:
        """Delete an object."""
        self.client.request("DELETE", self._path(manifest))

    def events(self, manifest: Manifest) -> list[Manifest]:
        """Return the Events about an object, as the core group has them."""
        resource, namespace, name = self._place(manifest)
        fields = f"fieldSelector=involvedObject.kind%3D{resource.kind}%2CinvolvedObject.name%3D{name}"
        items: list[Manifest] = self.client.request("GET", f"{CORE_EVENTS.path(namespace or 'default')}?{fields}")[
            "items"
        ]
        return items

    def __enter__(self) -> Self:
        """Create the namespace."""
        self.client.request("POST", NAMESPACES.path(), {"metadata": {"name": self.namespace}})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Delete all that was made."""
        try:
            for resource, name in [*self._others, (NAMESPACES, self.namespace)]:
                with suppress(RefusedError):  # the test has deleted it
                    self.client.request("DELETE", resource.path(name=name))
        finally:
            self.client.close()

    def _place(self, manifest: Manifest) -> tuple[Resource, str | None, str]:
        resource, metadata = _BY_KIND[manifest["kind"]], manifest["metadata"]
        namespace = metadata.get("namespace", self.namespace) if resource.is_namespaced else None
        return resource, namespace, metadata.get("name", "")

    def _path(self, manifest: Manifest) -> str:
        resource, namespace, name = self._place(manifest)
        return resource.path(namespace, name)


def service_manifest(name: str = "web", *ports: Mapping[str, Any], **spec: Any) -> Manifest:
    """Return a Service without a selector, with the one port ``http`` 80/TCP if none is given.

    Args:
        name: of the Service.
        ports: as in ``spec.ports``.
        spec: further fields of ``spec``, named as in the API.
    """
    all_ports = [dict(port) for port in ports] or [{"name": "http", "port": 80, "protocol": "TCP"}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": all_ports, **spec}}


def endpoint_slice_manifest(
    name: str = "web-1",
    *endpoints: str | Mapping[str, Any],
    service: str = "web",
    ports: Iterable[Mapping[str, Any]] = ({"name": "http", "port": 8080, "protocol": "TCP"},),
    address_type: str = "IPv4",
) -> Manifest:
    """Return an EndpointSlice.

    Args:
        name: of the EndpointSlice.
        endpoints: as in the API, or the address of a ready one.
        service: to which it belongs.
        ports: as in the API.
        address_type: IPv4, IPv6 or FQDN.
    """
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": address_type,
        "endpoints": [
            {"addresses": [one], "conditions": {"ready": True}} if isinstance(one, str) else dict(one)
            for one in endpoints
        ],
        "ports": [dict(port) for port in ports],
    }


def node_manifest(name: str, *addresses: str, zone: str | None = None) -> Manifest:
    """Return a Node with internal addresses, and in a zone; create it where the cluster may have further Nodes."""
    labels = {} if zone is None else {"topology.kubernetes.io/zone": zone}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"addresses": [{"type": "InternalIP", "address": one} for one in addresses]},
    }

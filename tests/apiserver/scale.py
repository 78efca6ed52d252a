"""Many Services with their EndpointSlices, as large as controllers write them, and changes of them.

Entry points: ``load``, ``service``, ``service_key``, ``endpoint_slice``, ``slice_key``, ``cluster_ip``.
"""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from typing import Any

from apiserver.resources import ENDPOINT_SLICES, NAMESPACES, SERVICES
from apiserver.store import Key, Store

NAMESPACE = "scale"
PORT = 80
TARGET_PORT = 8080
CLUSTER_IPS = IPv4Address("10.97.0.1")
"""The first; outside the range from which the double itself takes them."""
POD_NETWORKS = (IPv4Address("10.244.0.0"), IPv4Address("10.245.0.0"))
"""Where the endpoints of a slice are, in turn: each change moves all of them to the other one."""
PODS = 65_000

_CREATED = "2026-05-04T10:10:10Z"
_UID = "6d1f0a4e-9f3c-4a1c-8f6e-{:012d}"


def cluster_ip(number: int) -> str:
    """Return the address of a Service."""
    return str(CLUSTER_IPS + number)


def service_key(number: int) -> Key:
    """Return the name of a Service."""
    return Key(NAMESPACE, f"web-{number:05d}")


def slice_key(number: int) -> Key:
    """Return the name of the EndpointSlice of a Service."""
    return Key(NAMESPACE, f"web-{number:05d}-abcde")


def load(store: Store, services: int, endpoints: int) -> None:
    """Fill a store, as if all had been there for long."""
    store.collection(NAMESPACES.plural).load([(Key("", NAMESPACE), {"metadata": {"name": NAMESPACE}})])
    store.collection(SERVICES.plural).load((service_key(number), service(number)) for number in range(services))
    store.collection(ENDPOINT_SLICES.plural).load(
        (slice_key(number), endpoint_slice(number, endpoints, 0)) for number in range(services)
    )


def service(number: int) -> Mapping[str, Any]:
    """Return a ClusterIP Service."""
    name = service_key(number).name
    return {
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": _UID.format(number),
            "creationTimestamp": _CREATED,
            "labels": {"app": name, "app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": NAMESPACE},
            "managedFields": _managed_fields("helm", "f:internalTrafficPolicy", "f:ports", "f:selector", "f:type"),
        },
        "spec": {
            "clusterIP": cluster_ip(number),
            "clusterIPs": [cluster_ip(number)],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": "http"}],
            "selector": {"app": name},
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(number: int, endpoints: int, generation: int) -> Mapping[str, Any]:
    """Return the EndpointSlice of a Service; its endpoints are in the pod network that the generation says."""
    name = service_key(number).name
    return {
        "metadata": {
            "name": slice_key(number).name,
            "generateName": f"{name}-",
            "namespace": NAMESPACE,
            "uid": _UID.format(100_000 + number),
            "creationTimestamp": _CREATED,
            "generation": generation + 1,
            "labels": {
                "app": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name,
            },
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Service", "name": name, "uid": _UID.format(number), "controller": True}
            ],
            "managedFields": _managed_fields("kube-controller-manager", "f:addressType", "f:endpoints", "f:ports"),
        },
        "addressType": "IPv4",
        "endpoints": list(_endpoints(number, endpoints, generation)),
        "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
    }


def _endpoints(number: int, endpoints: int, generation: int) -> Iterator[Mapping[str, Any]]:
    network = POD_NETWORKS[generation % len(POD_NETWORKS)]
    for k in range(endpoints):
        yield {
            "addresses": [str(network + 1 + (number * endpoints + k) % PODS)],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"node-{k:03d}",
            "targetRef": {
                "kind": "Pod",
                "name": f"web-{number:05d}-5d9c7b9f6b-{k:05d}",
                "namespace": NAMESPACE,
                "uid": _UID.format(1_000_000 * (generation + 1) + number * endpoints + k),
            },
            "zone": f"zone-{'abc'[k % 3]}",
        }


def _managed_fields(manager: str, *fields: str) -> list[Mapping[str, Any]]:
    return [
        {
            "manager": manager,
            "operation": "Update",
            "apiVersion": "v1",
            "time": _CREATED,
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, **{field: {} for field in fields}},
        }
    ]

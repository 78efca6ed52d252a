"""From the JSON shape of a Node to a ``Node``. Entry point: ``parse_node``.

The rules are those of ``model.parse``. Reads only what a Service proxy decides by: zone, addresses, networks of pods,
and whether load balancers should still send traffic here.
"""

from collections.abc import Iterable

from userspace_proxy.model import api_types
from userspace_proxy.model.findings import Findings, filled
from userspace_proxy.model.names import Family, IPAddress, IPNetwork, family_of
from userspace_proxy.model.node import Node
from userspace_proxy.model.problem import Problem

ZONE_LABEL = "topology.kubernetes.io/zone"
_DELETION_TAINT = "ToBeDeletedByClusterAutoscaler"
_ADDRESS_TYPES = ("InternalIP", "ExternalIP")
"""The better one first."""

_NO_METADATA = api_types.ObjectMeta()
_NO_SPEC = api_types.NodeSpec()
_NO_STATUS = api_types.NodeStatus()


def parse_node(obj: api_types.Node) -> tuple[Node | None, tuple[Problem, ...]]:
    """Return a Node of the API server and what is wrong with it; None if it has no name.

    Source: kube-proxy's ``GetNodeHostIPs`` (``pkg/util/node/node.go``) and node eligibility
    (``pkg/proxy/healthcheck/proxy_health.go``).
    """
    findings = Findings("")
    metadata = obj.metadata or _NO_METADATA
    spec = obj.spec or _NO_SPEC
    if not metadata.name:
        findings.error("metadata.name", "is missing, so this is no Node")
        return None, findings.problems()
    findings.subject = f"Node {metadata.name}"
    node = Node(
        metadata.name,
        zone=(metadata.labels or {}).get(ZONE_LABEL) or "",
        addresses=_parse_addresses((obj.status or _NO_STATUS).addresses or (), findings),
        pod_networks=_parse_pod_networks(spec, findings),
        is_eligible=not metadata.deletion_timestamp
        and all(taint.key != _DELETION_TAINT for taint in spec.taints or ()),
    )
    return node, findings.problems()


def _parse_addresses(addresses: Iterable[api_types.NodeAddress], findings: Findings) -> dict[Family, IPAddress]:
    found: dict[str, dict[Family, IPAddress]] = {type_: {} for type_ in _ADDRESS_TYPES}
    for i, one in enumerate(addresses):
        text = (one.address or "").strip()
        if one.type not in found or not text:
            continue
        address = findings.address(f"status.addresses[{i}].address", text)
        if address is not None and not address.is_loopback:
            found[one.type].setdefault(family_of(address), address)
    internal, external = (found[type_] for type_ in _ADDRESS_TYPES)
    return external | internal


def _parse_pod_networks(spec: api_types.NodeSpec, findings: Findings) -> tuple[IPNetwork, ...]:
    if spec.pod_cidrs:
        networks = [findings.network(f"spec.podCIDRs[{i}]", text) for i, text in filled(spec.pod_cidrs)]
    else:
        networks = [findings.network("spec.podCIDR", text) for _, text in filled([spec.pod_cidr or ""])]
    return tuple(one for one in networks if one is not None)

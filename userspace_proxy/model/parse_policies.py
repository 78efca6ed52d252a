"""How a Service wants its traffic led: traffic policies, session affinity, health check of load balancers.

Part of ``parse_service``, with its rules: each function reads a few fields of ``spec``, notes what is wrong with them
and returns what is in force. An unknown word never costs the Service its traffic: the default of the API takes its
place.
"""

from enum import StrEnum

from userspace_proxy.model import api_types
from userspace_proxy.model.findings import Findings, quote
from userspace_proxy.model.service_port import TrafficPolicy

DEFAULT_AFFINITY_TIMEOUT_S = 10800
"""What the API fills in (``DefaultClientIPServiceAffinitySeconds``)."""
_MAX_AFFINITY_TIMEOUT_S = 86400


class _SessionAffinity(StrEnum):
    """The values of ``spec.sessionAffinity``."""

    NONE = "None"
    CLIENT_IP = "ClientIP"


def parse_internal_policy(spec: api_types.ServiceSpec, findings: Findings) -> TrafficPolicy:
    """Return what holds for cluster addresses."""
    return _parse_policy("spec.internalTrafficPolicy", spec.internal_traffic_policy, findings)


def parse_external_policy(spec: api_types.ServiceSpec, findings: Findings) -> TrafficPolicy:
    """Return what holds for NodePorts, external and load balancer addresses.

    Only a Service that can be reached from outside has a policy for it; any other is as good as Cluster.

    Source: kube-proxy's ``ExternalPolicyLocal`` and ``ExternallyAccessible`` (``pkg/api/v1/service/util.go``).
    """
    policy = _parse_policy("spec.externalTrafficPolicy", spec.external_traffic_policy, findings)
    type_ = spec.type or "ClusterIP"
    is_accessible = type_ in {"NodePort", "LoadBalancer"} or (type_ == "ClusterIP" and bool(spec.external_ips))
    return policy if is_accessible else TrafficPolicy.CLUSTER


def _parse_policy(path: str, text: str | None, findings: Findings) -> TrafficPolicy:
    try:
        return TrafficPolicy(text or TrafficPolicy.CLUSTER)
    except ValueError:
        findings.warn(
            path,
            f"{quote(text)} is unknown, so {TrafficPolicy.CLUSTER} holds; write {' or '.join(TrafficPolicy)}",
        )
        return TrafficPolicy.CLUSTER


def parse_affinity_timeout(spec: api_types.ServiceSpec, findings: Findings) -> int | None:
    """Return for how many seconds a client keeps its Endpoint, None without session affinity."""
    try:
        affinity = _SessionAffinity(spec.session_affinity or _SessionAffinity.NONE)
    except ValueError:
        findings.warn(
            "spec.sessionAffinity",
            f"{quote(spec.session_affinity)} is unknown, so clients keep no endpoint; "
            f"write {' or '.join(_SessionAffinity)}",
        )
        return None
    if affinity is _SessionAffinity.NONE:
        return None
    config = spec.session_affinity_config
    timeout_s = config.client_ip.timeout_seconds if config and config.client_ip else None
    if timeout_s is None:
        return DEFAULT_AFFINITY_TIMEOUT_S
    if 1 <= timeout_s <= _MAX_AFFINITY_TIMEOUT_S:
        return timeout_s
    findings.warn(
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        f"{quote(timeout_s)} cannot be used, so it is {DEFAULT_AFFINITY_TIMEOUT_S}; "
        f"write a number from 1 to {_MAX_AFFINITY_TIMEOUT_S}",
    )
    return DEFAULT_AFFINITY_TIMEOUT_S


def parse_health_check_node_port(
    spec: api_types.ServiceSpec, external_policy: TrafficPolicy, findings: Findings
) -> int | None:
    """Return where load balancers ask for Endpoints of this node, None where they have no reason to.

    Source: kube-proxy's ``NeedsHealthCheck`` (``pkg/api/v1/service/util.go``).
    """
    if spec.type != "LoadBalancer" or external_policy is not TrafficPolicy.LOCAL:
        return None
    path = "spec.healthCheckNodePort"
    if spec.health_check_node_port:
        return findings.port_number(path, spec.health_check_node_port)
    if not findings.is_handwritten:
        # by hand there may be no load balancer that asks; an API server always assigns one
        findings.error(path, "is missing, so no load balancer can ask whether this node has endpoints; set one")
    return None

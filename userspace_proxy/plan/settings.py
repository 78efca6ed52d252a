"""What plans depend on besides the objects, from what the proxy is told and has found. Pure.

Entry point: ``plan_settings_for``.
"""

from userspace_proxy.config import Config, DetectLocalMode
from userspace_proxy.model.names import IPAddress
from userspace_proxy.model.node import Node
from userspace_proxy.plan.node_ports import choose_node_port_addresses
from userspace_proxy.plan.state import PlanSettings, SourceAddresses


def plan_settings_for(config: Config, node: Node | None, local_addresses: frozenset[IPAddress]) -> PlanSettings:
    """Return what plans depend on besides Services and EndpointSlices.

    Args:
        config: What the proxy is told.
        node: The Node it runs on; None: not known, so nothing has its zone, its primary addresses or its pods.
        local_addresses: All addresses of this node, those of loopback among them.
    """
    known = node or Node(config.node_name)
    by_node = config.detect_local_mode is DetectLocalMode.NODE_CIDR
    return PlanSettings(
        default_balance=config.balance,
        sources=SourceAddresses(known.pod_networks if by_node else config.cluster_cidrs, local_addresses),
        node_name=config.node_name,
        zone=known.zone,
        node_addresses=known.addresses,
        node_port_addresses=choose_node_port_addresses(config.node_port_addresses, local_addresses, known.addresses),
        serves_external_ips=config.serves_external_ips,
    )

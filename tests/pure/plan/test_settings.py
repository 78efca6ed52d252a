"""Tests of plan.settings."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from builders import plan_settings

from userspace_proxy.config import Config, DetectLocalMode, NodePortAddresses
from userspace_proxy.model.names import Family
from userspace_proxy.model.node import Node
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.settings import plan_settings_for

_LOCAL = frozenset(map(ip_address, ["127.0.0.1", "192.0.2.1", "fe80::1"]))
_NODE = Node(
    "here",
    zone="near",
    addresses={Family.IPV4: ip_address("192.0.2.1")},
    pod_networks=(ip_network("10.0.7.0/24"),),
)


def _config(**kwargs: object) -> Config:
    return Config(state_dir=Path("/state"), runtime_dir=Path("/run"), **kwargs)  # type: ignore[arg-type]


def test_plan_settings_are_those_of_config_node_and_addresses() -> None:
    """Each value comes from where it is known."""
    config = _config(
        node_name="here",
        cluster_cidrs=(ip_network("10.0.0.0/16"),),
        node_port_addresses=NodePortAddresses((ip_network("192.0.2.0/24"),)),
        serves_external_ips=False,
        balance=Balance.LEAST_CONNECTIONS,
    )
    assert plan_settings_for(config, _NODE, _LOCAL) == plan_settings(
        default_balance=Balance.LEAST_CONNECTIONS,
        local_addresses=_LOCAL,
        pod_networks=["10.0.0.0/16"],
        node_name="here",
        zone="near",
        node_addresses=["192.0.2.1"],
        node_port_addresses={Family.IPV4: ["192.0.2.1"]},
        serves_external_ips=False,
    )


def test_plan_settings_without_a_node_know_no_zone_and_no_primary_address() -> None:
    """The name is still that of the setting, so Endpoints here are known as such."""
    config = _config(node_name="here", node_port_addresses=NodePortAddresses(is_primary=True))
    assert plan_settings_for(config, None, _LOCAL) == plan_settings(
        local_addresses=_LOCAL, node_name="here", node_port_addresses={Family.IPV4: [], Family.IPV6: []}
    )


@pytest.mark.parametrize(
    ("mode", "node", "networks"),
    [
        (DetectLocalMode.CLUSTER_CIDR, _NODE, ["10.0.0.0/16"]),
        (DetectLocalMode.CLUSTER_CIDR, None, ["10.0.0.0/16"]),
        (DetectLocalMode.NODE_CIDR, _NODE, ["10.0.7.0/24"]),
        (DetectLocalMode.NODE_CIDR, None, []),
    ],
)
def test_h_9_pods_are_told_by_the_cluster_s_networks_or_by_the_node_s(
    mode: DetectLocalMode, node: Node | None, networks: list[str]
) -> None:
    """With NodeCIDR nobody counts as a pod before the Node is known."""
    config = _config(detect_local_mode=mode, cluster_cidrs=(ip_network("10.0.0.0/16"),))
    assert plan_settings_for(config, node, _LOCAL).sources.pod_networks == tuple(map(ip_network, networks))

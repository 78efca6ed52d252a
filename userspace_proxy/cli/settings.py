"""What the options mean together: one source, one name of the node, one Config. Entry point: ``build_config``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from userspace_proxy.config import (
    HEALTHZ_BIND_ADDRESS,
    ApiAccess,
    Config,
    DetectLocalMode,
    FlowLimits,
    RelayLimits,
    SteeringKind,
    default_runtime_dir,
    default_state_dir,
    parse_node_name,
)
from userspace_proxy.errors import ConfigError
from userspace_proxy.model.names import IPAddress
from userspace_proxy.model.service_port import Balance

_API_OPTIONS = ("kubeconfig", "kube_context", "api_server", "service_proxy_name")
_IN_POD = "KUBERNETES_SERVICE_HOST"
"""Set in every container of a cluster."""
_NEAREST_FIRST = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
"""Where an option can be set, what wins first."""
_CONFIG_FIELDS = (
    "workers",
    "hosts_file",
    "loopback_range",
    "proxy_port_range",
    "metrics_bind_address",
    "bind_address_hard_fail",
)
"""Options of ``run`` that are fields of Config, under the same name."""
_LIMIT_FIELDS = {
    "dial_next_after": "dial_next_after_s",
    "dial_timeout": "dial_timeout_s",
    "idle_timeout": "idle_timeout_s",
    "half_closed_timeout": "half_closed_timeout_s",
    "max_connections": "max_connections",
}
"""Options of ``run`` that are fields of RelayLimits."""
_FLOW_LIMIT_FIELDS = {
    "udp_idle_timeout": "idle_timeout_s",
    "udp_max_flows": "max_flows",
    "udp_max_total_flows": "max_total_flows",
}
"""Options of ``run`` that are fields of FlowLimits."""


def build_config(context: click.Context) -> Config:
    """Return the configuration that the options of ``run`` or ``check`` make.

    Raises:
        click.UsageError: options contradict each other, or name no source.
        ConfigError: the same, of values in the configuration file.
    """
    given = context.params
    uid = os.geteuid()
    manifests = _chosen_manifests(context)
    chosen: dict[str, Any] = {
        "manifests": manifests,
        "api": ApiAccess() if manifests else _api_access(given),
        "node_name": given["hostname_override"] or parse_node_name(os.uname().nodename),
        "detect_local_mode": DetectLocalMode(given["detect_local_mode"]),
        "cluster_cidrs": given["cluster_cidr"] or (),
        "node_port_addresses": given["nodeport_addresses"],
        "serves_external_ips": given["external_ips"],
        "state_dir": given["state_dir"] or default_state_dir(os.environ, uid),
        "runtime_dir": given.get("runtime_dir") or default_runtime_dir(os.environ, uid),
        "steering": SteeringKind(given["steering"]),
        "service_cidrs": given["service_cidr"] or (),
        "balance": Balance(given["balance"]),
        "limits": RelayLimits(**_fields(given, _LIMIT_FIELDS)),
        "flow_limits": FlowLimits(**_fields(given, _FLOW_LIMIT_FIELDS)),
        "healthz_bind_address": _healthz_bind_address(context, has_manifests=bool(manifests)),
    }
    chosen |= {name: given[name] for name in _CONFIG_FIELDS if name in given}
    if given.get("worker_user"):
        chosen["worker_user"] = _worker_user(context)
    if "drain_timeout" in given:
        chosen["drain_timeout_s"] = given["drain_timeout"]
    return Config(**chosen)


def _fields(given: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of options by the names of their fields; a command that has not all options leaves defaults."""
    return {field: given[name] for name, field in fields.items() if name in given}


def _chosen_manifests(context: click.Context) -> tuple[Path, ...]:
    """Return the manifests to serve; none if the API server is the source. The nearer of two that are named wins."""
    given = context.params
    manifests, more = given["manifests"], given["more_manifests"]
    if more and not manifests:
        raise click.UsageError(f"Missing option '--manifests' before '{more[0]}'.", context)
    api_options = sorted((name for name in _API_OPTIONS if given[name]), key=lambda name: _distance(context, name))
    if manifests and api_options:
        manifests_distance = 0 if more else _distance(context, "manifests")
        api_distance = _distance(context, api_options[0])
        if api_distance == manifests_distance:
            option = f"--{api_options[0].replace('_', '-')}"
            raise _error(
                context, api_distance, f"--manifests and {option} name two sources of Services: give one of them."
            )
        if api_distance < manifests_distance:
            manifests = more = ()
    if not (manifests or given["kubeconfig"] or given["api_server"] or os.environ.get(_IN_POD)):
        raise click.UsageError(
            "No source of Services: name files or directories with --manifests, or the API server with --kubeconfig. "
            f"(In a pod its service account would do, but {_IN_POD} is not set.)",
            context,
        )
    return (*manifests, *more)


def _worker_user(context: click.Context) -> str:
    if context.params["workers"] == 0:
        raise _error(
            context,
            min(_distance(context, name) for name in ("workers", "worker_user")),
            "--workers 0 leaves nobody to run as --worker-user: give another number, or no user.",
        )
    return str(context.params["worker_user"])


def _distance(context: click.Context, name: str) -> int:
    """Return how far from the command line an option was set."""
    source = context.get_parameter_source(name)
    return _NEAREST_FIRST.index(source) if source in _NEAREST_FIRST else len(_NEAREST_FIRST)


def _error(context: click.Context, distance: int, text: str) -> Exception:
    if _NEAREST_FIRST[distance] is ParameterSource.DEFAULT_MAP:
        return ConfigError(f"{context.params['config']}: {text}")
    return click.UsageError(text, context)


def _api_access(given: Mapping[str, Any]) -> ApiAccess:
    return ApiAccess(
        kubeconfig=Path(given["kubeconfig"]) if given["kubeconfig"] else None,
        context=given["kube_context"] or "",
        server=given["api_server"] or "",
        service_proxy_name=given["service_proxy_name"] or "",
    )


def _healthz_bind_address(context: click.Context, *, has_manifests: bool) -> tuple[IPAddress, int] | None:
    """Return where health is told: for all the world to see only if asked for, or on a node of a cluster."""
    if context.get_parameter_source("healthz_bind_address") in _NEAREST_FIRST:
        address: tuple[IPAddress, int] | None = context.params["healthz_bind_address"]
        return address
    return None if has_manifests else HEALTHZ_BIND_ADDRESS

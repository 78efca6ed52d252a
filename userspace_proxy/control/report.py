"""What the commands say on stdout, as lines of text or JSON. Builds texts, prints nothing."""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv6Address
from typing import Any

import msgspec

from userspace_proxy.config import Config, NodePortAddresses
from userspace_proxy.control.check import CheckResult
from userspace_proxy.control.main import Running
from userspace_proxy.control.process_limits import count_default_workers
from userspace_proxy.model.names import IPAddress
from userspace_proxy.plan.state import DesiredState, ServicePlan, SourceClass, Target, Verdict
from userspace_proxy.sources.manifest_files import shown_path
from userspace_proxy.steering.base import Placement


def settings_lines(config: Config) -> Iterator[str]:
    """Yield the settings that are in force, one a line."""
    limits = config.limits
    flows = config.flow_limits
    ports = config.proxy_port_range
    rows = (
        *_source_rows(config),
        ("hostname-override", config.node_name or "none"),
        ("cluster-cidr", ",".join(map(str, config.cluster_cidrs)) or "none: no client counts as a pod"),
        ("detect-local-mode", config.detect_local_mode),
        ("nodeport-addresses", _node_port_addresses(config.node_port_addresses)),
        ("external-ips", "on" if config.serves_external_ips else "off"),
        ("steering", config.steering),
        ("service-cidr", ",".join(map(str, config.service_cidrs)) or "not known"),
        ("hosts-file", "none" if config.hosts_file is None else shown_path(str(config.hosts_file))),
        ("balance", config.balance),
        ("dial-next-after", f"{limits.dial_next_after_s:g} s"),
        ("dial-timeout", f"{limits.dial_timeout_s:g} s"),
        ("idle-timeout", _seconds_or_off(limits.idle_timeout_s)),
        ("half-closed-timeout", _seconds_or_off(limits.half_closed_timeout_s)),
        ("max-connections", "off" if limits.max_connections is None else f"{limits.max_connections} per listener"),
        ("drain-timeout", f"{config.drain_timeout_s:g} s"),
        ("udp-idle-timeout", f"{flows.idle_timeout_s:g} s"),
        ("udp-max-flows", f"{flows.max_flows} per listener"),
        ("udp-max-total-flows", str(flows.max_total_flows or "half of the files or local ports there are")),
        ("workers", _workers(config.workers)),
        ("worker-user", config.worker_user or "the one of this process"),
        ("loopback-range", str(config.loopback_range)),
        ("proxy-port-range", f"{ports[0]}-{ports[-1]}"),
        ("metrics-bind-address", _address_or_off(config.metrics_bind_address)),
        ("healthz-bind-address", _address_or_off(config.healthz_bind_address)),
        ("bind-address-hard-fail", "on" if config.bind_address_hard_fail else "off"),
        ("state-dir", shown_path(str(config.state_dir))),
        ("runtime-dir", shown_path(str(config.runtime_dir))),
    )
    yield "settings:"
    yield from (f"  {name}: {value}" for name, value in rows)


def _source_rows(config: Config) -> Iterator[tuple[str, str]]:
    if config.manifests:
        yield "manifests", ", ".join(shown_path(str(path)) for path in config.manifests)
        return
    api = config.api
    yield (
        "kubeconfig",
        "none: the service account of this pod" if api.kubeconfig is None else shown_path(str(api.kubeconfig)),
    )
    if api.context:
        yield "kube-context", api.context
    if api.server:
        yield "api-server", api.server
    if api.service_proxy_name:
        yield "service-proxy-name", api.service_proxy_name


def _node_port_addresses(addresses: NodePortAddresses) -> str:
    if addresses.is_primary:
        return "primary"
    return ",".join(map(str, addresses.networks)) or "all"


def ready_line(running: Running) -> str:
    """Return the one line that says that all is in force, with counts and the time it took."""
    desired = running.pipeline.desired
    failures = len(running.pipeline.failures)
    return (
        f"ready: {_count(len(desired.services), 'service')}, {_count(_endpoint_count(desired), 'endpoint')}, "
        f"{_count(running.listeners.open_listeners, 'listener')}, steering {running.chosen.steering.kind}, "
        + (f"API server {running.api.server} as {running.node_name or 'no node'}, " if running.api else "")
        + f"{running.startup_s:.2f} s"
        + (f" ({_count(failures, 'failure')}, see the log)" if failures else "")
    )


def placement_lines(placements: Iterable[Placement], *, clients_dial_listener: bool) -> Iterator[str]:
    """Yield a table of all Frontends: where clients dial, and where the connections arrive; nothing without any.

    Args:
        placements: The rows, in order.
        clients_dial_listener: Clients have to dial the listener, as nothing leads there from the cluster address.
    """
    heads = ("SERVICE", "FRONTEND", "DIAL" if clients_dial_listener else "LISTENER")
    rows = [(str(one.frontend.service_port), str(one.frontend), one.listens_at) for one in placements]
    if rows:
        yield from table_lines(heads, rows)


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table with aligned columns, its heads first."""
    table = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def check_lines(result: CheckResult) -> Iterator[str]:
    """Yield what a run would do, then every Problem, then the sum."""
    yield from result.steering
    yield ""
    if result.placements:
        yield from placement_lines(result.placements, clients_dial_listener=result.clients_dial_listener)
        yield ""
    for problem in result.problems:
        yield f"{problem.severity}: {problem}"
    errors = sum(problem.severity == "error" for problem in result.problems)
    yield (
        f"{_count(len(result.desired.services), 'service')}, {_count(_endpoint_count(result.desired), 'endpoint')}, "
        f"{_count(errors, 'error')}, {_count(len(result.problems) - errors, 'warning')}"
    )


def check_json(result: CheckResult) -> str:
    """Return what a run would do as one JSON object; its keys are an interface."""
    frontends = [
        _frontend_document(result.desired.services[placement.frontend.service_port.service], placement)
        for placement in result.placements
    ]
    problems = [
        {
            "severity": problem.severity,
            "origin": problem.origin,
            "subject": problem.subject,
            "field": problem.field,
            "text": problem.text,
        }
        for problem in result.problems
    ]
    document = {"steering": list(result.steering), "frontends": frontends, "problems": problems}
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _frontend_document(plan: ServicePlan, placement: Placement) -> dict[str, Any]:
    frontend = placement.frontend
    route = plan.routes[frontend]
    pool = next(
        pool
        for key, pool in plan.pools.items()
        if (key.service_port, key.family) == (frontend.service_port, frontend.family)
    )
    return {
        "service": str(frontend.service_port.service),
        "port": frontend.service_port.port,
        "protocol": frontend.protocol,
        "kind": frontend.kind,
        "family": frontend.family,
        "frontend": str(frontend),
        "listener": placement.listens_at,
        "balance": pool.balance,
        "affinity_timeout_s": pool.affinity_timeout_s,
        "udp": None if pool.udp is None else {"balance": pool.udp.balance, "idle_timeout_s": pool.udp.idle_timeout_s},
        "source_ranges": [str(network) for network in route.source_ranges],
        "backends": _backend_texts(plan, route.outside),
        "clients": {
            source: {
                "verdict": target if isinstance(target, Verdict) else "serve",
                "backends": _backend_texts(plan, target),
            }
            for source, target in ((source, route.target(source)) for source in SourceClass)
        },
    }


def _backend_texts(plan: ServicePlan, target: Target) -> list[str]:
    return [] if isinstance(target, Verdict) else [str(backend) for backend in plan.pools[target].backends]


def _endpoint_count(desired: DesiredState) -> int:
    """Return how many Backends there are, each counted once for each ServicePort."""
    return sum(
        len({(key.service_port, backend) for key, pool in plan.pools.items() for backend in pool.backends})
        for plan in desired.services.values()
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _seconds_or_off(seconds: float | None) -> str:
    return "off" if seconds is None else f"{seconds:g} s"


def _workers(number: int | None) -> str:
    if number is None:
        return f"{count_default_workers()}, by the CPUs that may be used"
    return str(number) if number else "0: this process serves"


def _address_or_off(address: tuple[IPAddress, int] | None) -> str:
    if address is None:
        return "off"
    host, port = address
    return f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"

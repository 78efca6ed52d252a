"""The options of the commands, in the order of their help. What they mean together: ``cli.settings``."""

from collections.abc import Callable
from pathlib import Path

import click

from userspace_proxy.cli.option_types import Option, Parsed, Seconds
from userspace_proxy.config import (
    HEALTHZ_BIND_ADDRESS,
    LOOPBACK_RANGE,
    MAX_WORKERS,
    METRICS_BIND_ADDRESS,
    MOST_WORKERS,
    Config,
    DetectLocalMode,
    NodePortAddresses,
    SteeringKind,
    parse_bind_address,
    parse_cidrs,
    parse_loopback_range,
    parse_node_name,
    parse_node_port_addresses,
    parse_port_range,
    parse_server_url,
    parse_service_proxy_name,
    parse_worker_user,
)
from userspace_proxy.errors import ConfigError
from userspace_proxy.model.service_port import Balance
from userspace_proxy.telemetry.log_format import LogFormat

PATH = click.Path(readable=False, path_type=Path)
"""A path that need not be there: what cannot be read is told with all else that is wrong with manifests."""
DEFAULTS = Config(state_dir=Path(), runtime_dir=Path())
_LIMITS = DEFAULTS.limits
_FLOW_LIMITS = DEFAULTS.flow_limits
_BIND_ADDRESS = Parsed("ADDRESS:PORT", parse_bind_address)


def _address_text(address: tuple[object, int]) -> str:
    return "{}:{}".format(*address)


def _node_port_addresses(
    _context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> NodePortAddresses:
    try:
        return parse_node_port_addresses(texts)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def _seconds(name: str, default: float | None, text: str, *, section: str, zero: bool = False) -> Option:
    """Return an option for a number of seconds; without a default it is off."""
    shown = True if default is not None else "off"
    kind = Seconds(min=0, min_open=not zero)
    return Option([name], section=section, type=kind, default=default, show_default=shown, metavar="SECONDS", help=text)


_SOURCE = "Where Services come from"
_NODE = "This node and its addresses"
_STEERING = "How connections get here"
_CONNECTIONS = "Connections"
_FLOWS = "UDP flows"
_WORKERS = "Worker processes"
_SERVED = "Health and metrics"
_FILES = "Files"
_LOG = "Log"

_MANIFESTS = (
    Option(
        ["--manifests"],
        section=_SOURCE,
        type=PATH,
        multiple=True,
        metavar="PATH...",
        help="Files and directories with Services and EndpointSlices, YAML or JSON.",
    ),
    click.Argument(["more_manifests"], nargs=-1, type=PATH, metavar="[PATH]..."),
)
_API = (
    Option(
        ["--kubeconfig"],
        section=_SOURCE,
        metavar="FILE",
        show_default="in a pod, its service account",
        help="Watch the API server that this file leads to.",
    ),
    Option(
        ["--kube-context"],
        section=_SOURCE,
        metavar="NAME",
        show_default="the file's current one",
        help="Context of the kubeconfig.",
    ),
    Option(
        ["--api-server", "--master"],
        section=_SOURCE,
        type=Parsed("URL", parse_server_url),
        help="Address of the API server, instead of the one found with the credentials.",
    ),
    Option(
        ["--service-proxy-name"],
        section=_SOURCE,
        type=Parsed("NAME", parse_service_proxy_name),
        show_default="those without that label",
        help="Serve the Services whose label service.kubernetes.io/service-proxy-name is this, beside kube-proxy.",
    ),
)
_NODE_OPTIONS = (
    Option(
        ["--hostname-override"],
        section=_NODE,
        type=Parsed("NAME", parse_node_name),
        envvar=("NODE_NAME",),
        show_default="$NODE_NAME, or the host's name",
        help="Name of this Node.",
    ),
    Option(
        ["--cluster-cidr"],
        section=_NODE,
        type=Parsed("CIDR[,CIDR]", parse_cidrs),
        show_default="no client counts as a pod",
        help="Addresses of all pods, at most one network of each IP family.",
    ),
    Option(
        ["--detect-local-mode"],
        section=_NODE,
        type=click.Choice([each.value for each in DetectLocalMode]),
        default=DEFAULTS.detect_local_mode.value,
        help="Tell pods from other clients by --cluster-cidr, or by the podCIDRs of this Node.",
    ),
    Option(
        ["--nodeport-addresses"],
        section=_NODE,
        multiple=True,
        metavar="LIST",
        callback=_node_port_addresses,
        show_default="all",
        help="Where NodePorts answer: CIDRs and the word localhost, with commas; or primary; or all.",
    ),
    Option(
        ["--external-ips/--no-external-ips"],
        section=_NODE,
        default=DEFAULTS.serves_external_ips,
        help="Whether the externalIPs of Services count.",
    ),
)


def _hosts_file(text: str) -> Option:
    return Option(["--hosts-file"], section=_STEERING, type=PATH, metavar="FILE", show_default="none", help=text)


_STEERING_OPTIONS = (
    Option(
        ["--steering"],
        section=_STEERING,
        type=click.Choice([each.value for each in SteeringKind]),
        default=DEFAULTS.steering.value,
        help="By rules (iptables, nftables), by routes (local-route), or not at all: clients dial 127.x.y.z (loopback) "
        "or NodePorts (none). auto is the first of iptables, nftables, local-route and loopback that works here.",
    ),
    Option(
        ["--service-cidr"],
        section=_STEERING,
        type=Parsed("CIDR[,CIDR]", parse_cidrs),
        show_default="not known: a route for each address",
        help="Networks of the cluster addresses of Services, at most one of each IP family, for local-route.",
    ),
    Option(
        ["--loopback-range"],
        section=_STEERING,
        type=Parsed("CIDR", parse_loopback_range),
        default=str(LOOPBACK_RANGE),
        help="Addresses of loopback steering.",
    ),
    Option(
        ["--proxy-port-range"],
        section=_STEERING,
        type=Parsed("A-B", parse_port_range),
        default=f"{DEFAULTS.proxy_port_range[0]}-{DEFAULTS.proxy_port_range[-1]}",
        help="Ports that steering rules lead to.",
    ),
)
_BALANCE = Option(
    ["--balance"],
    section=_CONNECTIONS,
    type=click.Choice([each.value for each in Balance]),
    default=DEFAULTS.balance.value,
    help="For Services that do not say.",
)
_FLOW_OPTIONS = (
    _seconds(
        "--udp-idle-timeout",
        _FLOW_LIMITS.idle_timeout_s,
        "End UDP flows without a datagram either way for so long, for Services that do not say.",
        section=_FLOWS,
    ),
    Option(
        ["--udp-max-flows"],
        section=_FLOWS,
        type=click.IntRange(min=1),
        default=_FLOW_LIMITS.max_flows,
        help="Flows open at a time, per listener; one more ends the one silent for longest.",
    ),
    Option(
        ["--udp-max-total-flows"],
        section=_FLOWS,
        type=click.IntRange(min=1),
        show_default="half of the files or local ports there are",
        help="Flows open at a time, in all.",
    ),
)
_WORKER_OPTIONS = (
    Option(
        ["--workers"],
        section=_WORKERS,
        type=click.IntRange(min=0, max=MAX_WORKERS),
        metavar="NUMBER",
        show_default=f"as many as CPUs may be used, at most {MOST_WORKERS}",
        help="Processes that serve the clients; 0: the control process does.",
    ),
    Option(
        ["--worker-user"],
        section=_WORKERS,
        type=Parsed("NAME|UID", parse_worker_user),
        show_default="the one that starts them",
        help="User they run as; takes the capabilities SETUID, SETGID and KILL.",
    ),
)
_STATE_DIR = Option(
    ["--state-dir"],
    section=_FILES,
    type=PATH,
    show_default="/var/lib/userspace-proxy, or below the home directory",
    help="Keeps assigned ports and addresses over a restart.",
)
_RUNTIME_DIR = Option(
    ["--runtime-dir"],
    section=_FILES,
    type=PATH,
    show_default="/run/userspace-proxy, or the user's runtime directory",
    help="Holds the lock against a second instance.",
)
_PLAN_OPTIONS = (*_MANIFESTS, *_API, *_NODE_OPTIONS, *_STEERING_OPTIONS, _BALANCE)


def _log_level(default: str) -> Option:
    levels = click.Choice(["debug", "info", "warning", "error"])
    return Option(["--log-level"], section=_LOG, type=levels, default=default, help="Least level.")


_LOG_FORMAT = Option(
    ["--log-format"],
    section=_LOG,
    type=click.Choice([each.value for each in LogFormat]),
    default=LogFormat.TEXT.value,
    help="Lines for people or machines.",
)


def log_options(level: str) -> tuple[Option, ...]:
    """Return the options of the log, with the level that is the default."""
    return _log_level(level), _LOG_FORMAT


def run_options(config: Option) -> tuple[click.Parameter, ...]:
    """Return the options of ``run``, the given one for a configuration file among them."""
    return (
        *_PLAN_OPTIONS,
        _hosts_file("Keep a block with the names of Services in this file, such as /etc/hosts, while running."),
        _seconds(
            "--dial-next-after",
            _LIMITS.dial_next_after_s,
            "Without an answer, dial a second endpoint beside the first.",
            section=_CONNECTIONS,
        ),
        _seconds(
            "--dial-timeout",
            _LIMITS.dial_timeout_s,
            "For all dials of a connection together.",
            section=_CONNECTIONS,
        ),
        _seconds("--idle-timeout", None, "Reset connections that move no byte for so long.", section=_CONNECTIONS),
        _seconds("--half-closed-timeout", None, "The same, once one side has finished sending.", section=_CONNECTIONS),
        Option(
            ["--max-connections"],
            section=_CONNECTIONS,
            type=click.IntRange(min=1),
            show_default="off",
            help="Open at a time, per listener.",
        ),
        _seconds(
            "--drain-timeout",
            DEFAULTS.drain_timeout_s,
            "For open connections after the first SIGTERM.",
            section=_CONNECTIONS,
            zero=True,
        ),
        *_FLOW_OPTIONS,
        *_WORKER_OPTIONS,
        Option(
            ["--healthz-bind-address"],
            section=_SERVED,
            type=_BIND_ADDRESS,
            takes_empty=True,
            show_default=f"{_address_text(HEALTHZ_BIND_ADDRESS)} with an API server; nowhere with manifests, "
            "so that nothing is open to the world unasked",
            help="Serves /healthz and /livez as kube-proxy does; '' for nowhere.",
        ),
        Option(
            ["--metrics-bind-address"],
            section=_SERVED,
            type=_BIND_ADDRESS,
            takes_empty=True,
            default=_address_text(METRICS_BIND_ADDRESS),
            help="Serves /metrics, /livez and /readyz; '' for nowhere.",
        ),
        Option(
            ["--bind-address-hard-fail"],
            section=_SERVED,
            is_flag=True,
            help="End if one of these addresses is in use, instead of trying again.",
        ),
        config,
        _STATE_DIR,
        _RUNTIME_DIR,
        Option(
            ["--log-connections"], section=_LOG, is_flag=True, help="Log each connection and UDP flow when it ends."
        ),
        *log_options("info"),
    )


def check_options(config: Option) -> tuple[click.Parameter, ...]:
    """Return the options of ``check``."""
    output = Option(
        ["--output", "-o"],
        type=click.Choice(["text", "json"]),
        default="text",
        help="For people or programs.",
    )
    return (*_PLAN_OPTIONS, config, _STATE_DIR, *log_options("error"), output)


def cleanup_options() -> tuple[click.Parameter, ...]:
    """Return the options of ``cleanup``."""
    return (
        Option(["--dry-run"], is_flag=True, help="Only say what would be removed."),
        Option(
            ["--kube-proxy-leftovers"],
            is_flag=True,
            help="Remove the iptables chains of kube-proxy's userspace mode (until 1.25), too.",
        ),
        _hosts_file("Remove our block from this file, too."),
        _RUNTIME_DIR,
        *log_options("info"),
    )


def config_option(load: Callable[[click.Context, click.Parameter, Path | None], Path | None]) -> Option:
    """Return the option for a configuration file.

    Args:
        load: Called with context, parameter and path (None: no file) before all other options get their values.
    """
    return Option(
        ["--config"],
        section=_FILES,
        type=PATH,
        metavar="FILE",
        is_eager=True,
        callback=load,
        help="Kube-proxy's configuration file, and our own settings: see 'config default'.",
    )

"""The command line: click commands that parse, call and print; what they do is in ``control`` and ``demo``.

Results go to stdout, the log to stderr. Exit status: 0 ok, 1 failure, 2 wrong usage, 3 something in the configuration
or the manifests is wrong.
"""

import logging
import math
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import trio

from userspace_proxy import __version__
from userspace_proxy.config import (
    LOOPBACK_RANGE,
    METRICS_BIND_ADDRESS,
    Config,
    RelayLimits,
    SteeringKind,
    default_runtime_dir,
    default_state_dir,
    parse_bind_address,
    parse_port_range,
)
from userspace_proxy.errors import ConfigError, UserspaceProxyError
from userspace_proxy.model.names import IPAddress
from userspace_proxy.model.service_port import Balance
from userspace_proxy.telemetry.log_format import CONNECTION_LOGGER, LogFormat, configure_logging

T = TypeVar("T")
Command = Callable[..., Any]

EXIT_FAILURE = 1
EXIT_CONFIG = 3
EXIT_INTERRUPTED = 130
PATH = click.Path(readable=False, path_type=Path)
"""A path that need not be there: what cannot be read is told with all else that is wrong with manifests."""
_DEFAULTS = Config(manifests=(), state_dir=Path(), runtime_dir=Path())
_LIMITS = _DEFAULTS.limits
_LIMIT_OPTIONS = (
    ("dial_next_after", "_s"),
    ("dial_timeout", "_s"),
    ("idle_timeout", "_s"),
    ("half_closed_timeout", "_s"),
    ("max_connections", ""),
)
"""Options of ``run`` that are fields of RelayLimits, with the unit that the field's name has."""


def option(name: str, *arguments: str, **settings: Any) -> Callable[[Command], Command]:
    """Return a click option that can be given as an environment variable too, and shows its default."""
    variable = "USERSPACE_PROXY_" + name.removeprefix("--").split("/")[0].replace("-", "_").upper()
    settings = {"show_default": True, "envvar": variable, **settings}
    return click.option(name, *arguments, **settings)


class Seconds(click.FloatRange):
    """A finite number of seconds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is no number of seconds.", param, ctx)
        return number


def seconds(name: str, default: float | None, text: str) -> Callable[[Command], Command]:
    """Return an option for a number of seconds; without a default it is off."""
    shown = True if default is not None else "off"
    kind = Seconds(min=0, min_open=True)
    return option(name, type=kind, default=default, show_default=shown, metavar="SECONDS", help=text)


class PortRange(click.ParamType):  # type: ignore[type-arg] # generic only in newer releases
    """A range of ports."""

    name = "A-B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        """Return the range."""
        try:
            return value if isinstance(value, range) else parse_port_range(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class BindAddress(click.ParamType):  # type: ignore[type-arg] # generic only in newer releases
    """An address and port to listen on; empty is none."""

    name = "ADDRESS:PORT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[IPAddress, int] | None:
        """Return the two."""
        try:
            return value if isinstance(value, tuple) else parse_bind_address(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class LoopbackRange(click.ParamType):  # type: ignore[type-arg] # generic only in newer releases
    """A network within 127.0.0.0/8."""

    name = "CIDR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Network:
        """Return the network."""
        try:
            network = IPv4Network(value)
        except ValueError as error:
            self.fail(f"{error}; write a network such as {LOOPBACK_RANGE}", param, ctx)
        if not network.subnet_of(IPv4Network("127.0.0.0/8")):
            self.fail(f"{network} is not within 127.0.0.0/8", param, ctx)
        return network


_manifests = (
    option(
        "--manifests",
        type=PATH,
        multiple=True,
        metavar="PATH...",
        help="Files and directories with Services and EndpointSlices, YAML or JSON.",
    ),
    click.argument("more_manifests", nargs=-1, type=PATH, metavar="[PATH]..."),
)
_plan_options = (
    *_manifests,
    option(
        "--steering",
        type=click.Choice([each.value for each in SteeringKind]),
        default=_DEFAULTS.steering.value,
        help="How connections to a Service reach this proxy.",
    ),
    option(
        "--balance",
        type=click.Choice([each.value for each in Balance]),
        default=_DEFAULTS.balance.value,
        help="For Services that do not say.",
    ),
    option(
        "--loopback-range", type=LoopbackRange(), default=str(LOOPBACK_RANGE), help="Addresses of loopback steering."
    ),
    option("--proxy-port-range", type=PortRange(), default="12000-29999", help="Ports that steering rules lead to."),
    option("--state-dir", type=PATH, help="Keeps assigned ports and addresses over a restart."),
)


def log_options(level: str) -> Callable[[Command], Command]:
    """Return the options of the log, with the level that is the default."""
    levels = click.Choice(["debug", "info", "warning", "error"])
    formats = click.Choice([each.value for each in LogFormat])
    return with_options(
        option("--log-level", type=levels, default=level, help="Least level."),
        option("--log-format", type=formats, default=LogFormat.TEXT.value, help="Lines for people or machines."),
    )


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds options in this order."""

    def add(command: Command) -> Command:
        for each in reversed(options):
            command = each(command)
        return command

    return add


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="userspace-proxy")
def main() -> None:
    """Serve Kubernetes Services from user space: no kernel module, no rule per endpoint.

    \b
    Examples:
      userspace-proxy demo                          see it work; no root needed
      userspace-proxy run --manifests services/     serve what the files describe
      userspace-proxy check --manifests services/   what would run, what is wrong

    Every option can be given as an environment variable, as USERSPACE_PROXY_LOG_LEVEL=debug.
    """


@main.command()
@with_options(
    *_plan_options,
    seconds(
        "--dial-next-after", _LIMITS.dial_next_after_s, "Without an answer, dial a second endpoint beside the first."
    ),
    seconds("--dial-timeout", _LIMITS.dial_timeout_s, "For all dials of a connection together."),
    seconds("--idle-timeout", None, "Reset connections that move no byte for so long."),
    seconds("--half-closed-timeout", None, "The same, once one side has finished sending."),
    option("--max-connections", type=click.IntRange(min=1), show_default="off", help="Open at a time, per listener."),
    option(
        "--drain-timeout",
        type=Seconds(min=0),
        default=_DEFAULTS.drain_timeout_s,
        metavar="SECONDS",
        help="For open connections after the first SIGTERM.",
    ),
    option(
        "--metrics-bind-address",
        type=BindAddress(),
        default="{}:{}".format(*METRICS_BIND_ADDRESS),
        help="Serves /metrics, /livez and /readyz; '' for nowhere.",
    ),
    option("--bind-address-hard-fail", is_flag=True, help="End if that address is in use, instead of trying again."),
    option("--runtime-dir", type=PATH, help="Holds the lock against a second instance."),
    option("--log-connections", is_flag=True, help="Log each connection when it ends."),
    log_options("info"),
)
def run(**settings: Any) -> None:
    """Serve the Services of manifests, and follow the files as they change.

    \b
    Examples:
      userspace-proxy run --manifests services.yaml endpoints.yaml
      userspace-proxy run --manifests services/ --steering loopback
      kubectl get svc,endpointslices -A -o yaml > all.yaml
      userspace-proxy run --manifests all.yaml

    SIGTERM drains and removes all rules; a second one does so at once. SIGHUP reads the files again. SIGUSR1 writes
    the state to the log.
    """
    from userspace_proxy.control.main import Running, run_control
    from userspace_proxy.control.report import placement_lines, ready_line, settings_lines

    _configure_logging(settings)
    config = _config(settings)
    _print(settings_lines(config))

    def on_ready(running: Running) -> None:
        dial = running.chosen.steering.clients_dial_listener
        _print(placement_lines(running.pipeline.placements(), clients_dial_listener=dial))
        _print([ready_line(running)])

    _call(run_control, config, on_ready)


@main.command()
@with_options(
    *_plan_options,
    option("--output", "-o", type=click.Choice(["text", "json"]), default="text", help="For people or programs."),
    log_options("error"),
)
def check(output: str, **settings: Any) -> None:
    """Say what a run would open for some manifests, and all that is wrong with them. Opens nothing.

    \b
    Examples:
      userspace-proxy check --manifests services/
      userspace-proxy check --manifests services/ -o json | jq .problems

    Exit status 3 if something the manifests ask for cannot be served; warnings alone are no failure.
    """
    from userspace_proxy.control.check import run_check
    from userspace_proxy.control.report import check_json, check_lines

    _configure_logging(settings)
    result = _call(run_check, _config(settings))
    _print([check_json(result)] if output == "json" else check_lines(result))
    if result.has_errors:
        sys.exit(EXIT_CONFIG)


@main.command()
@option("--dry-run", is_flag=True, help="Only say what would be removed.")
@log_options("info")
def cleanup(*, dry_run: bool, **settings: Any) -> None:
    """Remove the rules that a killed run has left behind. Needs no cluster and no manifests; may be repeated.

    \b
    Examples:
      userspace-proxy cleanup --dry-run
      userspace-proxy cleanup
    """
    from userspace_proxy.steering.cleanup import cleanup as remove_leftovers

    _configure_logging(settings)
    report = _call(lambda: remove_leftovers(dry_run=dry_run))
    verb = "would remove" if dry_run else "removed"
    _print(f"{verb} {phrase}" for phrase in report.removed)
    if not report.removed and not report.failed:
        _print(["nothing to remove"])
    for phrase in report.failed:
        click.echo(f"userspace-proxy: not removed: {phrase}", err=True)
    if report.failed:
        sys.exit(EXIT_FAILURE)


@main.command()
@option("--requests", type=click.IntRange(min=1), show_default="serve until stopped", help="Drive itself and exit.")
@log_options("warning")
def demo(requests: int | None, **settings: Any) -> None:
    """Serve one Service with three backends on this machine, without root and without a cluster.

    \b
    Examples:
      userspace-proxy demo                  try it with curl; Ctrl-C ends it
      userspace-proxy demo --requests 300   sends requests and kills a backend

    With --requests the exit status is 0 only if no request failed, apart from those that were in flight on the backend
    when it was killed.
    """
    from userspace_proxy.demo.main import run_demo

    _configure_logging(settings)
    if not _call(run_demo, requests):
        sys.exit(EXIT_FAILURE)


def _configure_logging(settings: dict[str, Any]) -> None:
    configure_logging(settings["log_level"], LogFormat(settings["log_format"]))
    wanted = settings.get("log_connections", False)
    logging.getLogger(CONNECTION_LOGGER).setLevel(logging.INFO if wanted else logging.WARNING)


def _config(settings: dict[str, Any]) -> Config:
    """Return the configuration that the options make."""
    manifests = (*settings["manifests"], *settings["more_manifests"])
    if not settings["manifests"]:
        raise click.UsageError(
            "Missing option '--manifests'. Name files or directories with Services and EndpointSlices."
        )
    uid = os.geteuid()
    chosen = {
        "manifests": manifests,
        "state_dir": settings["state_dir"] or default_state_dir(os.environ, uid),
        "runtime_dir": settings.get("runtime_dir") or default_runtime_dir(os.environ, uid),
        "steering": SteeringKind(settings["steering"]),
        "balance": Balance(settings["balance"]),
        "limits": RelayLimits(**{f"{name}{unit}": settings[name] for name, unit in _LIMIT_OPTIONS if name in settings}),
        "drain_timeout_s": settings.get("drain_timeout", _DEFAULTS.drain_timeout_s),
    }
    same = ("loopback_range", "proxy_port_range", "metrics_bind_address", "bind_address_hard_fail")
    return Config(**chosen, **{name: settings[name] for name in same if name in settings})


def _call(main_function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Run an async function to its end; what it cannot do ends this program with one sentence."""
    try:
        return trio.run(main_function, *arguments)
    except BaseException as error:
        leaves = _leaves(error)
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
            sys.exit(EXIT_INTERRUPTED)
        if not all(isinstance(leaf, UserspaceProxyError) for leaf in leaves):
            raise
        _fail(leaves)


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions in a tree of groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for child in error.exceptions for leaf in _leaves(child)]
    return [error]


def _fail(errors: list[BaseException]) -> NoReturn:
    for error in errors:
        click.echo(f"userspace-proxy: {error}", err=True)
    sys.exit(EXIT_CONFIG if any(isinstance(error, ConfigError) for error in errors) else EXIT_FAILURE)


def _print(lines: Iterable[str]) -> None:
    """Print all lines at once; who has gone and reads no more (``| head``) is no reason to stop."""
    try:
        click.echo("".join(f"{line}\n" for line in lines), nl=False)
    except BrokenPipeError:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())

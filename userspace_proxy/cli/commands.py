"""The commands: they parse, call and print; what they do is in ``control`` and ``demo``."""

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import trio

from userspace_proxy import __version__
from userspace_proxy.cli.option_types import Command, Option, with_options
from userspace_proxy.cli.options import check_options, cleanup_options, config_option, log_options, run_options
from userspace_proxy.cli.settings import build_config
from userspace_proxy.config import Config, default_runtime_dir
from userspace_proxy.errors import ConfigError, UserspaceProxyError
from userspace_proxy.telemetry.log_format import CONNECTION_LOGGER, LogFormat, configure_logging

T = TypeVar("T")

LOG = logging.getLogger(__name__)

EXIT_FAILURE = 1
EXIT_CONFIG = 3
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="userspace-proxy")
def main() -> None:
    """Serve Kubernetes Services from user space: no kernel module, no rule per endpoint.

    \b
    Examples:
      userspace-proxy demo                          see it work; no root needed
      userspace-proxy run --manifests services/     serve what the files describe
      userspace-proxy run --kubeconfig FILE         serve a cluster's Services
      userspace-proxy check --manifests services/   what would run, what is wrong

    Every option can be given as an environment variable, as USERSPACE_PROXY_LOG_LEVEL=debug.
    """


main.command_class = Command


def _load_config(context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    """Let the configuration file speak for options that are not given; what is to be logged waits in ``obj``."""
    from userspace_proxy.cli.config_file import load_config_file

    if path is not None:
        try:
            context.obj = load_config_file(context, path, run.params)
        except ConfigError as error:
            _fail([error])
    return path


_CONFIG = config_option(_load_config)


@main.command()
@with_options(*run_options(_CONFIG))
@click.pass_context
def run(context: click.Context, /, **settings: Any) -> None:
    """Serve the Services of a cluster, or of manifests, and follow all changes.

    \b
    Examples:
      userspace-proxy run --kubeconfig /etc/kubernetes/kube-proxy.conf \\
          --cluster-cidr 10.244.0.0/16
      userspace-proxy run --config kube-proxy.yaml --steering iptables
      userspace-proxy run --kubeconfig FILE --service-proxy-name userspace-proxy
      userspace-proxy run --manifests services.yaml endpoints.yaml
      userspace-proxy run --manifests services/ --steering loopback

    In a pod the API server is found by the service account; no option is needed. Of an option on the command line, in
    the environment and in the --config file, the first wins.

    SIGTERM drains and removes all rules; a second one does so at once. SIGHUP reads manifests again. SIGUSR1 writes
    the state to the log.
    """
    from userspace_proxy.control.main import Running, run_control
    from userspace_proxy.control.report import placement_lines, ready_line, settings_lines

    config = _start(context, settings)
    _print(settings_lines(config))

    def on_ready(running: Running) -> None:
        dial = running.chosen.steering.clients_dial_listener
        _print(placement_lines(running.pipeline.placements(), clients_dial_listener=dial))
        _print([ready_line(running)])

    _call(run_control, config, on_ready)


@main.command()
@with_options(*check_options(_CONFIG))
@click.pass_context
def check(context: click.Context, /, output: str, **settings: Any) -> None:
    """Say what a run would open, and all that is wrong with its manifests. Opens nothing.

    \b
    Examples:
      userspace-proxy check --manifests services/
      userspace-proxy check --manifests services/ -o json | jq .problems
      userspace-proxy check --kubeconfig FILE

    Exit status 3 if something the manifests ask for cannot be served; warnings alone are no failure.
    """
    from userspace_proxy.control.check import run_check
    from userspace_proxy.control.report import check_json, check_lines

    result = _call(run_check, _start(context, settings))
    _print([check_json(result)] if output == "json" else check_lines(result))
    if result.has_errors:
        sys.exit(EXIT_CONFIG)


@main.group(name="config")
def config_group() -> None:
    """Help with the file for --config.

    \b
    Examples:
      userspace-proxy config default > userspace-proxy.yaml
    """


@config_group.command()
def default() -> None:
    """Print a configuration file with all settings, their defaults, and what they are for.

    \b
    Examples:
      userspace-proxy config default > userspace-proxy.yaml
      userspace-proxy run --config userspace-proxy.yaml --kubeconfig FILE
    """
    from userspace_proxy.cli.config_file import default_file_lines

    _print(default_file_lines(run.params))


@main.command()
@with_options(*cleanup_options())
def cleanup(
    *, dry_run: bool, kube_proxy_leftovers: bool, hosts_file: Path | None, runtime_dir: Path | None, **settings: Any
) -> None:
    """Remove what a killed run has left behind: rules, tables and routes of all kinds of steering.

    \b
    Examples:
      userspace-proxy cleanup --dry-run
      userspace-proxy cleanup --hosts-file /etc/hosts
      userspace-proxy cleanup --kube-proxy-leftovers

    Needs no cluster and no manifests, leaves alone what others have made, and may be repeated. Not while a run is alive
    that has rules or routes; --dry-run may. Exit status 1 if something could not be removed or looked at.
    """
    from userspace_proxy.control.cleanup import run_cleanup

    _configure_logging(settings)
    remove = partial(
        run_cleanup,
        dry_run=dry_run,
        kube_proxy_leftovers=kube_proxy_leftovers,
        hosts_file=hosts_file,
        runtime_dir=runtime_dir or default_runtime_dir(os.environ, os.geteuid()),
    )
    report = _call(remove)
    verb = "would remove" if dry_run else "removed"
    _print(f"{verb} {phrase}" for phrase in report.removed)
    if not report.removed and not report.failed:
        _print(["nothing to remove"])
    for phrase in report.failed:
        click.echo(f"userspace-proxy: not removed: {phrase}", err=True)
    if report.failed:
        sys.exit(EXIT_FAILURE)


@main.command()
@with_options(
    Option(
        ["--requests"],
        type=click.IntRange(min=1),
        show_default="serve until stopped",
        help="Drive itself and exit.",
    ),
    *log_options("warning"),
)
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


def _start(context: click.Context, settings: dict[str, Any]) -> Config:
    """Set the log up, say there what is to be said of the configuration file, and return the configuration."""
    _configure_logging(settings)
    file = context.obj
    if file is not None:
        for sentence in file.warnings:
            LOG.warning("%s", sentence)
        for sentence in file.remarks:
            LOG.info("%s", sentence)
    try:
        return build_config(context)
    except ConfigError as error:
        _fail([error])


def _configure_logging(settings: dict[str, Any]) -> None:
    configure_logging(settings["log_level"], LogFormat(settings["log_format"]))
    wanted = settings.get("log_connections", False)
    logging.getLogger(CONNECTION_LOGGER).setLevel(logging.INFO if wanted else logging.WARNING)


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

"""The configuration file on its way to the options: reads it, checks its values, and prints one with all defaults.

Its values become click's ``default_map``, so that a flag and an environment variable win over them. Entry points:
``load_config_file``, ``default_file_lines``.
"""

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

from userspace_proxy.cli.option_types import ENVIRONMENT_PREFIX, Option
from userspace_proxy.config_file import kube_proxy, own
from userspace_proxy.config_file.documents import Kind
from userspace_proxy.config_file.kube_proxy_keys import APPLIED
from userspace_proxy.config_file.own import OwnKey
from userspace_proxy.config_file.parse import ConfigFile, parse_config_file
from userspace_proxy.errors import ConfigError
from userspace_proxy.sources.manifest_files import shown_path

_IRREGULAR = {
    "cluster_cidr": "clusterCIDR",
    "external_ips": "externalIPs",
    "nodeport_addresses": "nodePortAddresses",
    "service_cidr": "serviceCIDR",
}
"""Keys as Kubernetes writes these words."""
_WIDTH = 98


def load_config_file(context: click.Context, path: Path, run_parameters: Sequence[click.Parameter]) -> ConfigFile:
    """Let a file speak where neither the command line nor the environment does.

    Args:
        context: Of the command; gets the values as defaults.
        path: The file.
        run_parameters: Those of ``run``, which a file may set all, for whichever command it is read.

    Returns:
        What the file says, for the log.

    Raises:
        ConfigError: the file cannot be read or used.
    """
    origin = shown_path(str(path))
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file {origin}: {error.strerror}; name a file for --config"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the configuration file {origin}: {error.reason} in UTF-8") from None
    options = {str(option.name): option for option in _settable(run_parameters)}
    found = parse_config_file(
        text, origin, {_key(option): OwnKey(str(option.name), _kind(option)) for option in options.values()}
    )
    for setting in found.settings:
        try:
            options[setting.option].process_value(context, setting.value)
        except click.BadParameter as error:
            raise setting.place.error(f"cannot be used: {error.message}") from None
    context.default_map = {setting.option: setting.value for setting in found.settings}
    return found


def default_file_lines(run_parameters: Sequence[click.Parameter]) -> Iterator[str]:
    """Yield a configuration file with both documents and all defaults, and what each key is for."""
    options = {str(option.name): option for option in _settable(run_parameters)}
    yield from _comment(
        "Configuration of userspace-proxy: give it as 'userspace-proxy run --config FILE', or in the environment as "
        f"{ENVIRONMENT_PREFIX}CONFIG. An option on the command line wins over the environment, that over this file. "
        "Either document may be left out. Relative paths start in the working directory."
    )
    yield ""
    yield from _comment(
        "The configuration of kube-proxy, which its own file can be. Its other keys are accepted too: those that mean "
        "nothing here are named once in the log. An empty text stands for the default."
    )
    yield f"apiVersion: {kube_proxy.API_VERSION}"
    yield f"kind: {kube_proxy.KIND}"
    by_kube_proxy = {
        name: (path, kind)
        for path, (kind, name) in APPLIED.items()
        # not where an empty text says something, which kube-proxy takes for nothing; nor udpIdleTimeout, which its
        # newer releases do not know
        if not options[name].takes_empty and name != "udp_idle_timeout"
    }
    for name, (path, kind) in by_kube_proxy.items():
        *parents, key = path.split(".")
        indent = "  " * len(parents)
        yield ""
        yield from (f"{parent}:" for parent in parents)
        yield from _comment(_explained(options[name]), indent)
        yield f"{indent}{key}: {_shown(options[name].default, kind)}"
    yield ""
    yield "---"
    yield from _comment("All other options. null stands for the default.")
    yield f"apiVersion: {own.API_VERSION}"
    yield f"kind: {own.KIND}"
    for name, option in options.items():
        if name not in by_kube_proxy:
            yield ""
            yield from _comment(_explained(option))
            yield f"{_key(option)}: {json.dumps(option.default)}"


def _settable(parameters: Iterable[click.Parameter]) -> Iterator[Option]:
    """Yield the options that a file can set."""
    return (each for each in parameters if isinstance(each, Option) and each.name != "config")


def _key(option: Option) -> str:
    name = str(option.name)
    first, *others = name.split("_")
    return _IRREGULAR.get(name) or first + "".join(word.capitalize() for word in others)


def _kind(option: Option) -> Kind:
    """Return what a value for an option has to be."""
    if option.multiple:
        return Kind.TEXTS
    if option.is_flag:
        return Kind.FLAG
    if isinstance(option.type, click.IntRange):
        return Kind.INTEGER
    return Kind.NUMBER if isinstance(option.type, click.FloatRange) else Kind.TEXT


def _explained(option: Option) -> str:
    """Return what an option is for, with the values that it takes, and its default if no value can say it."""
    parts = [str(option.help)]
    if isinstance(option.type, click.Choice):
        parts.append(f"One of {', '.join(option.type.choices)}.")
    elif option.metavar == "SECONDS":
        parts.append("In seconds.")
    if isinstance(option.show_default, str):
        parts.append(f"Default: {option.show_default}.")
    return " ".join(parts)


def _shown(default: object, kind: Kind) -> str:
    """Return a default as kube-proxy's file has it, where nothing is null but a list."""
    if default is None and kind is Kind.TEXT:
        default = ""
    return json.dumps(default)


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")

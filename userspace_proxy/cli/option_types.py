"""What options are made of: types of values, and an option that has an environment variable and a section of the help.

It knows no option by name.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import click

from userspace_proxy.errors import ConfigError

ENVIRONMENT_PREFIX = "USERSPACE_PROXY_"


class Seconds(click.FloatRange):
    """A finite number of seconds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is no number of seconds.", param, ctx)
        return number


class Parsed(click.ParamType):  # type: ignore[type-arg] # generic only in newer releases
    """What a function of ``config`` makes of a text."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        """Take the form of the text, as a user is shown it, and the function."""
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the function makes of a text; anything else has been through it."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ConfigError as error:
            self.fail(str(error), param, ctx)


class Option(click.Option):
    """An option that can be an environment variable too, shows its default, and belongs to a section of the help."""

    def __init__(
        self, declarations: Sequence[str], *, section: str = "", takes_empty: bool = False, **settings: Any
    ) -> None:
        """Take what click takes, the heading of its section, and whether an empty text is a value like any other."""
        self.section = section
        self.takes_empty = takes_empty
        settings.setdefault("default", False if settings.get("is_flag") else None)
        super().__init__(declarations, **{"show_default": True, **settings})
        self.envvar = [ENVIRONMENT_PREFIX + str(self.name).upper(), *settings.get("envvar", ())]

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return what the environment says; click takes an empty variable for one that is not set."""
        found = super().resolve_envvar_value(ctx)
        if found is None and self.takes_empty and any(os.environ.get(name) == "" for name in self.envvar or ()):
            return ""
        return found


class Command(click.Command):
    """A command whose help has its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections in the order of their first options; options without a heading come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "section", ""), []).append(record)
        for heading in sorted(sections, key=lambda heading: not heading):
            with formatter.section(heading or "Options"):
                formatter.write_dl(sections[heading])


def with_options(*options: click.Parameter) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a command its options, in this order."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__click_params__ = list(reversed(options))  # type: ignore[attr-defined] # as click's decorators do
        return function

    return add

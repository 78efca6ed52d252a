"""YAML or JSON text as mappings whose members know their line, and the types that their values can be asked for.

A key that stands twice is kept aside, not refused: one kind of document forgives it. It knows no key by name. Entry
points: ``read_documents``, ``typed``.
"""

from enum import StrEnum

import yaml
from attrs import frozen

from userspace_proxy.errors import ConfigError
from userspace_proxy.model.durations import parse_duration_s

_SCALAR_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))


@frozen
class Place:
    """Where something stands."""

    origin: str
    """The file, as a user knows it."""
    path: str
    """The keys that lead there, with dots."""
    line: int
    """From 1."""

    def error(self, text: str) -> ConfigError:
        """Return an error that begins with this place."""
        return ConfigError(f"{self.origin}:{self.line}: {self.path}{' ' * bool(self.path)}{text}")

    def __str__(self) -> str:
        """Return key and line, for a list of keys of one file."""
        return f"{self.path} (line {self.line})"


@frozen
class Member:
    """One value with its place."""

    place: Place
    value: object
    """A text, number, boolean or None, a list of these, or Members."""


@frozen
class Members:
    """A mapping."""

    place: Place
    members: tuple[Member, ...]
    """In order, each key once: where one stands twice, the last counts, as it does for kube-proxy."""
    repeated: tuple[Place, ...]
    """Where a key stands again."""


class Kind(StrEnum):
    """What a value has to be; the text says so to a user."""

    TEXT = "a text"
    FLAG = "true or false"
    INTEGER = "a whole number"
    NUMBER = "a number"
    DURATION = "a duration such as 30s"
    TEXTS = "a list of texts"
    ANYTHING = "anything"


_TYPES: dict[Kind, tuple[type, ...]] = {
    Kind.TEXT: (str,),
    Kind.FLAG: (bool,),
    Kind.INTEGER: (int,),
    Kind.NUMBER: (int, float),
    Kind.ANYTHING: (object,),
}


def read_documents(text: str, origin: str) -> list[Members]:
    """Return the documents of a text that are not empty, in order.

    Args:
        text: YAML, or JSON.
        origin: Names the file in errors.

    Raises:
        ConfigError: the text is neither, or a document is no mapping.
    """
    if text.lstrip().startswith("{"):
        text = text.replace("\t", " ")  # JSON has tabs between its tokens only, where YAML takes none
    documents: list[Members] = []
    try:
        loader = yaml.SafeLoader(text)
        while loader.check_node():
            node = loader.get_node()
            value = None if node is None else _value(loader, node, Place(origin, "", _line(node)))
            if isinstance(value, Members):
                documents.append(value)
            elif value is not None:
                raise ConfigError(f"{origin}: not a configuration file: a document is no mapping of keys")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{origin}:{mark.line + 1 if mark else 1}: not YAML: {reason}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: not a configuration file: nested too deeply") from None
    return documents


def _value(loader: yaml.SafeLoader, node: yaml.Node, place: Place) -> object:
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, place) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(loader, node, place)
    members: dict[str, Member] = {}
    repeated: list[Place] = []
    for key_node, value_node in node.value:
        key = str(key_node.value)
        at = Place(place.origin, f"{place.path}.{key}".lstrip("."), _line(key_node))
        if key in members:
            repeated.append(at)
        members[key] = Member(at, _value(loader, value_node, at))
    return Members(place, tuple(members.values()), tuple(repeated))


def _scalar(loader: yaml.SafeLoader, node: yaml.Node, place: Place) -> object:
    if node.tag not in _SCALAR_TAGS:  # a date, for example: no setting is one
        return node.value
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError):
        raise place.error(f"has the tag {node.tag}, which does not fit its value") from None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def typed(member: Member, kind: Kind) -> object:
    """Return the value of a member, seconds for a duration; None if it has none.

    Raises:
        ConfigError: it is of another kind.
    """
    value = member.value
    if value is None:
        return None
    if not _is_of(value, kind):
        hint = " (put it in quotes)" if kind is Kind.TEXT and isinstance(value, int | float) else ""
        raise member.place.error(f"must be {kind}, not {_shown(value)}{hint}")
    return parse_duration_s(str(value)) if kind is Kind.DURATION else value


def _is_of(value: object, kind: Kind) -> bool:
    if kind is Kind.DURATION:
        return isinstance(value, str) and parse_duration_s(value) is not None
    if kind is Kind.TEXTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool):  # which isinstance() takes for a number
        return kind in (Kind.FLAG, Kind.ANYTHING)
    return isinstance(value, _TYPES[kind])


def _shown(value: object) -> str:
    if isinstance(value, Members):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return repr(value) if isinstance(value, str) else str(value).lower()

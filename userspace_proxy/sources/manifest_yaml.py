"""YAML text as elements that know their line, with bounds on what a hostile or broken text can cost.

The text is composed to nodes first, so that the line of any field is known; values are built from the nodes only when
they are asked for, one object at a time. Plain scalars mean what they mean to kubectl, which is YAML 1.1 without
timestamps and without sexagesimal numbers (``1:2:3:4:5:6:7:8`` is an address). It opens no file. Entry point:
``read_yaml``.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from itertools import chain
from typing import Any

import yaml
from attrs import define, field, frozen

from userspace_proxy.errors import ManifestError

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML was built without libyaml: slower, otherwise the same
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

MAX_DEPTH = 100
"""Levels of nesting in a document, arbitrary: an EndpointSlice has 7. libyaml's composer recurses in C and would
overrun its stack."""
MAX_ALIASED = 100_000
"""Nodes (or 32 characters of one) that the aliases of a document may stand for, arbitrary: far more than people write,
far less than what a nest of aliases ("billion laughs") grows to."""

_CHARACTERS_PER_NODE = 32

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _STR = (_TAG + name for name in ("null", "bool", "int", "float", "str"))
_MERGE = _TAG + "merge"
_COLLECTION_TAGS: dict[type[yaml.Node], str] = {yaml.MappingNode: _TAG + "map", yaml.SequenceNode: _TAG + "seq"}

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUES = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSES = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_INT_PATTERN = re.compile(r"[-+]?(0b[01]+|0o?[0-7]+|0x[0-9a-fA-F]+|0|[1-9][0-9]*)")
_FLOAT_PATTERN = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MAX_INT = 2**63 - 1
"""What fits a message to the control process."""


@frozen
class YamlElement:
    """One value in a YAML document, with its place."""

    _node: yaml.Node
    line: int
    """Where it begins (for a member of a mapping: where its key stands), from 1."""

    def value(self) -> object:
        """Return it as dicts, lists, strings, numbers, booleans and None.

        Raises:
            ManifestError: a key stands twice, or is no text; a tag is unknown, or does not fit its value.
        """
        return _construct(self._node)

    def member(self, key: str) -> "YamlElement | None":
        """Return the member of a mapping; None if it is no mapping or has none of that name."""
        if isinstance(self._node, yaml.MappingNode):
            for key_node, value_node in self._node.value:
                if key_node.value == key:
                    return YamlElement(value_node, _line(key_node))
        return None

    def items(self) -> "list[YamlElement] | None":
        """Return the items of a sequence in order; None if it is no sequence."""
        if isinstance(self._node, yaml.SequenceNode):
            return [YamlElement(node, _line(node)) for node in self._node.value]
        return None


def read_yaml(text: str) -> Iterator[YamlElement | ManifestError]:
    """Yield the documents of a text in order, empty ones too; in place of one whose aliases are refused, the reason.

    Raises:
        ManifestError: the text is no YAML from the given place on.
    """
    try:
        with closing(_Loader(text)) as loader:
            while loader.check_node() and (root := loader.get_node()) is not None:
                refused = _refused_aliases(root) if "*" in text else None
                yield refused or YamlElement(root, _line(root))
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(text, error) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = error.position - before.rfind("\n")
        raise ManifestError(f"not YAML: {error.reason}", before.count("\n") + 1, column) from None


class _Loader(_SafeLoader):
    """Composes nodes, as deep as allowed, with the tags that kubectl would find."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def close(self) -> None:
        """Drop what the composer holds."""
        self.dispose()

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """Return the tag of a node that carries none; ``implicit[0]`` says that a scalar is plain (not quoted)."""
        if kind is yaml.ScalarNode:
            return _plain_tag(value) if implicit[0] else _STR
        return _COLLECTION_TAGS[kind]

    def descend_resolver(self, current_node: yaml.Node | None, current_index: Any) -> None:  # noqa: ARG002
        """Count the way down."""
        self._depth += 1
        if self._depth > MAX_DEPTH and current_node is not None:
            problem = f"nested deeper than {MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=current_node.start_mark)

    def ascend_resolver(self) -> None:
        """Count the way up."""
        self._depth -= 1


@lru_cache(maxsize=4096)
def _plain_tag(text: str) -> str:
    """Return the tag that a plain scalar has by its text."""
    if text in _NULLS:
        return _NULL
    if text in _TRUES or text in _FALSES:
        return _BOOL
    if text == "<<":
        return _MERGE
    if _INT_PATTERN.fullmatch(text):
        return _INT
    return _FLOAT if _FLOAT_PATTERN.fullmatch(text) else _STR


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_error(text: str, error: yaml.MarkedYAMLError) -> ManifestError:
    """Return libyaml's complaint as one sentence."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.split("\n")
    if lines[line : line + 1] and lines[line][column : column + 1] == "\t":
        reason = "a tab where only spaces may stand"
    else:
        reason = ", ".join(part for part in (error.context, error.problem) if part)
    return ManifestError(f"not YAML: {reason}", line + 1, column + 1)


def _refused_aliases(root: yaml.Node) -> ManifestError | None:
    """Return why the aliases of a document are refused: they recurse, or stand for too much; None if they are not."""
    try:
        _Expansion().measure(root)
    except ManifestError as error:
        return error
    return None


@define
class _Expansion:
    """What a document would grow to with each alias replaced by what it stands for."""

    _measured: dict[yaml.Node, tuple[int, int] | None] = field(factory=dict)
    """Size and height of each node, told apart by identity; None while we are inside it."""
    _written: int = 0
    """Size of what was met, each node counted once."""

    def measure(self, node: yaml.Node) -> tuple[int, int]:
        """Return size and height of a node.

        An alias follows its anchor in the text, so what it stands for is measured already, and the recursion is never
        deeper than ``MAX_DEPTH``.

        Raises:
            ManifestError: an alias stands inside its own anchor, or they are beyond their bounds.
        """
        if node in self._measured:
            known = self._measured[node]
            if known is None:
                raise ManifestError("an alias (*) stands inside the node that it names", _line(node))
            return known
        self._measured[node] = None
        size = 1 + len(node.value) // _CHARACTERS_PER_NODE if isinstance(node, yaml.ScalarNode) else 1
        self._written += size
        height = 0
        for child in _children(node):
            child_size, child_height = self.measure(child)
            size += child_size
            height = max(height, child_height)
        if size > self._written + MAX_ALIASED:
            raise ManifestError(f"its aliases (*) stand for more than {MAX_ALIASED} nodes", _line(node))
        if height >= MAX_DEPTH:
            raise ManifestError(f"its aliases (*) nest deeper than {MAX_DEPTH} levels", _line(node))
        self._measured[node] = size, height + 1
        return size, height + 1


def _children(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return chain.from_iterable(node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _construct(node: yaml.Node) -> object:
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.tag == _STR else _scalar(node)
    if node.tag != _COLLECTION_TAGS[type(node)]:
        raise ManifestError(f"the tag {node.tag} means nothing here", _line(node))
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item) for item in node.value]
    return _mapping(node)


def _mapping(node: yaml.Node) -> dict[str, object]:
    mapping: dict[str, object] = {}
    merged: list[yaml.Node] = []
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ManifestError("a key is no text", _line(key_node))
        if key_node.tag == _MERGE:
            merged.extend(value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node])
        elif key_node.value in mapping:
            raise ManifestError(f"the key {key_node.value} stands twice", _line(key_node))
        else:
            mapping[key_node.value] = _construct(value_node)
    for source in merged:
        if not isinstance(source, yaml.MappingNode):
            raise ManifestError("what << merges is no mapping", _line(source))
        for key, value in _mapping(source).items():
            mapping.setdefault(key, value)
    return mapping


def _scalar(node: yaml.Node) -> object:
    """Return the value of a scalar that is not text."""
    text: str = node.value
    match node.tag:
        case value if value == _NULL and text in _NULLS:
            return None
        case value if value == _BOOL and (text in _TRUES or text in _FALSES):
            return text in _TRUES
        case value if value == _INT and _INT_PATTERN.fullmatch(text):
            return _integer(text)
        case value if value == _FLOAT and (_FLOAT_PATTERN.fullmatch(text) or _INT_PATTERN.fullmatch(text)):
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    raise ManifestError(f"the tag {node.tag} does not fit here", _line(node))


def _integer(text: str) -> int:
    """Return an integer as YAML 1.1 reads it, cut off at 64 bits: no field of the API holds more."""
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567"
    try:
        number = int(digits, 8 if octal else 0)
    except ValueError:  # more digits than Python converts
        number = _MAX_INT
    return sign * min(number, _MAX_INT)

"""JSON text as elements that know their line: one document, or several one after the other.

Values come from the standard decoder; the place of an element is found by decoding what stands before it in the same
array or object, and only when it is asked for. It opens no file. Entry point: ``read_json``.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator

from attrs import define, field, frozen

from userspace_proxy.errors import ManifestError

_BLANKS = re.compile(r"[ \t\r\n]*")
_MAX_INT = 2**63 - 1
"""What fits a message to the control process."""


@define(eq=False)
class _Text:
    """A text and where its lines begin."""

    text: str
    _line_ends: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._line_ends = [match.start() for match in re.finditer("\n", self.text)]

    def line(self, offset: int) -> int:
        """Return the number of the line that holds a character, from 1."""
        return bisect_left(self._line_ends, offset) + 1

    def skip_blanks(self, offset: int) -> int:
        """Return the offset of the next character that is no white space, or the length of the text."""
        match = _BLANKS.match(self.text, offset)
        return match.end() if match else offset

    def after(self, offset: int) -> int:
        """Return the offset of the first character after a value and white space."""
        return self.skip_blanks(_DECODER.raw_decode(self.text, offset)[1])


@frozen
class JsonElement:
    """One value in a JSON text, with its place."""

    _text: _Text
    _offset: int
    _value: object
    line: int
    """Where it begins (for a member of an object: where its key stands), from 1."""

    def value(self) -> object:
        """Return it as dicts, lists, strings, numbers, booleans and None."""
        return self._value

    def member(self, key: str) -> "JsonElement | None":
        """Return the member of an object; None if it is no object or has none of that name."""
        if not isinstance(self._value, dict) or key not in self._value:
            return None
        text = self._text
        at = text.skip_blanks(self._offset + 1)
        while True:
            found, key_end = _DECODER.raw_decode(text.text, at)
            value_at = text.skip_blanks(text.skip_blanks(key_end) + 1)
            if found == key:
                return JsonElement(text, value_at, self._value[key], text.line(at))
            at = text.skip_blanks(text.after(value_at) + 1)

    def items(self) -> "list[JsonElement] | None":
        """Return the items of an array in order; None if it is no array."""
        if not isinstance(self._value, list):
            return None
        text = self._text
        at = text.skip_blanks(self._offset + 1)
        found: list[JsonElement] = []
        for value in self._value:
            found.append(JsonElement(text, at, value, text.line(at)))
            at = text.skip_blanks(text.after(at) + 1)
        return found


def read_json(text: str) -> Iterator[JsonElement]:
    """Yield the documents of a text in order; a text without any is no error.

    Raises:
        ManifestError: the text is no JSON from the given place on, or an object in it has a key twice.
    """
    source = _Text(text)
    at = source.skip_blanks(0)
    while at < len(text):
        try:
            value, end = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            reason = error.msg[:1].lower() + error.msg[1:]
            raise ManifestError(f"not JSON: {reason}", error.lineno, error.colno) from None
        except RecursionError:
            raise ManifestError("not JSON: nested too deeply", source.line(at)) from None
        yield JsonElement(source, at, value, source.line(at))
        at = source.skip_blanks(end)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ManifestError(f"the key {twice!r} stands twice in one object")
    return found


def _integer(text: str) -> int:
    """Return an integer, cut off at 64 bits: no field of the API holds more."""
    if len(text.lstrip("-")) > len(str(_MAX_INT)):  # before int(), which refuses thousands of digits
        return -_MAX_INT if text.startswith("-") else _MAX_INT
    return max(-_MAX_INT, min(int(text), _MAX_INT))


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)

"""What the bodies of an API server say: pages of lists, and the lines of watches.

Of an object only its identity is decoded here; the rest stays as text, so that what has not changed costs next to
nothing and a bad object costs itself alone. Pure. Entry points: ``decode_page``, ``LineReader``, ``decode_event``.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/, "Efficient detection of changes".
"""

from enum import StrEnum

import msgspec
from attrs import define, field

from userspace_proxy.errors import ApiError
from userspace_proxy.model.names import NamespacedName

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Of one event of a watch: ten times what etcd takes in one request; arbitrary."""


class EventType(StrEnum):
    """What a line of a watch tells; the values are the API's."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class Page(msgspec.Struct):
    """One page of a list."""

    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Identity(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class ObjectHead(msgspec.Struct):
    """What tells one object, and one version of it, from others."""

    metadata: _Identity

    @property
    def name(self) -> NamespacedName:
        """Its name; the namespace is empty for what is in none."""
        return NamespacedName(self.metadata.namespace, self.metadata.name)

    @property
    def resource_version(self) -> str:
        """The version of the object, or that of the list up to it."""
        return self.metadata.resource_version


class Event(msgspec.Struct):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


_decode_page = msgspec.json.Decoder(Page).decode
_decode_event = msgspec.json.Decoder(Event).decode
_decode_head = msgspec.json.Decoder(ObjectHead).decode


def decode_page(body: bytes | bytearray, server: str) -> Page:
    """Return a page of a list.

    Raises:
        ApiError: the body is none.
    """
    try:
        page = _decode_page(body)
        if not page.metadata.resource_version:
            raise msgspec.ValidationError("it has no resourceVersion")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _garbage(server, "a list", error) from None
    return page


def decode_event(line: bytes, server: str) -> Event:
    """Return what a line of a watch tells.

    Raises:
        ApiError: the line is no event.
    """
    try:
        return _decode_event(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _garbage(server, "a watch", error) from None


def decode_head(raw: msgspec.Raw, server: str) -> ObjectHead:
    """Return the head of an object.

    Raises:
        ApiError: it has no metadata, which no API server gives.
    """
    try:
        return _decode_head(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _garbage(server, "a list or watch", error) from None


def _garbage(server: str, what: str, error: Exception) -> ApiError:
    text = f"the answer of {server} to {what} is none that an API server gives: {error}"
    return ApiError(f"{text}; check that the URL leads to an API server", "bad_answer")


@define
class LineReader:
    """Lines of a stream that is cut at any place."""

    _rest: bytearray = field(factory=bytearray, init=False)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete with ``data``.

        Raises:
            ApiError: a line is too long to be an event.
        """
        if b"\n" not in data:
            self._rest += data
            if len(self._rest) > MAX_LINE_BYTES:
                raise ApiError(f"an event of a watch is longer than {MAX_LINE_BYTES} bytes", "bad_answer")
            return []
        first, *others = data.split(b"\n")
        lines = [bytes(self._rest) + first, *others]
        self._rest = bytearray(lines.pop())
        return [line for line in lines if line.strip()]

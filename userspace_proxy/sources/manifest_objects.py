"""From a document to the messages about the Services and EndpointSlices in it; Lists are taken apart.

Each object and each Problem gets its place: file, document, item, line. Runs in the parser process; it opens no file
and sends nothing. Entry point: ``DocumentReader``.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

import attrs
import msgspec
from attrs import define, frozen

from userspace_proxy.errors import ManifestError
from userspace_proxy.model import api_types
from userspace_proxy.model.findings import Findings, quote
from userspace_proxy.model.parse import parse_endpoint_slice, parse_service
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.sources.manifest_messages import (
    EndpointSliceFound,
    Message,
    MoreEndpoints,
    NamelessFound,
    ServiceFound,
)

MAX_OBJECT_BYTES = 1536 * 1024
"""What an object may hold of what is read: as much as etcd takes in one request, so no cluster has a larger one."""
MAX_ENDPOINTS = 1000
"""In one EndpointSlice, as an API server has it (``maxEndpoints`` in ``pkg/apis/discovery/validation``)."""
_ENDPOINTS_PER_MESSAGE = 100
"""Arbitrary: the control process parses this many in well under a millisecond."""
_MAX_KINDS = 50
"""Other kinds that are counted by name, arbitrary."""
_MAX_KIND_CHARS = 63

_API_VERSIONS = {"Service": "v1", "EndpointSlice": "discovery.k8s.io/v1"}
_API_TYPES: dict[str, type[api_types.Service] | type[api_types.EndpointSlice]] = {
    "Service": api_types.Service,
    "EndpointSlice": api_types.EndpointSlice,
}
_LISTS = {"List": "", "ServiceList": "Service", "EndpointSliceList": "EndpointSlice"}
"""Kinds that hold objects as ``items``, and the kind of those that name none: the API leaves it out in such lists."""

_STEP = re.compile(r"\[([^\]]*)\]|([^.\[]+)")
_WRONG_TYPE = re.compile(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`")
_AT_PATH = re.compile(r" - at `(?:key in )?\$\.?(?P<path>[^`]*)`$")
_TYPE_NAMES = {
    "array": "a list",
    "bool": "a boolean",
    "float": "a fraction",
    "int": "a whole number",
    "null": "null",
    "object": "a mapping",
    "str": "a text",
}


class Element(Protocol):
    """One value in a text, with its place; its value is built when asked for."""

    @property
    def line(self) -> int:
        """Where it begins (for a member: where its key stands), from 1."""

    def value(self) -> object:
        """Return it as dicts, lists, strings, numbers, booleans and None.

        Raises:
            ManifestError: it has none.
        """

    def member(self, key: str) -> "Element | None":
        """Return the member of a mapping; None if it is no mapping or has none of that name."""

    def items(self) -> "Sequence[Element] | None":
        """Return the items of a list in order; None if it is no list."""


@frozen
class Place:
    """Where something stands."""

    file: str
    document: int
    """From 1."""
    item: str = ""
    """Its number in a List, from 1, as ``3``; in a List within a List as ``3.1``; ``""`` outside of Lists."""

    def at(self, line: int = 0, column: int = 0) -> str:
        """Return the place as text; 0: not known."""
        parts = {"document": self.document, "item": self.item, "line": line, "column": column}
        return ", ".join([self.file, *(f"{name} {value}" for name, value in parts.items() if value)])

    def item_at(self, number: int) -> "Place":
        """Return the place of an item of the List at this place."""
        return attrs.evolve(self, item=f"{self.item}.{number}" if self.item else str(number))


@define
class DocumentReader:
    """Reads the documents of one file."""

    other_kinds: Counter[str] = attrs.field(factory=Counter, init=False)
    """How many objects there were of kinds that are not read."""

    def read(self, element: Element, place: Place, assumed_kind: str = "") -> Iterator[Message]:
        """Yield the messages about a document, or about an object in a List, in order; an empty document has none.

        Args:
            element: The document or object.
            place: Where it stands.
            assumed_kind: What it is if it does not say so.
        """
        try:
            kind = _text_of(element.member("kind"))
            if kind in _LISTS:
                yield from self._read_list(element, place, _LISTS[kind])
                return
            value = element.value()
        except ManifestError as error:
            yield NamelessFound(_problem(place.at(error.line or element.line, error.column), str(error)))
            return
        if value is None and not place.item:
            return
        if not isinstance(value, dict):
            yield NamelessFound(_problem(place.at(element.line), "is no mapping, so it is no Kubernetes object"))
            return
        kind = kind or assumed_kind
        if not kind:
            yield NamelessFound(_problem(place.at(element.line), "is missing; write what object this is", "kind"))
        elif kind not in _API_VERSIONS or _is_foreign(value):
            self._count(kind)
        else:
            if assumed_kind:
                value.setdefault("apiVersion", _API_VERSIONS[assumed_kind])
            yield from _read_object(_Source(kind, value, element, place))

    def _read_list(self, element: Element, place: Place, item_kind: str) -> Iterator[Message]:
        member = element.member("items")
        items = member.items() if member else ()
        if member and items is None and member.value() is not None:
            yield NamelessFound(_problem(place.at(member.line), "is not a list", "items"))
        for number, item in enumerate(items or (), start=1):
            yield from self.read(item, place.item_at(number), item_kind)

    def _count(self, kind: str) -> None:
        name = kind.encode("utf-8", "backslashreplace").decode()[:_MAX_KIND_CHARS]
        self.other_kinds[name if name in self.other_kinds or len(self.other_kinds) < _MAX_KINDS else "others"] += 1


@frozen
class _Source:
    """One Service or EndpointSlice as it stands in a file."""

    kind: str
    value: dict[str, object]
    element: Element
    place: Place

    @property
    def origin(self) -> str:
        """Where it begins."""
        return self.place.at(self.element.line)

    def problem(self, field: str, text: str) -> Problem:
        """Return an error in a field, with its line."""
        return self.located(Problem(Severity.ERROR, "", field, text))

    def located(self, problem: Problem) -> Problem:
        """Return the Problem with the line of its field, or of what is nearest above it."""
        element = self.element
        for match in _STEP.finditer(problem.field):
            step = match[1] or match[2] or ""
            items = element.items() if step.isdecimal() else None
            child = element.member(step) if items is None else next(iter(items[int(step) :]), None)
            if child is None:
                break
            element = child
        return attrs.evolve(problem, origin=self.place.at(element.line))


def _read_object(source: _Source) -> Iterator[Message]:
    """Yield the message that names the object, and more for a large EndpointSlice; its Problems if it has no name."""
    obj = _convert(source)
    problems: tuple[Problem, ...]
    if isinstance(obj, Problem):
        metadata, problems = _metadata_of(source.value), (obj,)
    else:
        metadata, problems = obj.metadata or api_types.ObjectMeta(), _problems_of(obj, source)
    name = Findings(source.origin).object_name(source.kind, metadata)
    if name is None:
        yield from map(NamelessFound, problems)
        return
    if isinstance(obj, Problem):
        problems = (attrs.evolve(obj, subject=f"{source.kind} {name}"),)
    if source.kind == "Service":
        service = obj if isinstance(obj, api_types.Service) else None
        yield ServiceFound(name.namespace, name.name, source.origin, problems, service)
    else:
        first, *rest = _parts(obj) if isinstance(obj, api_types.EndpointSlice) else (None,)
        yield EndpointSliceFound(name.namespace, name.name, source.origin, problems, first)
        yield from map(MoreEndpoints, rest)


def _convert(source: _Source) -> api_types.Service | api_types.EndpointSlice | Problem:
    """Return the object in its API type, or why it cannot be sent in that."""
    found, wanted = source.value.get("apiVersion"), _API_VERSIONS[source.kind]
    if found != wanted:
        what = f"{quote(found)} is not read" if found else "is missing"
        return source.problem("apiVersion", f"{what}; write {wanted}")
    try:
        obj = msgspec.convert(source.value, _API_TYPES[source.kind])
        size = len(msgspec.msgpack.encode(obj))
    except msgspec.ValidationError as error:
        return source.problem(*_wrong_type(str(error)))
    except UnicodeEncodeError:
        return source.problem("", "a text in it holds half a character (a lone surrogate, as \\ud800)")
    if size > MAX_OBJECT_BYTES:
        return source.problem("", f"is larger than {MAX_OBJECT_BYTES} bytes, more than a cluster can store; split it")
    if isinstance(obj, api_types.EndpointSlice) and len(obj.endpoints or ()) > MAX_ENDPOINTS:
        return source.problem("endpoints", f"are more than {MAX_ENDPOINTS}, which no API server takes; split it")
    return obj


def _problems_of(obj: api_types.Service | api_types.EndpointSlice, source: _Source) -> tuple[Problem, ...]:
    if isinstance(obj, api_types.Service):
        _, problems = parse_service(obj, source.origin)
    else:
        _, problems = parse_endpoint_slice(obj, source.origin)
    return tuple(map(source.located, problems))


def _parts(obj: api_types.EndpointSlice) -> Iterator[api_types.EndpointSlice]:
    """Yield an EndpointSlice in parts of a bounded number of endpoints; the first alone has the ports."""
    endpoints = obj.endpoints or []
    yield msgspec.structs.replace(obj, endpoints=endpoints[:_ENDPOINTS_PER_MESSAGE])
    for start in range(_ENDPOINTS_PER_MESSAGE, len(endpoints), _ENDPOINTS_PER_MESSAGE):
        yield msgspec.structs.replace(obj, ports=None, endpoints=endpoints[start : start + _ENDPOINTS_PER_MESSAGE])


def _metadata_of(value: dict[str, object]) -> api_types.ObjectMeta:
    """Return the metadata of an object that is broken elsewhere; empty if they are broken too."""
    try:
        return msgspec.convert(value.get("metadata") or {}, api_types.ObjectMeta)
    except msgspec.ValidationError:
        return api_types.ObjectMeta()


def _text_of(element: Element | None) -> str:
    value = element.value() if element else None
    return value if isinstance(value, str) else ""


def _is_foreign(value: dict[str, object]) -> bool:
    """Return whether an object of a kind we read belongs to somebody else's API, as Knative's ``Service`` does.

    The groups of Kubernetes have no dot (``apps``) or end in ``.k8s.io``.
    """
    group = str(value.get("apiVersion")).rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def _problem(origin: str, text: str, field: str = "") -> Problem:
    return Problem(Severity.ERROR, "", field, text, origin)


def _wrong_type(message: str) -> tuple[str, str]:
    """Return the field and the sentence for a ``msgspec.ValidationError``."""
    path = _AT_PATH.search(message)
    text = _WRONG_TYPE.sub(lambda match: f"must be {_TYPE_NAMES[match[1]]}, not {_TYPE_NAMES[match[2]]}", message)
    return path["path"] if path else "", _AT_PATH.sub("", text)

"""Objects, their versions and the changes between them, as an API server keeps them for each resource.

It knows no HTTP and no rule about what an object may hold. One thread, that of the server, uses it.

Source: Kubernetes documentation, "Kubernetes API Concepts" (resource versions, watches, chunks).
Entry points: ``Store``, ``Collection``.
"""

import base64
import binascii
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import trio
from apiserver.object_selectors import Matches
from apiserver.statuses import bad_request, continue_expired, too_old
from attrs import define, field, frozen

CHANGES_KEPT = 20_000
"""Changes of a resource from which a watch may start again; arbitrary, a real server keeps some minutes."""
LISTS_KEPT = 32
"""Lists of which further pages may be asked for; arbitrary."""

FIRST_REVISION = 1000  # arbitrary: tests must not take it for a count


class Key(NamedTuple):
    """Name of an object within its resource; sorts as lists do."""

    namespace: str
    name: str


@frozen(eq=False)
class Stored:
    """One version of one object; the object must not be changed."""

    object: Mapping[str, Any]
    revision: int
    encoded: bytes
    """The object as JSON, without kind and apiVersion: so the items of a list are."""


@frozen(eq=False)
class Change:
    """An object was created (no old version), changed, or deleted (no new version)."""

    revision: int
    key: Key
    old: Stored | None
    new: Stored | None

    def event(self, matches: Matches) -> tuple[str, Stored] | None:
        """Return type and object of the watch event for who sees the matching objects only; None if there is none."""
        matched = self.old is not None and matches(self.old.object)
        if self.new is not None and matches(self.new.object):
            return ("MODIFIED" if matched else "ADDED"), self.new
        if self.old is not None and matched:
            return "DELETED", stored(self.old.object, self.revision)
        return None


class Page(NamedTuple):
    """A part of a list."""

    items: list[Stored]
    revision: int
    continue_token: str
    """Empty on the last page."""
    remaining: int


def stored(content: Mapping[str, Any], revision: int) -> Stored:
    """Return an object as of a revision, which its metadata then tells."""
    content = {
        **{name: value for name, value in content.items() if name not in {"kind", "apiVersion"}},
        "metadata": {**content["metadata"], "resourceVersion": str(revision)},
    }
    return Stored(content, revision, msgspec.json.encode(content))


@define
class Store:
    """All collections; they count their revisions together, as etcd does."""

    revision: int = FIRST_REVISION
    """That of the last change of any object."""
    collections: dict[str, "Collection"] = field(factory=dict)

    def collection(self, resource: str) -> "Collection":
        """Return the objects of a resource."""
        if resource not in self.collections:
            self.collections[resource] = Collection(self)
        return self.collections[resource]

    def next_revision(self) -> int:
        """Return the revision of the next change."""
        self.revision += 1
        return self.revision


@define(eq=False)
class Collection:
    """The objects of one resource."""

    _store: Store
    objects: dict[Key, Stored] = field(factory=dict)
    _changes: deque[Change] = field(factory=deque)
    _first: int = 0
    """How many changes were forgotten: position of the first one kept."""
    _forgotten: int = 0
    """Revision of the last change that was forgotten."""
    _lists: OrderedDict[int, list[tuple[Key, Stored]]] = field(factory=OrderedDict)
    _changed: trio.Event = field(factory=trio.Event)

    @property
    def revision(self) -> int:
        """Revision that a list of now has."""
        return self._store.revision

    def put(self, key: Key, content: Mapping[str, Any]) -> Stored:
        """Create or change an object; one that is the same as before gets no new version and makes no event."""
        old = self.objects.get(key)
        if old is not None and stored(content, old.revision).encoded == old.encoded:
            return old
        new = stored(content, self._store.next_revision())
        self.objects[key] = new
        self._note(Change(new.revision, key, old, new))
        return new

    def delete(self, key: Key) -> Stored:
        """Delete an object, which must exist; returns its last version."""
        old = self.objects.pop(key)
        self._note(Change(self._store.next_revision(), key, old, None))
        return old

    def load(self, objects: Iterable[tuple[Key, Mapping[str, Any]]]) -> None:
        """Create many objects of which no watch is to be told: as if they had been there for long."""
        for key, content in objects:
            self.objects[key] = stored(content, self._store.next_revision())
        self.forget_changes()

    def forget_changes(self) -> None:
        """Make every watch that would start from before now fail with 410."""
        self._first += len(self._changes)
        self._changes.clear()
        self._forgotten = self._store.revision

    def forget_lists(self) -> None:
        """Make every request for a further page fail with 410."""
        self._lists.clear()

    def position_after(self, revision: int) -> int:
        """Return where in the changes a watch that starts at a revision begins.

        Raises:
            ApiError: 410, it is too long ago.
        """
        if revision < self._forgotten:
            raise too_old(revision, self._forgotten)
        newer = sum(change.revision > revision for change in self._changes)
        return self._first + len(self._changes) - newer

    def changes_from(self, position: int) -> list[Change]:
        """Return the changes from a position on.

        Raises:
            ApiError: 410, some of them are forgotten: who asks is too slow.
        """
        if position < self._first:
            raise too_old(position, self._first)
        count = self._first + len(self._changes) - position
        newest_first = list(islice(reversed(self._changes), count))
        return newest_first[::-1]

    async def wait_changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    def select(self, matches: Matches, namespace: str | None) -> Iterator[tuple[Key, Stored]]:
        """Return what a list holds now, in its order; None means all namespaces."""
        for key, one in sorted(self.objects.items(), key=lambda item: item[0]):
            if (namespace is None or key.namespace == namespace) and matches(one.object):
                yield key, one

    def first_page(self, matches: Matches, namespace: str | None, limit: int | None) -> Page:
        """Return the first page of a list of now, the whole list without a limit."""
        found = list(self.select(matches, namespace))
        if limit is not None and len(found) > limit:
            self._lists[self.revision] = found
            while len(self._lists) > LISTS_KEPT:
                self._lists.popitem(last=False)
        return _page(found, self.revision, limit)

    def next_page(self, token: str, matches: Matches, namespace: str | None, limit: int | None) -> Page:
        """Return a further page of a list as it was when it was begun.

        Raises:
            ApiError: 410, it is no longer known; 400, the token is none.
        """
        revision, start = _parse_token(token)
        if revision < 0:
            revision, found = self.revision, list(self.select(matches, namespace))
        elif (known := self._lists.get(revision)) is None:
            raise continue_expired(_token(-1, start))
        else:
            found = known
        return _page([item for item in found if item[0] > start], revision, limit)

    def _note(self, change: Change) -> None:
        self._changes.append(change)
        if len(self._changes) > CHANGES_KEPT:
            self._forgotten = self._changes.popleft().revision
            self._first += 1
        self._changed.set()
        self._changed = trio.Event()


def _page(found: list[tuple[Key, Stored]], revision: int, limit: int | None) -> Page:
    taken = found if limit is None else found[:limit]
    remaining = len(found) - len(taken)
    token = _token(revision, taken[-1][0]) if remaining else ""
    return Page([one for _, one in taken], revision, token, remaining)


def _token(revision: int, last: Key) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([revision, last.namespace, last.name])).decode()


def _parse_token(token: str) -> tuple[int, Key]:
    try:
        revision, namespace, name = msgspec.json.decode(base64.urlsafe_b64decode(token), type=tuple[int, str, str])
    except (binascii.Error, msgspec.DecodeError, ValueError):
        raise bad_request("continue key is not valid") from None
    return revision, Key(namespace, name)

"""Lists and watches: the answers that last or are long.

Source: Kubernetes documentation, "Kubernetes API Concepts"; ``k8s.io/apimachinery``: ValidateListOptions.
Entry points: ``ListOptions.parse``, ``answer_list``, ``Watch``, ``answer_watch``.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import trio
from apiserver.exchange import ConnectionEndedError, Exchange
from apiserver.faults import Action, EndAtOnce, Garbage, GoneInStream
from apiserver.object_selectors import Matches, parse_selectors
from apiserver.resources import Resource
from apiserver.statuses import ApiError, Cause, bad_request, invalid, too_old
from apiserver.store import Change, Collection, Page, Stored, stored
from attrs import define, frozen

DEFAULT_WATCH_S = 1800.0
"""How long a watch lasts that does not say so; a real server draws from 30 to 60 minutes."""
INITIAL_EVENTS_END = {"k8s.io/initial-events-end": "true"}
GARBAGE = b"<html>this is no JSON</html>\n"


@define
class WatchSettings:
    """What tests may change about watches while the server runs."""

    bookmark_interval_s: float = 60.0
    """As a real server, for who allows bookmarks."""
    has_watch_list: bool = True
    """Whether ``sendInitialEvents`` is known; without, it is refused as a server without WatchList does."""
    is_gone_in_status: bool = False
    """Whether 410 for a watch comes as the HTTP status instead of an event."""
    sent_s: float = 0.0
    """When the last line was written to a connection, by the monotonic clock."""
    frozen: int = 0
    """Watches that began before it grew say nothing any more: no event, no end."""

    def freeze(self) -> None:
        """Freeze all watches of now."""
        self.frozen += 1


@frozen
class ListOptions:
    """The query of a list or watch."""

    matches: Matches
    namespace: str | None
    is_watch: bool
    resource_version: str
    limit: int | None
    continue_token: str
    allows_bookmarks: bool
    wants_initial_events: bool | None
    """None: not said."""
    timeout_s: float
    has_selectors: bool

    @classmethod
    def parse(
        cls, query: Mapping[str, str], resource: Resource, namespace: str | None, *, has_watch_list: bool
    ) -> "ListOptions":
        """Return the options of a query.

        Raises:
            ApiError: 400 or 422, the query makes no sense.
        """
        is_watch = _is_true(query.get("watch", ""))
        _check(query, is_watch=is_watch, has_watch_list=has_watch_list)
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        matches, show = parse_selectors(labels, fields, resource.all_field_paths), resource.show
        return cls(
            matches if show is None else lambda one: matches(show(one)),
            namespace,
            is_watch,
            query.get("resourceVersion", ""),
            _number(query, "limit") or None,
            query.get("continue", ""),
            _is_true(query.get("allowWatchBookmarks", "")),
            _is_true(query["sendInitialEvents"]) if "sendInitialEvents" in query else None,
            _number(query, "timeoutSeconds") or DEFAULT_WATCH_S,
            bool(labels or fields),
        )


def shown(resource: Resource, one: Stored) -> Stored:
    """Return an object as a resource shows it."""
    return one if resource.show is None else stored(resource.show(one.object), one.revision)


def _check(query: Mapping[str, str], *, is_watch: bool, has_watch_list: bool) -> None:
    version = query.get("resourceVersion", "")
    causes = [
        Cause(name, f"Forbidden: {why}", "FieldValueForbidden")
        for name, why in _contradictions(query, is_watch=is_watch, has_watch_list=has_watch_list)
    ]
    if version and not version.isdecimal():
        causes.append(Cause("resourceVersion", f'Invalid value: "{version}": not a number'))
    if causes:
        raise invalid("ListOptions.meta.k8s.io", "", causes)
    if query.get("continue") and version not in {"", "0"}:
        raise bad_request("specifying resource version is not allowed when using continue")


def _contradictions(query: Mapping[str, str], *, is_watch: bool, has_watch_list: bool) -> Iterator[tuple[str, str]]:
    version, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
    initial = "sendInitialEvents"
    if initial in query:
        if not is_watch:
            yield initial, f"{initial} is forbidden for list"
        elif not has_watch_list:
            yield initial, f"{initial} is forbidden for watch unless the WatchList feature gate is enabled"
        elif match != "NotOlderThan":
            yield "resourceVersionMatch", f"{initial} requires setting resourceVersionMatch to NotOlderThan"
    elif match and is_watch:
        yield "resourceVersionMatch", f"resourceVersionMatch is forbidden for watch unless {initial} is provided"
    elif match and not version:
        yield "resourceVersionMatch", "resourceVersionMatch is forbidden unless resourceVersion is provided"
    elif match and query.get("continue"):
        yield "resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided"


def _is_true(text: str) -> bool:
    return text.lower() in {"true", "1"}


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "0")
    if not text.isdecimal():
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def _check_not_too_new(options: ListOptions, collection: Collection) -> None:
    wanted = int(options.resource_version or 0)
    if wanted > collection.revision:
        raise ApiError(
            504,
            f"Too large resource version: {wanted}, current: {collection.revision}",
            retry_after_s=1,
            details={"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]},
        )


def list_page(options: ListOptions, collection: Collection, exact: bool) -> Page:  # noqa: FBT001
    """Return what a list answers.

    Raises:
        ApiError: 410 or 504, the version asked for is not to be had.
    """
    if options.continue_token:
        return collection.next_page(options.continue_token, options.matches, options.namespace, options.limit)
    _check_not_too_new(options, collection)
    if exact and int(options.resource_version) != collection.revision:
        raise too_old(int(options.resource_version), collection.revision)
    # a list from the cache is whole, as the documentation allows
    limit = None if options.resource_version == "0" else options.limit
    return collection.first_page(options.matches, options.namespace, limit)


async def answer_list(
    exchange: Exchange, resource: Resource, collection: Collection, options: ListOptions, action: Action | None
) -> None:
    """Answer with a list."""
    if isinstance(action, Garbage):
        await exchange.respond(200, GARBAGE)
        return
    page = list_page(options, collection, exchange.request.query.get("resourceVersionMatch") == "Exact")
    metadata: dict[str, Any] = {"resourceVersion": str(page.revision)}
    if page.continue_token:
        metadata["continue"] = page.continue_token
        if not options.has_selectors:
            metadata["remainingItemCount"] = page.remaining
    head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata}
    items = b",".join(shown(resource, one).encoded for one in page.items)
    await exchange.begin(200)
    await exchange.send(msgspec.json.encode(head)[:-1] + b',"items":[' + items + b"]}\n")
    await exchange.end()


@define(eq=False)
class Watch:
    """One watch while it lasts."""

    _exchange: Exchange
    _resource: Resource
    _collection: Collection
    _options: ListOptions
    _settings: WatchSettings
    _ends_at: float = 0.0
    _position: int = 0
    _begin: Sequence[tuple[str, Stored]] = ()
    _begin_revision: int = 0
    _born: int = 0
    """How often watches had been frozen when this one began."""

    async def begin(self, action: Action | None) -> bool:
        """Send the headers, and the ERROR if that is all; return whether events follow.

        Raises:
            ApiError: before anything is sent.
            ConnectionEndedError: the client has gone, or a fault wants it.
        """
        gone = too_old(1, self._collection.revision) if isinstance(action, GoneInStream) else None
        _check_not_too_new(self._options, self._collection)
        try:
            self._find_begin()
        except ApiError as error:
            if self._settings.is_gone_in_status:
                raise
            gone = error
        self._born = self._settings.frozen
        self._ends_at = trio.current_time() + self._options.timeout_s
        await self._exchange.begin(200)
        if isinstance(action, Garbage):
            await self._exchange.send(GARBAGE)
        elif gone is not None:
            await self._send_line("ERROR", msgspec.json.encode(gone.status()))
        elif not isinstance(action, EndAtOnce):
            return True
        await self._exchange.end()
        return False

    async def run(self) -> None:
        """Send events until the time is over.

        Raises:
            ConnectionEndedError: the client has gone, or a fault wants it.
        """
        await self._send_objects(self._begin)
        if self._options.wants_initial_events:
            await self._send_bookmark(self._begin_revision, INITIAL_EVENTS_END)
        self._begin = ()
        await self._follow()
        await self._exchange.end()

    def _find_begin(self) -> None:
        options, self._begin_revision = self._options, self._collection.revision
        is_from_now = options.resource_version in {"", "0"}
        wants_state = is_from_now if options.wants_initial_events is None else options.wants_initial_events
        if wants_state or is_from_now:
            self._position = self._collection.position_after(self._begin_revision)
        else:
            self._position = self._collection.position_after(int(options.resource_version))
        if wants_state:
            selected = self._collection.select(options.matches, options.namespace)
            self._begin = [("ADDED", one) for _, one in selected]

    async def _follow(self) -> None:
        bookmark_at = trio.current_time() + self._settings.bookmark_interval_s
        while trio.current_time() < self._ends_at:
            if self._settings.frozen > self._born:
                await trio.sleep_forever()
            try:
                changes = self._collection.changes_from(self._position)
            except ApiError as error:
                await self._send_line("ERROR", msgspec.json.encode(error.status()))
                return
            self._position += len(changes)
            await self._send_objects(self._events(changes))
            if trio.current_time() >= bookmark_at:
                bookmark_at = trio.current_time() + self._settings.bookmark_interval_s
                await self._send_bookmark(self._collection.revision, {})
            if not changes:
                with trio.move_on_at(min(bookmark_at, self._ends_at)):
                    await self._collection.wait_changed()

    def _events(self, changes: Iterable[Change]) -> list[tuple[str, Stored]]:
        namespace, matches = self._options.namespace, self._options.matches
        return [
            event
            for change in changes
            if namespace in {None, change.key.namespace} and (event := change.event(matches))
        ]

    async def _send_objects(self, events: Iterable[tuple[str, Stored]]) -> None:
        kind = f'{{"kind":"{self._resource.kind}","apiVersion":"{self._resource.api_version}",'.encode()
        for type_, one in events:
            await self._send_line(type_, kind + shown(self._resource, one).encoded[1:])

    async def _send_bookmark(self, revision: int, annotations: Mapping[str, str]) -> None:
        if not self._options.allows_bookmarks:
            return
        metadata: dict[str, Any] = {"resourceVersion": str(revision)}
        if annotations:
            metadata["annotations"] = annotations
        head = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        await self._send_line("BOOKMARK", msgspec.json.encode({**head, **self._resource.empty}))

    async def _send_line(self, type_: str, content: bytes) -> None:
        await self._exchange.send(b'{"type":"%s","object":%s}\n' % (type_.encode(), content))
        self._settings.sent_s = time.monotonic()


async def answer_watch(exchange: Exchange, watch: Watch, action: Action | None) -> None:
    """Answer with a watch, until its time is over or the client has gone.

    Raises:
        ApiError: before anything is sent.
        ConnectionEndedError: the client has gone, or a fault wants it.
    """
    if not await watch.begin(action):
        return
    is_whole = False
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def end_with_client() -> None:
            await exchange.wait_client_gone()
            nursery.cancel_scope.cancel()

        with suppress(ConnectionEndedError):
            await watch.run()
            is_whole = True
        nursery.cancel_scope.cancel()
    if not is_whole:
        raise ConnectionEndedError

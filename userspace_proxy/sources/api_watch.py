"""Watches one resource of the API server: lists it, then takes its changes, for ever; in a thread of its own.

What comes next after what is decided by ``Schedule``; this does it. An object costs work only when its version is new.
Entry points: ``ResourceWatch.run``, ``list_objects``.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import msgspec
from attrs import define, field, frozen

from userspace_proxy.errors import ApiError
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.problem import Problem
from userspace_proxy.sources.api_http import READ_TIMEOUT_S, ApiClient
from userspace_proxy.sources.api_messages import (
    EventType,
    LineReader,
    ObjectHead,
    Page,
    decode_event,
    decode_head,
    decode_page,
)
from userspace_proxy.sources.api_outage import OutageLog
from userspace_proxy.sources.api_refusals import Status
from userspace_proxy.sources.api_resources import ApiResource
from userspace_proxy.sources.api_schedule import Action, Outcome, Schedule, Step
from userspace_proxy.sources.base import Applied, ProblemsFound, Removed, ResourceState, WatchEvent

LOG = logging.getLogger(__name__)

PAGE_OBJECTS = 500
"""As client-go asks for."""
WATCH_TIMEOUT_S = (300, 600)
"""How long the server is asked to let a watch go on: drawn from this range, so that not all end together."""
WATCH_READ_TIMEOUT_S = 90.0
"""Silence after which a watch is started anew from where it was. A server sends a bookmark about once a minute, so one
that is silent for longer may be gone though the connection still stands; if not, nothing was lost."""
_MAX_PAGE_BYTES = 256 * 1024 * 1024
"""Arbitrary: 500 objects of the greatest size that etcd takes."""
_OBJECTS_PER_REST = 16
_REST_S = 0.0005
"""Parsing holds the interpreter, and clients wait for it: so it rests after each few objects."""

_GONE = 410


@frozen
class Listed:
    """The list of a resource is complete, and all of it was handed over."""

    resource: str


@frozen
class ListRefused:
    """The server does not let a resource be listed, and is not expected to, soon."""

    resource: str


Report = WatchEvent | Listed | ListRefused


def list_objects(client: ApiClient, resource: ApiResource) -> Iterator[Page]:
    """Yield the objects of a resource page by page.

    Raises:
        ApiError: a page cannot be had; with the reason ``expired`` the list is to be started anew.
    """
    query = {**resource.query, "limit": str(PAGE_OBJECTS)}
    while True:
        body = bytearray()
        with client.get(resource.path, query, read_timeout_s=READ_TIMEOUT_S) as response:
            while data := response.read_some():
                body += data
                if len(body) > _MAX_PAGE_BYTES:
                    raise ApiError(f"the answer of {client.server} has no end", "bad_answer")
        page = decode_page(body, client.server)
        yield page
        if not page.metadata.continue_:
            return
        query["continue"] = page.metadata.continue_


@define(eq=False)
class ResourceWatch:
    """The watch of one resource, and what is known of its objects."""

    _client: ApiClient
    _resource: ApiResource
    _state: ResourceState
    _outages: OutageLog
    """That of all resources."""
    _put: Callable[[list[Report]], None]
    """Takes what happened, in order; may wait."""
    _stopping: threading.Event
    _clock: Callable[[], float]
    """Seconds, never going back."""
    _wall_clock: Callable[[], float]
    """Seconds since the epoch."""
    _random: Callable[[], float]
    """Returns numbers from 0 to 1."""
    _version: str = field(default="", init=False)
    """Up to which everything was handed over."""
    _versions: dict[NamespacedName, str] = field(factory=dict, init=False)
    """Of all objects there are, served or not."""
    _served: set[NamespacedName] = field(factory=set, init=False)
    _bad: set[NamespacedName] = field(factory=set, init=False)
    """Objects with Problems."""
    _schedule: Schedule = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the parts."""
        self._schedule = Schedule(self._random)

    def run(self) -> None:
        """Watch until ``stopping`` is set and the client is interrupted."""
        step = Step(Action.LIST, 0.0)
        with closing(self._client):
            while not self._stopping.wait(step.delay_s):
                step = self._do(step.action)

    def _do(self, action: Action) -> Step:
        started_s = self._clock()
        try:
            outcome = self._list() if action is Action.LIST else self._watch()
        except ApiError as error:
            return self._after_failure(action, error, self._clock() - started_s)
        return self._schedule.after(outcome, lasted_s=self._clock() - started_s)

    def _after_failure(self, action: Action, error: ApiError, lasted_s: float) -> Step:
        if self._stopping.is_set():
            return Step(action, 0.0)
        if error.reason == "silent" and action is Action.WATCH:
            return self._schedule.after(Outcome.SILENT, lasted_s=lasted_s)
        self._count(error.reason)
        if error.reason == "expired":
            return self._schedule.after(Outcome.EXPIRED)
        self._outages.failed(self._resource.name, self._state, str(error))
        if error.reason in {"forbidden", "not_found"}:
            self._put([ListRefused(self._resource.name)])
        # how long it took to fail says nothing about progress, unless something went on for that long
        lasted_s = lasted_s if error.reason == "cut" else 0.0
        return self._schedule.after(Outcome.FAILED, lasted_s=lasted_s, retry_after_s=error.retry_after_s)

    def _count(self, reason: str) -> None:
        self._state.failures = {**self._state.failures, reason: self._state.failures.get(reason, 0) + 1}

    def _list(self) -> Outcome:
        """Bring everything up to date; what is as it was costs nothing."""
        present: set[NamespacedName] = set()
        version = ""
        for page in list_objects(self._client, self._resource):
            version = page.metadata.resource_version
            reports: list[Report] = []
            for number, raw in enumerate(page.items or ()):
                if number % _OBJECTS_PER_REST == 0 and self._stopping.wait(_REST_S):
                    return Outcome.FAILED
                head = decode_head(raw, self._client.server)
                present.add(head.name)
                if self._versions.get(head.name) != head.resource_version:
                    reports += self._apply(head, raw)
            self._put(reports)
        gone = [self._forget(name) for name in self._versions.keys() - present]
        self._version = version
        self._state.is_listed = True
        self._state.lists += 1
        self._is_current()
        self._put([*(report for reports in gone for report in reports), Listed(self._resource.name)])
        return Outcome.LISTED

    def _watch(self) -> Outcome:
        """Take changes until the watch ends."""
        low, high = WATCH_TIMEOUT_S
        query = {
            **self._resource.query,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(low + int(self._random() * (high - low))),
        }
        lines = LineReader()
        with self._client.get(self._resource.path, query, read_timeout_s=WATCH_READ_TIMEOUT_S) as response:
            self._outages.ended(self._resource.name, self._state)
            while data := response.read_some():
                reports: list[Report] = []
                try:
                    for line in lines.feed(data):
                        reports += self._take(line)
                finally:
                    if reports:
                        self._put(reports)
        self._is_current()
        return Outcome.ENDED

    def _take(self, line: bytes) -> list[Report]:
        """Take in one line of a watch; return what it changes."""
        event = decode_event(line, self._client.server)
        if event.type == EventType.ERROR:
            raise _error_of(event.object, self._client.server)
        head = decode_head(event.object, self._client.server)
        if not head.resource_version:
            raise ApiError(f"an event of {self._client.server} has no resourceVersion", "bad_answer")
        self._version = head.resource_version
        self._schedule.progress()
        self._is_current()
        if event.type == EventType.BOOKMARK:
            return []
        self._state.events += 1
        self._state.last_event_at_s = self._state.current_at_s
        if event.type == EventType.DELETED:
            return self._forget(head.name)
        return self._apply(head, event.object)

    def _apply(self, head: ObjectHead, raw: msgspec.Raw) -> list[Report]:
        """Take in an object that is new or has changed."""
        name = head.name
        self._versions[name] = head.resource_version
        try:
            found, problems = self._resource.parse(name, raw)
        except Exception:
            subject = self._resource.subject(name)
            LOG.exception("a bug in reading an object; it stays as it was known", extra={"resource": subject})
            self._count("bug")
            return []
        reports: list[Report] = []
        if found is not None:
            self._served.add(name)
            reports.append(Applied(found))
        elif name in self._served:
            self._served.remove(name)
            reports.append(Removed(self._resource.type, name))
        return reports + self._tell_problems(name, problems)

    def _forget(self, name: NamespacedName) -> list[Report]:
        """Take in that an object is gone, or does not match the selectors any more."""
        self._versions.pop(name, None)
        reports: list[Report] = []
        if name in self._served:
            self._served.remove(name)
            reports.append(Removed(self._resource.type, name))
        return reports + self._tell_problems(name, ())

    def _tell_problems(self, name: NamespacedName, problems: tuple[Problem, ...]) -> list[Report]:
        if not problems and name not in self._bad:
            return []
        (self._bad.add if problems else self._bad.discard)(name)
        return [ProblemsFound(self._resource.subject(name), problems)]

    def _is_current(self) -> None:
        self._state.current_at_s = self._wall_clock()


def _error_of(raw: msgspec.Raw, server: str) -> ApiError:
    """Return what the ERROR event of a watch says."""
    try:
        status = msgspec.json.decode(raw, type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        status = Status()
    said = status.message or status.reason or "it gives no reason"
    if status.code == _GONE or status.reason in {"Expired", "Gone"}:
        return ApiError(f"{server} has forgotten the version asked for: {said}", "expired")
    return ApiError(f"{server} has ended a watch: {said}", "server_error")

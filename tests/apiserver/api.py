"""What the API server double does with a request: who asks, what for, and the answer.

Entry point: ``Api.handle``.
"""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import trio
from apiserver.access import Access
from apiserver.exchange import ConnectionEndedError, Exchange, Request
from apiserver.faults import Action, Answer, Cut, Faults, Garbage, RequestKind, Reset, Silence, SlowFirstByte
from apiserver.listing import GARBAGE, ListOptions, Watch, WatchSettings, answer_list, answer_watch, shown
from apiserver.resources import Place, parse_path
from apiserver.statuses import ApiError, no_such_path, not_found
from apiserver.store import Key, Store, Stored
from apiserver.writing import Writer
from attrs import define, field, frozen

MESSAGES = {
    401: "Unauthorized",
    403: "forbidden: a test wants it so",
    410: "The resourceVersion for the provided watch is too old.",
    429: "Too many requests, please try again later.",
    500: "Internal error occurred: a test wants it so",
    503: "the server is currently unable to handle the request",
}


@frozen
class Asked:
    """A request as the double understood it."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    resource: str
    """Plural name; empty where the path is none of a resource."""
    kind: RequestKind | None
    user: str
    """Empty where the credentials are wrong."""
    at_s: float
    """When, by the monotonic clock."""

    @property
    def is_list(self) -> bool:
        """Whether a list was asked for."""
        return self.kind is RequestKind.LIST

    @property
    def is_watch(self) -> bool:
        """Whether a watch was asked for."""
        return self.kind is RequestKind.WATCH


@define
class Api:
    """All objects, and what answers for them."""

    writer: Writer
    store: Store = field(factory=Store)
    access: Access = field(factory=Access)
    faults: Faults = field(factory=Faults)
    watches: WatchSettings = field(factory=WatchSettings)
    requests: list[Asked] = field(factory=list)
    """All requests, oldest first. Tests read it in their thread."""

    async def handle(self, exchange: Exchange) -> None:
        """Answer a request.

        Raises:
            ConnectionEndedError: the connection is to be closed.
        """
        try:
            await self._handle(exchange)
        except ApiError as error:
            headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
            await exchange.respond(error.code, msgspec.json.encode(error.status()), headers)

    async def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        place, kind = self._understand(request)
        resource = place.resource.plural if place else ""
        user = ""
        try:
            user = self.access.authenticate(request)
        finally:
            self.requests.append(
                Asked(
                    request.method,
                    request.path,
                    request.query,
                    request.headers,
                    resource,
                    kind,
                    user,
                    time.monotonic(),
                )
            )
        action = self.faults.take(resource, kind) if kind is not None else None
        await self._strike(exchange, action)
        if place is None:
            await self._answer_other(exchange)
            return
        self.access.authorize(user, _verb(request, place, kind), place)
        collection = self.store.collection(resource)
        if kind in {RequestKind.LIST, RequestKind.WATCH}:
            options = ListOptions.parse(
                request.query, place.resource, place.namespace, has_watch_list=self.watches.has_watch_list
            )
            if options.is_watch:
                watch = Watch(exchange, place.resource, collection, options, self.watches)
                await answer_watch(exchange, watch, action)
            else:
                await answer_list(exchange, place.resource, collection, options, action)
            return
        if isinstance(action, Garbage):
            await exchange.respond(200, GARBAGE)
        elif request.method == "GET":
            found = collection.objects.get(Key(place.namespace or "", place.name or ""))
            if found is None:
                raise not_found(resource, place.name or "")
            await _answer_object(exchange, place, found)
        else:
            status, written = self.writer.write(self.store, request, place)
            await _answer_object(exchange, place, written, status)

    @staticmethod
    def _understand(request: Request) -> tuple[Place | None, RequestKind | None]:
        try:
            place = parse_path(request.path)
        except ApiError:
            return None, None
        if request.method != "GET":
            return place, RequestKind.WRITE
        if place.name is not None:
            return place, RequestKind.GET
        is_watch = request.query.get("watch", "").lower() in {"true", "1"}
        return place, RequestKind.WATCH if is_watch else RequestKind.LIST

    @staticmethod
    async def _strike(exchange: Exchange, action: Action | None) -> None:
        match action:
            case Answer(code=code, retry_after_s=retry_after_s, message=message):
                raise ApiError(code, message or MESSAGES.get(code, "a test wants it so"), retry_after_s=retry_after_s)
            case SlowFirstByte(delay_s=delay_s):
                await trio.sleep(delay_s)
            case Silence(has_headers=has_headers):
                if has_headers:
                    await exchange.begin(200)
                await exchange.wait_client_gone()
                raise ConnectionEndedError
            case Cut(after_pieces=after_pieces, is_clean=is_clean):
                exchange.cut_after_pieces, exchange.is_cut_clean = after_pieces, is_clean
            case Reset():
                raise exchange.reset()
            case _:
                pass

    async def _answer_other(self, exchange: Exchange) -> None:
        match exchange.request.path:
            case "/healthz" | "/livez" | "/readyz":
                await exchange.respond(200, b"ok", {"content-type": "text/plain; charset=utf-8"})
            case "/version":
                version = {"major": "1", "minor": "36", "gitVersion": "v1.36.1", "platform": "linux/amd64"}
                await exchange.respond(200, msgspec.json.encode(version))
            case _:
                raise no_such_path()


def _verb(request: Request, place: Place, kind: RequestKind | None) -> str:
    verbs = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    if kind in {RequestKind.LIST, RequestKind.WATCH}:
        return str(kind)
    if request.method not in verbs or (request.method == "POST") == (place.name is not None):
        raise ApiError(405, "the server does not allow this method on the requested resource")
    return verbs[request.method]


async def _answer_object(
    exchange: Exchange, place: Place, content: Stored | Mapping[str, Any], status: int = 200
) -> None:
    if isinstance(content, Stored):
        head = {"kind": place.resource.kind, "apiVersion": place.resource.api_version}
        content = {**head, **shown(place.resource, content).object}
    await exchange.respond(status, msgspec.json.encode(content))

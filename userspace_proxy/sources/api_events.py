"""Events: tells the owners of API objects what is wrong with them, as ``kubectl describe`` shows it.

A service to people alone: slow on purpose, it never makes anybody wait, and what cannot be told is dropped. Entry
point: ``EventTeller``.

Source: Kubernetes API reference, Event v1 (core); https://kubernetes.io/docs/reference/kubernetes-api/.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import partial

import msgspec
import trio
from attrs import define, field, frozen

from userspace_proxy.config import ApiAccess
from userspace_proxy.errors import ApiError, ConfigError, UserspaceProxyError
from userspace_proxy.sources.api_client import open_api_client
from userspace_proxy.sources.api_http import ApiClient

LOG = logging.getLogger(__name__)

COMPONENT = "userspace-proxy"
_INTERVAL_S = 0.5
"""Between two; arbitrary: a node must not be a burden to its API server for the sake of remarks."""
_MAX_WAITING = 100
_MAX_REMEMBERED = 1000
_MAX_MESSAGE_CHARS = 1024
"""What the API server takes (``validation/events.go``)."""
_MAX_OBJECT_BYTES = 4 * 1024 * 1024


@frozen
class Notice:
    """Something to be told about an object."""

    subject: str
    """``Service namespace/name`` or ``Node name``, as in a Problem."""
    reason: str
    """A CamelCase word."""
    message: str
    is_warning: bool = True


class _Metadata(msgspec.Struct):
    uid: str = ""


class _Object(msgspec.Struct):
    metadata: _Metadata


@define(eq=False)
class EventTeller:
    """Posts notices, one after the other."""

    _access: ApiAccess
    _node_name: str
    _wall_clock: Callable[[], float]
    """Seconds since the epoch."""
    _told: dict[Notice, None] = field(factory=dict, init=False)
    """Those that need not be told again, oldest first."""
    _send: trio.MemorySendChannel[Notice] = field(init=False)
    _receive: trio.MemoryReceiveChannel[Notice] = field(init=False)
    _failures: set[str] = field(factory=set, init=False)
    """What was logged already, by reason."""
    dropped: int = field(default=0, init=False)
    """Notices that were not told."""

    def __attrs_post_init__(self) -> None:
        """Make the queue."""
        self._send, self._receive = trio.open_memory_channel[Notice](_MAX_WAITING)

    def tell(self, notice: Notice) -> None:
        """Have something told, once; does not wait, and may be called before ``run``."""
        if notice in self._told:
            return
        self._told[notice] = None
        if len(self._told) > _MAX_REMEMBERED:
            del self._told[next(iter(self._told))]
        try:
            self._send.send_nowait(notice)
        except trio.WouldBlock:
            self.dropped += 1

    async def run(self) -> None:
        """Post what is told; does not return.

        Cancellation: ends at once; the thread ends within milliseconds.
        """
        with ExitStack() as stack:
            client: ApiClient | None = None
            async for notice in self._receive:
                try:
                    if client is None:  # not before there is something to tell: it may have an exec plugin run
                        opening = partial(open_api_client, self._access)
                        client = await trio.to_thread.run_sync(opening, abandon_on_cancel=True)
                        stack.enter_context(closing(client))
                    await trio.to_thread.run_sync(partial(self._post, client, notice), abandon_on_cancel=True)
                except ApiError as error:
                    self._fail(error.reason, error)
                except ConfigError as error:
                    self._fail("credentials", error)
                await trio.sleep(_INTERVAL_S)

    def _fail(self, reason: str, error: UserspaceProxyError) -> None:
        self.dropped += 1
        if reason not in self._failures:
            self._failures.add(reason)
            LOG.warning("cannot write Events; nothing else depends on them", extra={"reason": error})

    def _post(self, client: ApiClient, notice: Notice) -> None:
        kind, _, name = notice.subject.partition(" ")
        namespace, _, name = name.rpartition("/")
        uid = name if kind == "Node" else _uid_of(client, f"/api/v1/namespaces/{namespace}/services/{name}")
        at = datetime.fromtimestamp(self._wall_clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            # Events of what is in no namespace live in this one, as those of kubelet do
            "metadata": {"generateName": f"{name}.", "namespace": namespace or "default"},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": kind,
                "namespace": namespace,
                "name": name,
                "uid": uid,
            },
            "type": "Warning" if notice.is_warning else "Normal",
            "reason": notice.reason,
            "message": notice.message[:_MAX_MESSAGE_CHARS],
            "source": {"component": COMPONENT, "host": self._node_name},
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        client.post(f"/api/v1/namespaces/{namespace or 'default'}/events", msgspec.json.encode(event))


def _uid_of(client: ApiClient, path: str) -> str:
    """Return the uid of an object: without it ``kubectl describe`` does not find its Events."""
    body = bytearray()
    with client.get(path, {}) as response:
        while (data := response.read_some()) and len(body) < _MAX_OBJECT_BYTES:
            body += data
    try:
        return msgspec.json.decode(body, type=_Object).metadata.uid
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError(f"{client.server}{path} is no object", "bad_answer") from None

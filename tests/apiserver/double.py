"""A double of a Kubernetes API server: a thread that serves HTTP or HTTPS as the API's documentation says it should.

It holds namespaces, Services, EndpointSlices, Nodes and Events; what is above them, such as controllers, it has not.
Tests make its faults. Real programs talk to it; it knows nothing of the package under test.

Entry point: ``ApiServer``.
"""

import queue
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import trio
import trio.testing
from apiserver.access import PROXY_TOKEN, Access
from apiserver.allotment import SERVICE_NETWORKS, Allotment
from apiserver.api import Api, Asked
from apiserver.certificates import Certificates
from apiserver.exchange import Exchange, Stream, reset_on_close, serve_connection
from apiserver.faults import Action, Fault, RequestKind
from apiserver.kubeconfigs import write_kubeconfig
from apiserver.listing import WatchSettings
from apiserver.rules import standard_rules
from apiserver.seeds import seed
from apiserver.store import Store
from apiserver.writing import Writer
from attrs import define, field

BACKLOG = 128
CALL_TIMEOUT_S = 30.0
"""For what a test asks of the server's thread; far longer than it takes."""

_Result = TypeVar("_Result")


@define(eq=False)
class _Connection:
    stream: Stream
    scope: trio.CancelScope


@define(eq=False)
class ApiServer:
    """The server; as a context it runs within, in a thread of its own.

    All methods are for the threads of tests, also for those that run trio: they block for a moment.
    """

    address: str = "127.0.0.1"
    """Where it listens."""
    certificates: Certificates | None = None
    """None: plain HTTP."""
    port: int = 0
    """Where it listens; 0 until it has chosen one itself."""
    service_networks: Sequence[str] = SERVICE_NETWORKS
    """Networks of cluster IPs, that of the primary family first; one alone makes a cluster without dual stack."""
    takes_loopback: bool = False
    """Whether endpoints may have loopback addresses, which no real server allows: for tests whose Backends are to be
    reached without a network of their own."""
    api: Api = field(init=False)
    _token: trio.lowlevel.TrioToken | None = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _listening: trio.CancelScope | None = field(default=None, init=False)
    _connections: set[_Connection] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        """Fill in what every cluster holds."""
        allotment = Allotment(self.service_networks)
        self.api = Api(Writer(standard_rules(allotment, takes_loopback=self.takes_loopback)))
        seed(self.api.store, self.api.writer, allotment)

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self.certificates else 'http'}://{host}:{self.port}"

    @property
    def requests(self) -> list[Asked]:
        """All requests so far, oldest first; a list of the caller's own."""
        return list(self.api.requests)

    @property
    def access(self) -> Access:
        """Who may do what."""
        return self.api.access

    @property
    def watches(self) -> WatchSettings:
        """Settings of watches; those that run follow them, too."""
        return self.api.watches

    def asked(self, resource: str, kind: RequestKind | str) -> list[Asked]:
        """Return the requests of a kind so far."""
        return [one for one in self.requests if one.resource == resource and one.kind == kind]

    def order(
        self,
        action: Action,
        resource: str | None = None,
        kind: RequestKind | str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """Order a fault for coming requests.

        Args:
            action: what happens.
            resource: plural name; None for all.
            kind: list, watch, get or write; None for all.
            times: how often; None for until it is lifted.
        """
        return self.api.faults.order(action, resource, kind, times)

    def drop_all_connections(self, *, has_reset: bool = False) -> None:
        """Close all connections of now, with FIN or with RST."""
        self._call(lambda: self._drop(has_reset=has_reset))

    def refuse_connections(self) -> None:
        """Stop listening; connections stay."""

        def refuse() -> None:
            assert self._listening is not None
            self._listening.cancel()

        self._call(refuse)
        self._settle()

    def accept_connections(self) -> None:
        """Listen again, on the same port."""

        async def listen() -> None:
            assert self._nursery is not None
            await self._nursery.start(self._listen)

        self._call_async(listen)

    def freeze_watches(self) -> None:
        """Let all watches of now say nothing any more, no event and no end, as where a firewall drops their packets.

        It lasts until ``drop_all_connections``; new watches are served.
        """
        self._call(self.api.watches.freeze)

    def forget_changes(self) -> None:
        """Make 410 the answer to every watch from a version of before, and to every continue token."""

        def forget() -> None:
            for collection in self.api.store.collections.values():
                collection.forget_changes()
                collection.forget_lists()

        self._call(forget)

    def in_thread(self, function: Callable[[Store], _Result]) -> _Result:
        """Return what a function makes of the objects, run in the server's thread: for many objects at once."""
        return self._call(partial(function, self.api.store))

    def kubeconfig(
        self,
        path: Path,
        *,
        token: str = PROXY_TOKEN,
        user: Mapping[str, Any] | None = None,
        authority: Path | None = None,
        is_insecure: bool = False,
        url: str | None = None,
    ) -> Path:
        """Write a kubeconfig for this server and return its path.

        Args:
            path: of the file.
            token: bearer token of the user, unless ``user`` is given.
            user: other credentials, as a kubeconfig has them.
            authority: trusted instead of the right one.
            is_insecure: whether no certificate is looked at.
            url: instead of the right one.
        """
        if authority is None and self.certificates is not None and not is_insecure:
            authority = self.certificates.authority
        return write_kubeconfig(
            path,
            url or self.url,
            user={"token": token} if user is None else user,
            authority=authority,
            is_insecure=is_insecure,
        )

    def start(self) -> None:
        """Listen, and serve until ``stop``."""
        started: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(started,), name="api server double")
        self._thread.start()
        error = started.get(timeout=CALL_TIMEOUT_S)
        if error is not None:
            self._thread.join()
            raise error

    def stop(self) -> None:
        """Close everything and wait for the thread to end."""
        assert self._thread is not None
        self._call(self._scope.cancel)
        self._thread.join(CALL_TIMEOUT_S)
        assert not self._thread.is_alive(), "the API server double does not end"

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _run(self, started: "queue.SimpleQueue[OSError | None]") -> None:
        trio.run(self._main, started)

    async def _main(self, started: "queue.SimpleQueue[OSError | None]") -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                try:
                    await self._nursery.start(self._listen)
                except OSError as error:
                    started.put(error)
                    return
                started.put(None)
                await trio.sleep_forever()

    async def _listen(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        family = trio.socket.AF_INET6 if ":" in self.address else trio.socket.AF_INET
        with trio.CancelScope() as self._listening, trio.socket.socket(family) as listening:
            listening.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            await listening.bind((self.address, self.port))
            listening.listen(BACKLOG)
            self.port = listening.getsockname()[1]
            context = self._tls_context()
            task_status.started()
            assert self._nursery is not None
            while True:
                accepted, _ = await listening.accept()
                self._nursery.start_soon(self._serve, accepted, context)

    def _tls_context(self) -> ssl.SSLContext | None:
        if self.certificates is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.certificates.authority))
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_cert_chain(self.certificates.server)
        return context

    async def _serve(self, accepted: trio.socket.SocketType, context: ssl.SSLContext | None) -> None:
        plain = trio.SocketStream(accepted)
        stream: Stream = (
            plain if context is None else trio.SSLStream(plain, context, server_side=True, https_compatible=True)
        )
        with trio.CancelScope() as scope:
            connection = _Connection(stream, scope)
            self._connections.add(connection)
            try:
                await serve_connection(stream, self._handle)
            finally:
                self._connections.discard(connection)

    async def _handle(self, exchange: Exchange) -> None:
        await self.api.handle(exchange)

    def _drop(self, *, has_reset: bool) -> None:
        for connection in self._connections:
            if has_reset:
                reset_on_close(connection.stream)
            connection.scope.cancel()

    def _call(self, function: Callable[[], _Result]) -> _Result:
        future: Future[_Result] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001  raised where it was asked for
                future.set_exception(error)

        assert self._token is not None
        self._token.run_sync_soon(run)
        return future.result(CALL_TIMEOUT_S)

    def _call_async(self, function: Callable[[], Any]) -> None:
        future: Future[None] = Future()

        async def run() -> None:
            try:
                await function()
            except Exception as error:  # noqa: BLE001  raised where it was asked for
                future.set_exception(error)
            else:
                future.set_result(None)

        assert self._token is not None
        assert self._nursery is not None
        self._token.run_sync_soon(self._nursery.start_soon, run)
        future.result(CALL_TIMEOUT_S)

    def _settle(self) -> None:
        """Return once the tasks of the server have done what they were just told."""
        self._call_async(trio.testing.wait_all_tasks_blocked)

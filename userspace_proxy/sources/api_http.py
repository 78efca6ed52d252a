"""Requests to the API server: a thin edge over urllib3, where its failures become sentences.

It knows HTTP and TLS; what bodies hold is for others. Nothing is tried again here, but for one request after
credentials were refused and read anew. Entry points: ``ApiClient``, ``ApiResponse``.
"""

import ssl
from collections.abc import Mapping
from http.client import IncompleteRead
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlencode

import urllib3
from attrs import define, field

from userspace_proxy import __version__
from userspace_proxy.errors import ApiError, ConfigError
from userspace_proxy.sources.api_credentials import Credentials, CredentialStore
from userspace_proxy.sources.api_refusals import Asked, refusal
from userspace_proxy.sources.api_wire import CONNECT_TIMEOUT_S, Wire, connection_class

READ_TIMEOUT_S = 30.0
"""Between two parts of an answer; arbitrary."""
_READ_BYTES = 262144

_OK = 200
_UNAUTHORIZED = 401


@define(eq=False)
class ApiResponse:
    """The body of an answer that was not refused, as it comes in."""

    _response: urllib3.BaseHTTPResponse
    _wire: Wire
    _server: str
    _is_complete: bool = field(default=False, init=False)

    def read_some(self) -> bytes:
        """Return what has come in, waiting for the first of it; empty at the end.

        Raises:
            ApiError: with the reason ``silent`` if nothing came for the read timeout, else ``cut``.
        """
        try:
            data: bytes = self._response.read1(_READ_BYTES)
        except urllib3.exceptions.ReadTimeoutError:
            raise ApiError(f"{self._server} has been silent for too long", "silent") from None
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            cause = _root_of(error)
            what = "it ended within an answer" if isinstance(cause, IncompleteRead) else cause
            raise ApiError(f"the connection to {self._server} broke: {what}", "cut") from None
        self._is_complete = not data
        return data

    def close(self) -> None:
        """Let the connection be used again if the body was read to its end, else end it."""
        if not self._is_complete:
            self._wire.drop()
            self._response.close()
        self._response.release_conn()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


@define(eq=False)
class ApiClient:
    """One user of an API server; for one thread, but for ``interrupt``."""

    _store: CredentialStore
    _wire: Wire
    _credentials: Credentials
    _manager: urllib3.PoolManager
    """Made of the credentials; keeps the one connection."""

    @classmethod
    def open(cls, store: CredentialStore) -> "ApiClient":
        """Return a client with the current credentials; no request is made yet.

        Raises:
            ConfigError: there are none that can be used.
        """
        credentials = store.current()
        wire = Wire()
        return cls(store, wire, credentials, _new_manager(credentials, wire))

    def another(self) -> "ApiClient":
        """Return a client of the same server with the same credentials, for another thread."""
        return ApiClient.open(self._store)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._credentials.server

    def interrupt(self) -> None:
        """End the request that another thread waits for, and all later ones, with an ApiError."""
        self._wire.cut()

    def close(self) -> None:
        """Give up the connection; no request may follow."""
        self._wire.cut()
        self._manager.clear()

    def get(self, path: str, query: Mapping[str, str], *, read_timeout_s: float = READ_TIMEOUT_S) -> ApiResponse:
        """Return the answer to a GET.

        Args:
            path: On the server, from ``/api`` or ``/apis`` on.
            query: Parameters.
            read_timeout_s: Seconds without a byte after which an answer is given up.

        Raises:
            ApiError: there is no answer, or the server refuses.
        """
        return self._request("GET", path, query, None, read_timeout_s)

    def post(self, path: str, body: bytes) -> None:
        """Create an object from JSON.

        Raises:
            ApiError: there is no answer, or the server refuses.
        """
        with self._request("POST", path, {}, body, READ_TIMEOUT_S) as response:
            while response.read_some():
                pass

    def _request(
        self, method: str, path: str, query: Mapping[str, str], body: bytes | None, read_timeout_s: float
    ) -> ApiResponse:
        try:
            current = self._store.current()
            if current is not self._credentials:
                self._use(current)
        except ConfigError as error:
            raise ApiError(str(error), "credentials") from None
        response = self._send(method, path, query, body, read_timeout_s)
        if response.status == _UNAUTHORIZED:
            try:
                has_newer = self._reload()
            except ApiError:
                response.close()
                raise
            if has_newer:
                response.close()
                response = self._send(method, path, query, body, read_timeout_s)
        if response.status // 100 != _OK // 100:
            asked = Asked(method, path, query, self._credentials)
            try:
                raise refusal(response, asked)
            finally:
                self._wire.drop()
                response.close()
        return ApiResponse(response, self._wire, self.server)

    def _send(
        self, method: str, path: str, query: Mapping[str, str], body: bytes | None, read_timeout_s: float
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": f"userspace-proxy/{__version__}"}
        if self._credentials.authorization:
            headers["Authorization"] = self._credentials.authorization
        if body is not None:
            headers["Content-Type"] = "application/json"
        url = f"{self.server}{path}"
        if query:
            url = f"{url}?{urlencode(query)}"
        try:
            return self._manager.urlopen(
                method,
                url,
                body=body,
                headers=headers,
                retries=False,
                redirect=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=read_timeout_s),
            )
        except ApiError as error:
            raise ApiError(f"{self._unreachable()}: {error}{self._hint()}", error.reason) from None
        except urllib3.exceptions.SSLError as error:
            raise ApiError(self._tls_failure(error), "tls") from None
        except urllib3.exceptions.TimeoutError:
            raise ApiError(f"{self._unreachable()}: no answer within {read_timeout_s:.0f} s", "timeout") from None
        except urllib3.exceptions.ProxyError as error:
            raise ApiError(f"{self._unreachable()}: {_root_of(error)}{self._hint()}", "unreachable") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiError(f"{self._unreachable()}: {_root_of(error)}", "unreachable") from None
        except ValueError:
            # http.client refuses a header with a line feed in it; its text would show the token
            raise ApiError(
                f"{self._credentials.origin}: the token is no text of one line; correct it", "credentials"
            ) from None

    def _unreachable(self) -> str:
        return f"the API server {self.server} cannot be reached"

    def _hint(self) -> str:
        if self._credentials.proxy:
            proxy = urllib3.util.parse_url(self._credentials.proxy)._replace(auth=None).url  # without the password
            return f"; the way there is the proxy {proxy}: correct it, or the HTTPS_PROXY and NO_PROXY it comes from"
        if self._credentials.is_cluster_address:
            return (
                "; this is the address of the Service default/kubernetes, which may need this very proxy to be "
                "reached: give a control plane node, --api-server https://HOST:6443"
            )
        return f"; check that it runs, and the address in {self._credentials.origin}, or give --api-server URL"

    def _tls_failure(self, error: BaseException) -> str:
        cause = _root_of(error)
        trusted = self._credentials.ca_origin
        if isinstance(cause, ssl.CertificateError):
            what = cause.verify_message or str(cause)
            if "match" in what or "mismatch" in what:
                fix = "give the URL with a name that is in it, or set tls-server-name in the kubeconfig"
                return f"the certificate of {self.server} is for another name: {what}; {fix}"
            return (
                f"the certificate of {self.server} is not vouched for by {trusted} ({what}); "
                "correct the certificate authority, or see who answers there"
            )
        text = getattr(cause, "reason", "") or str(cause)
        return f"no TLS connection to {self.server}: {text}; check that an API server listens there"

    def _reload(self) -> bool:
        """Use credentials that are newer than those that were refused; return whether there are any.

        Raises:
            ApiError: they cannot be read.
        """
        refused = self._credentials
        try:
            new = self._store.reload(refused)
            if new is not refused:
                self._use(new)
        except ConfigError as error:
            raise ApiError(f"the credentials were refused, and cannot be read anew: {error}", "credentials") from None
        return new is not refused

    def _use(self, credentials: Credentials) -> None:
        """Make later requests with these; raises ConfigError as ``open`` does, and all stays as it was then."""
        manager = _new_manager(credentials, self._wire)
        self._manager.clear()
        self._manager, self._credentials = manager, credentials


def _new_manager(credentials: Credentials, wire: Wire) -> urllib3.PoolManager:
    """Return what keeps the one connection."""
    settings: dict[str, Any] = {"maxsize": 1}
    if not credentials.verifies_server:
        # the user wants it so; said once when the credentials are read, not at each connection
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    if credentials.server.startswith("https:"):
        settings["ssl_context"] = credentials.ssl_context()
        if credentials.tls_server_name:
            settings["server_hostname"] = credentials.tls_server_name
    try:
        if credentials.proxy:
            user = urllib3.util.parse_url(credentials.proxy).auth
            headers = urllib3.make_headers(proxy_basic_auth=unquote(user)) if user else None
            manager: urllib3.PoolManager = urllib3.ProxyManager(credentials.proxy, proxy_headers=headers, **settings)
        else:
            manager = urllib3.PoolManager(**settings)
        pool = manager.connection_from_url(credentials.server)
    except urllib3.exceptions.LocationParseError:  # its text would show the password of a proxy
        raise ConfigError(
            f"{credentials.origin}: the URL of the server or of the proxy cannot be read; write http://HOST:PORT"
        ) from None
    except urllib3.exceptions.HTTPError as error:
        raise ConfigError(f"{credentials.origin}: the URL cannot be used: {error}") from None
    pool.ConnectionCls = connection_class(pool.scheme or "http", wire)
    return manager


def _root_of(error: BaseException) -> BaseException:
    """Return the failure that others only wrap."""
    while True:
        inner = next((part for part in error.args if isinstance(part, BaseException)), None)
        if inner is None:
            return error
        error = inner

"""What requests to an API server come to, above all the sentences for what goes wrong."""

import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import msgspec
import pytest
from api_driver import credentials_of, put_service
from apiserver.certificates import Certificates
from apiserver.double import ApiServer
from apiserver.faults import Answer, Silence
from attrs import define

from userspace_proxy.errors import ApiError, ConfigError
from userspace_proxy.sources.api_credentials import RELOAD_INTERVAL_S, Credentials, CredentialStore
from userspace_proxy.sources.api_http import ApiClient
from userspace_proxy.sources.api_refusals import right_needed

SERVICES = "/api/v1/services"


def body_of(client: ApiClient, path: str = SERVICES) -> bytes:
    """Return the whole body of an answer."""
    body = bytearray()
    with client.get(path, {}, read_timeout_s=1.0) as response:
        while data := response.read_some():
            body += data
    return bytes(body)


def failure_of(client: ApiClient, path: str = SERVICES) -> ApiError:
    """Return the failure of a request."""
    with pytest.raises(ApiError) as caught:
        body_of(client, path)
    assert "\n" not in str(caught.value)
    return caught.value


@define
class Clients:
    """Opens clients, and closes them all."""

    _stack: ExitStack

    def open(self, store: CredentialStore) -> ApiClient:
        """Return a client with the credentials of a store."""
        return self._stack.enter_context(closing(ApiClient.open(store)))

    def of(self, double: ApiServer, **settings: str) -> ApiClient:
        """Return a client of the double with certain credentials."""
        return self.open(CredentialStore(lambda: credentials_of(double, **settings)))

    def at(self, url: str, origin: str = "kubeconfig /x") -> ApiClient:
        """Return a client of whoever is at a URL."""
        return self.open(CredentialStore(lambda: Credentials(server=url, origin=origin)))


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Return what opens clients; they are closed at the end."""
    with ExitStack() as stack:
        yield Clients(stack)


@pytest.fixture
def unused_port() -> Iterator[int]:
    """Return a port at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_get_keeps_one_connection_for_many_requests(clients: Clients, api_server: ApiServer) -> None:
    """The pages of a list do not cost a handshake each."""
    client = clients.of(api_server)
    assert body_of(client) == body_of(client)
    assert len(api_server._connections) == 1


def test_get_of_a_server_with_a_path_keeps_it(clients: Clients, api_server: ApiServer) -> None:
    """An API server behind a gateway has a path in its URL."""
    client = clients.of(api_server, server=f"{api_server.url}/k8s/clusters/c-1")
    assert failure_of(client).reason == "not_found"
    assert api_server.requests[-1].path == f"/k8s/clusters/c-1{SERVICES}"


def test_get_through_a_proxy_asks_the_proxy(clients: Clients, api_server: ApiServer, unused_port: int) -> None:
    """What cannot be reached because of the proxy names it."""
    error = failure_of(clients.of(api_server, proxy=f"http://127.0.0.1:{unused_port}"))
    assert str(unused_port) in str(error)
    assert not api_server.requests


def test_get_through_a_proxy_that_refuses_shows_no_password(clients: Clients) -> None:
    """The proxy gets the password of its URL, and nobody else does."""
    asked = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            accepted, _ = listening.accept()
            with accepted:
                asked.extend(accepted.recv(65536))
                accepted.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

        port = listening.getsockname()[1]
        known = Credentials(server="https://10.0.0.1:6443", origin="x", proxy=f"http://me:s%3Ecret@127.0.0.1:{port}")
        thread = threading.Thread(target=serve)
        thread.start()
        error = failure_of(clients.open(CredentialStore(lambda: known)))
        thread.join()
    assert b"Proxy-Authorization: Basic " + b64encode(b"me:s>cret") in asked.replace(b"proxy-a", b"Proxy-A")
    assert f"the way there is the proxy http://127.0.0.1:{port}: correct it" in str(error)
    assert "407" in str(error)
    assert "cret" not in str(error)


def test_open_with_a_proxy_that_cannot_be_read_shows_no_password(clients: Clients) -> None:
    """Neither does the sentence about a URL that is none."""
    known = Credentials(server="https://10.0.0.1:6443", origin="x", proxy="http://me:secret@[127.0.0.1:port")
    with pytest.raises(ConfigError, match="the URL of the server or of the proxy cannot be read") as caught:
        clients.open(CredentialStore(lambda: known))
    assert "secret" not in str(caught.value)


def test_get_refused_connection_says_what_to_check(clients: Clients, unused_port: int) -> None:
    """Nobody listening is one sentence with the address and the ways out."""
    url = f"https://127.0.0.1:{unused_port}"
    client = clients.at(url)
    error = failure_of(client)
    assert error.reason == "unreachable"
    assert str(error) == (
        f"the API server {url} cannot be reached: cannot connect to 127.0.0.1 port {unused_port}: Connection refused; "
        "check that it runs, and the address in kubeconfig /x, or give --api-server URL"
    )


def test_get_refused_connection_to_the_cluster_address_says_how_to_go_around(
    clients: Clients, unused_port: int
) -> None:
    """In a pod the address may be one that this proxy itself is to serve."""
    url = f"https://127.0.0.1:{unused_port}"
    known = Credentials(server=url, origin="the service account", is_cluster_address=True)
    error = failure_of(clients.open(CredentialStore(lambda: known)))
    assert "the Service default/kubernetes" in str(error)
    assert "--api-server https://HOST:6443" in str(error)


def test_get_unknown_host_is_named(clients: Clients) -> None:
    """A host without an address is told as such."""
    # a name that is never given out (RFC 6761), and too long a label to be asked for
    error = failure_of(clients.at(f"https://{'x' * 64}.invalid"))
    assert error.reason == "unreachable"
    assert "no address is known for the host 'xxx" in str(error)


def test_get_server_vouched_for_by_another_authority_names_ours(
    clients: Clients, api_server: ApiServer, certificates: Certificates
) -> None:
    """A wrong CA is told with the name of the file it was read from."""
    other = certificates.other_authority
    client = clients.of(api_server, ca_pem=other.read_text(encoding="utf-8"), ca_origin=str(other))
    error = failure_of(client)
    assert error.reason == "tls"
    assert f"the certificate of {api_server.url} is not vouched for by {other}" in str(error)


def test_get_server_vouched_for_by_what_is_no_root_is_believed(
    clients: Clients, api_server: ApiServer, certificates: Certificates
) -> None:
    """As for kubectl, whatever the kubeconfig names is trusted, whoever has signed that in turn."""
    client = clients.of(api_server, ca_pem=certificates.server.read_text(encoding="utf-8"))
    assert b"kubernetes" in body_of(client)


def test_get_server_with_certificate_for_another_name_says_so(clients: Clients, api_server: ApiServer) -> None:
    """A certificate for another host is told as such, with the way out."""
    error = failure_of(clients.of(api_server, tls_server_name="kubernetes.example.com"))
    assert error.reason == "tls"
    assert "is for another name" in str(error)
    assert "kubernetes.example.com" in str(error)


def test_get_plain_server_over_tls_says_so(clients: Clients) -> None:
    """TLS to a port that speaks http is one sentence."""
    with ApiServer() as server:
        error = failure_of(clients.of(server, server=server.url.replace("http:", "https:")))
    assert error.reason == "tls"
    assert "no TLS connection to" in str(error)


def test_get_refused_credentials_are_read_anew_once(clients: Clients, api_server: ApiServer) -> None:
    """A token that the server has stopped to accept is replaced, and the request made again."""
    tokens = iter(["old", "proxy-token"])
    store = CredentialStore(lambda: credentials_of(api_server, authorization=f"Bearer {next(tokens)}"))
    client = clients.open(store)
    assert b"kubernetes" in body_of(client)
    assert next(tokens, None) is None


def test_get_credentials_refused_again_says_that_they_were_read_anew(clients: Clients, api_server: ApiServer) -> None:
    """An expired token is one sentence that says whose it is."""
    client = clients.of(api_server, authorization="Bearer expired")
    error = failure_of(client)
    assert error.reason == "unauthorized"
    assert "does not accept the credentials of kubeconfig of the test, also after they were read anew" in str(error)
    assert "expired: renew it" in str(error)
    assert len(api_server.requests) == 2


def test_reload_of_credentials_that_were_replaced_meanwhile_reads_nothing() -> None:
    """Threads that are refused together read the credentials once."""
    texts = iter(["old", "new"])
    store = CredentialStore(lambda: Credentials(server="https://x", origin="x", authorization=next(texts)))
    refused = store.current()
    assert refused.authorization == "old"
    assert store.reload(refused).authorization == "new"
    assert store.reload(refused).authorization == "new"


def test_reload_of_credentials_that_are_refused_again_and_again_reads_seldom() -> None:
    """While a server accepts none, not each request of each thread costs a process; a failure is told meanwhile."""
    now_s = 0.0
    readings: list[float] = []

    def load() -> Credentials:
        readings.append(now_s)
        if len(readings) == 4:
            raise ConfigError("the plugin fails")
        return Credentials(server="https://x", origin="x", authorization=f"of {now_s:.0f}")

    store = CredentialStore(load, lambda: now_s)
    store.current()
    for _ in range(100):
        with suppress(ConfigError):
            store.reload(store.current())
        now_s += 1.0
    assert readings == [0.0, 0.0, RELOAD_INTERVAL_S, 2 * RELOAD_INTERVAL_S, 3 * RELOAD_INTERVAL_S]
    assert store.current().authorization == "of 90"


def test_reload_that_failed_says_why_until_it_is_tried_again() -> None:
    """The reason is not lost to those who ask a moment later."""
    answers = iter([Credentials(server="http://x", origin="x")])

    def load() -> Credentials:
        found = next(answers, None)
        if found is None:
            raise ConfigError("the plugin fails")
        return found

    store = CredentialStore(load)
    for _ in range(2):
        with pytest.raises(ConfigError, match="the plugin fails"):
            store.reload(store.current())


def test_get_forbidden_names_verb_resource_user_and_rule(clients: Clients, api_server: ApiServer) -> None:
    """Missing rights are told with all that a ClusterRole must say."""
    api_server.access.deny("list", "endpointslices")
    error = failure_of(clients.of(api_server), "/apis/discovery.k8s.io/v1/endpointslices")
    assert error.reason == "forbidden"
    assert "forbids to list endpointslices" in str(error)
    assert "bind user proxy to a ClusterRole" in str(error)
    assert 'apiGroups: ["discovery.k8s.io"], resources: [endpointslices], verbs: [get, list, watch]' in str(error)


@pytest.mark.parametrize(("asked_s", "kept_s"), [(None, 0.0), (3, 3.0), (86400, 60.0)])
def test_get_overloaded_server_tells_for_how_long(
    clients: Clients, api_server: ApiServer, asked_s: int | None, kept_s: float
) -> None:
    """Retry-After is taken in, up to a minute."""
    api_server.order(Answer(429, retry_after_s=asked_s))
    error = failure_of(clients.of(api_server))
    assert (error.reason, error.retry_after_s) == ("overloaded", kept_s)


def test_get_silent_server_is_given_up(clients: Clients, api_server: ApiServer) -> None:
    """No answer within the read timeout is a failure, before the headers and within the body."""
    client = clients.of(api_server)
    api_server.order(Silence(has_headers=False))
    assert failure_of(client).reason == "timeout"
    api_server.order(Silence())
    assert failure_of(client).reason == "silent"
    assert b"kubernetes" in body_of(client)


def test_get_redirect_is_not_followed(clients: Clients) -> None:
    """A token must not go where a redirect points to."""
    answer = b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.invalid/login\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            accepted, _ = listening.accept()
            with accepted:
                accepted.recv(65536)
                accepted.sendall(answer)

        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=serve)
        thread.start()
        error = failure_of(clients.at(url))
        thread.join()
    assert "redirect to 'https://elsewhere.invalid/login', which is not followed" in str(error)


def test_get_with_a_token_of_two_lines_does_not_show_it(clients: Clients, api_server: ApiServer) -> None:
    """A header that cannot be sent is a failure that keeps the secret."""
    error = failure_of(clients.of(api_server, authorization="Bearer secret\nsecret"))
    assert error.reason == "credentials"
    assert "secret" not in str(error)


def test_open_with_bad_authority_or_certificate_is_a_config_error(clients: Clients, certificates: Certificates) -> None:
    """What is no PEM, and a key that does not belong to the certificate, are told before any request."""
    known = Credentials(server="https://127.0.0.1", origin="kubeconfig /x", ca_pem="no PEM", ca_origin="/ca.crt")
    with pytest.raises(ConfigError, match=r"/ca\.crt holds no certificate that can be read"):
        clients.open(CredentialStore(lambda: known))
    pair = {"certificate_pem": certificates.client.read_text(), "key_pem": "no key"}
    known = msgspec.structs.replace(known, ca_pem="", **pair)
    with pytest.raises(ConfigError, match="client certificate and key of kubeconfig /x"):
        clients.open(CredentialStore(lambda: known))


def test_current_follows_a_file_and_keeps_the_last_good_credentials(tmp_path: Path) -> None:
    """Credentials are read anew when a file of theirs changes; what cannot be read does not replace what was good."""
    file = tmp_path / "token"
    file.write_text("one")

    def load() -> Credentials:
        text = file.read_text()
        if text == "bad":
            raise ConfigError("bad")
        return Credentials(server="https://x", origin="x", authorization=text, files=(str(file),))

    store = CredentialStore(load)
    assert store.current() is store.current()
    for text, known in [("three", "three"), ("bad", "three"), ("fourth", "fourth")]:
        file.write_text(text)
        assert store.current().authorization == known


def test_current_that_cannot_be_used_is_not_read_at_each_request(tmp_path: Path) -> None:
    """Files that are bad now cost one reading and one warning in a while, not one for each request."""
    file = tmp_path / "kubeconfig"
    file.write_text("good")
    now_s = 0.0
    readings: list[str] = []

    def load() -> Credentials:
        readings.append(file.read_text())
        if readings[-1] == "bad":
            raise ConfigError("bad")
        return Credentials(server="http://x", origin="x", files=(str(file),))

    store = CredentialStore(load, lambda: now_s)
    store.current()
    file.write_text("bad")
    for _ in range(5):
        store.current()
    assert readings == ["good", "bad"]
    now_s = RELOAD_INTERVAL_S
    store.current()
    assert readings == ["good", "bad", "bad"]


def test_current_notices_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """A token that is replaced while credentials are found out is not taken for the one that was read."""
    file = tmp_path / "token"
    file.write_text("one")

    def load() -> Credentials:
        text = file.read_text()
        if text == "second":
            file.write_text("the third")
        return Credentials(server="http://x", origin="x", authorization=text, files=(str(file),))

    store = CredentialStore(load)
    store.current()
    file.write_text("second")
    assert store.current().authorization == "second"
    assert store.current().authorization == "the third"


def test_get_with_a_changed_certificate_that_cannot_be_used_goes_on_with_the_old_one(
    clients: Clients, api_server: ApiServer, tmp_path: Path
) -> None:
    """Credentials are good as a whole or not at all: no request fails for new ones that are bad."""
    file = tmp_path / "kubeconfig"
    file.write_text("good")

    def load() -> Credentials:
        bad = {} if file.read_text() == "good" else {"certificate_pem": "no PEM", "authorization": "Bearer bad"}
        return credentials_of(api_server, files=(str(file),), **bad)

    client = clients.open(CredentialStore(load))
    file.write_text("changed")
    for _ in range(2):
        assert b"kubernetes" in body_of(client)


@pytest.mark.parametrize(
    ("method", "path", "query", "action", "rule"),
    [
        ("GET", "/api/v1/services", {}, "list services", 'apiGroups: [""], resources: [services]'),
        ("GET", "/api/v1/services", {"watch": "1"}, "watch services", "verbs: [get, list, watch]"),
        ("GET", "/api/v1/namespaces/a/services/b", {}, "get services", "resources: [services]"),
        ("POST", "/api/v1/namespaces/a/events", {}, "create events", "verbs: [create, patch]"),
    ],
)
def test_right_needed_is_that_of_the_request(
    method: str, path: str, query: dict[str, str], action: str, rule: str
) -> None:
    """A request is named by verb and resource, as RBAC does."""
    needed = right_needed(method, path, query)
    assert needed.action == action
    assert rule in needed.rule


def test_post_creates_an_object(clients: Clients, api_server: ApiServer) -> None:
    """What is posted is there afterwards."""
    put_service(api_server, "default/web")
    client = clients.of(api_server, authorization="Bearer admin-token")
    client.post("/api/v1/namespaces", msgspec.json.encode({"metadata": {"name": "shop"}}))
    assert b'"shop"' in body_of(client, "/api/v1/namespaces/shop")

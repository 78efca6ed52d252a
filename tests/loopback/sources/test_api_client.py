"""What kubeconfigs and service accounts lead to, with the kubernetes package as it is installed."""

import base64
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from api_driver import credentials_of
from apiserver.certificates import Certificates
from apiserver.double import ApiServer

from userspace_proxy.config import ApiAccess
from userspace_proxy.errors import ConfigError
from userspace_proxy.sources.api_client import SERVICE_ACCOUNT, open_api_client
from userspace_proxy.sources.api_http import ApiClient


def user_who_asks(client: ApiClient, server: ApiServer) -> str:
    """Return as whom a client is known to the server."""
    try:
        client.get("/api/v1/services", {}).close()
    finally:
        client.close()
    return server.requests[-1].user


def plugin(folder: Path, status: Mapping[str, str]) -> dict[str, Any]:
    """Return the ``exec`` of a user whose plugin answers with a status."""
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": dict(status)}
    script = folder / "plugin"
    script.write_text(f"#!/bin/sh\ncat <<'EOF'\n{msgspec.json.encode(answer).decode()}\nEOF\n")
    script.chmod(0o755)
    return {"command": "./plugin", "apiVersion": "client.authentication.k8s.io/v1"}


def test_open_with_token_authenticates(api_server: ApiServer, tmp_path: Path) -> None:
    """A token in the kubeconfig is sent."""
    access = ApiAccess(kubeconfig=api_server.kubeconfig(tmp_path / "config"))
    client = open_api_client(access)
    assert client.server == api_server.url
    assert user_who_asks(client, api_server) == "proxy"
    assert api_server.requests[-1].headers["authorization"] == "Bearer proxy-token"


def test_open_with_token_file_follows_the_file(api_server: ApiServer, tmp_path: Path) -> None:
    """A token is read anew when its file changes, without a refused request."""
    (tmp_path / "token").write_text("proxy-token\n")
    client = open_api_client(ApiAccess(api_server.kubeconfig(tmp_path / "config", user={"tokenFile": "token"})))
    client.get("/api/v1/services", {}).close()
    api_server.access.tokens = {"next": "proxy"}
    (tmp_path / "token").write_text("next")
    assert user_who_asks(client, api_server) == "proxy"
    assert len(api_server.requests) == 2


def test_open_with_plugin_that_gives_a_token_authenticates(api_server: ApiServer, tmp_path: Path) -> None:
    """The token that an exec plugin prints is sent, and asked for again when it is refused."""
    user = {"exec": plugin(tmp_path, {"token": "proxy-token"})}
    client = open_api_client(ApiAccess(api_server.kubeconfig(tmp_path / "config", user=user)))
    client.get("/api/v1/services", {}).close()
    api_server.access.tokens = {"next": "proxy"}
    plugin(tmp_path, {"token": "next"})
    assert user_who_asks(client, api_server) == "proxy"


def test_open_with_plugin_that_gives_a_certificate_authenticates(
    api_server: ApiServer, certificates: Certificates, tmp_path: Path
) -> None:
    """The client certificate that an exec plugin prints is used."""
    status = {
        "clientCertificateData": certificates.client.read_text(),
        "clientKeyData": certificates.client_key.read_text(),
    }
    user = {"exec": plugin(tmp_path, status)}
    client = open_api_client(ApiAccess(api_server.kubeconfig(tmp_path / "config", user=user)))
    assert user_who_asks(client, api_server) == "proxy"


@pytest.mark.parametrize("is_in_file", [True, False], ids=["files", "data"])
def test_open_with_client_certificate_authenticates(
    api_server: ApiServer,
    certificates: Certificates,
    tmp_path: Path,
    is_in_file: bool,  # noqa: FBT001
) -> None:
    """A client certificate is used, from files or from the kubeconfig itself."""
    files = {"client-certificate": certificates.client, "client-key": certificates.client_key}
    user = {
        name if is_in_file else f"{name}-data": str(path)
        if is_in_file
        else base64.b64encode(path.read_bytes()).decode()
        for name, path in files.items()
    }
    client = open_api_client(ApiAccess(api_server.kubeconfig(tmp_path / "config", user=user)))
    assert user_who_asks(client, api_server) == "proxy"


def test_open_with_insecure_cluster_looks_at_no_certificate(
    api_server: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """insecure-skip-tls-verify is obeyed, and said."""
    path = api_server.kubeconfig(tmp_path / "config", is_insecure=True)
    assert user_who_asks(open_api_client(ApiAccess(path)), api_server) == "proxy"
    assert "is believed" in caplog.text


def test_open_with_server_goes_there_instead(api_server: ApiServer, tmp_path: Path) -> None:
    """--api-server replaces the URL of the kubeconfig, and nothing else of it."""
    path = api_server.kubeconfig(tmp_path / "config", url="https://192.0.2.1:6443")
    client = open_api_client(ApiAccess(path, server=f"{api_server.url}/"))
    assert client.server == api_server.url
    assert user_who_asks(client, api_server) == "proxy"


def test_open_with_server_alone_goes_there_without_credentials() -> None:
    """A URL as that of ``kubectl proxy`` needs no more."""
    client = open_api_client(ApiAccess(server="http://127.0.0.1:8001"))
    assert client.server == "http://127.0.0.1:8001"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a service account has a fixed place in the file system")
def test_open_with_service_account_authenticates(api_server: ApiServer, tmp_path: Path) -> None:
    """In a pod the service account is used; its place is filled in a mount namespace of the test."""
    assert api_server.certificates is not None
    (tmp_path / "token").write_text("proxy-token")
    (tmp_path / "ca.crt").write_text(api_server.certificates.authority.read_text())
    program = (
        "from userspace_proxy.config import ApiAccess\n"
        "from userspace_proxy.sources.api_client import open_api_client\n"
        "client = open_api_client(ApiAccess())\n"
        "client.get('/api/v1/services', {}).close()\n"
        "print(client.server)\n"
    )
    account = str(SERVICE_ACCOUNT)
    mount = f'mount -t tmpfs tmpfs /run && mkdir -p {account} && mount --bind "$0" {account} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, str(tmp_path), sys.executable, "-c", program],
        env={**os.environ, "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api_server.port)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{api_server.url}\n", "")
    assert api_server.requests[-1].user == "proxy"


def test_open_imports_nothing_of_the_kubernetes_package(api_server: ApiServer, tmp_path: Path) -> None:
    """The package, with its hundreds of models, never gets into the process that makes the requests."""
    path = api_server.kubeconfig(tmp_path / "config")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from userspace_proxy.config import ApiAccess\n"
        "from userspace_proxy.sources.api_source import read_api\n"
        "assert read_api(ApiAccess(Path(sys.argv[1])), node_name='')\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'kubernetes'])\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def kubeconfig(path: Path, **changes: Any) -> Path:
    """Write a kubeconfig with one context, and something of it wrong."""
    content = {
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
        **changes,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def user(**settings: Any) -> dict[str, Any]:
    """Return the users of a kubeconfig whose one user has these settings."""
    return {"users": [{"name": "u", "user": settings}]}


def cluster(**settings: Any) -> dict[str, Any]:
    """Return the clusters of a kubeconfig whose one cluster has these settings."""
    return {"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", **settings}}]}


_PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"current-context": "y"}, "has no context 'y'; it has: x", id="context"),
        pytest.param({"current-context": ""}, "has no current-context; give --context NAME", id="no-current-context"),
        pytest.param({"clusters": []}, "has no cluster 'c'; it has: none", id="cluster"),
        pytest.param({"users": [{"name": "w"}]}, "has no user 'u'; it has: w", id="user"),
        pytest.param({"clusters": 3}, "has no cluster 'c'; it has: none", id="clusters-no-list"),
        pytest.param(cluster(server=""), "cluster 'c' names no server", id="no-server"),
        pytest.param(cluster(server="127.0.0.1"), "'127.0.0.1' is no URL of an API server; write https://", id="url"),
        pytest.param(cluster(server="https://h:99999"), "'https://h:99999' is no URL", id="port"),
        pytest.param(
            cluster(**{"certificate-authority": "ca.crt"}),
            "certificate-authority: cannot read {folder}/ca.crt: No such file or directory",
            id="ca-file",
        ),
        pytest.param(cluster(**{"certificate-authority-data": "a"}), "kubeconfig {file} cannot be used", id="ca-data"),
        pytest.param(
            cluster(**{"certificate-authority-data": "%"}), "{file} holds no PEM certificate", id="ca-data-empty"
        ),
        pytest.param(
            cluster(**{"certificate-authority-data": "bm8gUEVN"}),
            "certificate-authority-data of kubeconfig {file} holds no PEM certificate",
            id="ca-data-no-pem",
        ),
        pytest.param(user(tokenFile="token"), "tokenFile: cannot read {folder}/token: No such file", id="token-file"),
        pytest.param(
            user(**{"client-certificate": "a", "client-key": "b"}), "client-certificate: cannot read", id="certificate"
        ),
        pytest.param(
            user(exec={**_PLUGIN, "command": "no-such-plugin", "installHint": "see the\nmanual"}),
            "the exec plugin 'no-such-plugin' is not there, or may not be executed; see the manual",
            id="no-plugin",
        ),
        pytest.param(
            user(exec={**_PLUGIN, "command": "sh", "args": ["-c", "echo no login >&2; exit 3"]}),
            "no credentials: exec: process returned 3. no login",
            id="plugin-fails",
        ),
        pytest.param(
            user(exec={**_PLUGIN, "command": "echo", "args": ["hello"]}),
            "failed to decode process output",
            id="plugin-talks",
        ),
    ],
)
def test_open_with_bad_kubeconfig_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    """Each mistake in a kubeconfig is one sentence with the name of the file."""
    path = kubeconfig(tmp_path / "config", **changes)
    with pytest.raises(ConfigError) as caught:
        open_api_client(ApiAccess(path))
    text = str(caught.value)
    assert sentence.format(folder=tmp_path, file=path) in text
    assert str(path) in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read {file}: No such file or directory"),
        (b"a: [", "kubeconfig {file} is no YAML (line 1)"),
        (b"just text", "kubeconfig {file} is no kubeconfig"),
        (b"", "kubeconfig {file} is no kubeconfig"),
        (b"\xff\xfe", "{file} is no text file"),
    ],
)
def test_open_with_a_file_that_is_no_kubeconfig_says_so(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    """A missing file, and one that is something else, are one sentence each."""
    path = tmp_path / "config"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_api_client(ApiAccess(path))
    assert sentence.format(file=path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(SERVICE_ACCOUNT.exists(), reason="this runs in a pod")
def test_open_without_a_free_descriptor_is_a_failure_that_passes(
    api_server: ApiServer, certificates: Certificates, tmp_path: Path
) -> None:
    """A proxy with many connections may have none left for a moment: that is no bug, and it is told as what it is."""
    path = kubeconfig(tmp_path / "config")
    known = credentials_of(
        api_server, certificate_pem=certificates.client.read_text(), key_pem=certificates.client_key.read_text()
    )
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        with pytest.raises(ConfigError, match="cannot start the program that reads the credentials: Too many open"):
            open_api_client(ApiAccess(path))
        with pytest.raises(ConfigError, match=r"cannot load the client certificate of .*: Too many open files"):
            known.ssl_context()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    known.ssl_context()


def test_open_with_a_password_in_the_url_does_not_show_it(tmp_path: Path) -> None:
    """A URL with a user is none of an API server, and the sentence keeps the secret."""
    path = kubeconfig(tmp_path / "config", **cluster(server="https://me:secret@10.0.0.1:6443"))
    with pytest.raises(ConfigError, match=r"'10\.0\.0\.1:6443' is no URL of an API server") as caught:
        open_api_client(ApiAccess(path))
    assert "secret" not in str(caught.value)


def test_open_outside_of_a_pod_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any setting, and without a pod around, there is a way out in the sentence."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="runs in no pod with a service account; give --kubeconfig FILE"):
        open_api_client(ApiAccess())


def test_open_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HTTPS_PROXY is obeyed, and so is NO_PROXY."""
    path = kubeconfig(tmp_path / "config")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:2")
    monkeypatch.setenv("NO_PROXY", "")
    assert open_api_client(ApiAccess(path))._credentials.proxy == "http://127.0.0.1:2"
    for direct in ("127.0.0.1", "x.example, 127.0.0.0/8"):
        monkeypatch.setenv("NO_PROXY", direct)
        assert not open_api_client(ApiAccess(path))._credentials.proxy
    path = kubeconfig(tmp_path / "config", **cluster(**{"proxy-url": "http://127.0.0.1:3"}))
    assert open_api_client(ApiAccess(path))._credentials.proxy == "http://127.0.0.1:3"

"""Who may do what at the API server double, and what others are told; kubeconfigs of all kinds."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3
from apiserver.cluster import Cluster, service_manifest
from apiserver.double import ApiServer
from apiserver.kube_client import KubeClient, RefusedError

SERVICES = "/api/v1/services"

PLUGIN = """\
import json
print(json.dumps({"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1",
                  "status": {"token": "proxy-token"}}))
"""


def with_token(server: ApiServer, folder: Path) -> dict[str, Any]:
    """Return the user of a kubeconfig with a token."""
    return {"token": "proxy-token"}


def with_token_file(server: ApiServer, folder: Path) -> dict[str, Any]:
    """Return the user of a kubeconfig with a token in a file."""
    (folder / "token").write_text("proxy-token\n")
    return {"tokenFile": str(folder / "token")}


def with_certificate(server: ApiServer, folder: Path) -> dict[str, Any]:
    """Return the user of a kubeconfig with a client certificate."""
    assert server.certificates is not None
    return {"client-certificate": str(server.certificates.client), "client-key": str(server.certificates.client_key)}


def with_plugin(server: ApiServer, folder: Path) -> dict[str, Any]:
    """Return the user of a kubeconfig with an exec plugin."""
    (folder / "plugin.py").write_text(PLUGIN)
    plugin = {"command": sys.executable, "args": [str(folder / "plugin.py")], "interactiveMode": "Never"}
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", **plugin}}


@pytest.mark.parametrize("make_user", [with_token, with_token_file, with_certificate, with_plugin])
def test_user_of_a_kubeconfig_is_known(
    make_user: Callable[[ApiServer, Path], dict[str, Any]], api_server: ApiServer, tmp_path: Path
) -> None:
    """All kinds of credentials make the same user."""
    kubeconfig = api_server.kubeconfig(tmp_path / "kubeconfig", user=make_user(api_server, tmp_path))
    with KubeClient.from_file(kubeconfig) as client:
        assert client.request("GET", SERVICES)["kind"] == "ServiceList"
    assert [one.user for one in api_server.requests] == ["proxy"]


def test_token_that_expires_is_unauthorized(api_server: ApiServer, tmp_path: Path) -> None:
    """A token that is taken away gets 401 at once, on the same connection; given back, it is good again."""
    with KubeClient.from_file(api_server.kubeconfig(tmp_path / "kubeconfig")) as client:
        client.request("GET", SERVICES)
        user = api_server.access.tokens.pop("proxy-token")
        with pytest.raises(RefusedError) as caught:
            client.request("GET", SERVICES)
        assert (caught.value.code, caught.value.reason, str(caught.value)) == (401, "Unauthorized", "Unauthorized")
        api_server.access.tokens["proxy-token"] = user
        client.request("GET", SERVICES)


def test_certificate_of_an_unknown_user_is_unauthorized(api_server: ApiServer, tmp_path: Path) -> None:
    """A certificate that the authority signed is not enough."""
    api_server.access.certificate_users.clear()
    kubeconfig = api_server.kubeconfig(tmp_path / "kubeconfig", user=with_certificate(api_server, tmp_path))
    with KubeClient.from_file(kubeconfig) as client, pytest.raises(RefusedError) as caught:
        client.request("GET", SERVICES)
    assert caught.value.code == 401


def test_nobody_is_the_anonymous_user(api_server: ApiServer, tmp_path: Path) -> None:
    """Without credentials the answer is 403 and names the user."""
    with (
        KubeClient.from_file(api_server.kubeconfig(tmp_path / "kubeconfig", user={})) as client,
        pytest.raises(RefusedError) as caught,
    ):
        client.request("GET", SERVICES)
    assert caught.value.code == 403
    assert 'User "system:anonymous" cannot list resource "services"' in str(caught.value)


@pytest.mark.parametrize(
    ("verb", "resource", "request_line", "text"),
    [
        (
            "list",
            "services",
            f"GET {SERVICES}",
            'services is forbidden: User "proxy" cannot list resource "services" in API group "" at the cluster scope',
        ),
        (
            "get",
            "nodes",
            "GET /api/v1/nodes/one",
            'nodes "one" is forbidden: User "proxy" cannot get resource "nodes" in API group "" at the cluster scope',
        ),
        (
            "watch",
            "endpointslices",
            "GET /apis/discovery.k8s.io/v1/endpointslices?watch=1",
            (
                'endpointslices is forbidden: User "proxy" cannot watch resource "endpointslices" '
                'in API group "discovery.k8s.io" at the cluster scope'
            ),
        ),
        (
            "create",
            "events",
            "POST /apis/events.k8s.io/v1/namespaces/default/events",
            (
                'events is forbidden: User "proxy" cannot create resource "events" '
                'in API group "events.k8s.io" in the namespace "default"'
            ),
        ),
    ],
)
def test_denied_verb_is_forbidden(  # noqa: PLR0917  a table
    verb: str, resource: str, request_line: str, text: str, api_server: ApiServer, tmp_path: Path
) -> None:
    """A denial is for one verb and resource, and says so as RBAC does."""
    api_server.access.deny(verb, resource)
    method, path = request_line.split()
    with KubeClient.from_file(api_server.kubeconfig(tmp_path / "kubeconfig")) as client:
        with pytest.raises(RefusedError) as caught:
            client.request(method, path, {})
        assert (caught.value.code, str(caught.value)) == (403, text)
        assert client.request("GET", "/api/v1/namespaces")["kind"] == "NamespaceList"


def test_denial_taken_back_is_none(api_server: ApiServer, tmp_path: Path) -> None:
    """Who got 403 is served on the same connection once RBAC is right."""
    denial = api_server.access.deny("list")
    with KubeClient.from_file(api_server.kubeconfig(tmp_path / "kubeconfig")) as client:
        with pytest.raises(RefusedError):
            client.request("GET", SERVICES)
        api_server.access.allow(denial)
        client.request("GET", SERVICES)


def test_denial_is_for_its_user(api_server: ApiServer, double_cluster: Cluster) -> None:
    """What the proxy may not do, the administrator may."""
    api_server.access.deny("create", "services")
    double_cluster.create(service_manifest())


def test_authority_that_has_not_signed_the_server_is_not_trusted(api_server: ApiServer, tmp_path: Path) -> None:
    """A kubeconfig with a wrong authority leads to a failed handshake."""
    assert api_server.certificates is not None
    kubeconfig = api_server.kubeconfig(tmp_path / "kubeconfig", authority=api_server.certificates.other_authority)
    with KubeClient.from_file(kubeconfig) as client, pytest.raises(urllib3.exceptions.SSLError):
        client.request("GET", SERVICES)


def test_insecure_kubeconfig_trusts_everyone(api_server: ApiServer, tmp_path: Path) -> None:
    """``insecure-skip-tls-verify`` needs no authority."""
    kubeconfig = api_server.kubeconfig(tmp_path / "kubeconfig", is_insecure=True)
    with KubeClient.from_file(kubeconfig) as client, pytest.warns(urllib3.exceptions.InsecureRequestWarning):
        client.request("GET", SERVICES)


def test_plain_server_needs_no_certificates(tmp_path: Path) -> None:
    """Without certificates the double speaks HTTP, also on IPv6."""
    with (
        ApiServer("::1") as server,
        KubeClient.from_file(server.kubeconfig(tmp_path / "kubeconfig")) as client,
    ):
        assert server.url.startswith("http://[::1]:")
        assert client.request("GET", "/version")["major"] == "1"

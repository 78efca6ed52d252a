"""The example 04-daemonset and the image it runs: rendered and checked as a user would before applying them."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from userspace_proxy.cli import main
from userspace_proxy.config import Config

EXAMPLES = Path(__file__).parents[3] / "examples"
OVERLAYS = ("beside-kube-proxy", "replace-kube-proxy", "no-netfilter")
DEADLINE_S = 60

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def kubectl(*arguments: str | Path, stdin: str = "") -> str:
    """Return what kubectl prints; fail if it fails."""
    done = subprocess.run(
        ["kubectl", *arguments], check=False, capture_output=True, text=True, input=stdin, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(overlay: str) -> dict[str, dict[str, Any]]:
    """Return the objects of an overlay by kind."""
    documents = yaml.safe_load_all(kubectl("kustomize", EXAMPLES / "04-daemonset" / overlay))
    return {document["kind"]: document for document in documents}


def container_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the one container of the DaemonSet."""
    (container,) = objects["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def settings_of(objects: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what the command line of the container means, its environment included."""
    data = objects.get("ConfigMap", {}).get("data", {})
    container = container_of(objects)
    for variable in container["env"]:
        source = variable["valueFrom"]
        value = data[source["configMapKeyRef"]["key"]] if "configMapKeyRef" in source else "node-1"
        monkeypatch.setenv(variable["name"], value)
    name, *arguments = container["args"]
    command = main.get_command(main.make_context("userspace-proxy", [name, "--help"], resilient_parsing=True), name)
    assert command is not None
    return command.make_context(name, arguments).params


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_command_line_is_one_that_the_proxy_takes(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All options exist and have values of the right kind, also those from the environment."""
    settings = settings_of(render(overlay), monkeypatch)
    assert settings["service_proxy_name"] == (None if overlay == "replace-kube-proxy" else "userspace-proxy")
    if overlay == "replace-kube-proxy":
        assert settings["api_server"].startswith("https://")
        assert settings["cluster_cidr"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_has_no_more_rights_than_it_needs(overlay: str) -> None:
    """Not privileged; capabilities only where rules are written; the API server is only read, but for Events."""
    objects = render(overlay)
    security = container_of(objects)["securityContext"]
    assert security["privileged"] is False
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"]["drop"] == ["ALL"]
    added = set(security["capabilities"].get("add") or ())
    assert added == (set() if overlay == "no-netfilter" else {"NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE"})
    verbs = {resource: set(rule["verbs"]) for rule in objects["ClusterRole"]["rules"] for resource in rule["resources"]}
    read = {"get", "list", "watch"}
    assert verbs == {"services": read, "endpointslices": read, "nodes": read, "events": {"create"}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_asks_for_health_where_the_proxy_tells_it(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ports of the probes are those of the options, and a pod gets the time it takes to drain."""
    objects = render(overlay)
    container = container_of(objects)
    settings = settings_of(objects, monkeypatch)
    healthz, metrics = settings["healthz_bind_address"], settings["metrics_bind_address"]
    assert container["livenessProbe"]["httpGet"]["port"] == (healthz[1] if healthz else 10256)
    assert container["readinessProbe"]["httpGet"]["port"] == metrics[1]
    pod = objects["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["hostNetwork"] is True
    drain_timeout_s = Config(state_dir=Path(), runtime_dir=Path()).drain_timeout_s
    assert pod["terminationGracePeriodSeconds"] > drain_timeout_s
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


class Discovery(BaseHTTPRequestHandler):
    """Says which kinds there are, as an API server does; kubectl asks that even for a dry run."""

    kinds: ClassVar = {
        "v1": [("serviceaccounts", "ServiceAccount", True), ("configmaps", "ConfigMap", True)],
        "apps/v1": [("daemonsets", "DaemonSet", True)],
        "rbac.authorization.k8s.io/v1": [
            ("clusterroles", "ClusterRole", False),
            ("clusterrolebindings", "ClusterRoleBinding", False),
        ],
    }

    def do_GET(self) -> None:
        """Answer the discovery paths."""
        path = self.path.partition("?")[0].strip("/")
        if path == "api":
            self._answer({"kind": "APIVersions", "versions": ["v1"]})
        elif path == "apis":
            groups = [version.split("/") for version in self.kinds if "/" in version]
            versions = [
                (group, {"groupVersion": f"{group}/{version}", "version": version}) for group, version in groups
            ]
            entries = [{"name": group, "versions": [one], "preferredVersion": one} for group, one in versions]
            self._answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": entries})
        else:
            version = path.removeprefix("apis/").removeprefix("api/")
            resources = [
                {"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["create", "get"]}
                for name, kind, namespaced in self.kinds.get(version, ())
            ]
            self._answer(
                {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
            )

    def _answer(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Say nothing."""


@pytest.fixture
def discovery() -> Iterator[str]:
    """Return the URL of a server that answers discovery requests."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Discovery) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlay_in_a_dry_run_is_accepted_whole(overlay: str, discovery: str, tmp_path: Path) -> None:
    """All objects are taken, and nothing is sent anywhere."""
    text = kubectl("kustomize", EXAMPLES / "04-daemonset" / overlay)
    out = kubectl(
        f"--server={discovery}",
        f"--cache-dir={tmp_path}",
        "create",
        "--dry-run=client",
        "--validate=false",
        "-f",
        "-",
        stdin=text,
    )
    assert sorted(line.rpartition(" created ")[0].partition("/")[0].partition(".")[0] for line in out.splitlines()) == (
        sorted(document["kind"].lower() for document in yaml.safe_load_all(text))
    )


def test_image_copies_what_is_there_and_runs_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Containerfile names files of the repository, the lower bounds' constraints, and a command that exists."""
    lines = (EXAMPLES / "03-container" / "Containerfile").read_text().splitlines()
    assert (EXAMPLES.parent / "constraints.txt").is_file()
    assert any("-c /src/constraints.txt" in line for line in lines)
    (entrypoint,) = (json.loads(line.removeprefix("ENTRYPOINT ")) for line in lines if line.startswith("ENTRYPOINT"))
    assert entrypoint == ["userspace-proxy"]
    (command,) = (json.loads(line.removeprefix("CMD ")) for line in lines if line.startswith("CMD"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    assert main.commands[command[0]].name == "run"

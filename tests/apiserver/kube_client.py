"""A small client of an API server: what a kubeconfig says, and requests with JSON.

It is the tests' own, so that what they see does not pass through the code under test.

Source: Kubernetes documentation, "kubeconfig (v1)", "client-go credential plugins".
Entry point: ``KubeClient``.
"""

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import urllib3
import yaml
from attrs import define, field

MERGE_PATCH = "application/merge-patch+json"
TIMEOUT_S = 30.0
PLUGIN_TIMEOUT_S = 60


class RefusedError(Exception):
    """The API server has refused a request."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        super().__init__(status.get("message", ""))
        self.status = status
        self.code: int = status.get("code", 0)
        self.reason: str = status.get("reason", "")

    @property
    def fields(self) -> set[str]:
        """The fields that break a rule, where the reason is ``Invalid``."""
        return {cause.get("field", "") for cause in self.status.get("details", {}).get("causes", [])}


@define(eq=False)
class KubeClient:
    """A client with the credentials of the current context of a kubeconfig; a context that closes it."""

    url: str
    _pool: urllib3.PoolManager
    _folder: TemporaryDirectory[str] = field(repr=False)

    @classmethod
    def from_file(cls, kubeconfig: Path) -> Self:
        """Return a client."""
        config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = dict(_named(config["users"], context["user"])["user"])
        if "exec" in user:
            user |= _plugin_credentials(user["exec"])
        folder = TemporaryDirectory(prefix="kube-client-")
        headers = {"Accept": "application/json"}
        token = user.get("token")
        if "tokenFile" in user:
            token = Path(user["tokenFile"]).read_text(encoding="utf-8").strip()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        is_insecure = cluster.get("insecure-skip-tls-verify", False)
        pool = urllib3.PoolManager(
            headers=headers,
            timeout=TIMEOUT_S,
            retries=False,
            ca_certs=_file(cluster, "certificate-authority", Path(folder.name), kubeconfig),
            cert_file=_file(user, "client-certificate", Path(folder.name), kubeconfig),
            key_file=_file(user, "client-key", Path(folder.name), kubeconfig),
            cert_reqs="CERT_NONE" if is_insecure else "CERT_REQUIRED",
        )
        return cls(cluster["server"].rstrip("/"), pool, folder)

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """Return what the server answers.

        Raises:
            RefusedError: a Status of failure.
        """
        response = self._pool.request(
            method,
            f"{self.url}{path}",
            body=None if body is None else json.dumps(body).encode(),
            headers={**self._pool.headers, "Content-Type": content_type},
        )
        answer: dict[str, Any] = json.loads(response.data)
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise RefusedError(answer)
        return answer

    @contextmanager
    def watch(self, path: str) -> Iterator[Iterator[dict[str, Any]]]:
        """Watch while the context lasts; yields what gives the events, until the server ends the watch.

        Args:
            path: with a query that says ``watch=true``.

        Raises:
            RefusedError: a Status of failure instead of a watch.
        """
        response = self._pool.request("GET", f"{self.url}{path}", headers=self._pool.headers, preload_content=False)
        try:
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise RefusedError(json.loads(response.read()))
            yield _events(response)
        finally:
            response.close()

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close all connections."""
        self.close()


def _events(response: urllib3.BaseHTTPResponse) -> Iterator[dict[str, Any]]:
    rest = b""
    for data in response.stream():
        *lines, rest = (rest + data).split(b"\n")
        yield from map(json.loads, lines)


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _file(entry: Mapping[str, Any], name: str, folder: Path, kubeconfig: Path) -> str | None:
    """Return the path of what the kubeconfig gives as a path or as data."""
    if data := entry.get(f"{name}-data"):
        path = folder / name
        path.write_bytes(base64.b64decode(data))
        return str(path)
    return str(kubeconfig.parent / entry[name]) if name in entry else None


def _plugin_credentials(plugin: Mapping[str, Any]) -> dict[str, str]:
    environment = {one["name"]: one["value"] for one in plugin.get("env") or []}
    done = subprocess.run(
        [plugin["command"], *(plugin.get("args") or [])],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        timeout=PLUGIN_TIMEOUT_S,
    )
    status = json.loads(done.stdout)["status"]
    names = {"clientCertificateData": "client-certificate-data", "clientKeyData": "client-key-data"}
    found = {new: base64.b64encode(status[old].encode()).decode() for old, new in names.items() if old in status}
    return found | ({"token": status["token"]} if "token" in status else {})

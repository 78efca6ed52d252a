"""Finds out where the API server is and how to prove who asks, with the ``kubernetes`` package, and opens a client.

The package knows kubeconfigs, service accounts, exec plugins and the refreshing of tokens; it does nothing else here,
and no other module imports it. It runs in a helper process that lives for a third of a second: merely importing it
loads its models package (in version 31 with all 700 models, 80 MB), a plugin that hangs can be killed, and what the
package writes to the log of the process becomes a sentence. Requests are made by ``api_http``.

Entry points: ``open_api_client``; ``main`` in the helper process.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec
import yaml

from userspace_proxy.config import ApiAccess
from userspace_proxy.errors import ConfigError
from userspace_proxy.sources.api_credentials import Credentials, CredentialStore
from userspace_proxy.sources.api_http import ApiClient

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its credentials.

Source: https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
"""
_HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"
_PORT_VARIABLE = "KUBERNETES_SERVICE_PORT"

_COMMAND = (sys.executable, "-P", "-W", "ignore", "-m", "userspace_proxy.sources.api_client")
"""``-P``: a file yaml.py in the working directory is not ours."""
_TIMEOUT_S = 60.0
"""For the helper process; arbitrary: a plugin may have to ask somebody over the network."""


class _Answer(msgspec.Struct, frozen=True):
    """What the helper process says."""

    credentials: Credentials | None
    failure: str = ""


def open_api_client(access: ApiAccess) -> ApiClient:
    """Return a client with credentials that were read just now; no request is made yet. Blocks for a while.

    Raises:
        ConfigError: something that ``access`` names cannot be used.
    """
    store = CredentialStore(partial(_load, access))
    return ApiClient.open(store)


def _load(access: ApiAccess) -> Credentials:
    """Run the helper process and return what it has found out."""
    question = msgspec.json.encode(access, enc_hook=str)
    try:
        helper = subprocess.Popen(  # noqa: S603 - this program itself
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the control process, and a plugin goes with the helper
        )
    except OSError as error:  # no memory, no descriptors: that passes
        raise ConfigError(
            f"{_named(access)}: cannot start the program that reads the credentials: {error.strerror}"
        ) from None
    with helper as process:
        try:
            answer, _ = process.communicate(question, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"{_named(access)}: no credentials within {_TIMEOUT_S:.0f} s; see why its exec plugin hangs"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    try:
        found = msgspec.json.decode(answer, type=_Answer)
    except msgspec.DecodeError:
        raise ConfigError(
            f"{_named(access)}: the program that reads the credentials ended with status {process.returncode}; "
            "its reason is on standard error"
        ) from None
    if found.credentials is None:
        raise ConfigError(found.failure)
    return found.credentials


def _named(access: ApiAccess) -> str:
    return f"kubeconfig {access.kubeconfig}" if access.kubeconfig else "service account"


def main() -> None:
    """Read an ``ApiAccess`` from standard input and write credentials, or why there are none, to standard output."""
    access = msgspec.json.decode(sys.stdin.buffer.read(), type=ApiAccess, dec_hook=lambda type_, text: type_(text))
    # what plugins and the package print must not get between
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        answer = _Answer(find_credentials(access, os.environ))
    except ConfigError as error:
        answer = _Answer(None, str(error))
    with contextlib.suppress(BrokenPipeError), output:  # who asked may have gone
        output.write(msgspec.json.encode(answer))


def find_credentials(access: ApiAccess, environ: Mapping[str, str]) -> Credentials:
    """Return what there is to know; imports the ``kubernetes`` package, so it is for the helper process.

    Raises:
        ConfigError: something that ``access`` names cannot be used.
    """
    if access.kubeconfig is not None:
        found = _from_kubeconfig(access.kubeconfig, access.context)
    elif _HOST_VARIABLE in environ or (SERVICE_ACCOUNT / "token").exists():
        found = _from_service_account(access, environ)
    elif access.server:
        found = Credentials(server=access.server, origin="--api-server")
    else:
        raise ConfigError(
            "where the API server is, is not known: this runs in no pod with a service account; "
            "give --kubeconfig FILE, or serve files with --manifests"
        )
    if access.server:
        found = msgspec.structs.replace(found, server=access.server.rstrip("/"), is_cluster_address=False)
    _require_url(found)
    return found if found.proxy else msgspec.structs.replace(found, proxy=_proxy_of_environment(found.server))


def _require_url(found: Credentials) -> None:
    try:
        parts = urlsplit(found.server)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        valid = valid and "@" not in parts.netloc
    except ValueError:
        valid = False
    if not valid:
        shown = found.server.rpartition("@")[2]  # without a password
        raise ConfigError(f"{found.origin}: '{shown}' is no URL of an API server; write https://HOST:PORT")


def _proxy_of_environment(server: str) -> str:
    """Return the HTTP proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY ask for."""
    parts = urlsplit(server)
    settings = getproxies()
    if proxy_bypass(parts.netloc) or _is_in_networks(parts.hostname or "", settings.get("no", "")):
        return ""
    return settings.get(parts.scheme, "")


def _is_in_networks(host: str, no_proxy: str) -> bool:
    """Return whether a host is an address of one of the networks in NO_PROXY, which the standard library overlooks."""
    for entry in no_proxy.split(","):
        with suppress(ValueError):  # a name
            if ip_address(host) in ip_network(entry.strip(), strict=False):
                return True
    return False


def _from_service_account(access: ApiAccess, environ: Mapping[str, str]) -> Credentials:
    origin = "the service account of this pod"
    if access.server:
        # the package wants the variables; what they say does not matter then
        os.environ.setdefault(_HOST_VARIABLE, "kubernetes.default.svc")
        os.environ.setdefault(_PORT_VARIABLE, "443")
    elif not environ.get(_HOST_VARIABLE) or not environ.get(_PORT_VARIABLE):
        raise ConfigError(
            f"{origin}: {_HOST_VARIABLE} or {_PORT_VARIABLE} is not set, so where the API server is, is not known; "
            "give --api-server URL"
        )
    files = [str(SERVICE_ACCOUNT / name) for name in ("token", "ca.crt")]
    for file in files:
        _read(origin, file)

    from kubernetes.client.configuration import Configuration  # noqa: PLC0415 - slow
    from kubernetes.config import load_incluster_config  # noqa: PLC0415
    from kubernetes.config.config_exception import ConfigException  # noqa: PLC0415

    configuration = Configuration()
    try:
        load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise ConfigError(f"{origin}: {error}") from None
    return _credentials(configuration, origin, files, ca_origin=files[1], is_cluster_address=True)


def _from_kubeconfig(path: Path, context_name: str) -> Credentials:
    origin = f"kubeconfig {path}"
    cluster, user = _cluster_and_user(path, context_name)
    files = [str(path)]
    for section, keys in ((cluster, ("certificate-authority",)), (user, ("client-certificate", "client-key"))):
        files += [
            _file_of(origin, path, section, key) for key in keys if section.get(key) and not section.get(f"{key}-data")
        ]
    if user.get("tokenFile") and not user.get("token"):
        files.append(_file_of(origin, path, user, "tokenFile"))
    plugin = user.get("exec")
    if isinstance(plugin, dict):
        _require_plugin(origin, path, plugin)
    complaints = _Complaints()
    logging.getLogger().addHandler(complaints)

    from kubernetes.client.configuration import Configuration  # noqa: PLC0415 - slow
    from kubernetes.config import load_kube_config  # noqa: PLC0415
    from kubernetes.config.config_exception import ConfigException  # noqa: PLC0415

    configuration = Configuration()
    try:
        load_kube_config(str(path), context_name or None, configuration)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise ConfigError(f"{origin}: {error}") from None
    except Exception as error:  # noqa: BLE001 - the package lets through whatever a bad value leads to
        raise ConfigError(f"{origin} cannot be used: {type(error).__name__}: {error}") from None
    # of a plugin that fails it only tells the log, and goes on without credentials
    if complaints.texts:
        raise ConfigError(f"{origin}: no credentials: {'; '.join(complaints.texts)}")
    in_file = f"certificate-authority-data of {origin}"
    ca_origin = str(configuration.ssl_ca_cert) if cluster.get("certificate-authority") else in_file
    found = _credentials(configuration, origin, files, ca_origin=ca_origin)
    # what the package says of proxies may be from the environment, and for another host
    return msgspec.structs.replace(found, proxy=str(cluster.get("proxy-url") or ""))


class _Complaints(logging.Handler):
    """What a package logs as errors, as texts."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, on one line."""
        self.texts.append(" ".join(record.getMessage().split()))


def _credentials(
    configuration: object, origin: str, files: list[str], *, ca_origin: str, is_cluster_address: bool = False
) -> Credentials:
    """Return what a configuration of the package says; files are read, as some exist only while this process does."""
    value = partial(getattr, configuration)
    headers = {setting["key"].lower(): setting["value"] for setting in value("auth_settings")().values()}
    ca = value("ssl_ca_cert")
    ca_pem = _read(origin, ca) if ca else ""
    if ca and "BEGIN" not in ca_pem:  # an empty text would mean the system's authorities
        raise ConfigError(
            f"{ca_origin} holds no PEM certificate, so the API server cannot be told from others; correct it"
        )
    certificate, key = value("cert_file"), value("key_file")
    return Credentials(
        server=value("host").rstrip("/"),
        origin=origin,
        authorization=(headers.get("authorization") or "").strip(),
        ca_pem=ca_pem,
        ca_origin=ca_origin if ca else "the system's certificate authorities",
        certificate_pem=_read(origin, certificate) if certificate else "",
        key_pem=_read(origin, key) if key else "",
        verifies_server=bool(value("verify_ssl")),
        tls_server_name=value("tls_server_name") or "",
        is_cluster_address=is_cluster_address,
        files=tuple(files),
    )


def _read(origin: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{origin}: cannot read {path}: {error.strerror}; correct the path or its rights") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{origin}: {path} is no text file; it must be PEM or a token") from None


def _file_of(origin: str, kubeconfig: Path, section: dict[str, object], key: str) -> str:
    """Return the path of a file that a kubeconfig names; it can be read."""
    path = os.path.normpath(kubeconfig.parent.absolute() / str(section[key]))
    _read(f"{origin}, {key}", path)
    return path


def _require_plugin(origin: str, kubeconfig: Path, plugin: dict[str, object]) -> None:
    command = str(plugin.get("command") or "")
    if not shutil.which(str(kubeconfig.parent.absolute() / command) if "/" in command else command):
        hint = " ".join(str(plugin.get("installHint") or "install it").split())
        raise ConfigError(f"{origin}: the exec plugin '{command}' is not there, or may not be executed; {hint}")


def _cluster_and_user(path: Path, context_name: str) -> tuple[dict[str, object], dict[str, object]]:
    """Return the cluster and the user of a context; the user is empty where there is none."""
    origin = f"kubeconfig {path}"
    try:
        content = yaml.safe_load(_read("--kubeconfig", str(path)))
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" (line {place.line + 1})" if place else ""
        raise ConfigError(f"{origin} is no YAML{line}; correct it, or name another file") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{origin} is no kubeconfig: it holds no mapping; name another file")
    name = context_name or content.get("current-context")
    if not name:
        raise ConfigError(f"{origin} has no current-context; give --context NAME, or set it in the file")
    context = _entry(origin, content, "context", name)
    cluster = _entry(origin, content, "cluster", context.get("cluster"))
    if not cluster.get("server"):
        raise ConfigError(f"{origin}: cluster '{context.get('cluster')}' names no server; add one")
    user = context.get("user")
    return cluster, _entry(origin, content, "user", user) if user else {}


def _entry(origin: str, content: dict[str, object], kind: str, name: object) -> dict[str, object]:
    """Return one of the named entries of a kubeconfig."""
    entries = content.get(f"{kind}s")
    named = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    for entry in named:
        if entry.get("name") == name:
            value = entry.get(kind)
            return value if isinstance(value, dict) else {}
    known = ", ".join(str(entry.get("name")) for entry in named) or "none"
    raise ConfigError(f"{origin} has no {kind} '{name}'; it has: {known}")


if __name__ == "__main__":
    main()

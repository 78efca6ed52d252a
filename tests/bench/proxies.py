"""The proxies that are compared: how each is found, configured and started.

All serve the same Frontends with the same backends. Their configurations are in ``configurations/``; that of this proxy
is made of manifests. Nothing is installed and nothing outside of a temporary folder is written.
Entry points: ``PROXIES``, ``proxy_running``.
"""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from string import Template

from attrs import frozen
from bench.backends import ADDRESSES, BACKLOG
from bench.processes import running

from userspace_proxy import __version__

HOST = "127.0.0.1"
CONFIGURATIONS = Path(__file__).with_name("configurations")
FIRST_PORT = 22_000
"""Above those that tests open, as they may run beside this."""
NGINX_MODULES = Path("/usr/lib/nginx/modules")
"""Where Debian has them."""
DIRECT = "direct"
"""The name of no proxy: clients connect to a backend."""
OURS = "userspace-proxy"
OURS_TWICE = "userspace-proxy-2-workers"
HAPROXY = "haproxy"
HAPROXY_COPYING = "haproxy-copying"
NGINX = "nginx"
SOCAT = "socat"
BARE_LOOP = "bare-loop"
"""No proxy either, but the least that one in Python costs (see ``bare_loop``)."""


@frozen
class Frontend:
    """One port that a proxy listens on, and the port of the backends behind it."""

    port: int
    backend_port: int


@frozen
class Proxy:
    """A proxy that can be measured."""

    name: str
    commands: Callable[[Path, Sequence[Frontend]], list[list[str]]]
    """Write what it needs into a folder; return what to run for it to serve some Frontends."""
    program: str
    version_option: str


@contextmanager
def proxy_running(proxy: Proxy, frontends: Sequence[Frontend]) -> Iterator[tuple[int, ...]]:
    """Run a proxy until the end of the block; yields its pids once all Frontends answer.

    Raises:
        SystemExit: it does not serve them in time.
    """
    left = [frontend.port for frontend in frontends]

    def is_ready() -> bool:
        while left and _connects(left[-1]):
            left.pop()
        return not left

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # some workers run as another user
        # Of several programs each has one Frontend, so the first must not be asked whether all answer.
        commands = proxy.commands(folder, frontends)
        pids = [stack.enter_context(running(command, lambda: True)) for command in commands[:-1]]
        pids.append(stack.enter_context(running(commands[-1], is_ready)))
        yield tuple(pids)


def _connects(port: int) -> bool:
    try:
        socket.create_connection((HOST, port)).close()
    except OSError:
        return False
    return True


def version_of(proxy: Proxy) -> str | None:
    """Return which version of a proxy would be measured; None: it is not there."""
    if proxy.program == sys.executable:
        return f"{__version__}, Python {sys.version.split()[0]}"
    if shutil.which(proxy.program) is None:
        return None
    if proxy.program == "nginx" and not (NGINX_MODULES / "ngx_stream_module.so").exists():
        return None
    said = subprocess.run([proxy.program, proxy.version_option], capture_output=True, text=True, check=True)
    found = re.search(r"\d+\.\d+[\w.+-]*", said.stdout.replace("by Gerhard", "") + said.stderr)
    return found.group() if found else "unknown"


def _files_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _run_haproxy(splice: str, folder: Path, frontends: Sequence[Frontend]) -> list[list[str]]:
    parts = []
    for number, (backend_port, ports) in enumerate(_ports_by_backend(frontends).items()):
        binds = [f"    bind {HOST}:{port}" for port in ports]
        servers = [f"    server s{index} {address}:{backend_port}" for index, address in enumerate(ADDRESSES)]
        parts.append("\n".join([f"listen bench{number}", *binds, *servers]))
    # Each connection takes two descriptors, each Frontend one; some are for the program itself.
    connections = (_files_limit() - len(frontends)) // 2 - 300
    path = _fill("haproxy.cfg", folder, connections=connections, splice=splice, frontends="\n".join(parts))
    return [["haproxy", "-db", "-f", str(path)]]


def _run_nginx(folder: Path, frontends: Sequence[Frontend]) -> list[list[str]]:
    parts = []
    for number, (backend_port, ports) in enumerate(_ports_by_backend(frontends).items()):
        servers = [f"        server {address}:{backend_port};" for address in ADDRESSES]
        listens = [f"        listen {HOST}:{port} backlog={BACKLOG};" for port in ports]
        parts.append("\n".join([f"    upstream bench{number} {{", *servers, "    }"]))
        parts.append("\n".join(["    server {", *listens, f"        proxy_pass bench{number};", "    }"]))
    files = min(_files_limit(), 20_000)
    path = _fill("nginx.conf", folder, modules=NGINX_MODULES, files=files, frontends="\n".join(parts))
    return [["nginx", "-e", "stderr", "-c", str(path), "-p", str(folder)]]


def _run_socat(folder: Path, frontends: Sequence[Frontend]) -> list[list[str]]:
    """One process for each connection, one backend: all that it can do."""
    return [
        ["socat", f"TCP-LISTEN:{each.port},bind={HOST},fork,backlog=128", f"TCP:{ADDRESSES[0]}:{each.backend_port}"]
        for each in frontends
    ]


def _run_bare_loop(folder: Path, frontends: Sequence[Frontend]) -> list[list[str]]:
    ports = [f"{each.port}:{each.backend_port}" for each in frontends]
    return [[sys.executable, str(Path(__file__).with_name("bare_loop.py")), HOST, *ports, *ADDRESSES]]


def _run_ours(workers: int, folder: Path, frontends: Sequence[Frontend]) -> list[list[str]]:
    items = [item for number, each in enumerate(frontends) for item in _service(number, each)]
    manifests = folder / "bench.json"
    manifests.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}), encoding="ascii")
    command = [
        *(sys.executable, "-m", "userspace_proxy", "run", "--manifests", str(manifests), "--steering", "none"),
        *("--nodeport-addresses", "localhost", "--workers", str(workers), "--metrics-bind-address", ""),
        *("--state-dir", str(folder), "--runtime-dir", str(folder), "--log-level", "error"),
    ]
    return [command]


def _service(number: int, frontend: Frontend) -> list[dict[str, object]]:
    """Return a Service with a NodePort, and its EndpointSlice."""
    high, low = divmod(number + 1, 256)
    name = f"bench-{number}"
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {
                "type": "NodePort",
                "clusterIP": f"10.96.{high}.{low}",
                "ports": [{"name": "tcp", "port": 80, "nodePort": frontend.port}],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "ports": [{"name": "tcp", "port": frontend.backend_port}],
            "endpoints": [{"addresses": [address]} for address in ADDRESSES],
        },
    ]


def _ports_by_backend(frontends: Sequence[Frontend]) -> dict[int, list[int]]:
    ports: dict[int, list[int]] = {}
    for each in frontends:
        ports.setdefault(each.backend_port, []).append(each.port)
    return ports


def _fill(name: str, folder: Path, **words: object) -> Path:
    """Write a configuration with its words filled in; return where it is."""
    text = (CONFIGURATIONS / name).read_text(encoding="ascii")
    path = folder / name
    path.write_text(Template(text).substitute(folder=folder, **words), encoding="ascii")
    return path


PROXIES = {
    proxy.name: proxy
    for proxy in (
        Proxy(OURS, partial(_run_ours, 1), sys.executable, ""),
        Proxy(HAPROXY, partial(_run_haproxy, "option"), "haproxy", "-v"),
        Proxy(HAPROXY_COPYING, partial(_run_haproxy, "no option"), "haproxy", "-v"),
        Proxy(NGINX, _run_nginx, "nginx", "-v"),
        Proxy(SOCAT, _run_socat, "socat", "-V"),
        Proxy(BARE_LOOP, _run_bare_loop, sys.executable, ""),
        Proxy(OURS_TWICE, partial(_run_ours, 2), sys.executable, ""),
    )
}


def free_ports(count: int) -> list[int]:
    """Return that many ports that nothing listens on and that the kernel gives to no client (ip_local_port_range)."""
    found: list[int] = []
    for port in range(FIRST_PORT + os.getpid() * 97 % 700, 32_768):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise SystemExit(f"there are not {count} free TCP ports between {FIRST_PORT} and 32767")

"""The programs that ``dns.py`` measures: nsd, and proxies before it, each with its configuration in a temporary folder.

Entry points: ``run_nsd``, ``run_proxies``.
"""

import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from attrs import frozen
from bench.processes import free_port, running

OURS = "userspace-proxy"
NGINX = "nginx"
DNSDIST = "dnsdist"
DIRECT = "direct"
"""No proxy: what nsd and the load tool can do."""

QUERY = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + b"\x03www\x07example\x04test\x00\x00\x01\x00\x01"
"""RFC 1035, 4.1: www.example.test, A."""
ANSWER_TIMEOUT_S = 1.0
OUR_HOST = "127.96.53.1"

_DEBIAN_PACKAGES = {"nsd": "nsd", "dnsperf": "dnsperf", "nginx": "libnginx-mod-stream", "dnsdist": "dnsdist"}
_NGINX_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"

_ZONE = """
$ORIGIN example.test.
$TTL 3600
@ IN SOA ns.example.test. root.example.test. 1 3600 600 86400 60
@ IN NS ns.example.test.
ns IN A 192.0.2.1
www IN A 192.0.2.2
"""

_NSD = """
server:
    server-count: 1
    ip-address: 127.0.0.1@{port}
    username: ""
    database: ""
    zonesdir: "{folder}"
    pidfile: "{folder}/nsd.pid"
    xfrdfile: "{folder}/xfrd.state"
    zonelistfile: "{folder}/zone.list"
    rrl-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: example.test
    zonefile: zone
"""

# Each session takes two connections: the client's, which has no descriptor of its own, and that to the backend.
_NGINX = """
load_module {module};
daemon off;
pid {folder}/nginx.pid;
error_log stderr crit;
worker_processes 1;
worker_rlimit_nofile 20000;
events {{ worker_connections 40000; }}
stream {{
    server {{
        listen {listen} udp;
        proxy_pass 127.0.0.1:{backend};
        proxy_timeout {idle_timeout_s}s;
    }}
}}
"""

_DNSDIST = """
setLocal("{host}:{port}")
newServer({{address="127.0.0.1:{backend}", useClientSubnet=false}}):setUp()
setSecurityPollSuffix("")
"""

_MANIFEST = """
apiVersion: v1
kind: Service
metadata: {{name: dns}}
spec:
  clusterIP: 10.96.0.53
  type: {type}
  ports: [{{name: dns, protocol: UDP, port: {port}{node_port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: dns-1, labels: {{kubernetes.io/service-name: dns}}}}
addressType: IPv4
ports: [{{name: dns, protocol: UDP, port: {backend}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"""


@frozen
class Target:
    """A program that answers queries."""

    name: str
    place: tuple[str, int]
    pid: int


@frozen
class Setup:
    """How the proxies are set up."""

    is_wildcard: bool = False
    """They listen at the wildcard address, so that they have to look at which address each datagram came in."""
    idle_timeout_s: int = 60
    max_flows: int | None = None
    """For this proxy; None: its default."""


def find_program(name: str) -> str:
    """Return the path of a program, also of those for root.

    Raises:
        SystemExit: it is not there; the sentence says which package has it.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None or (name == "nginx" and not Path(_NGINX_MODULE).exists()):
        raise SystemExit(f"{name} is missing: apt-get install {_DEBIAN_PACKAGES[name]}")
    return path


def is_answering(place: tuple[str, int]) -> bool:
    """Return whether a query is answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            sock.connect(place)
            sock.send(QUERY)
            return bool(sock.recv(512))
        except OSError:
            return False


def run_nsd(stack: ExitStack, folder: Path) -> Target:
    """Run nsd, with one process that answers, until the stack is closed."""
    place = ("127.0.0.1", free_port())
    (folder / "zone").write_text(_ZONE)
    (folder / "nsd.conf").write_text(_NSD.format(port=place[1], folder=folder))
    return _run(stack, DIRECT, place, [find_program("nsd"), "-d", "-c", str(folder / "nsd.conf")])


def run_proxies(stack: ExitStack, folder: Path, backend: int, setup: Setup, names: list[str]) -> list[Target]:
    """Run proxies before a port of 127.0.0.1 until the stack is closed; the folder is theirs alone."""
    start: dict[str, Callable[[ExitStack, Path, int, Setup], Target]] = {
        NGINX: _run_nginx,
        DNSDIST: _run_dnsdist,
        OURS: _run_ours,
    }
    folder.mkdir()
    return [start[name](stack, folder, backend, setup) for name in names]


def _run_nginx(stack: ExitStack, folder: Path, backend: int, setup: Setup) -> Target:
    place = ("127.0.0.1", free_port())
    listen = str(place[1]) if setup.is_wildcard else f"{place[0]}:{place[1]}"
    (folder / "nginx.conf").write_text(
        _NGINX.format(
            module=_NGINX_MODULE, folder=folder, listen=listen, backend=backend, idle_timeout_s=setup.idle_timeout_s
        )
    )
    return _run(stack, NGINX, place, [find_program("nginx"), "-e", "stderr", "-c", str(folder / "nginx.conf")])


def _run_dnsdist(stack: ExitStack, folder: Path, backend: int, setup: Setup) -> Target:
    place = ("127.0.0.1", free_port())
    host = "0.0.0.0" if setup.is_wildcard else place[0]
    (folder / "dnsdist.conf").write_text(_DNSDIST.format(host=host, port=place[1], backend=backend))
    command = [find_program("dnsdist"), "--supervised", "--disable-syslog", "-C", str(folder / "dnsdist.conf")]
    return _run(stack, DNSDIST, place, command)


def _run_ours(stack: ExitStack, folder: Path, backend: int, setup: Setup) -> Target:
    port = free_port()
    node_port = f", nodePort: {port}" if setup.is_wildcard else ""
    kind = "NodePort" if setup.is_wildcard else "ClusterIP"
    manifest = folder / "dns.yaml"
    manifest.write_text(_MANIFEST.format(type=kind, port=port, node_port=node_port, backend=backend))
    command = [
        *(sys.executable, "-m", "userspace_proxy", "run", "--workers", "1", "--manifests", str(manifest)),
        *("--state-dir", str(folder), "--runtime-dir", str(folder)),
        *("--metrics-bind-address", "", "--log-level", "error", "--drain-timeout", "0"),
        *("--udp-idle-timeout", str(setup.idle_timeout_s)),
    ]
    if setup.max_flows is not None:
        command += ["--udp-max-flows", str(setup.max_flows), "--udp-max-total-flows", str(setup.max_flows)]
    if setup.is_wildcard:
        return _run(stack, OURS, ("127.0.0.1", port), [*command, "--steering", "none"])
    command += ["--steering", "loopback", "--loopback-range", f"{OUR_HOST}/32"]
    return _run(stack, OURS, (OUR_HOST, port), command)


def _run(stack: ExitStack, name: str, place: tuple[str, int], command: list[str]) -> Target:
    return Target(name, place, stack.enter_context(running(command, partial(is_answering, place))))

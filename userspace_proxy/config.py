"""Config: every setting of the proxy, with its default and its unit. The only place with defaults."""

from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

from attrs import frozen

from userspace_proxy.errors import ConfigError
from userspace_proxy.model.names import IPAddress
from userspace_proxy.model.service_port import Balance

LOOPBACK_RANGE = IPv4Network("127.96.0.0/12")
"""Mirrors Kubernetes' default Service range 10.96.0.0/12."""

_LAST_PORT = 65535

METRICS_BIND_ADDRESS: tuple[IPAddress, int] = (IPv4Address("127.0.0.1"), 10249)
"""Where kube-proxy has its metrics, so that what scrapes one scrapes the other."""


class SteeringKind(StrEnum):
    """How packets for a Frontend reach a Listener (``--steering``)."""

    AUTO = "auto"
    """The first kind that works here."""
    IPTABLES = "iptables"
    LOOPBACK = "loopback"
    NONE = "none"


@frozen
class RelayLimits:
    """What bounds one connection, from accept to close."""

    dial_next_after_s: float = 0.25
    """Seconds without an answer after which another Backend is dialled beside the first. A pod that lives answers in
    milliseconds; the first retransmission of a lost SYN comes after 1 s."""
    dial_timeout_s: float = 2.0
    """Seconds for all dials of one connection together; then the client is reset."""
    idle_timeout_s: float | None = None
    """Seconds without a byte in either direction after which a connection is reset; None: never."""
    half_closed_timeout_s: float | None = None
    """Seconds that one direction may stay open without a byte after the other has ended; None: for ever."""
    max_connections: int | None = None
    """Open connections per Listener; at the cap no more are accepted (they queue in the kernel). None: no cap."""
    keepalive_idle_s: int = 120
    """Seconds of silence before the first TCP keepalive probe, on both sides. Arbitrary: well below the 5 minutes
    after which common NAT gateways forget a connection."""
    listen_backlog: int = 4096
    """Connections the kernel queues for us per listening socket (it clamps to net.core.somaxconn)."""


@frozen
class Config:
    """Everything a run of the proxy is told. Built by the command line; read-only after that."""

    manifests: tuple[Path, ...]
    """Files and directories with Services and EndpointSlices."""
    state_dir: Path
    """Holds the assignments that outlive a restart (proxy ports, loopback addresses)."""
    runtime_dir: Path
    """Holds the lock that keeps a second instance out."""
    steering: SteeringKind = SteeringKind.AUTO
    balance: Balance = Balance.ROUND_ROBIN
    """For Services without the annotation ``userspace-proxy.io/balance``."""
    limits: RelayLimits = RelayLimits()
    drain_timeout_s: float = 30.0
    """Seconds that open connections get to end after the first SIGTERM or SIGINT."""
    loopback_range: IPv4Network = LOOPBACK_RANGE
    """Where loopback steering takes addresses from; within 127.0.0.0/8."""
    proxy_port_range: range = range(12000, 30000)
    """Ports for Listeners that steering rules lead to: below NodePorts and ip_local_port_range."""
    metrics_bind_address: tuple[IPAddress, int] | None = METRICS_BIND_ADDRESS
    """Where /metrics, /livez and /readyz are served; None: nowhere."""
    bind_address_hard_fail: bool = False
    """True: an admin address in use ends the run; False: it is a warning and retried."""


def default_state_dir(environ: Mapping[str, str], uid: int) -> Path:
    """Return where state is kept that outlives a restart, unless a setting says otherwise.

    Source: systemd.exec(5), StateDirectory=; XDG Base Directory Specification.
    """
    if "STATE_DIRECTORY" in environ:
        return Path(environ["STATE_DIRECTORY"].split(":")[0])
    if uid == 0:
        return Path("/var/lib/userspace-proxy")
    home = environ.get("XDG_STATE_HOME") or f"{environ.get('HOME', '/')}/.local/state"
    return Path(home) / "userspace-proxy"


def default_runtime_dir(environ: Mapping[str, str], uid: int) -> Path:
    """Return where the lock is, unless a setting says otherwise.

    Source: systemd.exec(5), RuntimeDirectory=; XDG Base Directory Specification.
    """
    if "RUNTIME_DIRECTORY" in environ:
        return Path(environ["RUNTIME_DIRECTORY"].split(":")[0])
    if uid == 0:
        return Path("/run/userspace-proxy")
    if environ.get("XDG_RUNTIME_DIR"):
        return Path(environ["XDG_RUNTIME_DIR"]) / "userspace-proxy"
    return Path(f"/tmp/userspace-proxy-{uid}")  # noqa: S108 - the lock refuses what another user has put there


def parse_port_range(text: str) -> range:
    """Return the ports of ``A-B``, ``A+N`` or ``A``, as kube-proxy's ``--proxy-port-range`` writes them.

    Raises:
        ConfigError: it is none of these, or not within 1-65535.
    """
    first, separator, second = text.partition("-") if "-" in text else text.partition("+")
    try:
        low = int(first)
        high = int(second) + (low if separator == "+" else 0) if separator else low
    except ValueError:
        low = high = 0
    if not 1 <= low <= high <= _LAST_PORT:
        raise ConfigError(f"'{text}' is no range of ports: write A-B, A+N or A, within 1-{_LAST_PORT}")
    return range(low, high + 1)


def parse_bind_address(text: str) -> tuple[IPAddress, int] | None:
    """Return address and port of ``10.0.0.1:10249`` or ``[::1]:10249``; None for an empty text.

    Raises:
        ConfigError: it is neither.
    """
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    try:
        address, number = ip_address(host), int(port)
    except ValueError:
        address, number = None, -1
    if address is None or not 0 <= number <= _LAST_PORT:
        raise ConfigError(f"'{text}' is no address to listen on: write 127.0.0.1:10249, [::1]:10249, or '' for none")
    return address, number

"""Config: every setting of the proxy, with its default and its unit. The only place with defaults."""

from enum import StrEnum
from ipaddress import IPv4Network
from pathlib import Path

from attrs import frozen

from userspace_proxy.model.names import IPAddress
from userspace_proxy.model.service_port import Balance

LOOPBACK_RANGE = IPv4Network("127.96.0.0/12")
"""Mirrors Kubernetes' default Service range 10.96.0.0/12."""


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
    metrics_bind_address: tuple[IPAddress, int] | None = None
    """Where /metrics, /livez and /readyz are served; None: nowhere."""
    bind_address_hard_fail: bool = False
    """True: an admin address in use ends the run; False: it is a warning and retried."""

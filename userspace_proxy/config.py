"""Config: every setting of the proxy, with its default and its unit. The only place with defaults."""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from attrs import frozen

from userspace_proxy.errors import ConfigError
from userspace_proxy.model.names import IPAddress, IPNetwork, family_of
from userspace_proxy.model.service_port import Balance

LOOPBACK_RANGE = IPv4Network("127.96.0.0/12")
"""Mirrors Kubernetes' default Service range 10.96.0.0/12."""

MOST_WORKERS = 4
"""Unless a number is asked for; arbitrary: four move more than most nodes have to, and each takes memory."""

MAX_WORKERS = 64
"""That may be asked for; arbitrary: more than that many CPUs can move is a slip of the hand."""

_LOOPBACK = IPv4Network("127.0.0.0/8")
_LAST_PORT = 65535
_LAST_UID = (1 << 32) - 2
"""The number after it stands for no user at all: chown(2), setresuid(2)."""
_NUMBER = re.compile(r"-?[0-9]+")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")

METRICS_BIND_ADDRESS: tuple[IPAddress, int] = (IPv4Address("127.0.0.1"), 10249)
"""Where kube-proxy has its metrics, so that what scrapes one scrapes the other."""
HEALTHZ_BIND_ADDRESS: tuple[IPAddress, int] = (IPv4Address("0.0.0.0"), 10256)  # noqa: S104
"""Where kube-proxy tells load balancers whether this node serves."""


class SteeringKind(StrEnum):
    """How packets for a Frontend reach a Listener (``--steering``)."""

    AUTO = "auto"
    """The first kind that works here."""
    IPTABLES = "iptables"
    NFTABLES = "nftables"
    LOCAL_ROUTE = "local-route"
    LOOPBACK = "loopback"
    NONE = "none"

    @property
    def changes_node(self) -> bool:
        """Whether it has rules or routes, which two instances would take from each other; not known of ``AUTO``."""
        return self in (SteeringKind.IPTABLES, SteeringKind.NFTABLES, SteeringKind.LOCAL_ROUTE)


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
class FlowLimits:
    """What bounds the UDP flows."""

    idle_timeout_s: float = 60.0
    """Seconds without a datagram in either direction after which a flow ends, for Services whose annotation does not
    say. Envoy's default; well above what a slow DNS answer takes."""
    max_flows: int = 8192
    """Flows of one Listener; one more ends the one that was silent for longest. Arbitrary."""
    max_total_flows: int | None = None
    """The same for all Listeners together; None: half of the descriptors that the process may have open, or half of the
    local ports of the node, whichever is less."""


@frozen
class ApiAccess:
    """Which API server, with which credentials, and which of its Services."""

    kubeconfig: Path | None = None
    """None: the service account of the pod this runs in."""
    context: str = ""
    """Of the kubeconfig; empty: its current one."""
    server: str = ""
    """URL that replaces the one of the kubeconfig or of the pod's environment; empty: none does."""
    service_proxy_name: str = ""
    """Only Services whose label ``service.kubernetes.io/service-proxy-name`` has this value are served; empty: only
    those without that label, as kube-proxy does."""


class DetectLocalMode(StrEnum):
    """By what pods are told from other clients (``--detect-local-mode``; the values are kube-proxy's)."""

    CLUSTER_CIDR = "ClusterCIDR"
    """Their addresses are in ``Config.cluster_cidrs``; without any, no client counts as a pod."""
    NODE_CIDR = "NodeCIDR"
    """Their addresses are in ``spec.podCIDRs`` of this Node."""


@frozen
class NodePortAddresses:
    """At which addresses of the node NodePorts answer (``--nodeport-addresses``)."""

    networks: tuple[IPNetwork, ...] = ()
    """Those in one of them; a family without any is not restricted."""
    is_primary: bool = False
    """Only the Node's primary address of each family, and ``networks`` is empty."""


@frozen
class Config:
    """Everything a run of the proxy is told. Built by the command line; read-only after that."""

    state_dir: Path
    """Holds the assignments that outlive a restart (proxy ports, loopback addresses)."""
    runtime_dir: Path
    """Holds the lock that keeps a second instance out."""
    manifests: tuple[Path, ...] = ()
    """Files and directories with Services and EndpointSlices; none: they come from the API server."""
    api: ApiAccess = ApiAccess()
    """Of no meaning where there are ``manifests``."""
    node_name: str = ""
    """The name of the Node this runs on, lower-cased; empty: it is none."""
    detect_local_mode: DetectLocalMode = DetectLocalMode.CLUSTER_CIDR
    cluster_cidrs: tuple[IPNetwork, ...] = ()
    """The addresses of all pods, at most one network of each family."""
    node_port_addresses: NodePortAddresses = NodePortAddresses()
    serves_external_ips: bool = True
    """Whether ``spec.externalIPs`` of Services count."""
    steering: SteeringKind = SteeringKind.AUTO
    balance: Balance = Balance.ROUND_ROBIN
    """For Services without the annotation ``userspace-proxy.io/balance``."""
    limits: RelayLimits = RelayLimits()
    flow_limits: FlowLimits = FlowLimits()
    drain_timeout_s: float = 30.0
    """Seconds that open connections get to end after the first SIGTERM or SIGINT."""
    service_cidrs: tuple[IPNetwork, ...] = ()
    """Where cluster addresses are from, at most one network of each family; none: not known."""
    workers: int | None = None
    """Processes that serve the clients; 0: the control process does. None: one for each CPU that may be used, but at
    most ``MOST_WORKERS``."""
    worker_user: str = ""
    """Name or number of the user that workers run as; empty: the one that starts them."""
    hosts_file: Path | None = None
    """Gets a line for each Service, and loses them at the end; None: none does."""
    loopback_range: IPv4Network = LOOPBACK_RANGE
    """Where loopback steering takes addresses from; within 127.0.0.0/8."""
    proxy_port_range: range = range(12000, 30000)
    """Ports for Listeners that steering rules lead to: below NodePorts and ip_local_port_range."""
    metrics_bind_address: tuple[IPAddress, int] | None = METRICS_BIND_ADDRESS
    """Where /metrics, /livez and /readyz are served; None: nowhere."""
    healthz_bind_address: tuple[IPAddress, int] | None = None
    """Where /healthz and /livez are served as kube-proxy does; None: nowhere."""
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


def parse_loopback_range(text: str) -> IPv4Network:
    """Return a network that loopback steering may take addresses from.

    Raises:
        ConfigError: it is no network, or not within 127.0.0.0/8.
    """
    try:
        network = IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"{error}; write a network such as {LOOPBACK_RANGE}") from None
    if not network.subnet_of(_LOOPBACK):
        raise ConfigError(f"{network} is not within {_LOOPBACK}")
    return network


def parse_cidrs(text: str) -> tuple[IPNetwork, ...]:
    """Return the networks of ``10.244.0.0/16`` or ``10.244.0.0/16,fd00:10:244::/56``; none for a blank text.

    Raises:
        ConfigError: one is no network, or there are two of a family.
    """
    networks = tuple(_parse_network(item) for item in _items([text]))
    if len({family_of(network) for network in networks}) < len(networks):
        raise ConfigError(f"'{text}' has two networks of the same family: give at most one for IPv4 and one for IPv6")
    return networks


def parse_node_port_addresses(texts: Iterable[str]) -> NodePortAddresses:
    """Return what comma-separated lists of networks and of kube-proxy's words say; all addresses if they say nothing.

    Source: kube-proxy's ``--nodeport-addresses``, where ``localhost`` is 127.0.0.0/8 and ::1/128.

    Raises:
        ConfigError: an item is neither a network nor a word, or ``primary`` or ``all`` has company.
    """
    items = _items(texts)
    for alone in ("primary", "all"):
        if alone in items and len(items) > 1:
            raise ConfigError(f"'{alone}' stands alone: give it without {', '.join(set(items) - {alone}) or 'another'}")
    if items == ["primary"]:
        return NodePortAddresses(is_primary=True)
    if items == ["all"]:
        return NodePortAddresses()
    networks: list[IPNetwork] = []
    for item in items:
        if item == "localhost":
            networks += [_LOOPBACK, ip_network("::1/128")]
        else:
            networks.append(_parse_network(item, "or one of the words primary, localhost, all"))
    return NodePortAddresses(tuple(dict.fromkeys(networks)))


def parse_node_name(text: str) -> str:
    """Return the name of a Node as kube-proxy makes it of a host's name: without blanks around it, in lower case.

    Raises:
        ConfigError: nothing is left.
    """
    name = text.strip().lower()
    if not name:
        raise ConfigError("the name of the node must not be blank")
    return name


def parse_server_url(text: str) -> str:
    """Return the URL of an API server, without blanks around it and without a slash at its end.

    Raises:
        ConfigError: it is no URL of a server.
    """
    url = text.strip().rstrip("/")
    if not _is_server_url(url):
        raise ConfigError(f"'{text}' is no URL of an API server: write https://10.0.0.1:6443")
    return url


def _is_server_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return has_host and parts.scheme in ("http", "https") and not (parts.query or parts.fragment or "@" in parts.netloc)


def parse_worker_user(text: str) -> str:
    """Return the name or the number of a user, without blanks around it; whether there is one is for others to see.

    Raises:
        ConfigError: nothing is left, or no user can have this number.
    """
    user = text.strip()
    if not user:
        raise ConfigError("the user of the workers must not be blank")
    is_number = _NUMBER.fullmatch(user) is not None
    if is_number and (len(user) > len(str(_LAST_UID)) or not 0 <= int(user) <= _LAST_UID):
        raise ConfigError(f"'{text}' is no number of a user: write one within 0-{_LAST_UID}, or a name")
    return user


def parse_service_proxy_name(text: str) -> str:
    """Return the value of the label ``service.kubernetes.io/service-proxy-name``; empty for none.

    Raises:
        ConfigError: no label can have this value.
    """
    if not _LABEL_VALUE.fullmatch(text):
        raise ConfigError(
            f"'{text}' is no value of a label: at most 63 letters, digits, '-', '_' and '.', with a letter or a digit "
            "at both ends"
        )
    return text


def _items(texts: Iterable[str]) -> list[str]:
    """Return the items of comma-separated lists that are not blank."""
    return [item.strip() for text in texts for item in text.split(",") if item.strip()]


def _parse_network(text: str, otherwise: str = "") -> IPNetwork:
    """Return a network; bits behind its prefix are dropped, as kube-proxy does."""
    try:
        if "/" in text:
            return ip_network(text, strict=False)
    except ValueError:
        pass
    hint = " ".join(["write 10.244.0.0/16 or fd00:10:244::/56", *([otherwise] if otherwise else [])])
    raise ConfigError(f"'{text}' is no network: {hint}")

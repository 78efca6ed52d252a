"""Frontends that do not serve everybody, and who reaches them: the same whichever rules see to it."""

from attrs import frozen
from netns.steering_process import Asked

CLIENTS = ("node", "pod", "bare pod", "outside")
ALL = ("pod", "host", "outside")
NOT_OUTSIDE = ("pod", "host")
POD_NETWORKS = ("10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64", "fd00:2::/64")
NETWORKS = {
    "node": ("10.0.0.1/32", "fd00::1/128"),
    "pod": ("10.0.1.0/24", "fd00:1::/64"),
    "outside": ("10.0.0.2/32", "fd00::2/128"),
}
HOSTS = {
    "cluster-ip": ("10.96.0.10", "[fd00:96::a]"),
    "external-ip": ("203.0.113.10", "[2001:db8::a]"),
    "load-balancer": ("203.0.113.20", "[2001:db8::14]"),
    "node-port": ("0.0.0.0", "[::]"),
    "node-port at one address": ("10.0.0.1", "[fd00::1]"),
}
"""Where Frontends of each kind are, in both families."""


@frozen
class Case:
    """One Frontend in each family, and who reaches it."""

    port: int
    kind: str
    reached_by: tuple[str, ...]
    """The rest is dropped."""
    serves: tuple[str, ...] = ALL
    is_refused: bool = False
    """Nobody reaches it, and all are told at once."""
    ranges: tuple[str, ...] = ()
    """Of whom its source ranges consist."""

    def asked(self, family: int, protocol: str) -> Asked:
        """Return the Frontend in a family."""
        ranges = tuple(NETWORKS[client][family] for client in self.ranges)
        at = f"{HOSTS[self.kind][family]}:{self.port}"
        service = f"shop/s{self.port}-{family}-{protocol.lower()}"
        return Asked(at, self.kind.partition(" ")[0], protocol, self.serves, self.is_refused, ranges, service)

    def target(self, family: int) -> str:
        """Return what clients dial in a family."""
        kind = "node-port at one address" if self.kind == "node-port" else self.kind
        return f"{HOSTS[kind][family]}:{self.port}"

    def outcome(self, client: str) -> str:
        """Return what becomes of a client."""
        if client in self.reached_by:
            return "served"
        return "ConnectionRefusedError" if self.is_refused else "TimeoutError"


CASES = (
    Case(1001, "cluster-ip", CLIENTS),
    Case(1002, "cluster-ip", (), serves=()),
    Case(1003, "cluster-ip", (), serves=(), is_refused=True),
    Case(1101, "external-ip", CLIENTS),
    Case(1102, "external-ip", ("node", "pod", "bare pod"), serves=NOT_OUTSIDE),
    Case(1103, "external-ip", (), serves=()),
    Case(1104, "external-ip", (), serves=(), is_refused=True),
    Case(1201, "load-balancer", CLIENTS),
    Case(1202, "load-balancer", ("node", "pod", "bare pod"), serves=NOT_OUTSIDE),
    Case(1203, "load-balancer", ("outside",), ranges=("outside",)),
    Case(1204, "load-balancer", ("pod", "outside"), ranges=("pod", "outside")),
    Case(1205, "load-balancer", ("node",), ranges=("node",)),
    Case(1206, "load-balancer", ("pod",), serves=NOT_OUTSIDE, ranges=("pod", "outside")),
    Case(1207, "load-balancer", (), serves=(), is_refused=True, ranges=("pod", "outside")),
    Case(30001, "node-port", CLIENTS),
    Case(30002, "node-port", ("node", "pod", "bare pod"), serves=NOT_OUTSIDE),
    Case(30003, "node-port", (), serves=()),
    Case(30004, "node-port", (), serves=(), is_refused=True),
    Case(30005, "node-port at one address", ("node", "pod", "bare pod"), serves=NOT_OUTSIDE),
)
ASKED = [case.asked(family, protocol) for case in CASES for family in (0, 1) for protocol in ("TCP", "UDP")]
"""All of them, in both families and by both protocols."""

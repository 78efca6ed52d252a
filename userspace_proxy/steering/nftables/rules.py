"""The text of the nftables rules, in one table of our own per family. Pure: runs nothing and knows no node.

Which port is led where and who may come in by it stands in sets and maps; a dozen rules look it up there::

    prerouting -> steer             (from interfaces with an address: redirect to the proxy port)
               -> dnat              (IPv4, from all others: to the proxy port at an address of the node)
    output ----> steer
    input -----> direct -> refused  (connections to a proxy port that were not led there)
               outside, ranges-*    (who may not come in by a proxy port or NodePort)

Redirect takes the address of the interface a packet came in by, and drops the packet where there is none: pods whose
interface on the node has no address (Calico) need DNAT to an address of the node. IPv6 interfaces always have one.

The comment of a rule is a digest of its text, by which it is known again however nft lists it. Entry points:
``build_share``, ``build_frame``. Source: nft(8); Linux net/netfilter/nf_nat_redirect.c.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from attrs import field, frozen

from userspace_proxy.model.names import Family, IPNetwork, ServicePortName
from userspace_proxy.plan.state import Route, SourceClass, Verdict
from userspace_proxy.steering.rule_steering import Conditions, PortRule, ServiceRules

FAMILY_NAME: Mapping[Family, str] = {Family.IPV4: "ip", Family.IPV6: "ip6"}
"""What nft calls the families of tables."""

STEERED = "steered"
"""The map from address, protocol and port to the proxy port."""
ADDRESSED = "addressed"
"""The set of the interfaces with an IPv4 address."""
PROXY_PORTS = "proxy-ports"
"""The set of the protocols and numbers of all proxy ports."""
RESTRICTED_PROXY_PORTS = "restricted-proxy-ports"
"""The map from protocol and proxy port to what becomes of those who were led there."""
RESTRICTED_NODE_PORTS = "restricted-node-ports"
RESTRICTED_ADDRESSES = "restricted-node-port-addresses"
"""NodePorts at one address of the node."""

_STEER, _DIRECT, _REFUSED, _OUTSIDE = "steer", "direct", "refused", "outside"
_RANGES_PREFIX = "ranges-"
_NAT_PRIORITY = -100
"""Where iptables and kube-proxy have theirs (NF_IP_PRI_NAT_DST); output has no word for it in nft."""
_ADDRESS_TYPE = {Family.IPV4: "ipv4_addr", Family.IPV6: "ipv6_addr"}

_COMMENT_CHARACTERS = 128
"""The most that nft allows; names of namespace, Service and port may have 143 together."""
_DIGEST_BYTES = 6
"""Arbitrary; a table has few chains and rules."""
_SAFE_INTERFACE = re.compile(r"[A-Za-z0-9_.@:+-]+")
"""Others, with ``*`` (nft's wildcard) or quotes, count as unknown interfaces."""
_UNSAFE_IN_COMMENTS = re.compile(r"[^A-Za-z0-9_./:-]")

Rules = tuple[str, ...]
"""Those of one chain, behind ``add rule FAMILY TABLE CHAIN``."""
Place = tuple[str, str]
"""Name of a set or map, and the key there as nft writes it."""


@frozen(cache_hash=True)
class Entry:
    """What is at a Place."""

    value: str = ""
    """Empty in a set."""
    comment: str = ""


@frozen
class Share:
    """What one Service, or the node itself, asks of a table."""

    elements: tuple[tuple[Place, Entry], ...] = ()
    chains: Mapping[str, Rules] = field(factory=dict)
    """Others may ask for the same ones."""


@frozen
class Hook:
    """Where the kernel calls a chain."""

    kind: str
    """``nat`` or ``filter``."""
    name: str
    priority: int


@frozen
class Table:
    """One table of ours, whatever is in it."""

    family: Family
    name: str
    is_filtered: bool = True
    """Whether clients are kept away, and proxy ports guarded."""

    @property
    def path(self) -> str:
        """Family and name, as nft wants them."""
        return f"{FAMILY_NAME[self.family]} {self.name}"

    @property
    def sets(self) -> Mapping[str, str]:
        """The sets and maps, each with its definition."""
        port = "inet_proto . inet_service"
        place = f"{_ADDRESS_TYPE[self.family]} . {port}"
        sets = {f"map {STEERED}": f"type {place} : inet_service; counter;"}
        if self.family is Family.IPV4:
            sets[f"set {ADDRESSED}"] = "type ifname;"
        if self.is_filtered:
            sets[f"set {PROXY_PORTS}"] = f"type {port};"
            sets[f"map {RESTRICTED_PROXY_PORTS}"] = f"type {port} : verdict;"
            sets[f"map {RESTRICTED_NODE_PORTS}"] = f"type {port} : verdict;"
            sets[f"map {RESTRICTED_ADDRESSES}"] = f"type {place} : verdict;"
        return sets

    @property
    def hooks(self) -> Mapping[str, Hook]:
        """The chains that the kernel calls; the others are called by these."""
        hooks = {
            "prerouting": Hook("nat", "prerouting", _NAT_PRIORITY),
            "output": Hook("nat", "output", _NAT_PRIORITY),
        }
        return hooks | {"input": Hook("filter", "input", 0)} if self.is_filtered else hooks


@frozen
class Difference:
    """What is to be done to a table; nothing if it is false."""

    removed: tuple[Place, ...] = ()
    added: tuple[tuple[Place, Entry], ...] = ()
    """A Place whose Entry is to be another one is removed, too."""
    chains: Mapping[str, Rules] = field(factory=dict)
    """New ones, and those with other rules than before."""
    vanished_chains: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether there is anything to do."""
        return bool(self.removed or self.added or self.chains or self.vanished_chains)


def build_share(table: Table, service: ServiceRules) -> Share:
    """Return what a Service asks of a table."""
    elements: list[tuple[Place, Entry]] = []
    chains: dict[str, Rules] = {}
    for rule in service.steered:
        frontend = rule.frontend
        key = f"{frontend.address} . {frontend.protocol.lower()} . {frontend.port}"
        elements.append(((STEERED, key), Entry(str(rule.proxy_port), _comment(frontend.service_port))))
    if table.is_filtered:
        for port in service.ports:
            elements.extend(_port_elements(table.family, port, chains))
    return Share(tuple(elements), chains)


def build_frame(table: Table, conditions: Conditions) -> Share:
    """Return what a table has without any Service."""
    family, node_address = table.family, conditions.node_address
    ip = FAMILY_NAME[family]
    lookup = f"{ip} daddr . meta l4proto . th dport map @{STEERED}"
    chains: dict[str, Rules] = {
        "prerouting": (f"goto {_STEER}",),
        "output": (f"goto {_STEER}",),
        _STEER: (f"meta l4proto {{ tcp, udp }} redirect to :{lookup}",),
    }
    elements: list[tuple[Place, Entry]] = []
    if family is Family.IPV4:
        dnat = f"meta l4proto {{ tcp, udp }} dnat to {node_address}:{lookup}"
        chains["prerouting"] = (f"iifname @{ADDRESSED} goto {_STEER}", *((dnat,) if node_address else ()))
        names = filter(_SAFE_INTERFACE.fullmatch, conditions.interfaces)
        elements = [((ADDRESSED, f'"{name}"'), Entry()) for name in names]
    if table.is_filtered:
        pods = _collapse(family, conditions.surroundings.pod_networks)
        chains |= {
            "input": (
                "ct state != new accept",
                f"ct status & dnat == 0 goto {_DIRECT}",
                f"meta l4proto . th dport vmap @{RESTRICTED_PROXY_PORTS}",
            ),
            _DIRECT: (
                f"meta l4proto . th dport @{PROXY_PORTS} goto {_REFUSED}",
                f"meta l4proto . th dport vmap @{RESTRICTED_NODE_PORTS}",
                f"{ip} daddr . meta l4proto . th dport vmap @{RESTRICTED_ADDRESSES}",
            ),
            _REFUSED: ("meta l4proto tcp reject with tcp reset", "reject"),
            _OUTSIDE: ('iif "lo" accept', *((f"{ip} saddr {{ {pods} }} accept",) if pods else ()), "drop"),
        }
    return Share(tuple(elements), chains)


def digest(rule: str) -> str:
    """Return the comment that tells a rule of ours from any other."""
    return blake2b(rule.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _port_elements(family: Family, port: PortRule, chains: dict[str, Rules]) -> Iterator[tuple[Place, Entry]]:
    """Yield the elements for one port; chains that they lead to are added to ``chains``."""
    key = f"{port.protocol.lower()} . {port.port}"
    if port.is_proxy_port:
        yield (PROXY_PORTS, key), Entry()
    verdict = None if port.route is None else _verdict(family, port.route, chains)
    if verdict is None:
        return
    if port.is_proxy_port:
        yield (RESTRICTED_PROXY_PORTS, key), Entry(verdict)
    elif port.address is None:
        yield (RESTRICTED_NODE_PORTS, key), Entry(verdict)
    else:
        yield (RESTRICTED_ADDRESSES, f"{port.address} . {key}"), Entry(verdict)


def _verdict(family: Family, route: Route, chains: dict[str, Rules]) -> str | None:
    """Return what becomes of clients; None: there is nobody whom a rule has to keep away.

    Who is refused meets a Listener that does not listen.
    """
    targets = {route.target(source) for source in SourceClass}
    if targets == {Verdict.DROP}:
        return "drop"
    if targets == {Verdict.REJECT}:
        return None
    is_for_outside = route.outside is not Verdict.DROP
    if not route.source_ranges:
        return None if is_for_outside else f"goto {_OUTSIDE}"
    ranges = f"{FAMILY_NAME[family]} saddr != {{ {_collapse(family, route.source_ranges)} }} drop"
    rules = (ranges,) if is_for_outside else (ranges, f"goto {_OUTSIDE}")
    name = f"{_RANGES_PREFIX}{digest(repr(rules))}"
    chains[name] = rules
    return f"goto {name}"


def _collapse(family: Family, networks: Iterable[IPNetwork]) -> str:
    """Return those of a family without overlaps, which older releases of nft refuse."""
    if family is Family.IPV4:
        collapsed = [str(one) for one in collapse_addresses(one for one in networks if isinstance(one, IPv4Network))]
    else:
        collapsed = [str(one) for one in collapse_addresses(one for one in networks if isinstance(one, IPv6Network))]
    return ", ".join(collapsed)


def _comment(name: ServicePortName) -> str:
    text = _UNSAFE_IN_COMMENTS.sub("?", str(name))
    return text if len(text) <= _COMMENT_CHARACTERS else f"{text[: _COMMENT_CHARACTERS - 3]}..."

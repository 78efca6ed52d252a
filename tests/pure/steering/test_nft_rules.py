"""What is in a table of nftables for Services and for the node."""

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from builders import frontend, pool_key, route

from userspace_proxy.model.names import Family, Protocol
from userspace_proxy.plan.state import Route, SteeringRule, Verdict
from userspace_proxy.steering.base import Surroundings
from userspace_proxy.steering.nftables.rules import Entry, Share, Table, build_frame, build_share
from userspace_proxy.steering.rule_steering import Conditions, PortRule, ServiceRules

TABLE = Table(Family.IPV4, "own")
TABLE6 = Table(Family.IPV6, "own")
POOL = pool_key()
NOT_OUTSIDE = Route(POOL, POOL, Verdict.DROP)
DROPPED = route(Verdict.DROP)
REFUSED = route(Verdict.REJECT)
RANGES = ("192.0.2.0/24", "192.0.2.7/32", "198.51.100.7/32")
NODE = Conditions(Surroundings(), ("eth0", "lo"), IPv4Address("10.0.0.1"))


def restrict(*ports: PortRule, table: Table = TABLE) -> dict[tuple[str, str], str]:
    """Return what a Service with these ports asks for besides the guard."""
    share = build_share(table, ServiceRules((), ports))
    return {place: entry.value for place, entry in share.elements if place[0] != "proxy-ports"}


def proxy_port(route: Route | None, number: int = 12345) -> PortRule:
    """Return what is said of a proxy port."""
    return PortRule(Protocol.TCP, None, number, is_proxy_port=True, route=route)


def node_port(route: Route, address: str | None = None) -> PortRule:
    """Return what is said of a NodePort."""
    at = None if address is None else ip_address(address)
    return PortRule(Protocol.UDP, at, 30080, is_proxy_port=False, route=route)


def pods(networks: Iterable[str], table: Table = TABLE) -> tuple[str, ...]:
    """Return the rules that tell who is outside."""
    surroundings = Surroundings(tuple(ip_network(one) for one in networks))
    return build_frame(table, Conditions(surroundings)).chains["outside"]


def test_service_is_led_to_its_proxy_port_and_named() -> None:
    """An element leads to the proxy port, says of which ServicePort it is, and the proxy port is guarded."""
    rule = SteeringRule(frontend("[fd00:96::a]:53", "kube-system/dns:dns", protocol=Protocol.UDP), 12345)
    port = PortRule(Protocol.UDP, None, 12345, is_proxy_port=True, route=None)
    assert build_share(TABLE6, ServiceRules((rule,), (port,))).elements == (
        (("steered", "fd00:96::a . udp . 53"), Entry("12345", "kube-system/dns:dns")),
        (("proxy-ports", "udp . 12345"), Entry()),
    )


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        ("shop/web", "shop/web"),
        ('shop/we"b\\:\n', "shop/we?b?:?"),
        (f"{'n' * 63}/{'s' * 63}:{'p' * 15}", f"{'n' * 63}/{'s' * 61}..."),
        (f"{'n' * 63}/{'s' * 62}:p", f"{'n' * 63}/{'s' * 62}:p"),
    ],
    ids=["unnamed port", "quotes", "too long", "as long as can be"],
)
def test_comment_is_fit_for_nft(name: str, comment: str) -> None:
    """It has at most 128 characters and nothing that would end it."""
    ((_, entry),) = build_share(TABLE, ServiceRules((SteeringRule(frontend("10.96.0.1:80", name), 12345),))).elements
    assert entry.comment == comment


@pytest.mark.parametrize("unrestricted", [None, REFUSED, route(Verdict.REJECT, source_ranges=RANGES), route()])
def test_nothing_to_keep_away_means_no_restriction(unrestricted: Route | None) -> None:
    """Who is refused meets a Listener that does not listen."""
    share = build_share(TABLE, ServiceRules((), (proxy_port(unrestricted),)))
    assert share == Share(((("proxy-ports", "tcp . 12345"), Entry()),))


def test_restriction_is_by_the_port_of_this_node() -> None:
    """Proxy ports, NodePorts and NodePorts at one address are in maps of their own, each with what it asks for."""
    ports = (proxy_port(DROPPED), node_port(NOT_OUTSIDE), node_port(NOT_OUTSIDE, "10.0.0.1"))
    assert restrict(*ports) == {
        ("restricted-proxy-ports", "tcp . 12345"): "drop",
        ("restricted-node-ports", "udp . 30080"): "goto outside",
        ("restricted-node-port-addresses", "10.0.0.1 . udp . 30080"): "goto outside",
    }


def test_everybody_is_dropped_whatever_the_source_ranges() -> None:
    """Neither pods nor the node are let through if there is no Pool for anybody."""
    assert set(restrict(proxy_port(route(Verdict.DROP, source_ranges=RANGES))).values()) == {"drop"}


def test_source_ranges_are_a_chain_shared_by_those_with_the_same_ones() -> None:
    """Ports with the same ranges and policy go to one chain; it is named by what it does."""
    ranged = route(POOL, source_ranges=RANGES)
    not_outside = Route(POOL, POOL, Verdict.DROP, ranged.source_ranges)
    ports = (proxy_port(ranged, 12001), proxy_port(ranged, 12002), proxy_port(not_outside, 12003))
    share = build_share(TABLE, ServiceRules((), ports))
    first, second, third = (
        entry.value.removeprefix("goto ") for place, entry in share.elements if place[0] == "restricted-proxy-ports"
    )
    dropped = "ip saddr != { 192.0.2.0/24, 198.51.100.7/32 } drop"
    assert first == second
    assert share.chains == {first: (dropped,), third: (dropped, "goto outside")}


def test_table_that_cannot_keep_away_only_steers() -> None:
    """Where filtering does not work neither sets nor chains ask for it."""
    table = Table(Family.IPV4, "own", is_filtered=False)
    rule = SteeringRule(frontend(), 12345)
    share = build_share(table, ServiceRules((rule,), (proxy_port(DROPPED),)))
    assert [place for place, _ in share.elements] == [("steered", "10.96.0.10 . tcp . 80")]
    assert list(build_frame(table, NODE).chains) == ["prerouting", "output", "steer"]
    assert list(table.sets) == ["map steered", "set addressed"]
    assert list(table.hooks) == ["prerouting", "output"]


def test_ipv4_is_redirected_only_where_the_interface_has_an_address() -> None:
    """From elsewhere packets are led to an address of the node; IPv6 needs no such thing."""
    frame = build_frame(TABLE, NODE)
    assert frame.elements == ((("addressed", '"eth0"'), Entry()), (("addressed", '"lo"'), Entry()))
    assert frame.chains["prerouting"] == (
        "iifname @addressed goto steer",
        "meta l4proto { tcp, udp } dnat to 10.0.0.1:ip daddr . meta l4proto . th dport map @steered",
    )
    frame6 = build_frame(TABLE6, NODE)
    assert (frame6.elements, frame6.chains["prerouting"]) == ((), ("goto steer",))


def test_interfaces_whose_names_nft_would_misread_count_as_unknown() -> None:
    """A wildcard or a quote in a name never gets into the rules; what is left of it is DNAT, which works everywhere."""
    conditions = Conditions(Surroundings(), ("eth*", 'e"th', "br-lan.7@x"), None)
    frame = build_frame(TABLE, conditions)
    assert frame.elements == ((("addressed", '"br-lan.7@x"'), Entry()),)
    assert frame.chains["prerouting"] == ("iifname @addressed goto steer",)


def test_pods_are_told_by_the_networks_of_the_family() -> None:
    """Overlapping networks, which nft refuses, are merged; without any only the node is not outside."""
    networks = ("10.0.1.0/24", "10.0.0.0/16", "fd00:1::/64")
    assert pods(networks) == ('iif "lo" accept', "ip saddr { 10.0.0.0/16 } accept", "drop")
    assert pods(networks, TABLE6) == ('iif "lo" accept', "ip6 saddr { fd00:1::/64 } accept", "drop")
    assert pods(()) == ('iif "lo" accept', "drop")

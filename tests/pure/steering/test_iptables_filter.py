"""The text of the rules that keep clients away."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

import pytest
from builders import frontend, node_port_frontend, pool_key, route

from userspace_proxy.model.names import Family
from userspace_proxy.plan.state import Frontend, FrontendKind, Restrictions, Route, Verdict
from userspace_proxy.steering.iptables_filter import build_filter_chains, build_filter_probe
from userspace_proxy.steering.iptables_rules import OwnRules, parse_saved, replace_text

WEB = frontend("10.96.0.10:80")
WEB6 = frontend("[fd00::a]:80")
LB = frontend("203.0.113.1:443", kind=FrontendKind.LOAD_BALANCER)
LB2 = frontend("203.0.113.2:443", kind=FrontendKind.LOAD_BALANCER)
NODE_PORT = node_port_frontend(30080)
NODE_PORT_AT = frontend("192.0.2.2:30081", kind=FrontendKind.NODE_PORT)

POOL = pool_key()
DROPPED = route(Verdict.DROP)
REFUSED = route(Verdict.REJECT)
NOT_OUTSIDE = Route(POOL, POOL, Verdict.DROP)
RANGES = ("192.0.2.0/24", "198.51.100.7/32")
STEERED = "-m conntrack --ctstate DNAT -g USP-STEERED"
OUTSIDE = ("-i lo -j RETURN", "-s 10.0.0.0/16 -j RETURN", "-j DROP")


def build(
    routes: Mapping[Frontend, Route],
    *,
    family: Family = Family.IPV4,
    placed: Iterable[Frontend] | None = None,
    pod_networks: Iterable[str] = ("10.0.0.0/16", "fd00:1::/64"),
    health_check_ports: Iterable[int] = (),
) -> dict[str, tuple[str, ...]]:
    """Return the chains for Routes of Frontends that are all placed."""
    networks = tuple(ip_network(one) for one in pod_networks)
    restrictions = Restrictions(routes, networks, frozenset(health_check_ports))
    return dict(build_filter_chains(family, restrictions, set(routes if placed is None else placed)))


@pytest.mark.parametrize("refused", [REFUSED, route(Verdict.REJECT, source_ranges=RANGES), route(), NOT_OUTSIDE])
def test_nothing_to_keep_away_means_no_chain_at_all(refused: Route) -> None:
    """Who is refused meets a closed Listener; what is not served, or of the other family, needs no rule here."""
    served = refused is not NOT_OUTSIDE
    assert build({WEB: refused}, placed=None if served else ()) == {}
    assert build({WEB: DROPPED}, family=Family.IPV6) == {}


def test_frontend_that_nobody_reaches_is_dropped_for_everybody() -> None:
    """Neither pods nor the node are let through, whatever its source ranges say."""
    expected = {
        "USP-INPUT": (STEERED,),
        "USP-STEERED": ("-p tcp -m conntrack --ctorigdst 10.96.0.10 --ctorigdstport 80 -j DROP",),
    }
    assert build({WEB: DROPPED}) == expected
    assert build({WEB: route(Verdict.DROP, source_ranges=RANGES)}) == expected


def test_frontend_closed_to_outsiders_lets_the_node_and_pods_of_its_family_through() -> None:
    """One chain for all such Frontends; networks of the other family would not load."""
    assert build({WEB: NOT_OUTSIDE, LB: NOT_OUTSIDE}) == {
        "USP-INPUT": (STEERED,),
        "USP-STEERED": (
            "-p tcp -m conntrack --ctorigdst 10.96.0.10 --ctorigdstport 80 -g USP-OUTSIDE",
            "-p tcp -m conntrack --ctorigdst 203.0.113.1 --ctorigdstport 443 -g USP-OUTSIDE",
        ),
        "USP-OUTSIDE": OUTSIDE,
    }
    assert build({WEB6: NOT_OUTSIDE}, family=Family.IPV6) == {
        "USP-INPUT": (STEERED,),
        "USP-STEERED": ("-p tcp -m conntrack --ctorigdst fd00::a --ctorigdstport 80 -g USP-OUTSIDE",),
        "USP-OUTSIDE": ("-i lo -j RETURN", "-s fd00:1::/64 -j RETURN", "-j DROP"),
    }


def test_frontend_that_refuses_pods_and_drops_outsiders_tells_them_apart() -> None:
    """Nobody is served, but only whom the policy keeps away hears nothing; the closed Listener refuses the rest."""
    partly = Route(Verdict.REJECT, Verdict.REJECT, Verdict.DROP)
    assert build({WEB: partly}) == build({WEB: NOT_OUTSIDE})


def test_source_ranges_let_only_themselves_through_and_are_shared() -> None:
    """Equal ranges are one chain, however many Frontends have them; its name fits what iptables allows."""
    chains = build({LB: route(source_ranges=RANGES), LB2: route(source_ranges=RANGES), WEB: route()})
    (name,) = chains.keys() - {"USP-INPUT", "USP-STEERED"}
    assert len(name) <= 28
    assert chains == {
        "USP-INPUT": (STEERED,),
        "USP-STEERED": (
            f"-p tcp -m conntrack --ctorigdst 203.0.113.1 --ctorigdstport 443 -g {name}",
            f"-p tcp -m conntrack --ctorigdst 203.0.113.2 --ctorigdstport 443 -g {name}",
        ),
        name: ("-s 192.0.2.0/24 -j RETURN", "-s 198.51.100.7/32 -j RETURN", "-j DROP"),
    }


def test_source_ranges_of_a_frontend_closed_to_outsiders_pass_on_whom_they_cover() -> None:
    """Who is not covered is dropped even if a pod; who is covered must be a pod or the node as well."""
    chains = build({LB: Route(POOL, POOL, Verdict.DROP, (ip_network("10.0.0.0/8"),)), LB2: route(source_ranges=RANGES)})
    by_rules = {rules: name for name, rules in chains.items()}
    assert by_rules.keys() == {
        chains["USP-INPUT"],
        chains["USP-STEERED"],
        ("-s 10.0.0.0/8 -g USP-OUTSIDE", "-j DROP"),
        ("-s 192.0.2.0/24 -j RETURN", "-s 198.51.100.7/32 -j RETURN", "-j DROP"),
        OUTSIDE,
    }


def test_node_ports_are_told_by_where_they_are_bound_and_health_checks_are_let_in() -> None:
    """Both come after the rule that takes away what was sent elsewhere, and health checks before all that drops."""
    chains = build({NODE_PORT: NOT_OUTSIDE, NODE_PORT_AT: DROPPED}, health_check_ports=[32001, 32000])
    assert chains == {
        "USP-INPUT": (
            STEERED,
            "-p tcp -m tcp --dport 32000 -j ACCEPT",
            "-p tcp -m tcp --dport 32001 -j ACCEPT",
            "-d 192.0.2.2/32 -p tcp -m tcp --dport 30081 -j DROP",
            "-p tcp -m tcp --dport 30080 -g USP-OUTSIDE",
        ),
        "USP-STEERED": (),
        "USP-OUTSIDE": OUTSIDE,
    }


@pytest.mark.parametrize("family", list(Family))
def test_health_check_alone_needs_a_rule_in_both_families(family: Family) -> None:
    """Load balancers ask over either."""
    chains = build({}, family=family, health_check_ports=[32000])
    assert chains == {"USP-INPUT": (STEERED, "-p tcp -m tcp --dport 32000 -j ACCEPT"), "USP-STEERED": ()}


def test_chains_of_restrictions_in_another_order_are_equal() -> None:
    """The order in which Services arrive makes no change of rules."""
    routes = {
        WEB: NOT_OUTSIDE,
        LB: route(source_ranges=RANGES),
        LB2: route(source_ranges=RANGES[:1]),
        NODE_PORT: DROPPED,
    }
    backwards = dict(reversed(routes.items()))
    texts = [replace_text("filter", OwnRules(), build(one)) for one in (routes, backwards)]
    assert texts[0] == texts[1]


def test_replace_in_table_filter_takes_new_connections_first_and_none_once_there_is_no_chain() -> None:
    """Packets of connections that were let in pass by, and an empty table is left without a jump."""
    text = replace_text("filter", OwnRules(), build({WEB: DROPPED}))
    assert text.startswith("*filter\n:USP-INPUT - [0:0]\n:USP-STEERED - [0:0]\n-A USP-INPUT ")
    assert text.endswith("\n-I INPUT -m conntrack --ctstate NEW -j USP-INPUT\nCOMMIT\n")
    saved = (
        "*filter\n:USP-INPUT - [0:0]\n:USP-STEERED - [0:0]\n-A INPUT -m conntrack --ctstate NEW -j USP-INPUT\n"
        "-A USP-INPUT -m conntrack --ctstate DNAT -g USP-STEERED\nCOMMIT\n"
    )
    found = parse_saved(saved)["filter"]
    assert " INPUT -m" not in replace_text("filter", found, build({WEB: DROPPED}))
    assert replace_text("filter", found, {}) == (
        "*filter\n:USP-INPUT - [0:0]\n:USP-STEERED - [0:0]\n-D INPUT -m conntrack --ctstate NEW -j USP-INPUT\n"
        "-X USP-INPUT\n-X USP-STEERED\nCOMMIT\n"
    )


@pytest.mark.parametrize("family", list(Family))
def test_probe_tries_what_the_rules_use_and_counts_as_one(family: Family) -> None:
    """It works where they work, and a run beside it leaves it alone."""
    install, remove = build_filter_probe(family, 4711)
    chains = build({WEB: NOT_OUTSIDE, WEB6: NOT_OUTSIDE}, family=family)
    words = {word for rules in chains.values() for rule in rules for word in rule.split()}
    assert {word for word in words if word.startswith("--ct")} <= set(install.split())
    (own,) = parse_saved(install.replace("-I ", "-A ")).values()
    assert (own.chains, len(own.jumps)) == ({"USP-PROBE-4711": 2}, 1)
    assert own.without_probes() == OwnRules()
    assert remove == replace_text("filter", own, {})

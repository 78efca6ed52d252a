"""The text of the iptables rules that keep clients away. Pure: runs nothing and knows no node.

Table nat cannot drop, so they are in table filter, and go by what new connections were sent to at first::

    INPUT -> USP-INPUT            (health checks, NodePorts)
                -> USP-STEERED    (what table nat has led here, by its original destination)
    both  ------> USP-RANGES-...  (the source ranges of a Frontend)
    all   ------> USP-OUTSIDE     (lets pods and this node through)

Nobody is refused by a rule: where nothing is to answer at all the Listener is closed, so the kernel resets the
connection, in the name of the address that was dialled. Entry points: ``build_filter_chains``, ``build_filter_probe``.
Source: iptables-extensions(8), conntrack.
"""

from collections.abc import Container
from hashlib import blake2b

from userspace_proxy.model.names import Family, family_of
from userspace_proxy.plan.state import Frontend, FrontendKind, Restrictions, Route, SourceClass, Verdict
from userspace_proxy.steering.iptables_rules import (
    FROM_INPUT,
    INPUT,
    PREFIX,
    PROBE_PREFIX,
    PROBED_ADDRESS,
    PROBED_PORT,
    Chains,
    OwnRules,
    match_destination,
    remove_text,
)

STEERED = f"{PREFIX}STEERED"
OUTSIDE = f"{PREFIX}OUTSIDE"
RANGES_PREFIX = f"{PREFIX}RANGES-"
_DIGEST_BYTES = 8
"""Arbitrary, but a name of a chain has 28 characters at most."""


def build_filter_chains(family: Family, restrictions: Restrictions, placed: Container[Frontend]) -> Chains:
    """Return the chains that keep away from the Frontends of one family whom ``restrictions`` does not let through.

    Args:
        family: Which one; other Frontends and networks are passed over.
        restrictions: In any order; the same ones give the same text.
        placed: The Frontends that are served; others get no rule.

    Returns:
        None at all if there is nothing to keep away, and no health check to let in.
    """
    shared: dict[str, tuple[str, ...]] = {}
    steered, bound = [], []
    for frontend, route in restrictions.routes.items():
        if frontend.family is not family or frontend not in placed:
            continue
        if (target := _target(route, shared)) is None:
            continue
        if frontend.kind is FrontendKind.NODE_PORT:
            bound.append(f"{match_destination(frontend)} {target}")
        else:
            steered.append(f"{_match_original(frontend)} {target}")
    health_checks = [f"-p tcp -m tcp --dport {port} -j ACCEPT" for port in sorted(restrictions.health_check_ports)]
    if not (steered or bound or health_checks):
        return {}
    if any(f"-g {OUTSIDE}" in rule for rules in (steered, bound, *shared.values()) for rule in rules):
        pods = [network for network in restrictions.pod_networks if family_of(network) is family]
        shared[OUTSIDE] = ("-i lo -j RETURN", *(f"-s {network} -j RETURN" for network in pods), "-j DROP")
    return {
        # The first rule also keeps the others from what was sent to another port than the one it was led to.
        INPUT: (f"-m conntrack --ctstate DNAT -g {STEERED}", *health_checks, *sorted(bound)),
        STEERED: tuple(sorted(steered)),
        **dict(sorted(shared.items())),
    }


def build_filter_probe(family: Family, process_id: int) -> tuple[str, str]:
    """Return inputs for ``iptables-restore --noflush``: the least that keeping away needs, and its removal."""
    name = f"{PROBE_PREFIX}{process_id}"
    found = OwnRules({name: 2}, [f"{FROM_INPUT} {name}"])
    match = f"-p tcp -m conntrack --ctorigdst {PROBED_ADDRESS[family]} --ctorigdstport {PROBED_PORT}"
    lines = ["*filter", f":{name} - [0:0]", f"-A {name} {match} -j DROP", f"-A {name} -m conntrack --ctstate DNAT"]
    lines += [f"-I {jump}" for jump in found.jumps]
    return "\n".join([*lines, "COMMIT", ""]), remove_text("filter", found)


def _target(route: Route, shared: dict[str, tuple[str, ...]]) -> str | None:
    """Return where packets for a Frontend go; None: there is nobody whom a rule has to keep away.

    Args:
        route: What becomes of its connections.
        shared: Chains that several Frontends may share; one that is missing is added.
    """
    targets = {route.target(source) for source in SourceClass}
    if targets == {Verdict.DROP}:
        return "-j DROP"
    if targets == {Verdict.REJECT}:
        return None
    is_for_outside = route.outside is not Verdict.DROP
    allowed = "-j RETURN" if is_for_outside else f"-g {OUTSIDE}"
    if not route.source_ranges:
        return None if is_for_outside else allowed
    rules = (*(f"-s {network} {allowed}" for network in route.source_ranges), "-j DROP")
    name = f"{RANGES_PREFIX}{blake2b(repr(rules).encode(), digest_size=_DIGEST_BYTES).hexdigest()}"
    shared[name] = rules
    return f"-g {name}"


def _match_original(frontend: Frontend) -> str:
    protocol = frontend.protocol.lower()
    return f"-p {protocol} -m conntrack --ctorigdst {frontend.address} --ctorigdstport {frontend.port}"

"""Which UDP entries of conntrack are stale. Pure.

The kernel asks rules only about the first datagram of an entry, and an entry lives as long as its client sends. So one
that is older than a rule leads past it for ever. Entry point: ``plan_sweep``.
Source: Linux net/netfilter/nf_nat_core.c; kube-proxy's conntrack/cleanup.go does the same for its own rules.
"""

from collections.abc import Collection, Mapping

from attrs import field, frozen

from userspace_proxy.steering.conntrack.messages import Entry, Place

ANY_LOCAL = b""
"""Stands in a Place for all addresses of this node, at which NodePorts answer."""


@frozen
class Led:
    """What rules do with the datagrams of one family."""

    proxy_ports: Mapping[Place, int] = field(factory=dict)
    """Where those to the Frontends go; those to NodePorts stay at their port, but a proxy before us may have had rules
    for them."""
    local_addresses: frozenset[bytes] = frozenset()
    """The addresses of this node, as ``packed`` has them: rules lead to one of them, and none else."""


@frozen
class Sweep:
    """Tells which entries are stale."""

    led: Led
    """What is in force."""
    changed: Collection[Place]
    """What was not led, or not to there, before."""
    leftover_ports: Collection[int]
    """Proxy ports to which, whatever is sent, nothing may be led but by rules in force; the others are not ours."""

    def is_stale(self, entry: Entry) -> bool:
        """Tell whether an entry leads elsewhere than the rules."""
        address, port = place = entry.destination
        if address in self.led.local_addresses and place not in self.led.proxy_ports and place not in self.changed:
            place = ANY_LOCAL, port
        is_changed = place in self.changed
        if not (is_changed or self.leftover_ports):
            return False
        answers_from = entry.answers_from
        is_led_here = answers_from[0] in self.led.local_addresses
        if is_changed:
            return not (is_led_here and answers_from[1] == self.led.proxy_ports.get(place))
        return (
            is_led_here
            and answers_from[1] in self.leftover_ports
            and answers_from != entry.destination
            and place not in self.led.proxy_ports
        )


def plan_sweep(before: Led | None, now: Led, proxy_port_range: Collection[int]) -> Sweep | None:
    """Return what has to be looked for after a change; None: nothing.

    Args:
        before: What the last sweep has left; None: there was none, and a run before may have left something.
        now: What is in force.
        proxy_port_range: All ports that may be proxy ports.
    """
    if before is None:
        return Sweep(now, now.proxy_ports.keys(), proxy_port_range)
    if before.proxy_ports and not before.local_addresses <= now.local_addresses:
        return Sweep(now, before.proxy_ports.keys() | now.proxy_ports.keys(), ())
    if before.proxy_ports == now.proxy_ports:
        return None
    # pairs: those that moved are among them twice, with both of their proxy ports
    return Sweep(now, {place for place, _ in before.proxy_ports.items() ^ now.proxy_ports.items()}, ())

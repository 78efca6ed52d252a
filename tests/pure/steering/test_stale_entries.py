"""Which entries of conntrack are stale after a change."""

import struct
from ipaddress import ip_address

import pytest

from userspace_proxy.steering.conntrack.messages import Entry, Place
from userspace_proxy.steering.conntrack.stale_entries import ANY_LOCAL, Led, plan_sweep

PORTS = range(12000, 30000)
NODE, LOOPBACK, POD = (ip_address(text).packed for text in ("10.0.0.1", "127.0.0.1", "10.0.1.2"))
DNS, WEB, NEW, STAYS, GONE = (ip_address(f"10.96.0.{host}").packed for host in range(10, 15))
HERE = frozenset((NODE, LOOPBACK))
BEFORE = Led({(DNS, 53): 12053, (WEB, 80): 12080}, HERE)


def entry(destination: Place, answers_from: Place) -> Entry:
    """Return an entry as the kernel writes it, with as much of it as counts."""
    return Entry(destination, attribute(2, tuple_of(answers_from)))


def tuple_of(source: Place) -> bytes:
    """Return the content of a CTA_TUPLE_... attribute with this source."""
    address, port = source
    return attribute(1, attribute(1, address)) + attribute(2, attribute(2, struct.pack("!H", port)))


def attribute(kind: int, content: bytes) -> bytes:
    """Return an attribute, padded."""
    return struct.pack("=HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


@pytest.mark.parametrize(
    ("destination", "answers_from", "is_stale"),
    [
        ((DNS, 53), (NODE, 12053), False),
        ((DNS, 53), (LOOPBACK, 12053), False),
        ((DNS, 53), (NODE, 12080), True),
        ((DNS, 53), (DNS, 53), True),
        ((DNS, 53), (POD, 53), True),
        ((DNS, 53), (POD, 12053), True),
        ((GONE, 53), (NODE, 13000), True),
        ((GONE, 53), (NODE, 9999), False),
        ((GONE, 53), (POD, 13000), False),
        ((GONE, 53), (GONE, 53), False),
        ((NODE, 13000), (NODE, 13000), False),
        ((DNS, 54), (NODE, 12053), True),
    ],
)
def test_first_sweep_looks_at_all_frontends_and_all_proxy_ports(
    destination: Place, answers_from: Place, *, is_stale: bool
) -> None:
    """What leads elsewhere than the rules goes, and what leads to a proxy port of an address of ours without a rule."""
    sweep = plan_sweep(None, BEFORE, PORTS)
    assert sweep is not None
    assert sweep.is_stale(entry(destination, answers_from)) is is_stale


@pytest.mark.parametrize(
    ("destination", "answers_from", "is_stale"),
    [
        ((DNS, 53), (NODE, 12053), True),
        ((DNS, 53), (NODE, 12054), False),
        ((WEB, 80), (NODE, 12080), True),
        ((WEB, 80), (WEB, 80), True),
        ((NEW, 53), (NEW, 53), True),
        ((NEW, 53), (LOOPBACK, 12055), False),
        ((STAYS, 53), (STAYS, 53), False),
        ((GONE, 53), (NODE, 13000), False),
    ],
)
def test_later_sweep_looks_at_what_has_moved_appeared_or_vanished(
    destination: Place, answers_from: Place, *, is_stale: bool
) -> None:
    """All others were looked at before."""
    before = Led({**BEFORE.proxy_ports, (STAYS, 53): 12056}, HERE)
    sweep = plan_sweep(before, Led({(DNS, 53): 12054, (NEW, 53): 12055, (STAYS, 53): 12056}, HERE), PORTS)
    assert sweep is not None
    assert sweep.is_stale(entry(destination, answers_from)) is is_stale


@pytest.mark.parametrize(
    ("destination", "answers_from", "is_stale"),
    [
        ((NODE, 30053), (POD, 53), True),
        ((NODE, 30053), (NODE, 13000), True),
        ((NODE, 30053), (NODE, 30053), False),
        ((NODE, 30054), (POD, 53), False),
        ((POD, 30053), (POD, 53), False),
        ((NODE, 53), (NODE, 12055), False),
        ((NODE, 53), (NODE, 53), True),
    ],
)
@pytest.mark.parametrize("before", [None, BEFORE], ids=["first", "later"])
def test_sweep_looks_at_node_ports_at_all_addresses_of_the_node(
    before: Led | None, destination: Place, answers_from: Place, *, is_stale: bool
) -> None:
    """What another proxy has led elsewhere goes; an external address of the node with that port is for itself."""
    led = {**BEFORE.proxy_ports, (ANY_LOCAL, 30053): 30053, (ANY_LOCAL, 53): 53, (NODE, 53): 12055}
    sweep = plan_sweep(before, Led(led, HERE), PORTS)
    assert sweep is not None
    assert sweep.is_stale(entry(destination, answers_from)) is is_stale


def test_change_that_is_none_to_udp_needs_no_sweep() -> None:
    """The same Frontends in any order; an address more on the node makes no entry wrong."""
    again = Led(dict(reversed([*BEFORE.proxy_ports.items()])), HERE | {POD})
    assert plan_sweep(BEFORE, again, PORTS) is None
    assert plan_sweep(Led(), Led(), PORTS) is None
    assert plan_sweep(Led({}, HERE), Led({}, frozenset({NODE})), PORTS) is None


def test_address_that_is_gone_makes_all_that_was_led_there_stale() -> None:
    """Rules lead to another address of the node now; what was led to one that is still there stays."""
    sweep = plan_sweep(BEFORE, Led(BEFORE.proxy_ports, frozenset({LOOPBACK})), PORTS)
    assert sweep is not None
    assert sweep.is_stale(entry((DNS, 53), (NODE, 12053)))
    assert not sweep.is_stale(entry((DNS, 53), (LOOPBACK, 12053)))

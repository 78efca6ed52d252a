"""Which address stands for the node."""

from ipaddress import IPv4Address

import pytest

from userspace_proxy.steering.node_state import NodeAddresses

LO = ("lo", IPv4Address("127.0.0.1"))
LINK = ("docker0", IPv4Address("169.254.7.7"))
BRIDGE = ("cni0", IPv4Address("10.0.1.1"))
ETH = ("eth0", IPv4Address("192.0.2.2"))
ETH_SECOND = ("eth0", IPv4Address("192.0.2.3"))
ON_LO = ("lo", IPv4Address("198.51.100.1"))


@pytest.mark.parametrize(
    ("by_interface", "default_interface", "best"),
    [
        pytest.param((LO, BRIDGE, ETH, ETH_SECOND), "eth0", "192.0.2.2", id="the default route's"),
        pytest.param((LO, BRIDGE, ETH), None, "10.0.1.1", id="the first without a default route"),
        pytest.param((LO, LINK, ETH), None, "192.0.2.2", id="a link-local one serves one link only"),
        pytest.param((LO, LINK), "docker0", "169.254.7.7", id="a link-local one with the default route"),
        pytest.param((LO, ON_LO), "eth0", "198.51.100.1", id="of an unnumbered node, on lo"),
        pytest.param((LO,), "lo", None, id="none"),
        pytest.param((), None, None, id="lo is down"),
    ],
)
def test_best_address_is_reachable_from_every_interface(
    by_interface: tuple[tuple[str, IPv4Address], ...], default_interface: str | None, best: str | None
) -> None:
    """The default route's interface comes first, then any whose address is valid beyond its link."""
    found = NodeAddresses(by_interface, default_interface).best(None)
    assert found == (None if best is None else IPv4Address(best))


def test_best_address_stays_while_the_node_has_it() -> None:
    """Another interface or a default route that moves changes no rule; only a lost address does."""
    current = BRIDGE[1]
    assert NodeAddresses((LO, ETH, BRIDGE), "eth0").best(current) == current
    assert NodeAddresses((LO, ETH), "eth0").best(current) == ETH[1]


def test_interfaces_with_several_addresses_are_named_once() -> None:
    """A rule for each interface, not for each address."""
    assert NodeAddresses((LO, ETH, ETH_SECOND), None).interfaces == ("lo", "eth0")

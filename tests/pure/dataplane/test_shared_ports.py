"""SharedPorts: which listeners share a port, and that nothing is kept of those that have gone."""

from ipaddress import ip_address

from builders import listener_key
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.dataplane.shared_ports import SharedPorts
from userspace_proxy.model.names import Protocol, family_of
from userspace_proxy.plan.state import ListenerSpec

ADDRESSES = ["0.0.0.0", "10.96.0.1", "10.96.0.2", "::", "fd00::1"]


def spec(host: str, name: str = "web", *, port: int = 30080, protocol: Protocol = Protocol.TCP) -> ListenerSpec:
    """Return the place of a listener."""
    address = ip_address(host)
    return ListenerSpec(listener_key(f"shop/{name}:p", family=family_of(address), protocol=protocol), address, port)


def test_port_is_shared_by_the_wildcard_address_and_another_one() -> None:
    """From when the second one comes until either goes."""
    ports = SharedPorts()
    wildcard, one, other = spec("0.0.0.0"), spec("10.96.0.1", "one"), spec("10.96.0.2", "other")
    assert not ports.add(one)
    assert not ports.add(other)
    assert not ports.is_shared(one)
    assert ports.add(wildcard)
    assert not ports.add(wildcard)
    assert all(ports.is_shared(each) for each in (wildcard, one, other))
    assert set(ports.at_port(other)) == {wildcard.key, one.key, other.key}
    assert not ports.remove(one)
    assert ports.remove(wildcard)
    assert not ports.is_shared(other)


def test_port_is_not_shared_by_other_protocols_families_or_numbers() -> None:
    """Those have ports of their own."""
    ports = SharedPorts()
    ports.add(spec("0.0.0.0"))
    others = [spec("10.96.0.1", protocol=Protocol.UDP), spec("fd00::1"), spec("10.96.0.1", port=30081)]
    assert not [other for other in others if ports.add(other) or ports.is_shared(other)]


def test_port_with_two_listeners_at_one_place_is_not_shared_by_that() -> None:
    """Only one of them may have it."""
    ports = SharedPorts()
    assert not ports.add(spec("0.0.0.0"))
    assert not ports.add(spec("0.0.0.0", "other"))
    assert set(ports.at_place(spec("0.0.0.0"))) == {spec("0.0.0.0").key, spec("0.0.0.0", "other").key}


@given(st.lists(st.builds(spec, st.sampled_from(ADDRESSES), st.sampled_from("abc"), port=st.sampled_from([1, 2]))))
def test_ports_are_shared_whatever_the_order_and_all_is_forgotten(specs: list[ListenerSpec]) -> None:
    """What is shared depends only on who is there; a change of it is told exactly when it happens."""
    ports = SharedPorts()
    there: dict[object, ListenerSpec] = {}

    def is_shared(wanted: ListenerSpec) -> bool:
        near = {
            each.address
            for each in there.values()
            if (each.port, each.address.version) == (wanted.port, wanted.address.version)
        }
        return len(near) > 1 and any(address.is_unspecified for address in near)

    for wanted in [*specs, *specs]:
        before = is_shared(wanted)
        place = (wanted.key, wanted.address, wanted.port)
        if place in there:
            del there[place]
            assert ports.remove(wanted) == (before and not is_shared(wanted))
        else:
            there[place] = wanted
            assert ports.add(wanted) == (is_shared(wanted) and not before)
        assert all(ports.is_shared(each) == is_shared(each) for each in specs)
    for wanted in there.values():
        ports.remove(wanted)
    assert not ports._places

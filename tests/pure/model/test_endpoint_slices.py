"""Tests of model.endpoint_slices."""

import pytest
from builders import endpoint, endpoint_port, endpoint_slice, service_port_name
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.endpoint import Endpoint, EndpointSlice
from userspace_proxy.model.endpoint_slices import MergedEndpoint, merge_endpoints
from userspace_proxy.model.names import Family, Protocol, ServicePortName

_HTTP = service_port_name("shop/web:http")


def _merged(*slices: EndpointSlice, port: ServicePortName = _HTTP, family: Family = Family.IPV4) -> list[str]:
    return [f"{one.endpoint.address} {one.port}" for one in merge_endpoints(slices, port, family)]


def test_b_5_merge_unites_all_slices_sorted_by_text() -> None:
    """The order is that of the text address:port, so 10.0.1.10:80 comes before 10.0.1.1:80."""
    ports = [endpoint_port(port=80)]
    found = _merged(
        endpoint_slice("shop/web-1", "10.0.1.2", "10.0.1.1", ports=ports),
        endpoint_slice("shop/web-2", "10.0.1.10", ports=ports),
    )
    assert found == ["10.0.1.10 80", "10.0.1.1 80", "10.0.1.2 80"]


def test_b_5_merge_ipv6_sorts_by_bracketed_text() -> None:
    """An IPv6 address and port are written in brackets, so that the colon before the port is one."""
    found = _merged(endpoint_slice("shop/web-1", "fd00::1", "fd00::1:9", family=Family.IPV6), family=Family.IPV6)
    assert found == ["fd00::1:9 8080", "fd00::1 8080"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (service_port_name("shop/web:http"), ["10.0.1.1 8080"]),
        (service_port_name("shop/web:http", Protocol.UDP), []),
        (service_port_name("shop/web:https"), []),
        (service_port_name("shop/web"), ["10.0.1.1 9090"]),
        (service_port_name("shop/web:dns", Protocol.UDP), ["10.0.1.1 53"]),
    ],
)
def test_b_3_port_matches_by_name_and_protocol(wanted: ServicePortName, expected: list[str]) -> None:
    """The number of the ServicePort plays no part; an unnamed port matches the unnamed one."""
    ports = [endpoint_port(), endpoint_port("", 9090), endpoint_port("dns", 53, Protocol.UDP)]
    assert _merged(endpoint_slice("shop/web-1", "10.0.1.1", ports=ports), port=wanted) == expected


def test_b_3_same_port_name_with_other_numbers_gives_all() -> None:
    """A named target port may be another number in each EndpointSlice; both numbers of one address count."""
    found = _merged(
        endpoint_slice("shop/web-1", "10.0.1.1", ports=[endpoint_port(port=80)]),
        endpoint_slice("shop/web-2", "10.0.1.1", ports=[endpoint_port(port=8080)]),
    )
    assert found == ["10.0.1.1 80", "10.0.1.1 8080"]


def test_b_2_merge_never_crosses_families() -> None:
    """An EndpointSlice of the other family adds nothing."""
    found = _merged(
        endpoint_slice("shop/web-1", "fd00::1", family=Family.IPV6), endpoint_slice("shop/web-2", "10.0.1.1")
    )
    assert found == ["10.0.1.1 8080"]


_LIVE_A = endpoint(node_name="a")
_LIVE_B = endpoint(node_name="b")
_ENDING_A = endpoint(ready=False, terminating=True, node_name="a")
_ENDING_B = endpoint(ready=False, terminating=True, node_name="b")


@pytest.mark.parametrize(
    ("first", "later", "winner"),
    [
        (_LIVE_A, _LIVE_B, _LIVE_B),
        (_LIVE_A, _ENDING_B, _LIVE_A),
        (_ENDING_A, _LIVE_B, _LIVE_B),
        (_ENDING_A, _ENDING_B, _ENDING_A),
    ],
)
def test_b_5_of_duplicates_the_later_wins_unless_terminating(
    first: Endpoint, later: Endpoint, winner: Endpoint
) -> None:
    """While an endpoint moves between EndpointSlices it is in both, and the one that lives counts."""
    slices = [endpoint_slice("shop/web-1", first), endpoint_slice("shop/web-2", later)]
    assert merge_endpoints(slices, _HTTP, Family.IPV4) == (MergedEndpoint(winner, 8080),)


@given(
    members=st.lists(
        st.tuples(st.integers(min_value=0, max_value=2), st.integers(min_value=1, max_value=12)), max_size=20
    )
)
def test_b_5_any_split_over_slices_gives_each_address_once(members: list[tuple[int, int]]) -> None:
    """However endpoints are spread over EndpointSlices, the result is their set, sorted by text."""
    slices = [
        endpoint_slice(f"shop/web-{i}", *(f"10.0.1.{host}" for place, host in members if place == i)) for i in range(3)
    ]
    found = [f"{one.endpoint.address}:{one.port}" for one in merge_endpoints(slices, _HTTP, Family.IPV4)]
    assert found == sorted({f"10.0.1.{host}:8080" for _, host in members})

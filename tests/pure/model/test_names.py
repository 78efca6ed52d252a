"""Tests of model.names."""

from ipaddress import ip_address

import pytest
from builders import named, service_port_name

from userspace_proxy.model.names import Family, family_of


@pytest.mark.parametrize(
    ("text", "family"),
    [("10.0.0.1", Family.IPV4), ("::ffff:10.0.0.1", Family.IPV6), ("fd00::1", Family.IPV6)],
)
def test_family_of_address_is_that_of_its_text(text: str, family: Family) -> None:
    """An address has the family it is written in."""
    assert family_of(ip_address(text)) is family


@pytest.mark.parametrize("text", ["shop/web:http", "shop/web"])
def test_service_port_name_prints_as_kube_proxy_prints_it(text: str) -> None:
    """A named port follows the Service after a colon; an unnamed one adds nothing."""
    assert str(service_port_name(text)) == text


def test_names_sort_by_namespace_then_name() -> None:
    """Objects of one namespace stand together."""
    names = ["a/b", "b/a", "a/a", "a-b/a"]
    assert [str(one) for one in sorted(named(text) for text in names)] == ["a/a", "a/b", "a-b/a", "b/a"]

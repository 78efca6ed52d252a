"""The block of a hosts file: which lines it has, and what becomes of the text around it."""

from ipaddress import ip_address

import pytest
from builders import frontend, named, node_port_frontend
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Protocol
from userspace_proxy.plan.state import Frontend, FrontendKind, ListenerSpec
from userspace_proxy.steering.base import Placement, listener_key
from userspace_proxy.steering.hosts_text import HostsLine, read_hosts_lines, with_block, without_block

WEB = HostsLine(named("shop/web"), ip_address("10.96.0.10"))
BLOCK = (
    "# BEGIN userspace-proxy\n10.96.0.10 web web.shop web.shop.svc web.shop.svc.cluster.local\n# END userspace-proxy\n"
)
LOCALHOST = "127.0.0.1 localhost\n"


def placed(at: Frontend, listens_at: str) -> Placement:
    """Return a Placement."""
    host, _, port = listens_at.rpartition(":")
    return Placement(at, ListenerSpec(listener_key(at, is_shared=False), ip_address(host), int(port)))


def lines_of(*placements: Placement, dial: bool = False) -> list[str]:
    """Return the lines of the block."""
    lines = read_hosts_lines(placements, clients_dial_listener=dial)
    return with_block(b"", lines).decode().splitlines()[1:-1]


def test_lines_have_cluster_addresses_of_both_families_sorted() -> None:
    """By namespace and name, IPv4 first, each once; what is no cluster address has no line."""
    assert lines_of(
        placed(frontend("[fd00::a]:80", "shop/web:http"), "0.0.0.0:12000"),
        placed(frontend("10.96.0.10:443", "shop/web:tls"), "0.0.0.0:12001"),
        placed(frontend("10.96.0.10:80", "shop/web:http"), "0.0.0.0:12002"),
        placed(frontend("203.0.113.1:80", "shop/web:http", FrontendKind.EXTERNAL_IP), "0.0.0.0:12003"),
        placed(node_port_frontend(30080), "0.0.0.0:30080"),
        placed(frontend("10.96.0.11:80", "shop/api:http"), "0.0.0.0:12004"),
        placed(frontend("10.96.0.12:80", "data/zoo:http"), "0.0.0.0:12005"),
    ) == [
        "10.96.0.12 zoo zoo.data zoo.data.svc zoo.data.svc.cluster.local",
        "10.96.0.11 api api.shop api.shop.svc api.shop.svc.cluster.local",
        "10.96.0.10 web web.shop web.shop.svc web.shop.svc.cluster.local",
        "fd00::a web web.shop web.shop.svc web.shop.svc.cluster.local",
    ]


def test_lines_have_the_listener_where_clients_dial_it_with_the_ports_that_are_moved() -> None:
    """Also for a Service that has only an IPv6 address; a port that keeps its number is not worth a word."""
    assert lines_of(
        placed(frontend("[fd00::a]:80", "shop/web:http"), "127.96.0.1:10080"),
        placed(frontend("[fd00::a]:53", "shop/web:dns", protocol=Protocol.UDP), "127.96.0.1:10053"),
        placed(frontend("[fd00::a]:8080", "shop/web:high"), "127.96.0.1:8080"),
        dial=True,
    ) == ["127.96.0.1 web web.shop web.shop.svc web.shop.svc.cluster.local  # 80/TCP is 10080, 53/UDP is 10053"]


def test_short_name_is_for_a_service_whose_name_is_unique() -> None:
    """Two namespaces with a web: neither is the one; and none may be the machine itself."""
    assert lines_of(
        placed(frontend("10.96.0.10:80", "shop/web:http"), "0.0.0.0:12002"),
        placed(frontend("10.96.0.11:80", "data/web:http"), "0.0.0.0:12003"),
        placed(frontend("10.96.0.12:80", "data/localhost:http"), "0.0.0.0:12004"),
    ) == [
        "10.96.0.12 localhost.data localhost.data.svc localhost.data.svc.cluster.local",
        "10.96.0.11 web.data web.data.svc web.data.svc.cluster.local",
        "10.96.0.10 web.shop web.shop.svc web.shop.svc.cluster.local",
    ]


def test_names_that_the_file_has_already_are_left_to_it() -> None:
    """The machine's own names come first, however they are written; what a comment says counts for nothing."""
    content = "10.0.0.1\tnode Web  web.shop # api\n# 10.0.0.2 web.shop.svc\n"
    api = HostsLine(named("shop/api"), ip_address("10.96.0.11"))
    assert with_block(content.encode(), [WEB, api]).decode().splitlines()[3:-1] == [
        "10.96.0.10 web.shop.svc web.shop.svc.cluster.local",
        "10.96.0.11 api api.shop api.shop.svc api.shop.svc.cluster.local",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", BLOCK),
        (LOCALHOST, LOCALHOST + BLOCK),
        ("127.0.0.1 localhost", "127.0.0.1 localhost\n" + BLOCK.removesuffix("\n")),
        ("a\r\n\n\xff\x00", "a\r\n\n\xff\x00\n" + BLOCK.removesuffix("\n")),
    ],
)
def test_block_goes_to_the_end_and_comes_out_again(content: str, expected: str) -> None:
    """All bytes around it stay, a last line without an end among them."""
    before = content.encode("latin-1")
    assert with_block(before, [WEB]) == expected.encode("latin-1")
    assert without_block(with_block(before, [WEB])) == before


def test_block_that_is_there_is_replaced_where_it_is() -> None:
    """A killed run has left it; what others have written behind it stays there."""
    old = f"{LOCALHOST}# BEGIN userspace-proxy\n1.2.3.4 old\n# END userspace-proxy\n10.0.0.9 other\n"
    assert with_block(old.encode(), [WEB]).decode() == f"{LOCALHOST}{BLOCK}10.0.0.9 other\n"
    assert without_block(old.encode()) == f"{LOCALHOST}10.0.0.9 other\n".encode()


def test_block_without_lines_is_still_a_block() -> None:
    """No Service is no reason for a special case."""
    assert with_block(LOCALHOST.encode(), []) == f"{LOCALHOST}# BEGIN userspace-proxy\n# END userspace-proxy\n".encode()


def test_file_that_was_made_for_the_block_goes_with_it() -> None:
    """Through any number of changes, and after a kill too: the block itself says so. What others added stays."""
    made = with_block(with_block(None, []), [WEB])
    assert made.decode().splitlines()[1].startswith("# this file was made for these lines")
    assert without_block(made) is None
    assert without_block(made + b"10.0.0.9 other\n") == b"10.0.0.9 other\n"
    assert without_block(with_block(b"", [WEB])) == b""


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("127.0.0.1 localhost\n# BEGIN userspace-proxy\n1.2.3.4 old\n", "line 2, '# BEGIN userspace-proxy'"),
        ("# END userspace-proxy\n", "line 1, '# END userspace-proxy'"),
        ("# END userspace-proxy\n# BEGIN userspace-proxy\n", "line 1, '# END userspace-proxy'"),
        (BLOCK + BLOCK, "line 1, '# BEGIN userspace-proxy'"),
        ("# BEGIN userspace-proxy\n" + BLOCK, "line 1, '# BEGIN userspace-proxy'"),
    ],
)
def test_markers_that_do_not_enclose_one_block_are_told(content: str, place: str) -> None:
    """Nobody knows which lines are ours: a user has to look."""
    with pytest.raises(SteeringError, match=place):
        with_block(content.encode(), [WEB])
    with pytest.raises(SteeringError, match=place):
        without_block(content.encode())


@given(
    lines=st.lists(st.sampled_from([b"10.0.0.9 a", b"# comment", b"", b"web", b"\xff\r", b"x\x0by"])),
    has_end=st.booleans(),
)
def test_any_file_is_as_before_once_the_block_is_out(lines: list[bytes], *, has_end: bool) -> None:
    """Byte for byte, however often the block was written meanwhile."""
    content = b"\n".join(lines) + (b"\n" if has_end and lines else b"")
    changed = with_block(with_block(content, [WEB]), [])
    assert changed != content
    assert with_block(changed, [WEB]) == with_block(content, [WEB])
    assert without_block(changed) == content

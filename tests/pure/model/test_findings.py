"""Tests of model.findings."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model import api_types
from userspace_proxy.model.findings import Findings, filled, is_label, parse_ip, parse_network, quote
from userspace_proxy.model.names import IPAddress, NamespacedName, Protocol


def _network_of(address: IPAddress, length: int) -> IPv4Network | IPv6Network:
    """Return the network around an address, of at most that length."""
    return ip_network((address, min(length, address.max_prefixlen)), strict=False)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("172.30.0.041", "172.30.0.41"),
        ("010.000.00.1", "10.0.0.1"),
        ("255.255.255.255", "255.255.255.255"),
        ("0.0.0.0", "0.0.0.0"),
        ("FD00::A", "fd00::a"),
        ("fd00::00000a", "fd00::a"),
        ("::ffff:10.0.0.041", "10.0.0.41"),
    ],
)
def test_parse_ip_accepts_and_canonicalises_what_kubernetes_accepts(text: str, address: str) -> None:
    """Leading zeros mean nothing, and an IPv4 address wrapped in an IPv6 one is that IPv4 address."""
    assert parse_ip(text) == ip_address(address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0",
        "10.0.0.256",
        " 10.0.0.1",
        "10.0.0.1/32",
        "0x0a.0.0.1",
        "fe80::1%eth0",
        "web",
        "10.0.0.1:80",
        "10.0.0.",
        "10.0.0.1.1",
        "10.0.0.1\n",
        "10.0.0.1000",
        "fd00::/64",
        ":",
        "\u0661.1.1.1",
    ],
)
def test_parse_ip_refuses_what_is_no_address(text: str) -> None:
    """A text that Kubernetes would not read as an address is none."""
    assert parse_ip(text) is None


@given(
    address=st.ip_addresses(v=4),
    zeros=st.lists(st.integers(min_value=0, max_value=4), min_size=4, max_size=4),
)
def test_parse_ip_ignores_any_leading_zeros_of_ipv4(address: IPv4Address, zeros: list[int]) -> None:
    """However many zeros stand before the octets, the address is the same."""
    padded = ".".join("0" * count + octet for count, octet in zip(zeros, str(address).split("."), strict=True))
    assert parse_ip(padded) == address


@given(address=st.ip_addresses(v=6))
def test_parse_ip_reads_every_form_of_ipv6_alike(address: IPv6Address) -> None:
    """The long form, the short form and upper case are the same address."""
    found = {parse_ip(address.compressed), parse_ip(address.exploded), parse_ip(str(address).upper())}
    assert found == {address.ipv4_mapped or address}


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.77/24", "192.0.2.0/24"),
        ("192.0.2.1/32", "192.0.2.1/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("192.000.002.010/024", "192.0.2.0/24"),
        ("FD00::1/64", "fd00::/64"),
        ("::/0", "::/0"),
        ("::ffff:192.0.2.1/120", "192.0.2.0/24"),
    ],
)
def test_parse_network_is_as_lenient_as_kubernetes(text: str, network: str) -> None:
    """Bits of the host and leading zeros mean nothing; a wrapped IPv4 network is that one."""
    assert parse_network(text) == ip_network(network)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "192.0.2.0",
        "192.0.2.0/",
        "192.0.2.0/33",
        "192.0.2.0/-1",
        "192.0.2.0/+8",
        "192.0.2.0/ 8",
        "192.0.2.0/\u0661",
        "192.0.2.0/\u00b2",
        "192.0.2.0/255.255.255.0",
        "192.0.2.0/8/8",
        "192.0.2.0/" + "9" * 5000,
        "192.0.2/24",
        "fd00::/129",
        "::ffff:192.0.2.0/95",
        "web/24",
    ],
)
def test_parse_network_refuses_what_is_no_cidr(text: str) -> None:
    """A length must be there, in digits, and not beyond the address."""
    assert parse_network(text) is None


@given(network=st.ip_addresses().flatmap(lambda one: st.builds(_network_of, st.just(one), st.integers(0, 128))))
def test_parse_network_reads_back_any_network(network: IPv4Network | IPv6Network) -> None:
    """What prints as a network is that network, but for those that wrap IPv4."""
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped:
        return
    assert parse_network(str(network)) == network


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (None, []),
        ([], []),
        (["", " ", "\t\n"], []),
        (["a", "", " b ", "c d"], [(0, "a"), (2, "b"), (3, "c d")]),
    ],
)
def test_filled_gives_trimmed_texts_with_their_place(texts: list[str] | None, expected: list[tuple[int, str]]) -> None:
    """Blank texts are left out, and the others keep the index they have in the object."""
    assert filled(texts) == expected


@given(text=st.text(max_size=50))
def test_parse_ip_never_raises(text: str) -> None:
    """Any text is an address or None."""
    found = parse_ip(text)
    assert found is None or parse_ip(str(found)) == found


@pytest.mark.parametrize("value", ["a\nb", "x" * 10_000, 10**300, "\x1b[31m"])
def test_quote_gives_one_bounded_printable_line(value: object) -> None:
    """Whatever stands in an object, a sentence that quotes it stays one sentence."""
    text = quote(value)
    assert len(text) <= 63
    assert text.isprintable()


def test_quote_cuts_only_what_is_too_long() -> None:
    """Sixty characters, quotes included, are shown whole."""
    assert quote("x" * 58) == repr("x" * 58)
    assert quote("x" * 59) == "'" + "x" * 59 + "..."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web", True),
        ("0-a", True),
        ("a" * 63, True),
        ("a" * 64, False),
        ("", False),
        ("-a", False),
        ("a-", False),
        ("Web", False),
        ("a.b", False),
        ("web\n", False),
    ],
)
def test_is_label_follows_rfc_1123(text: str, expected: bool) -> None:  # noqa: FBT001
    """Lower-case letters, digits and inner dashes, 63 at most."""
    assert is_label(text) is expected


@pytest.mark.parametrize(
    ("kind", "name", "namespace", "expected"),
    [
        ("Service", "web", "shop", NamespacedName("shop", "web")),
        ("Service", "web", None, NamespacedName("default", "web")),
        ("Service", "web", "", NamespacedName("default", "web")),
        ("Service", "web.v1", "shop", "metadata.name"),
        ("Service", None, "shop", "metadata.name"),
        ("Service", "web", "a/b", "metadata.namespace"),
        ("EndpointSlice", "web.v1-x7k2p", "shop", NamespacedName("shop", "web.v1-x7k2p")),
        ("EndpointSlice", "a" * 253, "shop", NamespacedName("shop", "a" * 253)),
        ("EndpointSlice", "a" * 254, "shop", "metadata.name"),
        ("EndpointSlice", "web..v1", "shop", "metadata.name"),
        ("EndpointSlice", "web\n", "shop", "metadata.name"),
    ],
)
def test_findings_object_name_accepts_what_the_api_accepts(
    kind: str, name: str | None, namespace: str | None, expected: NamespacedName | str
) -> None:
    """A name is returned and becomes the subject; a bad one is a Problem with its field and no subject."""
    findings = Findings("shop.yaml")
    found = findings.object_name(kind, api_types.ObjectMeta(name=name, namespace=namespace))
    if isinstance(expected, NamespacedName):
        assert found == expected
        assert findings.subject == f"{kind} {expected}"
        assert findings.problems() == ()
    else:
        assert found is None
        assert [(one.subject, one.field, one.origin) for one in findings.problems()] == [("", expected, "shop.yaml")]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("Service", "a Service; write lower-case letters, digits, '-', at most 63 characters"),
        ("EndpointSlice", "an EndpointSlice; write lower-case letters, digits, '-' and '.', at most 253 characters"),
    ],
)
def test_findings_object_name_says_what_a_name_of_the_kind_may_be(kind: str, rule: str) -> None:
    """The sentence quotes the name and gives the rule of that kind of object."""
    findings = Findings("shop.yaml")
    findings.object_name(kind, api_types.ObjectMeta(name="Web Shop"))
    assert [one.text for one in findings.problems()] == [f"'Web Shop' cannot be the name of {rule}"]


@pytest.mark.parametrize("kind", ["Service", "EndpointSlice"])
def test_findings_names_are_for_the_api_server_to_judge(kind: str) -> None:
    """What it has let in is served under any name that can be printed."""
    findings = Findings("")
    found = findings.object_name(kind, api_types.ObjectMeta(name="webShop", namespace="Shop_1"))
    assert found == NamespacedName("Shop_1", "webShop")
    assert findings.port_name("ports[0].name", "webPort", set()) == "webPort"
    assert findings.problems() == ()
    for name in (None, "web\n", "a/b", "a" * 254):
        assert findings.object_name(kind, api_types.ObjectMeta(name=name, namespace="shop")) is None
    assert [one.field for one in findings.problems()] == ["metadata.name"] * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.01", ip_address("10.0.0.1")),
        ("127.0.0.1", ip_address("127.0.0.1")),
        ("0.0.0.0", None),
        ("::", None),
        ("224.0.0.1", None),
        ("ff02::1", None),
        ("web", None),
    ],
)
def test_findings_address_accepts_addresses_of_one_host(text: str, expected: IPAddress | None) -> None:
    """Loopback can be dialled; wildcard and multicast addresses cannot."""
    findings = Findings("")
    assert findings.address("spec.clusterIP", text) == expected
    assert [one.field for one in findings.problems()] == ([] if expected else ["spec.clusterIP"])


@pytest.mark.parametrize("text", ["192.0.2.1", "x/24"])
def test_findings_network_says_how_to_write_one(text: str) -> None:
    """A text that is none is a Problem that quotes it."""
    findings = Findings("")
    assert findings.network("spec.podCIDR", text) is None
    assert [(one.field, one.text) for one in findings.problems()] == [
        ("spec.podCIDR", f"'{text}' is not a network; write ADDRESS/LENGTH, as 192.0.2.0/24")
    ]


def test_findings_network_accepts_a_network() -> None:
    """It is returned, and nothing is noted."""
    findings = Findings("")
    assert findings.network("spec.podCIDR", "10.0.1.0/24") == ip_network("10.0.1.0/24")
    assert findings.problems() == ()


@pytest.mark.parametrize(("origin", "expected"), [("shop.yaml", True), ("", False)])
def test_findings_object_with_an_origin_was_written_by_hand(origin: str, expected: bool) -> None:  # noqa: FBT001
    """An API server has no name as an origin."""
    assert Findings(origin).is_handwritten is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, Protocol.TCP), ("", Protocol.TCP), ("UDP", Protocol.UDP), ("SCTP", Protocol.SCTP), ("tcp", None)],
)
def test_findings_protocol_is_tcp_unless_said(text: str | None, expected: Protocol | None) -> None:
    """The values are the API's, upper case; an unknown one is a Problem that lists them."""
    findings = Findings("")
    assert findings.protocol("protocol", text) is expected
    assert [one.text for one in findings.problems()] == (
        [] if expected else ["'tcp' is not a protocol; write TCP, UDP, SCTP"]
    )


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1, 1), (65535, 65535), (0, None), (-1, None), (65536, None), (10**30, None), (None, None)],
)
def test_findings_port_number_is_within_16_bits(number: int | None, expected: int | None) -> None:
    """1 and 65535 are ports; what lies beyond, or is absent, is a Problem."""
    findings = Findings("")
    assert findings.port_number("port", number) == expected
    assert len(findings.problems()) == (expected is None)


def test_findings_port_name_twice_is_a_problem() -> None:
    """A name is taken by the first port that has it; the unnamed ports are told apart no more than named ones."""
    findings = Findings("shop.yaml")
    seen: set[str] = set()
    names = [findings.port_name(f"ports[{i}].name", text, seen) for i, text in enumerate(["a", None, "a", "", "A"])]
    assert names == ["a", "", None, None, None]
    assert [(one.field, one.text.split(";")[0]) for one in findings.problems()] == [
        ("ports[2].name", "'a' names an earlier port already"),
        ("ports[3].name", "is missing, as in an earlier port"),
        ("ports[4].name", "'A' cannot be the name of a port"),
    ]


def test_findings_many_problems_are_folded() -> None:
    """A thousand bad values of one object make eleven Problems."""
    findings = Findings("shop.yaml")
    for i in range(1000):
        findings.warn(f"endpoints[{i}]", "is odd")
    assert len(findings.problems()) == 11
    assert findings.problems()[-1].text == "and 990 more"

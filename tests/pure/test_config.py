"""Tests of config."""

from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.config import (
    Config,
    NodePortAddresses,
    default_runtime_dir,
    default_state_dir,
    parse_bind_address,
    parse_cidrs,
    parse_loopback_range,
    parse_node_name,
    parse_node_port_addresses,
    parse_port_range,
    parse_server_url,
    parse_service_proxy_name,
    parse_worker_user,
)
from userspace_proxy.errors import ConfigError

_CONFIG = Config(manifests=(Path("shop.yaml"),), state_dir=Path("state"), runtime_dir=Path("run"))


def test_config_default_ranges_keep_clear_of_what_others_use() -> None:
    """Proxy ports lie outside NodePorts (30000-32767) and Linux' ip_local_port_range (32768-60999)."""
    taken = range(30000, 61000)
    assert not set(_CONFIG.proxy_port_range) & set(taken)
    assert _CONFIG.loopback_range.subnet_of(IPv4Network("127.0.0.0/8"))
    assert ip_address("127.0.0.1") not in _CONFIG.loopback_range


def test_config_default_time_outs_let_a_second_dial_have_its_turn() -> None:
    """Another Backend is dialled well before the budget of all dials is spent; nothing else is ever cut off."""
    limits = _CONFIG.limits
    assert 0 < limits.dial_next_after_s < limits.dial_timeout_s / 2
    assert (limits.idle_timeout_s, limits.half_closed_timeout_s, limits.max_connections) == (None, None, None)


def test_config_default_of_udp_outlasts_a_slow_answer() -> None:
    """A resolver gives an answer up after 5 s, and asks again; each flow is a descriptor, so there is a cap."""
    limits = _CONFIG.flow_limits
    assert limits.idle_timeout_s >= 2 * 5
    assert limits.max_flows > 0


def test_config_cannot_be_changed() -> None:
    """What a run was told stays true for all of it."""
    with pytest.raises(FrozenInstanceError):
        _CONFIG.drain_timeout_s = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environ", "uid", "path"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, 0, "/var/lib/a"),
        ({}, 0, "/var/lib/userspace-proxy"),
        ({"XDG_STATE_HOME": "/home/u/state", "HOME": "/home/u"}, 1000, "/home/u/state/userspace-proxy"),
        ({"XDG_STATE_HOME": "", "HOME": "/home/u"}, 1000, "/home/u/.local/state/userspace-proxy"),
        ({"HOME": "/home/u"}, 1000, "/home/u/.local/state/userspace-proxy"),
    ],
)
def test_default_state_dir_follows_systemd_then_root_then_xdg(environ: dict[str, str], uid: int, path: str) -> None:
    """Systemd's first directory wins; root has the system's place, others their own."""
    assert default_state_dir(environ, uid) == Path(path)


@pytest.mark.parametrize(
    ("environ", "uid", "path"),
    [
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b"}, 0, "/run/a"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/userspace-proxy"),
        ({"XDG_RUNTIME_DIR": "/run/user/1000"}, 1000, "/run/user/1000/userspace-proxy"),
        ({"XDG_RUNTIME_DIR": ""}, 1000, "/tmp/userspace-proxy-1000"),  # noqa: S108
        ({}, 1000, "/tmp/userspace-proxy-1000"),  # noqa: S108
    ],
)
def test_default_runtime_dir_follows_systemd_then_root_then_xdg(environ: dict[str, str], uid: int, path: str) -> None:
    """Systemd's first directory wins; root has the system's place, others their own."""
    assert default_runtime_dir(environ, uid) == Path(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12000-29999", range(12000, 30000)),
        ("12000+10", range(12000, 12011)),
        ("8080", range(8080, 8081)),
        ("1-65535", range(1, 65536)),
        ("8080-8080", range(8080, 8081)),
        ("8080+0", range(8080, 8081)),
    ],
)
def test_parse_port_range_reads_the_three_forms_of_kube_proxy(text: str, expected: range) -> None:
    """First and last, first and how many more, or one port."""
    assert parse_port_range(text) == expected


@pytest.mark.parametrize("text", ["", "-", "a-b", "0-10", "10-5", "1-65536", "65535+1", "1-2-3", "8080-", "8080+-1"])
def test_parse_port_range_refuses_the_rest_with_a_sentence(text: str) -> None:
    """The text is quoted and the forms are named."""
    with pytest.raises(ConfigError) as caught:
        parse_port_range(text)
    assert str(caught.value).startswith(f"'{text}' is no range of ports")


@given(low=st.integers(min_value=1, max_value=65535), high=st.integers(min_value=1, max_value=65535))
def test_parse_port_range_gives_all_ports_from_first_to_last(low: int, high: int) -> None:
    """Both ends belong to the range; a range that runs backwards is refused."""
    if low <= high:
        ports = parse_port_range(f"{low}-{high}")
        assert (ports[0], ports[-1], ports.step) == (low, high, 1)
        assert parse_port_range(f"{low}+{high - low}") == ports
    else:
        with pytest.raises(ConfigError):
            parse_port_range(f"{low}-{high}")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:10249", "127.0.0.1", 10249), ("[::1]:10249", "::1", 10249), ("0.0.0.0:0", "0.0.0.0", 0)],
)
def test_parse_bind_address_reads_address_and_port(text: str, host: str, port: int) -> None:
    """IPv6 stands in brackets; port 0 lets the kernel choose."""
    assert parse_bind_address(text) == (ip_address(host), port)


def test_parse_bind_address_of_an_empty_text_is_none() -> None:
    """That is how an option says nowhere."""
    assert parse_bind_address("") is None


@pytest.mark.parametrize(
    "text",
    [
        "10249",
        ":10249",
        "127.0.0.1",
        "::1:10249",
        "[::1]",
        "localhost:1",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "1.2.3.4:x",
    ],
)
def test_parse_bind_address_refuses_the_rest_with_a_sentence(text: str) -> None:
    """The text is quoted and the forms are named."""
    with pytest.raises(ConfigError) as caught:
        parse_bind_address(text)
    assert str(caught.value).startswith(f"'{text}' is no address to listen on")


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.244.0.0/16", ["10.244.0.0/16"]),
        ("fd00::/56,10.244.0.0/16", ["fd00::/56", "10.244.0.0/16"]),
        (" 10.244.0.0/16 , fd00::/56 ", ["10.244.0.0/16", "fd00::/56"]),
        ("10.244.1.1/16", ["10.244.0.0/16"]),
        ("", []),
    ],
)
def test_parse_cidrs_takes_one_network_of_each_family(text: str, networks: list[str]) -> None:
    """In the order given; bits behind the prefix are dropped, as kube-proxy does."""
    assert parse_cidrs(text) == tuple(map(ip_network, networks))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("10.244.0.0", "'10.244.0.0' is no network: write 10.244.0.0/16 or fd00:10:244::/56"),
        ("10.244.0.0/33", "'10.244.0.0/33' is no network: write 10.244.0.0/16 or fd00:10:244::/56"),
        ("pods", "'pods' is no network: write 10.244.0.0/16 or fd00:10:244::/56"),
        (
            "10.1.0.0/16,10.2.0.0/16",
            "'10.1.0.0/16,10.2.0.0/16' has two networks of the same family: give at most one for IPv4 and one for IPv6",
        ),
        (
            "fd00::/64,10.1.0.0/16,fd01::/64",
            (
                "'fd00::/64,10.1.0.0/16,fd01::/64' has two networks of the same family: "
                "give at most one for IPv4 and one for IPv6"
            ),
        ),
    ],
)
def test_parse_cidrs_refuses_the_rest_with_a_sentence(text: str, sentence: str) -> None:
    """The text is quoted and what to write is shown."""
    with pytest.raises(ConfigError) as caught:
        parse_cidrs(text)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], NodePortAddresses()),
        ([""], NodePortAddresses()),
        (["all"], NodePortAddresses()),
        (["primary"], NodePortAddresses(is_primary=True)),
        (["localhost"], NodePortAddresses((ip_network("127.0.0.0/8"), ip_network("::1/128")))),
        (["10.0.0.0/8,fd00::/8"], NodePortAddresses((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))),
        (["10.0.0.0/8", "fd00::/8"], NodePortAddresses((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))),
        (["10.0.0.0/8,", " 10.0.0.0/8"], NodePortAddresses((ip_network("10.0.0.0/8"),))),
        (
            ["localhost, 10.0.0.0/8"],
            NodePortAddresses((ip_network("127.0.0.0/8"), ip_network("::1/128"), ip_network("10.0.0.0/8"))),
        ),
    ],
)
def test_parse_node_port_addresses_reads_networks_and_words(texts: list[str], expected: NodePortAddresses) -> None:
    """Several lists are one; what says nothing means all."""
    assert parse_node_port_addresses(texts) == expected


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["10.0.0.1"], "'10.0.0.1' is no network: write 10.244.0.0/16"),
        (["eth0"], "or one of the words primary, localhost, all"),
        (["primary,10.0.0.0/8"], "'primary' stands alone: give it without 10.0.0.0/8"),
        (["all", "localhost"], "'all' stands alone: give it without localhost"),
        (["primary", "all"], "'primary' stands alone: give it without all"),
        (["all,all"], "'all' stands alone: give it without another"),
    ],
)
def test_parse_node_port_addresses_refuses_the_rest_with_a_sentence(texts: list[str], sentence: str) -> None:
    """What is wrong is quoted."""
    with pytest.raises(ConfigError) as caught:
        parse_node_port_addresses(texts)
    assert sentence in str(caught.value)


def test_parse_node_name_h_10_trims_and_folds() -> None:
    """As the name of a Node is made of a host's name; nothing left is an error."""
    assert parse_node_name("  Node-1.Example ") == "node-1.example"
    for blank in ("", " \t"):
        with pytest.raises(ConfigError, match="must not be blank"):
            parse_node_name(blank)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
        (" http://127.0.0.1:8001/ ", "http://127.0.0.1:8001"),
        ("https://[fd00::1]:6443", "https://[fd00::1]:6443"),
        ("https://rancher.example/k8s/clusters/c-1", "https://rancher.example/k8s/clusters/c-1"),
    ],
)
def test_parse_server_url_reads_the_url_of_a_server(text: str, url: str) -> None:
    """A path may follow, as a proxy before an API server has it."""
    assert parse_server_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        *("", "10.0.0.1:6443", "10.0.0.1", "ftp://a", "https://", "https://a:x", "https://a:0", "https://a?b=c"),
        *("https://a#b", "https://me:secret@a", "https://[::1"),
    ],
)
def test_parse_server_url_refuses_the_rest_with_a_sentence(text: str) -> None:
    """The text is quoted and the form is shown."""
    with pytest.raises(ConfigError) as caught:
        parse_server_url(text)
    assert str(caught.value) == f"'{text}' is no URL of an API server: write https://10.0.0.1:6443"


@pytest.mark.parametrize("text", ["", "a", "my-proxy_2.b", "x" * 63])
def test_parse_service_proxy_name_takes_values_of_labels(text: str) -> None:
    """An empty one is one."""
    assert parse_service_proxy_name(text) == text


@pytest.mark.parametrize("text", ["-a", "a.", "a b", "a/b", "ä", "x" * 64, "a\n"])
def test_parse_service_proxy_name_refuses_what_no_label_can_have(text: str) -> None:
    """The API server would refuse to select by it."""
    with pytest.raises(ConfigError, match="is no value of a label"):
        parse_service_proxy_name(text)


def test_parse_loopback_range_stays_within_loopback() -> None:
    """Other addresses are not ours to take."""
    assert parse_loopback_range("127.50.0.0/16") == IPv4Network("127.50.0.0/16")
    for wrong in ("10.0.0.0/8", "0.0.0.0/0", "127.0.0.1/8", "127.1", "::1/128"):
        with pytest.raises(ConfigError):
            parse_loopback_range(wrong)


@pytest.mark.parametrize(
    ("text", "user"),
    [("proxy", "proxy"), (" proxy\n", "proxy"), ("0", "0"), ("4294967294", "4294967294"), ("-", "-"), ("7up", "7up")],
)
def test_worker_user_is_a_name_or_a_number(text: str, user: str) -> None:
    """Without the blanks around it; names are for the system to know."""
    assert parse_worker_user(text) == user


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must not be blank"),
        (" ", "must not be blank"),
        ("-1", "'-1' is no number of a user: write one within 0-4294967294, or a name"),
        ("4294967295", "'4294967295' is no number of a user"),
        ("9" * 5000, "is no number of a user"),
    ],
)
def test_worker_user_that_cannot_be_is_refused(text: str, reason: str) -> None:
    """The number -1, and what is the same to the kernel, is taken for "no change" by setresuid(2)."""
    with pytest.raises(ConfigError, match=reason):
        parse_worker_user(text)

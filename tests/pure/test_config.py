"""Tests of config."""

from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.config import (
    Config,
    default_runtime_dir,
    default_state_dir,
    parse_bind_address,
    parse_port_range,
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

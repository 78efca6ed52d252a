"""Proxy ports and loopback addresses, with a real state directory and real sockets in the way."""

import logging
import random
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.config import Config
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Protocol
from userspace_proxy.steering.assignments import Assignments

MakeConfig = Callable[..., Config]

NAMES = st.lists(st.sampled_from([f"shop/web-{number}" for number in range(40)]), unique=True)
WEB = "shop/web:http/TCP/internal/IPv4"


@pytest.mark.slow
@given(first=NAMES, more=NAMES, order=st.randoms(use_true_random=False))
def test_assignments_survive_a_restart_in_any_order_and_are_never_shared(
    first: list[str], more: list[str], order: random.Random
) -> None:
    """A restart gives each name what it had, whatever arrives first, and nobody what another one has."""
    with TemporaryDirectory() as directory:
        config = Config(
            manifests=(),
            state_dir=Path(directory),
            runtime_dir=Path(directory),
            # So narrow that most names meet others.
            proxy_port_range=range(20000, 20050),
            loopback_range=IPv4Network("127.96.0.192/26"),
        )
        assignments = Assignments(config)
        before = {
            name: (assignments.proxy_port(name, Protocol.TCP), assignments.loopback_address(name)) for name in first
        }
        assignments.save()

        restarted = Assignments(config)
        arriving = list(dict.fromkeys([*more, *first]))
        order.shuffle(arriving)
        after = {
            name: (restarted.proxy_port(name, Protocol.TCP), restarted.loopback_address(name)) for name in arriving
        }

    assert {name: after[name] for name in before} == before
    ports, addresses = {port for port, _ in after.values()}, {address for _, address in after.values()}
    assert len(ports) == len(addresses) == len(after)
    assert ports <= set(config.proxy_port_range)
    assert all(address in config.loopback_range for address in addresses)


def test_assignment_of_a_name_that_meets_no_other_is_the_same_everywhere(make_config: MakeConfig) -> None:
    """The hash of the name decides, not the process, the host or the release."""
    assignments = Assignments(make_config())
    assert assignments.proxy_port(WEB, Protocol.TCP) == 19623
    assert assignments.loopback_address("shop/web") == IPv4Address("127.102.205.38")


@pytest.mark.parametrize(
    ("family", "kind", "address"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1"),
        (socket.AF_INET6, socket.SOCK_STREAM, "::1"),
        (socket.AF_INET, socket.SOCK_DGRAM, "127.0.0.1"),
        (socket.AF_INET6, socket.SOCK_DGRAM, "::1"),
    ],
)
def test_port_of_a_foreign_socket_is_never_handed_out(
    make_config: MakeConfig, family: socket.AddressFamily, kind: socket.SocketKind, address: str
) -> None:
    """A port in use counts as taken, neither for a new name nor for the one that had it before the restart."""
    protocol = Protocol.TCP if kind == socket.SOCK_STREAM else Protocol.UDP
    with socket.socket(family, kind) as foreign:
        foreign.bind((address, 0))
        port = foreign.getsockname()[1]
        config = make_config(proxy_port_range=range(port, port + 1))
        before = Assignments(config)
        if kind == socket.SOCK_STREAM:
            assert before.proxy_port(WEB, protocol) == port  # bound, but it does not listen
            before.save()
            foreign.listen()
        with pytest.raises(SteeringError, match=r"all of .* are taken; widen --proxy-port-range"):
            Assignments(config).proxy_port(WEB, protocol)
    assert Assignments(config).proxy_port(WEB, protocol) == port


def test_port_of_a_foreign_socket_of_the_other_protocol_is_no_obstacle(make_config: MakeConfig) -> None:
    """The ports of TCP and of UDP are not the same."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as foreign:
        foreign.bind(("127.0.0.1", 0))
        port = foreign.getsockname()[1]
        config = make_config(proxy_port_range=range(port, port + 1))
        assert Assignments(config).proxy_port(WEB, Protocol.TCP) == port
        with pytest.raises(SteeringError, match="widen --proxy-port-range"):
            Assignments(config).proxy_port(WEB, Protocol.UDP)


def test_foreign_socket_is_noticed_once_something_was_released(make_config: MakeConfig) -> None:
    """What others listen on is looked up once at the start, and for each name after that."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as foreign:
        foreign.bind(("127.0.0.1", 0))
        port = foreign.getsockname()[1]
        assignments = Assignments(make_config(proxy_port_range=range(port, port + 1)))
        assert assignments.proxy_port(WEB, Protocol.TCP) == port
        assignments.release([WEB], assignments.asked)
        foreign.listen()
        with pytest.raises(SteeringError, match="widen --proxy-port-range"):
            assignments.proxy_port(WEB, Protocol.TCP)


def test_own_socket_does_not_count_as_foreign(make_config: MakeConfig) -> None:
    """A name that is in use keeps its port although its own Listener is now seen there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assignments = Assignments(make_config(proxy_port_range=range(port, port + 1)))
        assert assignments.proxy_port(WEB, Protocol.TCP) == port
        listener.listen()
        assignments.release([], assignments.asked)
        assert assignments.proxy_port(WEB, Protocol.TCP) == port


def test_name_that_is_asked_for_after_it_was_gone_stays_in_use(make_config: MakeConfig) -> None:
    """To be released late does not take from it what it has got back meanwhile."""
    assignments = Assignments(make_config(proxy_port_range=range(20000, 20003)))
    old, back = assignments.proxy_port("old", Protocol.TCP), assignments.proxy_port("back", Protocol.TCP)
    moment = assignments.asked
    new = assignments.proxy_port("new", Protocol.TCP)
    assert assignments.proxy_port("back", Protocol.TCP) == back
    assignments.release(["old", "back"], moment)
    assert assignments.proxy_port("next", Protocol.TCP) == old
    assert (assignments.proxy_port("new", Protocol.TCP), assignments.proxy_port("back", Protocol.TCP)) == (new, back)


def test_vanished_name_keeps_what_it_has_until_the_space_is_needed(make_config: MakeConfig) -> None:
    """A Service that comes back finds its port, unless another one could not have had any."""
    assignments = Assignments(make_config(proxy_port_range=range(20000, 20002)))
    had = {name: assignments.proxy_port(name, Protocol.TCP) for name in ("stays", "goes")}
    assignments.release(["goes"], assignments.asked)
    assert assignments.proxy_port("goes", Protocol.TCP) == had["goes"]

    with pytest.raises(SteeringError, match="no proxy port is left for new: all of 20000-20001 are taken"):
        assignments.proxy_port("new", Protocol.TCP)
    assignments.release(["goes"], assignments.asked)
    assert assignments.proxy_port("new", Protocol.TCP) == had["goes"]
    assert assignments.proxy_port("stays", Protocol.TCP) == had["stays"]


def test_addresses_that_do_not_look_like_a_host_are_never_handed_out(make_config: MakeConfig) -> None:
    """All of a range is used except .0, .255 and localhost; then the sentence names the setting."""
    assignments = Assignments(make_config(loopback_range=IPv4Network("127.0.0.0/23")))
    given_out = {str(assignments.loopback_address(f"shop/web-{number}")) for number in range(507)}
    assert len(given_out) == 507
    assert given_out.isdisjoint({"127.0.0.0", "127.0.0.1", "127.0.0.255", "127.0.1.0", "127.0.1.255"})
    with pytest.raises(SteeringError, match=r"all of 127\.0\.0\.0/23 are taken; widen --loopback-range"):
        assignments.loopback_address("shop/one-too-many")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"proxy_ports": {"\xff": 20000}, "loopback_addresses": {}}',
        b'{"proxy_ports": {"web": "many"}, "loopback_addresses": {}}',
        b'{"proxy_ports": {}, "loopback_addresses": {"shop/web": "::1"}}',
    ],
)
def test_unreadable_file_is_said_once_and_replaced(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """A file that makes no sense costs the old assignments, not the start."""
    config = make_config()
    config.state_dir.mkdir()
    path = config.state_dir / "assignments.json"
    path.write_bytes(content)

    assignments = Assignments(config)
    port = assignments.proxy_port(WEB, Protocol.TCP)
    assignments.save()
    assert [(record.levelno, record.__dict__["resource"]) for record in caplog.records] == [(logging.WARNING, path)]
    assert Assignments(config).proxy_port(WEB, Protocol.TCP) == port
    assert len(caplog.records) == 1


def test_kept_numbers_that_do_not_fit_any_more_are_forgotten(make_config: MakeConfig) -> None:
    """Of two names with one number only one has it, and a number outside the range is nobody's."""
    config = make_config(proxy_port_range=range(20000, 20010))
    config.state_dir.mkdir()
    kept = '{"proxy_ports": {"a": 20005, "b": 20005, "c": 19999}, "loopback_addresses": {"shop/web": "127.96.0.0"}}'
    (config.state_dir / "assignments.json").write_text(kept)

    assignments = Assignments(config)
    ports = [assignments.proxy_port(name, Protocol.TCP) for name in ("c", "b", "a")]
    assert ports[2] == 20005
    assert len(set(ports)) == 3
    assert set(ports) <= set(config.proxy_port_range)
    assert assignments.loopback_address("shop/web") != IPv4Address("127.96.0.0")


def test_unwritable_state_directory_is_said_once_and_healed_later(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a place to keep them assignments last as long as the process, and are kept once there is one."""
    config = make_config()
    config.state_dir.write_text("a file where the directory should be")
    assignments = Assignments(config)
    port = assignments.proxy_port(WEB, Protocol.TCP)
    caplog.clear()  # of what was said about reading
    assignments.save()
    assignments.save()
    assert assignments.proxy_port(WEB, Protocol.TCP) == port
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "--state-dir" in caplog.records[0].getMessage()

    config.state_dir.unlink()
    assignments.save()
    assert str(port) in (config.state_dir / "assignments.json").read_text()


def test_file_is_written_only_when_an_assignment_is_new(make_config: MakeConfig) -> None:
    """A change of Services that needs no new number writes nothing; a write replaces the file whole."""
    config = make_config()
    path = config.state_dir / "assignments.json"
    assignments = Assignments(config)
    assignments.save()
    assert not path.exists()

    assignments.proxy_port(WEB, Protocol.TCP)
    assignments.save()
    first = path.stat().st_ino
    assignments.proxy_port(WEB, Protocol.TCP)
    assignments.save()
    assert path.stat().st_ino == first

    assignments.loopback_address("shop/web")
    assignments.save()
    assert path.stat().st_ino != first
    assert [entry.name for entry in config.state_dir.iterdir()] == ["assignments.json"]

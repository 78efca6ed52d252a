"""How listening sockets are opened, what is said when they cannot be, and what the errnos of dials are called."""

import errno
import itertools
import os
import socket
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from attrs import evolve
from builders import listener_key
from peers import descriptors_left, is_taken, nothing_left_open, own_host, unprivileged
from udp_peers import flush_loopback, own_port

from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.reuseport import choose_by_source
from userspace_proxy.dataplane.sockets import (
    ACCEPT_LOST,
    NO_LOCAL_PORT,
    OUT_OF_CAPACITY,
    dial_outcome,
    errno_name,
    hold_port,
    share_port,
    start_listening,
    stop_listening,
)
from userspace_proxy.dataplane.udp_addresses import IP_PKTINFO
from userspace_proxy.dataplane.udp_sockets import open_datagram_sockets, refuse_datagrams
from userspace_proxy.errors import ListenError
from userspace_proxy.model.names import Protocol
from userspace_proxy.plan.state import ListenerSpec

HOST = own_host(2)
PRIVILEGED_PORT = max(0, int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) - 1)
"""0: there is none."""


def spec(host: str, port: int = 0) -> ListenerSpec:
    """Return the place of a listener."""
    return ListenerSpec(listener_key(), ip_address(host), port)


def hold(host: str, port: int = 0, *, shares_port: bool = False) -> socket.socket:
    """Return a socket that holds a place."""
    return hold_port(spec(host, port), shares_port=shares_port, names_holder=False)


def listen(sock: socket.socket, limits: RelayLimits = RelayLimits()) -> None:  # noqa: B008 - frozen
    """Have a socket listen."""
    host, port = sock.getsockname()[:2]
    start_listening(sock, spec(host, port), limits, names_holder=True)


def listening(host: str, port: int = 0, limits: RelayLimits = RelayLimits()) -> socket.socket:  # noqa: B008 - frozen
    """Return a socket that listens."""
    sock = hold(host, port)
    listen(sock, limits)
    return sock


def failure(host: str, port: int, *, names_holder: bool = False) -> str:
    """Return what is said about a port that cannot be had."""
    with nothing_left_open(), pytest.raises(ListenError) as caught:
        hold_port(spec(host, port), shares_port=False, names_holder=names_holder)
    assert isinstance(caught.value.__cause__, OSError)
    return str(caught.value)


@pytest.mark.parametrize("host", [HOST, "::1", "0.0.0.0", "::"], ids=["IPv4", "IPv6", "any IPv4", "any IPv6"])
def test_listening_socket_is_as_the_settings_say(host: str) -> None:
    """It listens, never blocks, is for one family only, and hands keepalive and no delay on to accepted sockets."""
    with listening(host, limits=RelayLimits(keepalive_idle_s=33)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        port = sock.getsockname()[1]
        assert host != "::" or sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        with socket.create_connection((target, port)):
            sock.setblocking(True)  # noqa: FBT003
            accepted, _ = sock.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 33


def test_listening_sockets_of_both_families_share_a_port() -> None:
    """The wildcard of IPv6 leaves the same port of IPv4 free."""
    for _ in range(50):  # a few ports of IPv4 are taken by others
        with listening("::") as six, suppress(ListenError):
            port = six.getsockname()[1]
            listening("0.0.0.0", port).close()
            return
    pytest.fail("no port is free for both")


def test_listening_socket_opens_where_connections_are_in_time_wait() -> None:
    """A restart does not wait for old connections to be forgotten."""
    with listening(HOST) as sock:
        port = sock.getsockname()[1]
        with socket.create_connection((HOST, port)):
            sock.setblocking(True)  # noqa: FBT003
            sock.accept()[0].close()
    listening(HOST, port).close()


def test_port_is_held_against_servers_while_connections_from_before_are_open() -> None:
    """Neither these nor those in TIME_WAIT keep it from listening again, nor let another one listen meanwhile."""
    port = own_port(5)
    with listening(HOST, port) as sock, ExitStack() as stack:
        sock.setblocking(True)  # noqa: FBT003
        for _ in range(3):
            stack.enter_context(socket.create_connection((HOST, port)))
            open_one = stack.enter_context(sock.accept()[0])
            with socket.create_connection((HOST, port)):
                sock.accept()[0].close()
            stop_listening(sock)
            assert is_taken(HOST, port)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((HOST, port))
            listen(sock)
            open_one.sendall(b"alive")


def test_held_socket_that_cannot_listen_holds_its_port_as_before() -> None:
    """It is as if nothing had been tried."""
    with hold(HOST) as sock, socket.socket() as other:
        host, port = sock.getsockname()
        for each in (sock, other):
            share_port(each, is_shared=True)
        other.bind((host, port))
        other.listen()
        share_port(sock, is_shared=False)
        with pytest.raises(ListenError, match="in use by"):
            listen(sock)
        other.close()
        assert is_taken(host, port)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_sockets_at_an_address_that_comes_later_open(host: str) -> None:
    """Of a virtual address, of no machine here (RFC 5737, RFC 3849); of others it is an error as ever."""
    with pytest.raises(ListenError, match="no such address on this node"):
        hold(host, 80)
    where = evolve(spec(host, 80), is_virtual=True)
    with hold_port(where, shares_port=False, names_holder=False) as sock:
        start_listening(sock, where, RelayLimits(), names_holder=False)
    where = evolve(udp_spec(host, 53), is_virtual=True)
    (sock,) = open_datagram_sockets(where, 1, shares_port=False, names_holder=False)
    with sock:
        assert sock.getsockname()[:2] == (host, 53)


def test_listening_socket_queues_as_many_as_its_backlog() -> None:
    """The setting reaches listen(2)."""
    with listening(HOST, limits=RelayLimits(listen_backlog=1)) as sock:
        clients = []
        for _ in range(4):
            client = socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            client.connect_ex(sock.getsockname())
            clients.append(client)
        connected = [client for client in clients if is_connected(client)]
        assert len(connected) == 2  # one more than the backlog (net/sock.h: sk_acceptq_is_full)
        for client in clients:
            client.close()


def is_connected(sock: socket.socket) -> bool:
    """Return whether a connection has been established."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def test_listening_socket_at_a_port_in_use_names_the_holder_if_asked() -> None:
    """The sentence says where, for whom, who is there and what to do."""
    with socket.create_server((HOST, 0)) as holder:
        port = holder.getsockname()[1]
        text = failure(HOST, port, names_holder=True)
        assert text.startswith(f"cannot listen on {HOST}:{port} for shop/web:http: in use by pid {os.getpid()} (")
        assert text.endswith("; stop it or change the port")
        assert failure(HOST, port) == (
            f"cannot listen on {HOST}:{port} for shop/web:http: in use by another process; stop it or change the port"
        )


def test_listening_socket_whose_holder_is_hidden_says_another_process() -> None:
    """A socket that is bound and does not listen is shown nowhere."""
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        assert "in use by another process;" in failure(HOST, holder.getsockname()[1], names_holder=True)


def test_listening_socket_at_a_port_in_use_writes_ipv6_addresses_in_brackets() -> None:
    """Address and port can be told apart."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as holder:
        port = holder.getsockname()[1]
        assert failure("::1", port).startswith(f"cannot listen on [::1]:{port} for ")


@pytest.mark.skipif(
    not PRIVILEGED_PORT, reason="here everybody may listen everywhere (net.ipv4.ip_unprivileged_port_start)"
)
def test_listening_socket_at_a_low_port_without_rights_says_what_is_needed() -> None:
    """The sentence names the setting and the capability."""
    with unprivileged():
        assert failure(HOST, PRIVILEGED_PORT).endswith(
            "not permitted; ports below net.ipv4.ip_unprivileged_port_start need root or CAP_NET_BIND_SERVICE"
        )


def test_listening_socket_at_a_foreign_address_says_so() -> None:
    """An address of another machine (here: of documentation, RFC 5737) is refused in plain words."""
    assert failure("192.0.2.1", 80).endswith("no such address on this node")


def test_listening_socket_without_descriptors_says_how_to_get_more() -> None:
    """The sentence names the limit."""
    with descriptors_left(0), pytest.raises(ListenError, match="no file descriptor is left; raise the limit"):
        hold(HOST)


def test_listening_socket_that_fails_otherwise_has_the_words_of_the_system() -> None:
    """An errno without a sentence of its own is not swallowed."""
    assert failure("ff02::1", 80).endswith(f": {os.strerror(errno.EINVAL)}")  # multicast


def udp_spec(host: str, port: int = 0) -> ListenerSpec:
    """Return the place of a listener of UDP."""
    return ListenerSpec(listener_key("shop/dns:dns", protocol=Protocol.UDP), ip_address(host), port)


def open_udp(host: str, port: int = 0) -> socket.socket:
    """Return a socket that takes datagrams."""
    (sock,) = open_datagram_sockets(udp_spec(host, port), 1, shares_port=False, names_holder=False)
    return sock


@pytest.mark.parametrize("host", [HOST, "::1", "0.0.0.0", "::"], ids=["IPv4", "IPv6", "any IPv4", "any IPv6"])
def test_datagram_socket_never_blocks_and_is_for_one_family_only(host: str) -> None:
    """It asks for the address that datagrams were sent to where it has more than one, and has room for a burst."""
    with open_udp(host) as sock:
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        wildcard = host in ("0.0.0.0", "::")
        if ":" in host:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO) == wildcard
        else:
            assert sock.getsockopt(socket.IPPROTO_IP, IP_PKTINFO) == wildcard
        # The kernel doubles what it is asked for, for its own use (socket(7)).
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * (4 << 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it does without the rights of root")
def test_datagram_socket_without_rights_has_as_much_room_as_everybody_may_have() -> None:
    """It opens all the same."""
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_text())
    with unprivileged(), open_udp(HOST) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * min(allowed, 4 << 20)


def test_datagram_socket_at_a_port_in_use_names_the_holder_if_asked() -> None:
    """As for TCP; a port of TCP is not in the way."""
    with open_udp(HOST) as holder:
        port = holder.getsockname()[1]
        listening(HOST, port).close()
        for names_holder, who in ((True, f"pid {os.getpid()} ("), (False, "another process")):
            with nothing_left_open(), pytest.raises(ListenError) as caught:
                open_datagram_sockets(udp_spec(HOST, port), 1, shares_port=False, names_holder=names_holder)
            text = str(caught.value)
            assert text.startswith(f"cannot listen on {HOST}:{port} for shop/dns:dns")
            assert f"in use by {who}" in text


def test_datagram_socket_that_cannot_be_opened_says_why() -> None:
    """No descriptor, or an address of another machine."""
    with descriptors_left(0), pytest.raises(ListenError, match="no file descriptor is left; raise the limit"):
        open_udp(HOST)
    with nothing_left_open(), pytest.raises(ListenError, match="no such address on this node"):
        open_udp("192.0.2.1", 53)


@pytest.mark.parametrize("shares_port", [False, True])
def test_datagram_sockets_that_have_predecessors_are_a_group_of_their_own(shares_port: bool) -> None:  # noqa: FBT001
    """The kernel chooses from them alone, and the predecessors hold the port as before if the new ones go."""
    host = own_host(5)
    place = udp_spec(host, own_port(1))
    with ExitStack() as stack:
        before: tuple[socket.socket, ...] = ()
        for _ in range(2):
            group = open_datagram_sockets(place, 3, shares_port=shares_port, names_holder=False, predecessors=before)
            for sock in group:
                stack.enter_context(sock)
            choose_by_source(group[0], len(group))
            for number in range(30):
                client = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                client.bind((f"127.0.1.{number + 1}", 0))
                client.sendto(b"ping", (host, place.port))
            flush_loopback()
            assert sum(map(count_datagrams, group)) == 30
            assert all(count_datagrams(sock) == 0 for sock in before)
            for sock in group:
                refuse_datagrams(sock, place)
            assert not any(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) for sock in (*group, *before))
            before = group


def count_datagrams(sock: socket.socket) -> int:
    """Return how many datagrams a socket has received; they are gone then."""
    for count in itertools.count():
        try:
            sock.recv(100)
        except BlockingIOError:
            return count
    raise AssertionError


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (errno.ECONNREFUSED, "refused"),
        (errno.ECONNRESET, "reset"),
        (errno.ETIMEDOUT, "timeout"),
        (errno.EHOSTUNREACH, "unreachable"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.EADDRNOTAVAIL, "no_local_port"),
        (errno.EMFILE, "no_descriptor"),
        (errno.ENOMEM, "no_descriptor"),
        (errno.EPERM, "not_permitted"),
        (errno.EPIPE, "error"),
        (0, "error"),
    ],
)
def test_dial_outcome_is_one_of_few_labels(number: int, outcome: str) -> None:
    """Metric labels are bounded: whatever connect(2) says has one."""
    assert dial_outcome(number) == outcome


def test_errno_sets_do_not_overlap() -> None:
    """No errno asks for two reactions."""
    assert not OUT_OF_CAPACITY & ACCEPT_LOST
    assert not OUT_OF_CAPACITY & NO_LOCAL_PORT


def test_errno_name_of_an_unknown_number_is_the_number() -> None:
    """Names of errnos are those of errno(3)."""
    assert errno_name(errno.EMFILE) == "EMFILE"
    assert errno_name(99999) == "99999"

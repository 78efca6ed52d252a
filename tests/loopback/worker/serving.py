"""What a test has a worker serve: sockets and Backends of its own, without threads.

Entry point: ``open_shop``.
"""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address

from builders import backend, listener_key, pool_key, route
from worker_driver import DEADLINE_S

from userspace_proxy.ipc.commands import Serve, SetPool
from userspace_proxy.model.names import Protocol
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import ListenerKey, ListenerSpec, Pool, PoolKey, UdpSettings

HOST = "127.0.0.1"
WEB = "shop/web:http"
DNS = "shop/dns:dns"


def port_of(sock: socket.socket) -> int:
    """Return the port that a socket is bound to."""
    port: int = sock.getsockname()[1]
    return port


def wait_readable(*socks: socket.socket) -> socket.socket:
    """Return the first of some sockets at which there is something."""
    readable, _, _ = select.select(socks, [], [], DEADLINE_S)
    assert readable, "nothing has come"
    sock: socket.socket = readable[0]
    return sock


class Shop:
    """Makes sockets and closes them."""

    def __init__(self, stack: ExitStack) -> None:
        """Start with none.

        Args:
            stack: Closes them.
        """
        self._stack = stack

    def listening(self) -> socket.socket:
        """Return a TCP socket that listens, non-blocking as those of the control process."""
        sock = self._stack.enter_context(socket.create_server((HOST, 0)))
        sock.setblocking(False)  # noqa: FBT003
        return sock

    def receiving(self) -> socket.socket:
        """Return a UDP socket, non-blocking as those of the control process."""
        sock = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        sock.bind((HOST, 0))
        return sock

    def udp_client(self, port: int) -> socket.socket:
        """Return a socket that sends to a port."""
        sock = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.settimeout(DEADLINE_S)
        sock.connect((HOST, port))
        return sock

    def connect(
        self, port: int, *servers: socket.socket, source: str = HOST
    ) -> tuple[socket.socket, socket.socket, socket.socket]:
        """Return a client, the Backend of some that it comes to, and the connection there."""
        client = self.client(port, source)
        server = wait_readable(*servers)
        connection = self._stack.enter_context(server.accept()[0])
        connection.settimeout(DEADLINE_S)
        return client, server, connection

    def client(self, port: int, source: str = HOST) -> socket.socket:
        """Return a client that has connected to a port."""
        return self._stack.enter_context(socket.create_connection((HOST, port), DEADLINE_S, (source, 0)))


@contextmanager
def open_shop() -> Iterator[Shop]:
    """Yield a Shop, whose sockets are closed at the end."""
    with ExitStack() as stack:
        yield Shop(stack)


def key_of(name: str = WEB, protocol: Protocol = Protocol.TCP) -> ListenerKey:
    """Return the key of the listener of a ServicePort."""
    return listener_key(name, protocol=protocol)


def pool_key_of(name: str = WEB, protocol: Protocol = Protocol.TCP) -> PoolKey:
    """Return the key of the Pool of a ServicePort."""
    return pool_key(name, protocol=protocol)


def set_pool(
    *servers: socket.socket,
    name: str = WEB,
    protocol: Protocol = Protocol.TCP,
    affinity_timeout_s: int | None = None,
) -> SetPool:
    """Return the command that makes a Pool of some Backends."""
    udp = UdpSettings() if protocol is Protocol.UDP else None
    backends = tuple(backend(f"{HOST}:{port_of(server)}") for server in servers)
    return SetPool(Pool(pool_key_of(name, protocol), backends, Balance.ROUND_ROBIN, affinity_timeout_s, udp))


def serve(
    number: int, sock: socket.socket, name: str = WEB, protocol: Protocol = Protocol.TCP, *, is_shared: bool = False
) -> Serve:
    """Return the command that has a socket served, for the Pool of the same ServicePort."""
    spec = ListenerSpec(key_of(name, protocol), ip_address(HOST), port_of(sock))
    return Serve(number, spec, route(pool_key_of(name, protocol)), is_shared)

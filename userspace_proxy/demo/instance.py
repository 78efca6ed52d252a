"""Where a demonstration runs: the example as it is, or a copy of it with other addresses if those are in use.

Instance 0 is ``examples/01-hello``; the others have 127.91, 127.92 ... for its 127.90, and ports that are higher by as
much, so that demonstrations run side by side, and beside a server that has port 8080 or 80 on all addresses. Opens
sockets, starts nothing. Entry point: ``open_instance``.
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import as_file, files
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from attrs import frozen

from userspace_proxy.dataplane.socket_holders import describe_holder
from userspace_proxy.errors import DemoError
from userspace_proxy.model.names import Protocol
from userspace_proxy.plan.state import Backend

INSTANCES = 6
"""Demonstrations that can run side by side: 127.90 to 127.95. 127.96 begins the default range of Services."""
_FIRST_NETWORK = 90
_HOSTS = (11, 12, 13)
_BACKEND_PORT = 8080
_SERVICE_PORT = 80
_BACKLOG = 1024


@frozen
class Instance:
    """Addresses that are free, and the manifest that names them."""

    number: int
    backends: tuple[Backend, ...]
    listening: tuple[socket.socket, ...]
    """One for each of ``backends``."""
    manifest: Path
    loopback_range: IPv4Network
    """For the addresses of Services."""
    copied_because: str
    """Why the manifest is a copy with other addresses, as a clause; empty: it is the example itself."""


@contextmanager
def open_instance(directory: Path) -> Iterator[Instance]:
    """Listen where the backends will, at the first addresses that are free.

    Args:
        directory: Where a copy of the example is put if one is needed.

    Raises:
        DemoError: no addresses are free, or they cannot be bound.

    Owns: the listening sockets; whoever has passed one on may close it earlier.
    """
    in_use = ""
    with ExitStack() as owned:
        for number in range(INSTANCES):
            backends = _backends(number)
            loopback_range = IPv4Network(f"127.{_FIRST_NETWORK + number}.128.0/17")
            service = Backend(loopback_range[1], _SERVICE_PORT + number)
            with ExitStack() as opened:
                try:
                    listening = tuple(opened.enter_context(_listen(backend)) for backend in backends)
                    _try_bind(service)
                except _InUseError as error:
                    in_use = in_use or str(error)
                    continue
                owned.enter_context(opened.pop_all())
            example = owned.enter_context(as_file(files("userspace_proxy.demo") / "hello.yaml"))
            manifest = _copy(example, directory, number) if number else example
            yield Instance(number, backends, listening, manifest, loopback_range, in_use)
            return
    raise DemoError(
        f"the demo finds no free addresses: {in_use}, and of the {INSTANCES - 1} other sets of addresses that it "
        f"tries something is in use too; stop a demo that is running"
    )


class _InUseError(Exception):
    """An address of an instance is in use; leads to the next instance."""


def _backends(number: int) -> tuple[Backend, ...]:
    network = IPv4Address(f"127.{_FIRST_NETWORK + number}.0.0")
    return tuple(Backend(network + host, _BACKEND_PORT + number) for host in _HOSTS)


def _listen(backend: Backend) -> socket.socket:
    """Return a socket that listens for a backend.

    Raises:
        _InUseError: somebody else does.
        DemoError: nobody can.
    """
    sock = _bind(backend)
    try:
        sock.listen(_BACKLOG)
    except OSError as error:  # two demos that start at once: both are bound, and one listens
        sock.close()
        raise _refusal(backend, error) from error
    return sock


def _try_bind(service: Backend) -> None:
    """Find out whether somebody has the port of the Service on all addresses: as a Listener it would fail.

    Raises:
        _InUseError: somebody has.
    """
    try:
        _bind(service).close()
    except DemoError:  # not permitted: steering moves it to a higher port
        return


def _bind(at: Backend) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # what a demo before has left in TIME_WAIT is not in the way
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(at.address), at.port))
    except OSError as error:
        sock.close()
        raise _refusal(at, error) from error
    return sock


def _refusal(at: Backend, error: OSError) -> DemoError | _InUseError:
    if error.errno == errno.EADDRINUSE:
        return _InUseError(
            f"{at} is in use by {describe_holder(at.address, at.port, Protocol.TCP) or 'another process'}"
        )
    return DemoError(f"the demo cannot listen on {at}: {error.strerror}; is the loopback interface up (ip link)?")


def _copy(example: Path, directory: Path, number: int) -> Path:
    """Write a copy of the example with the addresses and ports of an instance, and return where it is."""
    text = example.read_text(encoding="utf-8")
    for old, new in (
        (f"127.{_FIRST_NETWORK}.0.", f"127.{_FIRST_NETWORK + number}.0."),
        (f"port: {_BACKEND_PORT}\n", f"port: {_BACKEND_PORT + number}\n"),
        (f"port: {_SERVICE_PORT}\n", f"port: {_SERVICE_PORT + number}\n"),
    ):
        text = text.replace(old, new)
    copy = directory / example.name
    copy.write_text(text, encoding="utf-8")
    return copy

"""Proxy ports and loopback addresses: handed out by name, the same after a restart whatever the order of arrival.

A name's hash says where to look first, the file in the state directory remembers who got what. Nothing here binds
a port or knows what a name stands for. Entry point: ``Assignments``.
"""

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b
from ipaddress import AddressValueError, IPv4Address, IPv4Network

import msgspec
from attrs import field, frozen

from userspace_proxy.config import Config
from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Protocol
from userspace_proxy.steering.node_state import is_port_in_use, tcp_ports_in_use

_log = logging.getLogger(__name__)

_LOCALHOST = IPv4Address("127.0.0.1")


class Assignments:
    """The proxy ports and loopback addresses of one state directory.

    Names that are no longer in use keep what they have until the space is needed: a Service that is deleted and
    created again is found where it was.
    """

    def __init__(self, config: Config) -> None:
        self._path = config.state_dir / "assignments.json"
        self._ports = _Numbers(config.proxy_port_range, allowed=lambda _: True)
        network = config.loopback_range
        first = int(network.network_address)
        self._addresses = _Numbers(range(first, first + network.num_addresses), allowed=_is_plain_host)
        self.proxy_port_range: range = config.proxy_port_range
        self.loopback_range: IPv4Network = network
        self._is_start = True
        """Until something is released: many names are asked for in a row, and one look at all sockets is cheaper."""
        self._tcp_ports: frozenset[int] | None = None
        """Those in use at the start; None: not looked up."""
        self._is_writable = True
        self.asked = 0
        """How often something was asked for: a mark in time for ``release``."""
        self._load()

    def proxy_port(self, name: str, protocol: Protocol, *, preferred: int | None = None) -> int:
        """Return the proxy port of a Listener: no other name has it, and no foreign socket had it at first sight.

        Args:
            name: The Listener's, of any protocol.
            protocol: The one by which foreign sockets would be in its way.
            preferred: For a name that has none yet, if nobody else has it.

        Raises:
            SteeringError: all are taken.
        """
        self.asked += 1
        port = self._ports.get(name, partial(self._is_foreign, protocol=protocol), self.asked, preferred)
        if port is None:
            first, last = self.proxy_port_range[0], self.proxy_port_range[-1]
            raise SteeringError(
                f"no proxy port is left for {name}: all of {first}-{last} are taken; widen --proxy-port-range"
            )
        return port

    def loopback_address(self, name: str) -> IPv4Address:
        """Return the loopback address of a Service; no other name has it. Never one that ends in .0 or .255.

        Raises:
            SteeringError: all are taken.
        """
        self.asked += 1
        number = self._addresses.get(name, lambda _: False, self.asked)
        if number is None:
            raise SteeringError(
                f"no loopback address is left for {name}: all of {self.loopback_range} are taken; "
                f"widen --loopback-range"
            )
        return IPv4Address(number)

    def release(self, names: Iterable[str], asked: int) -> None:
        """Say that names are not in use any more, of Listeners and of Services: they may lose what they have.

        Args:
            names: Those; others stay in use.
            asked: The attribute of that name as it was when this was so: what was asked for since is in use again.
        """
        self._is_start = False
        self._tcp_ports = None
        for name in names:
            self._ports.release(name, asked)
            self._addresses.release(name, asked)

    def save(self) -> None:
        """Write the file if there is something new; where that fails say it once, and go on without."""
        if not (self._ports.is_changed or self._addresses.is_changed):
            return
        addresses = {name: str(IPv4Address(number)) for name, number in self._addresses.by_name.items()}
        content = msgspec.json.encode(_Kept(self._ports.by_name, addresses))
        written = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            written.write_bytes(msgspec.json.format(content, indent=1))
            os.replace(written, self._path)  # noqa: PTH105 - the atomic one, by the name POSIX gives it
        except OSError as error:
            if self._is_writable:
                _log.warning(
                    "assignments cannot be kept: after a restart proxy ports and loopback addresses may be others; "
                    "give a writable --state-dir",
                    extra={"resource": self._path, "reason": error},
                )
            self._is_writable = False
        else:
            self._is_writable = True
            self._ports.is_changed = self._addresses.is_changed = False

    def _is_foreign(self, port: int, protocol: Protocol) -> bool:
        if protocol is Protocol.UDP or not self._is_start:
            return is_port_in_use(port, protocol)
        if self._tcp_ports is None:
            try:
                self._tcp_ports = tcp_ports_in_use()
            except OSError:  # no file descriptor is left: whoever opens the Listener will see
                return False
        return port in self._tcp_ports

    def _load(self) -> None:
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
            addresses = {name: int(IPv4Address(text)) for name, text in kept.loopback_addresses.items()}
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, AddressValueError) as error:
            _log.warning(
                "kept assignments cannot be read: proxy ports and loopback addresses may be others than before",
                extra={"resource": self._path, "reason": error},
            )
            return
        self._ports.restore(kept.proxy_ports)
        self._addresses.restore(addresses)


@frozen
class _Kept:
    """The file."""

    proxy_ports: dict[str, int] = field(factory=dict)
    loopback_addresses: dict[str, str] = field(factory=dict)


class _Numbers:
    """Numbers of one range, each with at most one name."""

    def __init__(self, numbers: range, allowed: Callable[[int], bool]) -> None:
        self._numbers = numbers
        self._allowed = allowed
        self._taken: set[int] = set()
        self._in_use: dict[str, int] = {}
        """Names that are in use, with the mark of the last time they were asked for."""
        self.by_name: dict[str, int] = {}
        self.is_changed = False

    def restore(self, by_name: dict[str, int]) -> None:
        """Take over what was kept, as far as it fits the range; of two names with one number the first has it."""
        for name, number in by_name.items():
            if number in self._numbers and self._allowed(number) and number not in self._taken:
                self._assign(name, number)
        self.is_changed = False

    def get(self, name: str, is_foreign: Callable[[int], bool], asked: int, preferred: int | None = None) -> int | None:
        """Return the number of a name; None: there is none left.

        Args:
            name: Who asks.
            is_foreign: Tells whether others have taken a number. A name that is in use is past that question: it may
                be its own socket that would be seen.
            asked: The mark of this moment.
            preferred: See ``Assignments.proxy_port``.
        """
        number = self.by_name.get(name)
        if number is not None and (name in self._in_use or not is_foreign(number)):
            self._in_use[name] = asked
            return number
        if number is not None:
            self._release(name)
        number = preferred
        if number is None or number not in self._numbers or number in self._taken or is_foreign(number):
            number = self._find(name, is_foreign)
        if number is None:
            for vanished in self.by_name.keys() - self._in_use.keys():
                self._release(vanished)
            number = self._find(name, is_foreign)
        if number is not None:
            self._assign(name, number)
            self._in_use[name] = asked
        return number

    def release(self, name: str, asked: int) -> None:
        """Say that a name was not in use at the moment of a mark."""
        if self._in_use.get(name, asked + 1) <= asked:
            del self._in_use[name]

    def _find(self, name: str, is_foreign: Callable[[int], bool]) -> int | None:
        count = len(self._numbers)
        if len(self._taken) == count:
            return None
        start = int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) % count
        for step in range(count):
            number = self._numbers[(start + step) % count]
            if number not in self._taken and self._allowed(number) and not is_foreign(number):
                return number
        return None

    def _assign(self, name: str, number: int) -> None:
        self.by_name[name] = number
        self._taken.add(number)
        self.is_changed = True

    def _release(self, name: str) -> None:
        self._taken.remove(self.by_name.pop(name))
        self.is_changed = True


def _is_plain_host(number: int) -> bool:
    """Tell whether an address looks like one host to everybody: not like a network or a broadcast, not localhost."""
    return number & 0xFF not in (0x00, 0xFF) and number != int(_LOCALHOST)

"""What there is to know of the node: its addresses and the ports in use. Reads, never changes anything.

Plain ioctl and /proc instead of a netlink library: one call, no thread, and 0.1 s less of imports at each start.
"""

import array
import contextlib
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import Path

from attrs import frozen

from userspace_proxy.model.names import IPAddress, Protocol

_PROC_NET = Path("/proc/net")
_SIOCGIFCONF = 0x8912
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
_FLAGS = struct.Struct("16sh14x")
"""struct ifreq: a name, then flags."""
_IFCONF = "iP"
"""struct ifconf: bytes in the buffer, address of the buffer."""
_IFREQ_BYTES = 16 + struct.calcsize("LL8x")
"""struct ifreq: a name of 16 bytes and a union whose largest member, struct ifmap, starts with two longs."""
_TCP_LISTEN = "0A"
_RTF_REJECT = 0x200


@frozen
class NodeAddresses:
    """The IPv4 addresses of the node."""

    by_interface: tuple[tuple[str, IPv4Address], ...]
    """Interface and address, in the kernel's order: a primary address before its secondary ones."""
    default_interface: str | None
    """Where the best default route leads; None: there is none."""

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The interfaces that have an address, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.by_interface))

    def best(self, current: IPv4Address | None) -> IPv4Address | None:
        """Return the address that stands for the node: reachable by way of every interface, and as stable as can be.

        Args:
            current: What was returned before; it stays while the node has it, whatever else comes and goes.

        Returns:
            Else the first address of the interface with the default route, else the first that is valid beyond its
            link; None when there is neither.
        """
        addresses = [address for _, address in self.by_interface]
        if current in addresses:
            return current
        routed = [address for name, address in self.by_interface if name == self.default_interface]
        usable = [address for address in routed + addresses if not address.is_loopback]
        return next((address for address in usable if address in routed or not address.is_link_local), None)


def read_node_addresses() -> NodeAddresses:
    """Return the IPv4 addresses of this network namespace.

    Source: netdevice(7), SIOCGIFCONF; proc_net(5), route.
    """
    return NodeAddresses(tuple(_interface_addresses()), _default_interface())


def read_local_addresses() -> frozenset[IPAddress]:
    """Return all addresses of this network namespace, of both families, those of loopback among them.

    Source: netdevice(7), SIOCGIFCONF; proc_net(5), if_inet6.
    """
    addresses: set[IPAddress] = {address for _, address in _interface_addresses()}
    with contextlib.suppress(FileNotFoundError):  # no IPv6 in this kernel
        lines = (_PROC_NET / "if_inet6").read_text().splitlines()
        addresses.update(IPv6Address(int(line.split()[0], 16)) for line in lines)
    return frozenset(addresses)


def is_interface_up(name: str) -> bool:
    """Tell whether an interface is up.

    Source: netdevice(7), SIOCGIFFLAGS.

    Raises:
        OSError: there is none of that name.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _FLAGS.pack(name.encode(), 0))
    return bool(_FLAGS.unpack(answer)[1] & _IFF_UP)


def tcp_ports_in_use() -> frozenset[int]:
    """Return the ports that some TCP socket of this network namespace listens on.

    Source: proc_net(5).
    """
    ports = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # no IPv6 in this kernel
            for line in (_PROC_NET / name).read_text().splitlines()[1:]:
                _slot, local, _remote, state, *_rest = line.split()
                if state == _TCP_LISTEN:
                    ports.add(int(local.rpartition(":")[2], 16))
    return frozenset(ports)


def is_port_in_use(port: int, protocol: Protocol) -> bool:
    """Tell whether some UDP socket of this network namespace is bound to a port, or some TCP socket listens on it.

    It is tried: to read a list of 10,000 sockets takes 0.03 s.
    """
    kind = socket.SOCK_DGRAM if protocol is Protocol.UDP else socket.SOCK_STREAM
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family, kind) as trial:
                if family is socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if protocol is Protocol.TCP:  # what is in TIME_WAIT is in nobody's way
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(("", port))
        except OSError as error:  # also: no IPv6 in this kernel
            if error.errno == errno.EADDRINUSE:
                return True
    return False


def _interface_addresses() -> Iterator[tuple[str, IPv4Address]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        size = filled = 0
        buffer = array.array("B")
        while filled + _IFREQ_BYTES > size:  # a full buffer may mean that there is more
            size = 2 * (filled + _IFREQ_BYTES)
            buffer = array.array("B", bytes(size))
            request = struct.pack(_IFCONF, size, buffer.buffer_info()[0])
            filled, _ = struct.unpack(_IFCONF, fcntl.ioctl(any_socket, _SIOCGIFCONF, request))
    for start in range(0, filled, _IFREQ_BYTES):
        entry = buffer[start : start + _IFREQ_BYTES].tobytes()
        label = entry[:16].rstrip(b"\0").decode(errors="replace")
        yield label.partition(":")[0], IPv4Address(entry[20:24])


def _default_interface() -> str | None:
    # Default routes come before all others, the best of them first; there may be very many others.
    with contextlib.suppress(FileNotFoundError), (_PROC_NET / "route").open(encoding="ascii") as lines:
        for line in islice(lines, 1, None):
            name, target, _gateway, flags, _refs, _use, _metric, mask, *_rest = line.split()
            if int(target, 16) == 0 and int(mask, 16) == 0 and not int(flags, 16) & _RTF_REJECT:
                return name
    return None

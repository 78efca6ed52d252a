"""The addresses of datagrams as the kernel writes them: where one came from, where it was sent to, how to answer it.

They stay bytes, as recvmmsg(2) leaves them and sendmmsg(2) wants them: texts are made only for the first datagram of a
flow. A socket that is bound to one address answers from it. Where it is bound to all of them, the kernel says with each
datagram where it was sent to, and is told with each answer where it is to come from; behind a REDIRECT rule no client
would recognise it otherwise. Pure: bytes in, bytes out.

Source: ip(7), IP_PKTINFO; RFC 3542, section 6; cmsg(3). Entry point: ``address_layout``.
"""

import socket
import struct
from functools import cache

from attrs import frozen

IP_PKTINFO = 8
"""Of linux/in.h; Python has no name for it."""

_HEADER = struct.Struct("@Nii")
"""``struct cmsghdr``."""
_DATA = socket.CMSG_LEN(0)
"""Where the data of a control message begins."""
_PKTINFO = 12
"""``struct in_pktinfo``: interface, local address, address in the header."""
_PKTINFO6 = 20
"""``struct in6_pktinfo``: address, interface."""
_NAME = struct.Struct("!2xH4s")
"""The beginning of ``struct sockaddr_in``: family, port, address; the rest is padding."""
_NAME_BYTES = 16
_NAME6 = struct.Struct("!2xH4x16s4x")
"""``struct sockaddr_in6``: family, port, flow label, address, interface."""
_CONTROL6 = 32
"""Behind it, aligned."""


@frozen(eq=False)
class AddressLayout:
    """Where the addresses of one datagram stand in a piece of memory, for one kind of socket.

    The name (source address) and the control message stand side by side so that all that tells flows apart, the
    *origin*, is one run of bytes, and an answer is little more than that. The interface by which a datagram came is no
    part of it: a client may come by several. It stands before the origin (IPv4) or behind it (IPv6).
    """

    family: int
    """AF_INET or AF_INET6."""
    is_wildcard: bool
    """Whether there is a control message."""
    name: int
    name_bytes: int
    control: int
    control_bytes: int
    origin: int
    origin_end: int
    size: int
    """Bytes in all."""
    answer_prefix: bytes
    """What precedes the origin in the memory of an answer."""

    @property
    def has_link_local(self) -> bool:
        """Whether the interface may be part of the origin: see ``full_origin``."""
        return self.is_wildcard and self.family == socket.AF_INET6

    def full_origin(self, memory: bytes) -> bytes:
        """Return the origin in the memory of a datagram, with the interface where its local address needs one."""
        local = memory[_CONTROL6 + _DATA : _CONTROL6 + _DATA + 2]
        is_link_local = local[0] == 0xFE and local[1] & 0xC0 == 0x80  # noqa: PLR2004 - fe80::/10
        return memory[: self.origin_end + 4] if is_link_local else memory[: self.origin_end]

    def answer(self, origin: bytes) -> bytes:
        """Return the memory of an answer, which goes where the origin came from, and comes from where it went."""
        return (self.answer_prefix + origin).ljust(self.size, b"\0")

    def client(self, origin: bytes) -> tuple[str, int]:
        """Return where a datagram came from."""
        if self.family == socket.AF_INET:
            port, address = _NAME.unpack(origin[-_NAME.size :])
        else:
            port, address = _NAME6.unpack_from(origin)
        return socket.inet_ntop(self.family, address), port

    def local_address(self, origin: bytes) -> str:
        """Return where a datagram was sent to; only with ``is_wildcard``."""
        if self.family == socket.AF_INET:
            return socket.inet_ntop(self.family, origin[:4])
        return socket.inet_ntop(self.family, origin[_CONTROL6 + _DATA : _CONTROL6 + _DATA + 16])


@cache
def address_layout(family: int, *, is_wildcard: bool) -> AddressLayout:
    """Return the layout for sockets of a family (AF_INET, AF_INET6), bound to all addresses or to one."""
    if family == socket.AF_INET:
        control_bytes = socket.CMSG_SPACE(_PKTINFO) if is_wildcard else 0
        header = _HEADER.pack(socket.CMSG_LEN(_PKTINFO), socket.IPPROTO_IP, IP_PKTINFO).ljust(_DATA, b"\0")
        any_interface = bytes(4)
        prefix = header + any_interface if is_wildcard else b""
        return AddressLayout(
            family=family,
            is_wildcard=is_wildcard,
            name=control_bytes,
            name_bytes=_NAME_BYTES,
            control=0,
            control_bytes=control_bytes,
            origin=len(prefix),
            origin_end=control_bytes + _NAME.size,
            size=control_bytes + _NAME_BYTES,
            answer_prefix=prefix,
        )
    control_bytes = socket.CMSG_SPACE(_PKTINFO6) if is_wildcard else 0
    return AddressLayout(
        family=family,
        is_wildcard=is_wildcard,
        name=0,
        name_bytes=_NAME6.size,
        control=_CONTROL6,
        control_bytes=control_bytes,
        origin=0,
        origin_end=_CONTROL6 + _DATA + 16 if is_wildcard else _NAME6.size,
        size=_CONTROL6 + control_bytes if is_wildcard else _NAME6.size,
        answer_prefix=b"",
    )

"""What netlink messages of every kind have in common, as bytes: heads, attributes and results. Pure: sends nothing.

Source: netlink(7); Linux include/uapi/linux/netlink.h.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

HEADER = Struct("=IHHII")
"""struct nlmsghdr: length, kind, flags, sequence number, port."""
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300

_ATTRIBUTE = Struct("=HH")
"""struct nlattr: length with this head, kind."""
_NLA_F_NESTED, _NLA_TYPE_MASK = 0x8000, 0x3FFF
_CODE = Struct("=i")

ATTRIBUTE_HEAD_BYTES = _ATTRIBUTE.size


class Message(NamedTuple):
    """Where a message is in what was received, and what its head says."""

    kind: int
    sequence: int
    """That of the request it answers."""
    sender: int
    """The port of the socket by which its cause was asked for; 0: the kernel's own doing."""
    start: int
    """Of its content."""
    stop: int


def read_messages(received: bytes) -> Iterator[Message]:
    """Yield the messages in one piece of what was received, in order."""
    at = 0
    while at + HEADER.size <= len(received):
        length, kind, _flags, sequence, sender = HEADER.unpack_from(received, at)
        yield Message(kind, sequence, sender, at + HEADER.size, at + length)
        at += _aligned(max(length, HEADER.size))


def read_errno(received: bytes, message: Message) -> int:
    """Return the errno that ended a dump (NLMSG_DONE), or became of a request (NLMSG_ERROR); 0: it worked."""
    code: int = _CODE.unpack_from(received, message.start)[0]
    return -code


def read_attributes(received: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the kind of each attribute between two offsets, and where its content starts and stops."""
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(received, at)
        yield kind & _NLA_TYPE_MASK, at + _ATTRIBUTE.size, at + length
        at += _aligned(max(length, _ATTRIBUTE.size))


def build_message(kind: int, flags: int, content: bytes, sequence: int = 0) -> bytes:
    """Return a request."""
    return HEADER.pack(HEADER.size + len(content), kind, NLM_F_REQUEST | flags, sequence, 0) + content


def build_attribute(kind: int, content: bytes) -> bytes:
    """Return an attribute, padded."""
    length = _ATTRIBUTE.size + len(content)
    return _ATTRIBUTE.pack(length, kind) + content + bytes(-length % 4)


def build_nested(kind: int, attributes: bytes) -> bytes:
    """Return an attribute that consists of others."""
    return build_attribute(kind | _NLA_F_NESTED, attributes)


def _aligned(length: int) -> int:
    return (length + 3) & ~3

"""Memory for many datagrams, described to the kernel so that one system call receives or sends them all.

Python's own ``recvfrom_into`` and ``sendto`` write an address as text and read it again for every datagram, and
``recvmsg_into`` and ``sendmsg`` do more than that: a tenth of the time of a small datagram at a socket bound to one
address, a quarter of it at a wildcard socket. So recvmmsg(2) and sendmmsg(2) are called through ctypes. All pointers
are made here and are never changed; what they lead into lives as long as the DatagramMemory and what its ``describe``
has returned. Entry point: ``DatagramMemory``; who uses it: ``datagram_reader``, ``answer_writer``.
"""

import ctypes
import errno
import os
import socket
from typing import Any, ClassVar

from userspace_proxy.dataplane.udp_addresses import AddressLayout

BATCH = 32
"""Datagrams per system call; arbitrary."""
DATAGRAM_BYTES = 65536
"""Room for one; 65,527 is the longest there is (RFC 768, RFC 8200)."""


class _IoVec(ctypes.Structure):
    """``struct iovec``."""

    _fields_: ClassVar[Any] = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    """``struct msghdr``."""

    _fields_: ClassVar[Any] = (
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("iovecs", ctypes.c_void_p),
        ("iovec_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class MessageHeader(ctypes.Structure):
    """``struct mmsghdr``."""

    _fields_: ClassVar[Any] = (("header", _MsgHdr), ("length", ctypes.c_uint))


HEADER_BYTES = ctypes.sizeof(MessageHeader)
Headers = ctypes.Array[MessageHeader]

_libc = ctypes.CDLL(None, use_errno=True)
_recvmmsg = _libc.recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_sendmmsg = _libc.sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


class DatagramMemory:
    """Room for a batch, and how it is described to the kernel."""

    def __init__(self) -> None:
        data = bytearray(BATCH * DATAGRAM_BYTES)
        self._iovecs = (_IoVec * BATCH)()
        for i, iovec in enumerate(self._iovecs):
            iovec.base = _address(data) + i * DATAGRAM_BYTES
            iovec.length = DATAGRAM_BYTES
        self.buffers = _pieces(data)
        self.lengths = memoryview(self._iovecs).cast("B").cast("L")[1::2]
        """How many bytes of each buffer count."""

    def describe(self, layout: AddressLayout) -> tuple[Headers, list[memoryview]]:
        """Return what recvmmsg(2) and sendmmsg(2) take for sockets with a layout, and memory for the addresses.

        That memory is of this layout only, as the kernel does not write to the gaps in it: what another one had there
        would tell datagrams apart that are of one flow. The caller keeps both, and this object, while it calls those.
        """
        addresses = bytearray(BATCH * layout.size)
        headers = (MessageHeader * BATCH)()
        for i, each in enumerate(headers):
            header = each.header
            at = _address(addresses) + i * layout.size
            header.name = at + layout.name
            header.name_bytes = layout.name_bytes
            header.iovecs = ctypes.addressof(self._iovecs) + i * ctypes.sizeof(_IoVec)
            header.iovec_count = 1
            header.control = at + layout.control if layout.is_wildcard else None
            header.control_bytes = layout.control_bytes
        return headers, _pieces(addresses)


def receive(fd: int, headers_at: int, count: int) -> int:
    """Return how many datagrams were received, 0 if there are none.

    Raises:
        OSError: see recvmmsg(2).
    """
    received: int = _recvmmsg(fd, headers_at, count, socket.MSG_DONTWAIT, None)
    if received >= 0:
        return received
    number = ctypes.get_errno()
    if number == errno.EAGAIN:
        return 0
    raise OSError(number, os.strerror(number))


def send(fd: int, headers_at: int, count: int) -> int:
    """Return how many datagrams were sent, at least one; the rest has to be tried again.

    Raises:
        OSError: the first could not be sent; see sendmmsg(2) and sendmsg(2).
    """
    sent: int = _sendmmsg(fd, headers_at, count, socket.MSG_DONTWAIT)
    if sent > 0:
        return sent
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def _address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _pieces(memory: bytearray) -> list[memoryview]:
    size = len(memory) // BATCH
    return [memoryview(memory)[i * size : (i + 1) * size] for i in range(BATCH)]

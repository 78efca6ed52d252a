"""DatagramReader: receives datagrams in batches. Entry point: ``DatagramReader``."""

import ctypes

from userspace_proxy.dataplane.datagram_memory import (
    BATCH,
    HEADER_BYTES,
    DatagramMemory,
    MessageHeader,
    receive,
)
from userspace_proxy.dataplane.udp_addresses import AddressLayout


class DatagramReader:
    """Receives from sockets with one layout."""

    def __init__(self, memory: DatagramMemory, layout: AddressLayout) -> None:
        self._layout = layout
        self._memory = memory  # the pointers in the headers lead there
        self._buffers = memory.buffers
        headers, self._addresses = memory.describe(layout)
        self._origins = [one[layout.origin : layout.origin_end] for one in self._addresses]
        self._at = ctypes.addressof(headers)
        self._headers = memoryview(headers).cast("B")
        self._template = bytes(self._headers)
        self._lengths = self._headers.cast("I")[MessageHeader.length.offset // 4 :: HEADER_BYTES // 4]

    def receive(self, fd: int) -> list[tuple[bytes, memoryview]]:
        """Return what a socket has received, at most ``BATCH`` datagrams, without waiting for any.

        Args:
            fd: The socket; it has the layout of this reader.

        Returns:
            The origin (see ``AddressLayout``) and the bytes of each; these are valid until the next call of any reader.
            Fewer than ``BATCH``: there are no more.

        Raises:
            OSError: see recvmmsg(2).
        """
        count = receive(fd, self._at, BATCH)
        received = zip(self._origins, self._buffers, self._lengths[:count], strict=False)
        batch = [(bytes(origin), buffer[:length]) for origin, buffer, length in received]
        if self._layout.has_link_local:
            full_origin = self._layout.full_origin
            batch = [(full_origin(bytes(one)), each[1]) for one, each in zip(self._addresses, batch, strict=False)]
        # The kernel has written over the sizes that it is to be told again.
        self._headers[: count * HEADER_BYTES] = self._template[: count * HEADER_BYTES]
        return batch

"""Frames: byte strings with file descriptors, over a stream socket of AF_UNIX.

A frame is the length of its payload and the number of its descriptors, then the payload. The descriptors go with its
first byte (unix(7), SCM_RIGHTS); a reader may get them in any piece. No effects on sockets, but that descriptors nobody
can use are closed. Entry points: ``encode_frame``, ``FrameReader``.
"""

import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator

from attrs import frozen

MAX_FDS = 250
"""In one frame; the kernel takes 253 (SCM_MAX_FD)."""
MAX_PAYLOAD_BYTES = 64 << 20
"""Arbitrary: several times what a worker has to report of 10,000 Services whose clients it has all to remember."""

_HEADER = struct.Struct("=II")


@frozen
class Frame:
    """One message; whoever gets it owns the descriptors."""

    payload: bytes
    fds: tuple[int, ...]
    """In the order in which they were sent. The last ones are missing where they were lost on the way, as this process
    may not have so many (recvmsg(2), MSG_CTRUNC)."""


def encode_frame(payload: bytes, fd_count: int) -> bytes:
    """Return the bytes of a frame; the descriptors are to be sent with the first of them."""
    return _HEADER.pack(len(payload), fd_count) + payload


class FrameReader:
    """Puts frames together from what a socket delivers.

    At most one frame with descriptors may be under way: its reader has to confirm it before the next one is sent.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes | memoryview, fds: Iterable[int]) -> Iterator[Frame]:
        """Take a piece, and yield the frames that are complete; to be iterated to the end.

        Args:
            data: What was received.
            fds: The descriptors that came with it; owned from here on.

        Raises:
            ValueError: these are no frames, or descriptors come that none announces; the reader is of no further use.
        """
        self._fds.extend(fds)
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            length, fd_count = _HEADER.unpack_from(self._buffer)
            if length > MAX_PAYLOAD_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            received = tuple(self._fds.popleft() for _ in range(min(fd_count, len(self._fds))))
            yield Frame(payload, received)
        if len(self._fds) > MAX_FDS:
            raise ValueError(f"{len(self._fds)} descriptors that no frame has announced")

    def close(self) -> None:
        """Close the descriptors that belong to no frame that was yielded."""
        while self._fds:
            os.close(self._fds.popleft())

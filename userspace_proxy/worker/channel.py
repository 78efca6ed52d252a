"""Channel: the worker's end of the line to the control process. It never blocks once the engine runs.

Entry point: ``Channel``.
"""

import array
import socket
from collections import deque

from userspace_proxy.ipc.frames import MAX_FDS, Frame, FrameReader, encode_frame
from userspace_proxy.ipc.reports import WorkerMessage, encode_message

_PIECE_BYTES = 65536
"""Received at a time: some hundred commands, which take some milliseconds. Arbitrary."""
_FD_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * _FD_BYTES)


class Channel:
    """Receives frames and sends messages."""

    def __init__(self, sock: socket.socket) -> None:
        """Take ownership of a connected stream socket of AF_UNIX."""
        self._sock = sock
        self._reader = FrameReader()
        self._received: deque[Frame] = deque()
        self._outgoing = bytearray()
        self.is_open = True
        """False: the control process is gone, or has no more to say."""

    def fileno(self) -> int:
        """Return the file descriptor to be watched, edge-triggered, for reading and writing."""
        return self._sock.fileno()

    @property
    def is_silent(self) -> bool:
        """Whether all that was sent is with the kernel."""
        return not self._outgoing

    def wait(self) -> Frame | None:
        """Wait for the first frame and return it; None: there is none to come."""
        while self.is_open and not self._received:
            self._receive(0)
        return self._received.popleft() if self._received else None

    def receive(self) -> tuple[deque[Frame], bool]:
        """Return the frames that have come, and whether there may be more to receive at once."""
        is_more = self._receive(socket.MSG_DONTWAIT)
        frames, self._received = self._received, deque()
        return frames, is_more

    def send(self, message: WorkerMessage) -> None:
        """Send a message now, or with a later ``flush``."""
        self._outgoing += encode_frame(encode_message(message), 0)
        self.flush()

    def flush(self) -> None:
        """Send what the kernel takes."""
        while self._outgoing:
            try:
                sent = self._sock.send(self._outgoing, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:  # EPIPE, ECONNRESET: the control process is gone
                self.close()
                return
            del self._outgoing[:sent]

    def close(self) -> None:
        """Have no more to do with the control process; the descriptors that it has sent end with this one."""
        self.is_open = False
        self._outgoing.clear()

    def _receive(self, flags: int) -> bool:
        """Receive a piece; return whether there may be more."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_PIECE_BYTES, _ANCILLARY_BYTES, flags | socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError:  # ECONNRESET: it has gone without reading what was sent to it
            data, ancillary = b"", []
        if not data:
            self.close()
            return False
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
        self._received.extend(self._reader.feed(data, fds))
        return True

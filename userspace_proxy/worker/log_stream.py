"""LogStream: where the log of a worker goes, without ever waiting for who reads it.

A pipe or a terminal that nobody reads takes no more at some time, and who writes on waits: here all clients would wait
too. So what finds no room is lost, and counted. Entry point: ``LogStream``.
"""

import io
import os
import select

_PIECE_BYTES = 4096
"""What a pipe that is ready takes at once (pipe(7), PIPE_BUF)."""


class LogStream(io.TextIOBase):
    """A text stream over a file descriptor, which stays the caller's; nothing is buffered."""

    def __init__(self, fd: int) -> None:
        """Start to write to a descriptor, in whatever mode it is: others may have the same one."""
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lost = 0

    def write(self, text: str) -> int:
        """Write as much as there is room for, and return the length of the text."""
        data = text.encode(errors="backslashreplace")
        for start in range(0, len(data), _PIECE_BYTES):
            if not self._has_room():
                self._lost += 1
                break
            try:
                os.write(self._fd, data[start : start + _PIECE_BYTES])
            except OSError:  # nobody will ever read it
                self._lost += 1
                break
        return len(text)

    def take_lost(self) -> int:
        """Return how many texts were lost, in part at least, since the last time; 0 also while there is no room."""
        if not self._lost or not self._has_room():
            return 0
        lost, self._lost = self._lost, 0
        return lost

    def _has_room(self) -> bool:
        return any(mask & select.POLLOUT for _, mask in self._poll.poll(0))

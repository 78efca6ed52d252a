"""PipePool: the pipes that ``splice(2)`` moves bulk data through.

A pipe belongs to one direction of a relay while that has bulk data to move, and comes back as soon as it is empty and
the source has no more: idle connections hold none. Once a user without privileges has pipes of some 64 MiB, the kernel
enlarges no more of them, and new ones hold a page or two (pipe(7), ``/proc/sys/fs/pipe-user-pages-soft``). So their
number is bounded, and whoever gets none, or one that is not worth it, copies instead.
"""

import fcntl
import os
from contextlib import suppress

MAX_PIPES = 128
"""Open pipes, in use or spare; arbitrary, half of what the kernel grants a user at ``PIPE_BYTES``."""
PIPE_BYTES = 1 << 18
"""Capacity that a pipe is given, and so what splice(2) moves at most. Four times that of a new pipe (pipe(7)): this was
measured to make 8 streams twice as fast, and more of it no faster."""
MIN_PIPE_BYTES = 1 << 16
"""A pipe that holds less moves no more at a time than copying does."""


class Pipe:
    """One pipe and how full it is."""

    __slots__ = ("level", "read_fd", "write_fd")

    def __init__(self) -> None:
        """Open a pipe.

        Raises:
            OSError: there are no descriptors (EMFILE, ENFILE).
        """
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # EPERM: this user has many, or /proc/sys/fs/pipe-max-size is less
            fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.level = 0
        """Bytes inside."""

    def capacity(self) -> int:
        """Return how many bytes fit into it."""
        return fcntl.fcntl(self.write_fd, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        """Close both ends; what is inside is lost."""
        os.close(self.read_fd)
        os.close(self.write_fd)


class PipePool:
    """Makes pipes as they are needed and keeps them for the next one."""

    __slots__ = ("_max_pipes", "_open", "_spare")

    def __init__(self) -> None:
        self._spare: list[Pipe] = []
        self._open = 0
        self._max_pipes = MAX_PIPES

    def take(self) -> Pipe | None:
        """Return an empty pipe, which the caller gives back; None: to copy is better, or all that is left."""
        if self._spare:
            return self._spare.pop()
        if self._open >= self._max_pipes:
            return None
        try:
            pipe = Pipe()
        except OSError:  # the copying path needs no descriptors
            return None
        if pipe.capacity() < MIN_PIPE_BYTES:
            pipe.close()
            return None
        self._open += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back; one that still has bytes inside is closed, they belong to nobody now."""
        if pipe.level or not self._max_pipes:
            pipe.close()
            self._open -= 1
        else:
            self._spare.append(pipe)

    def disable(self) -> None:
        """Hand out no more pipes: splice(2) does not work on the sockets of this system."""
        self._max_pipes = 0
        self.close_spare()

    def close_spare(self) -> None:
        """Close the pipes that nobody uses."""
        self._open -= len(self._spare)
        while self._spare:
            self._spare.pop().close()

"""PipePool: the pipes that ``splice(2)`` moves bulk data through.

A pipe belongs to one direction of a relay while that has bulk data to move, and comes back as soon as it is empty and
the source has no more: idle connections hold none. Above about 1,024 pipes a user's new pipes shrink to one page
(pipe(7), ``/proc/sys/fs/pipe-user-pages-soft``), so their number is bounded, and whoever gets none copies instead.
"""

import os

MAX_PIPES = 256
"""Open pipes, in use or spare; arbitrary, a quarter of what the kernel grants a user at full size."""
PIPE_BYTES = 65536
"""Capacity of a pipe by default (pipe(7)); asking splice(2) for more moves no more."""


class Pipe:
    """One pipe and how full it is."""

    __slots__ = ("level", "read_fd", "write_fd")

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.level = 0
        """Bytes inside."""

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
        """Return an empty pipe, which the caller gives back; None when there are enough or no descriptors are left."""
        if self._spare:
            return self._spare.pop()
        if self._open >= self._max_pipes:
            return None
        try:
            pipe = Pipe()
        except OSError:  # EMFILE, ENFILE: the copying path needs none
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

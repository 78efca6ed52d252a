"""PipePool: pipes are made when needed, kept for the next one, bounded, and never handed on with bytes inside."""

import os
from collections.abc import Iterator

import pytest
from peers import descriptors_left, nothing_left_open

from userspace_proxy.dataplane import pipe_pool
from userspace_proxy.dataplane.pipe_pool import MAX_PIPES, PIPE_BYTES, Pipe, PipePool


@pytest.fixture
def pipes() -> Iterator[PipePool]:
    """Yield a pool that must have closed its pipes in the end."""
    with nothing_left_open():
        pool = PipePool()
        yield pool
        pool.close_spare()
        assert pool._open == 0


def take(pipes: PipePool) -> Pipe:
    """Take a pipe that must be there."""
    pipe = pipes.take()
    assert pipe is not None
    return pipe


def test_pipe_holds_a_whole_fill_and_never_blocks(pipes: PipePool) -> None:
    """What one splice may move fits in; reading from an empty pipe and writing to a full one fail at once."""
    pipe = take(pipes)
    with pytest.raises(BlockingIOError):
        os.read(pipe.read_fd, 1)
    assert os.write(pipe.write_fd, bytes(PIPE_BYTES)) == PIPE_BYTES
    with pytest.raises(BlockingIOError):
        os.write(pipe.write_fd, b"x")
    assert not os.get_inheritable(pipe.read_fd)
    assert not os.get_inheritable(pipe.write_fd)
    pipe.level = PIPE_BYTES
    pipes.give_back(pipe)


def test_pipe_that_came_back_empty_is_taken_again(pipes: PipePool) -> None:
    """One pipe serves any number of directions after each other."""
    pipe = take(pipes)
    pipes.give_back(pipe)
    assert take(pipes) is pipe
    pipes.give_back(pipe)


def test_pipe_that_comes_back_with_bytes_inside_is_closed(pipes: PipePool) -> None:
    """What one connection left in a pipe never reaches another one."""
    pipe = take(pipes)
    pipe.level = os.write(pipe.write_fd, b"secret")
    pipes.give_back(pipe)
    fresh = take(pipes)
    assert fresh is not pipe
    with pytest.raises(BlockingIOError):
        os.read(fresh.read_fd, 1)
    pipes.give_back(fresh)


def test_pipes_are_bounded(pipes: PipePool) -> None:
    """At the bound there is none to be had, until one comes back."""
    taken = [take(pipes) for _ in range(MAX_PIPES)]
    assert pipes.take() is None
    pipes.give_back(taken.pop())
    taken.append(take(pipes))
    assert pipes.take() is None
    for pipe in taken:
        pipes.give_back(pipe)


def test_pipe_that_the_kernel_does_not_make_large_is_not_used(pipes: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would move less at a time than copying does is closed; later ones may be better."""
    monkeypatch.setattr(pipe_pool, "MIN_PIPE_BYTES", PIPE_BYTES + 1)  # as if it had got less
    with nothing_left_open():
        assert pipes.take() is None
    monkeypatch.undo()
    pipes.give_back(take(pipes))


@pytest.mark.parametrize("left", [0, 1])
def test_pipe_without_descriptors_is_none(pipes: PipePool, left: int) -> None:
    """Out of descriptors is no error here, and what is free again can be taken later."""
    with descriptors_left(left):
        assert pipes.take() is None
    pipes.give_back(take(pipes))


def test_pipes_once_disabled_are_closed_as_they_come_back(pipes: PipePool) -> None:
    """Spare ones at once, those in use when their owners are done, and no more are handed out."""
    spare, used = take(pipes), take(pipes)
    pipes.give_back(spare)
    pipes.disable()
    assert pipes.take() is None
    pipes.give_back(used)
    assert pipes._open == 0
    assert pipes.take() is None

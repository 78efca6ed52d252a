"""The log of a worker, which waits for nobody."""

import os
from collections.abc import Iterator

import pytest

from userspace_proxy.worker.log_stream import LogStream


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield both ends of a pipe in blocking mode, as a program gets it from a shell."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_log_stream_writes_long_texts_whole(pipe: tuple[int, int]) -> None:
    """A traceback is longer than what a pipe is sure to take at once."""
    stream = LogStream(pipe[1])
    assert stream.write("é" * 9000 + "\n") == 9001
    assert os.read(pipe[0], 1 << 16).decode() == "é" * 9000 + "\n"
    assert stream.take_lost() == 0


def test_log_stream_without_a_reader_loses_what_finds_no_room(pipe: tuple[int, int]) -> None:
    """It returns at once, says how much was lost when there is room again, and then goes on."""
    stream = LogStream(pipe[1])
    for number in range(100):
        stream.write(f"{number:4000}\n")
    assert stream.take_lost() == 0
    kept = os.read(pipe[0], 1 << 20).split(b"\n")
    assert 0 < len(kept) - 1 < 100
    assert [int(line) for line in kept[:-1]] == list(range(len(kept) - 1))
    assert stream.take_lost() == 100 - (len(kept) - 1)
    assert stream.take_lost() == 0
    stream.write("more\n")
    assert os.read(pipe[0], 100) == b"more\n"


def test_log_stream_that_is_cut_off_goes_on() -> None:
    """A reader that has gone away does not end the worker."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        LogStream(write_end).write("lost\n")
    finally:
        os.close(write_end)

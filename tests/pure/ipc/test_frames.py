"""Frames, however they are cut, and what becomes of descriptors that nobody can use."""

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.ipc.frames import MAX_FDS, MAX_PAYLOAD_BYTES, Frame, FrameReader, encode_frame


def is_open(fd: int) -> bool:
    """Return whether there is a descriptor of that number."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@given(
    payloads=st.lists(st.binary(max_size=40), max_size=6),
    bearer=st.integers(0, 5),
    fd_count=st.integers(1, 4),
    cuts=st.lists(st.integers(0, 300), max_size=12),
)
def test_frames_that_are_cut_anywhere_arrive_whole_and_in_order(
    payloads: list[bytes], bearer: int, fd_count: int, cuts: list[int]
) -> None:
    """Pieces end where they like; descriptors come with any piece that has the first byte of their frame in it."""
    reader = FrameReader()
    fds = tuple(range(1000, 1000 + fd_count))
    frames = [encode_frame(payload, fd_count if number == bearer else 0) for number, payload in enumerate(payloads)]
    stream = b"".join(frames)
    begin = sum(map(len, frames[:bearer]))
    read: list[Frame] = []
    for start, end in pairwise(sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})):
        read += reader.feed(stream[start:end], fds if start <= begin < end else ())
    expected = [Frame(payload, fds if number == bearer else ()) for number, payload in enumerate(payloads)]
    assert read == expected


def test_frame_whose_last_descriptors_were_lost_has_the_others() -> None:
    """What this process had no room for is missing at the end; the next frame has its own."""
    reader = FrameReader()
    assert list(reader.feed(encode_frame(b"three", 3), (7,))) == [Frame(b"three", (7,))]
    assert list(reader.feed(encode_frame(b"one", 1), (8,))) == [Frame(b"one", (8,))]


def test_reader_that_is_closed_closes_the_descriptors_of_half_a_frame() -> None:
    """Nobody else knows of them; those of frames that were yielded are left alone."""
    mine, waiting = os.dup(2), os.dup(2)
    reader = FrameReader()
    (frame,) = reader.feed(encode_frame(b"whole", 1), (mine,))
    assert not list(reader.feed(encode_frame(b"half", 1)[:-1], (waiting,)))
    reader.close()
    assert frame.fds == (mine,)
    assert [is_open(mine), is_open(waiting)] == [True, False]
    os.close(mine)


def test_frame_of_any_length_is_refused_before_it_comes() -> None:
    """Who announces more than anybody has to say cannot make the other end keep it."""
    with pytest.raises(ValueError, match=f"a frame of {MAX_PAYLOAD_BYTES + 1} bytes"):
        list(FrameReader().feed((MAX_PAYLOAD_BYTES + 1).to_bytes(4, "little") + bytes(4), ()))


def test_descriptors_that_no_frame_announces_are_refused() -> None:
    """Who sends one after the other with frames that have none cannot fill the other end with them."""
    reader = FrameReader()
    for number in range(MAX_FDS):
        list(reader.feed(encode_frame(b"", 0), (10_000 + number,)))
    with pytest.raises(ValueError, match="descriptors that no frame has announced"):
        list(reader.feed(b"", (10_000 + MAX_FDS,)))

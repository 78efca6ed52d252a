"""What bodies of an API server are decoded to."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.errors import ApiError
from userspace_proxy.sources.api_messages import MAX_LINE_BYTES, LineReader, decode_event, decode_head, decode_page


def test_decode_page_returns_version_continuation_and_items_as_text() -> None:
    """An item is not looked into: it may be broken."""
    body = b'{"metadata":{"resourceVersion":"7","continue":"abc"},"items":[{"metadata":3},{}]}'
    page = decode_page(body, "https://x")
    assert (page.metadata.resource_version, page.metadata.continue_) == ("7", "abc")
    assert list(map(bytes, page.items or ())) == [b'{"metadata":3}', b"{}"]


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"metadata":{}}', b'{"metadata":{"resourceVersion":"7"},"items":3}', b"\xff"],
)
def test_decode_page_of_something_else_says_so(body: bytes) -> None:
    """What is no list, as of a captive portal, is a failure with a sentence."""
    with pytest.raises(ApiError, match="https://x to a list is none that an API server gives") as caught:
        decode_page(body, "https://x")
    assert caught.value.reason == "bad_answer"


@pytest.mark.parametrize("line", [b"<html>", b"{}", b'{"type":"ADDED"}', b"\xff"])
def test_decode_event_of_something_else_says_so(line: bytes) -> None:
    """What is no event is a failure with a sentence."""
    with pytest.raises(ApiError, match="to a watch is none"):
        decode_event(line, "https://x")


def test_decode_head_without_metadata_says_so() -> None:
    """An object that cannot be told from others is a failure of the server."""
    with pytest.raises(ApiError, match="none that an API server gives"):
        decode_head(msgspec.Raw(b'{"metadata":null}'), "https://x")


@given(st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.data())
def test_line_reader_cut_anywhere_returns_the_lines_that_are_complete(lines: list[bytes], data: st.DataObject) -> None:
    """Wherever a stream is cut into pieces, its lines come out whole, in order, and without blank ones."""
    stream = b"".join(line + b"\n" for line in lines) + b"rest"
    reader, read, at = LineReader(), [], 0
    while at < len(stream):
        end = data.draw(st.integers(at + 1, len(stream)))
        read += reader.feed(stream[at:end])
        at = end
    assert read == [line for line in lines if line.strip()]


def test_line_reader_line_without_end_is_refused() -> None:
    """A stream that never ends a line does not take all the memory."""
    reader = LineReader()
    reader.feed(b"a" * MAX_LINE_BYTES)
    with pytest.raises(ApiError, match="longer than"):
        reader.feed(b"a")

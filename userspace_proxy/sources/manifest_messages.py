"""What the manifest parser tells the control process: messages, and their form in a pipe.

A message is four bytes of length (big-endian) and msgpack. For each file, in the order asked for, come its objects and
Problems and then one ``FileEnd``; so after the death of the parser the file to blame is the first without one. No
message takes longer than about a millisecond to decode and to parse. Entry points: ``encode``, ``MessageReader``.
"""

from collections.abc import Iterator

import msgspec
from attrs import define, field

from userspace_proxy.model import api_types
from userspace_proxy.model.problem import Problem


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """The base of all."""


class Started(_Message, frozen=True):
    """The parser runs: what goes wrong from now on is about a file."""


class ServiceFound(_Message, frozen=True):
    """A Service was named."""

    namespace: str
    name: str
    origin: str
    problems: tuple[Problem, ...]
    service: api_types.Service | None
    """None: it is not even of the right types."""


class EndpointSliceFound(_Message, frozen=True):
    """An EndpointSlice was named."""

    namespace: str
    name: str
    origin: str
    problems: tuple[Problem, ...]
    endpoint_slice: api_types.EndpointSlice | None
    """Its first endpoints; None: it is not even of the right types."""


class MoreEndpoints(_Message, frozen=True):
    """More endpoints of the EndpointSlice that was named last."""

    endpoint_slice: api_types.EndpointSlice


class NamelessFound(_Message, frozen=True):
    """Something that may be any object, broken."""

    problem: Problem


class FileEnd(_Message, frozen=True):
    """The file has been read to its end, or as far as it goes."""

    other_kinds: dict[str, int]
    """How many objects there are of kinds that are not read."""
    failure: Problem | None
    """Why it is of no use as a whole; None where it is of use."""
    try_again: bool
    """The failure is not the content's: a later attempt may succeed though the file is the same."""


Message = Started | ServiceFound | EndpointSliceFound | MoreEndpoints | NamelessFound | FileEnd

NAME_SEPARATOR = b"\0"
"""Between the file names that the parser is given on its standard input."""

_LENGTH_BYTES = 4
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """Return a message in the form for the pipe.

    Raises:
        OverflowError: an integer does not fit 64 bits.
        UnicodeEncodeError: a text holds half of a surrogate pair.
    """
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


@define
class MessageReader:
    """Messages from a pipe, cut at any place."""

    _buffer: bytearray = field(factory=bytearray, init=False)

    def feed(self, data: bytes | bytearray) -> Iterator[Message]:
        """Yield the messages that are complete with ``data``; take them all before the next call."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH_BYTES:end])
            del self._buffer[:end]
            yield _decoder.decode(body)

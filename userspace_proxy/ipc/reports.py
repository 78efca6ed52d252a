"""What a worker says to the control process.

A frame is one letter, which says what it is, and a JSON document, which is checked when it is decoded: a worker faces
clients, and whoever takes one over must not get the control process along with it. Tuples with names, as the encoder of
the standard library takes them as they are: a worker imports no other one (msgspec is 1.2 MB in each).
"""

import json
from collections.abc import Callable
from functools import cache
from typing import NamedTuple


class Applied(NamedTuple):
    """All commands up to a generation have taken effect, those of its batch too."""

    generation: int
    lost: tuple[int, ...] = ()
    """Numbers of the listeners of this batch that are not served: there was no room for their descriptors here. They
    are to be sent again later."""


class Stopped(NamedTuple):
    """The socket of a listener does not listen, though the worker was not told so: somebody has had it stop."""

    number: int
    """See ``commands.Serve``."""


class ServiceReport(NamedTuple):
    """``ServiceCounters`` of one ServicePort, since the worker started."""

    service: str
    """``namespace/name:port``."""
    protocol: str
    connections: int
    active: int
    bytes_to_backend: int
    bytes_to_client: int
    closed: tuple[tuple[str, str, int], ...]
    """Reason, phase, count."""
    dials: tuple[tuple[str, int], ...]
    """Outcome, count."""


class FlowReport(NamedTuple):
    """``FlowCounters`` of one ServicePort, since the worker started."""

    service: str
    flows: int
    active: int
    ended: tuple[tuple[str, int], ...]
    datagrams_to_backend: int
    datagrams_to_client: int
    bytes_to_backend: int
    bytes_to_client: int
    resent: int
    dropped: tuple[tuple[str, int], ...]


class AffinityReport(NamedTuple):
    """Which Backend a client was given."""

    service: str
    """``namespace/name:port``."""
    protocol: str
    client: str
    backend_address: str
    backend_port: int
    given_s: float
    """On CLOCK_MONOTONIC."""


class Report(NamedTuple):
    """The answer to ``commands.Ask``."""

    number: int
    """Of the question, the latest one where several are answered at once."""
    services: tuple[ServiceReport, ...]
    """Those that have changed since the last report; all in the first one."""
    udp_services: tuple[FlowReport, ...]
    """As ``services``."""
    affinity: tuple[AffinityReport, ...]
    """What was given since the last report, the oldest first for each ServicePort; perhaps some of it once more."""
    accept_pauses: dict[str, int]
    dial_duration: tuple[int, ...]
    """Counts by bucket."""
    dial_duration_sum_s: float
    affinity_evictions: int
    unexpected_errors: int
    open_relays: int
    open_flows: int
    watched: int
    """File descriptors the engine watches."""


WorkerMessage = Applied | Stopped | Report

_LETTERS = {Applied: b"A", Stopped: b"S", Report: b"R"}


def encode_message(message: WorkerMessage) -> bytes:
    """Return the payload of a frame."""
    return _LETTERS[type(message)] + json.dumps(message, separators=(",", ":")).encode()


def decode_message(payload: bytes) -> WorkerMessage:
    """Return the message in the payload of a frame.

    Raises:
        msgspec.MsgspecError: it is none: the worker is not what it was.
    """
    import msgspec  # noqa: PLC0415 - see _decoders

    decode = _decoders().get(payload[:1])
    if decode is None:
        raise msgspec.DecodeError("a frame begins with a letter that stands for no message")
    try:
        return decode(payload[1:])
    except UnicodeDecodeError as error:  # msgspec lets it out
        raise msgspec.DecodeError(f"text that is no UTF-8: {error.reason}") from None


@cache
def _decoders() -> dict[bytes, Callable[[bytes], WorkerMessage]]:
    """Return what decodes a document, by the letter before it."""
    import msgspec  # noqa: PLC0415 - only the control process decodes, and a worker shall not pay for it

    return {letter: msgspec.json.Decoder(kind).decode for kind, letter in _LETTERS.items()}

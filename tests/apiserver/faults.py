"""Faults of an API server, as tests order them.

A fault is for requests of a resource and a kind; it strikes so often, or until lifted. Faults that were ordered first
strike first.

Entry points: ``Faults.order`` and the classes of what may happen.
"""

from collections.abc import Sequence
from enum import StrEnum
from types import TracebackType
from typing import Self

from attrs import define, field, frozen


class RequestKind(StrEnum):
    """What a request wants, as far as faults tell them apart."""

    LIST = "list"
    WATCH = "watch"
    GET = "get"
    WRITE = "write"


@frozen
class Answer:
    """Answer with a Status of failure; the connection stays."""

    code: int
    """401, 403, 410, 429, 500, 503 and so on."""
    retry_after_s: int | None = None
    message: str | None = None
    """Instead of what a server says for that code."""


@frozen
class GoneInStream:
    """Begin a watch well and send 410 as an event of type ERROR, then end it: the usual form."""


@frozen
class SlowFirstByte:
    """Send nothing for so long, then answer well."""

    delay_s: float


@frozen
class Silence:
    """Take the request and send nothing after the headers, also no end of the connection."""

    has_headers: bool = True


@frozen
class Cut:
    """Break the body off: one half of a piece of it is sent, and no more."""

    after_pieces: int = 0
    """Pieces sent whole before. A list is one piece, each event of a watch is one."""
    is_clean: bool = False
    """End the body as if it were whole, instead of closing the connection within it."""


@frozen
class Reset:
    """Close the connection with RST, without an answer."""


@frozen
class Garbage:
    """Answer 200 with a body, or begin a watch with a line, that is no JSON."""


@frozen
class EndAtOnce:
    """Begin a watch and end it well without an event."""


Action = Answer | GoneInStream | SlowFirstByte | Silence | Cut | Reset | Garbage | EndAtOnce


@define(eq=False)
class Fault:
    """An order; as a context it is lifted at the end."""

    resource: str | None
    """Plural name, as ``services``; None stands for all."""
    kind: RequestKind | None
    """None stands for all."""
    action: Action
    times: int | None
    """How often it may strike; None stands for until lifted."""
    hits: int = 0
    """How often it has struck."""

    def lift(self) -> None:
        """Let it strike no more."""
        self.times = self.hits

    def __enter__(self) -> Self:
        """Do nothing: it is in force already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Lift it."""
        self.lift()

    def strikes(self, resource: str, kind: RequestKind) -> bool:
        """Return whether it is for such a request and not used up."""
        return (
            self.resource in {None, resource}
            and self.kind in {None, kind}
            and (self.times is None or self.hits < self.times)
        )


@define
class Faults:
    """All orders. Tests add to them in their thread, the server asks in its own."""

    _ordered: list[Fault] = field(factory=list)

    def order(
        self,
        action: Action,
        resource: str | None = None,
        kind: RequestKind | str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """Order a fault; see ``Fault`` for the arguments."""
        fault = Fault(resource, None if kind is None else RequestKind(kind), action, times)
        self._ordered.append(fault)
        return fault

    def take(self, resource: str, kind: RequestKind) -> Action | None:
        """Return what is to happen to a request, and count it; None is nothing."""
        for fault in self._ordered:
            if fault.strikes(resource, kind):
                fault.hits += 1
                return fault.action
        return None

    @property
    def ordered(self) -> Sequence[Fault]:
        """All of them, also those used up."""
        return tuple(self._ordered)

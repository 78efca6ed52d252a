"""The clients of the demonstration: what counts as a failure, and what as an even spread."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from userspace_proxy.demo.traffic import CLIENTS, ClientAddress, PhaseReport, Share, run_phase


@asynccontextmanager
async def serving(answer: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[ClientAddress]:
    """Serve connections on a free port, and return where."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()
        nursery.cancel_scope.cancel()


def share(answers: int, *, lived: bool = True) -> Share:
    """Return a share in which only these matter."""
    return Share("backend", "127.0.0.1:80", "running", lived, answers)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\n\r\nhello from backe",
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello from a-stranger\n",
    ],
    ids=["nothing", "cut", "an error", "a stranger"],
)
async def test_run_phase_counts_an_answer_that_is_not_whole_as_a_failure(answer: bytes) -> None:
    """Every request is accounted for, and one is a success only with the whole answer of a backend."""

    async def answer_with(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async with serving(answer_with) as address:
        phase = await run_phase(address, 20, [])
    assert phase.requests == len(phase.failures) == 20
    assert {failure.reason for failure in phase.failures} == {f"the answer was {answer!r}"}


async def test_run_phase_without_a_listener_reports_each_request_as_refused() -> None:
    """A connection that cannot be made is a failure with the kernel's reason, and none is tried again."""
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        phase = await run_phase(sock.getsockname(), 20, [])
    assert len(phase.failures) == 20
    assert all(failure.reason.endswith("Connection refused") for failure in phase.failures)


async def test_run_phase_with_a_silent_server_gives_up(autojump_clock: MockClock) -> None:
    """A request that is never answered ends after 10 s, and is a failure."""

    async def stay_silent(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    async with serving(stay_silent) as address:
        phase = await run_phase(address, CLIENTS, [])
    assert [failure.reason for failure in phase.failures] == ["no answer within 10 s"] * CLIENTS
    assert phase.duration_s == 10.0


@pytest.mark.parametrize(
    "shares",
    [
        (share(50), share(45, lived=False), share(50)),
        (share(50), share(50), share(49)),
        (share(7), share(0, lived=False), share(0, lived=False)),
        (share(3, lived=False),),
    ],
    ids=["one killed", "a rest", "one alone", "none"],
)
def test_phase_is_even_if_those_that_lived_differ_by_one_at_most(shares: tuple[Share, ...]) -> None:
    """Only the backends that lived through the phase are compared."""
    assert PhaseReport(shares, lost=0, failures=(), duration_s=0.5).is_even


def test_phase_is_uneven_if_those_that_lived_differ_by_two() -> None:
    """A turn too much for one and too little for another is seen."""
    assert not PhaseReport((share(51), share(50), share(49)), lost=0, failures=(), duration_s=0.5).is_even

"""The clients of ``demo --requests``: many requests at a time in two phases, and the death of a backend between them.

Nothing is retried and nothing is forgiven: a request that gets no whole answer is a failure, unless it was in flight
on the backend at the moment of its death. The phases do not overlap: the second begins when the last request of the
first has ended, so that each can be held to an even spread of its own. Entry points: ``run_phase_with_kill``,
then ``run_phase``.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import trio
from attrs import frozen

from userspace_proxy.dataplane.tcp_relay import TcpRelay
from userspace_proxy.demo.backend_process import BackendProcess
from userspace_proxy.plan.state import Backend

CLIENTS = 16
"""Clients at a time: some of them are always between two requests, and at least 8 should not be."""
_TIMEOUT_S = 10.0
"""For one request; arbitrary: a thousand times what it takes."""
_LOOK_S = 0.001
"""Between two looks for requests in flight; a request takes several times as long."""
_REQUEST = b"GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n"
_ANSWER = re.compile(rb"HTTP/1\.1 200 [^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\nhello from (\S+)\n")

ClientAddress = tuple[str, int]
"""IP address and port of a client's socket."""
Relays = Callable[[], Iterable[TcpRelay]]
"""Returns the connections that are open at this moment (see ``EngineListeners.relays``)."""


@frozen
class Failure:
    """A request that got no whole answer."""

    client: ClientAddress
    reason: str


@frozen
class Kill:
    """What was killed, and what it was doing."""

    name: str
    pid: int
    in_flight: frozenset[ClientAddress]
    """Clients whose connection was with the backend when it was killed."""


@frozen
class Share:
    """What one backend had of a phase."""

    name: str
    endpoint: str
    state: str
    """At the end of the phase (see ``BackendProcess.state``)."""
    lived: bool
    """Through the whole phase."""
    answers: int


@frozen
class PhaseReport:
    """What became of the requests of one phase."""

    shares: tuple[Share, ...]
    """One for each backend."""
    lost: int
    """Requests without an answer that were in flight on the backend that was killed."""
    failures: tuple[Failure, ...]
    """All others without an answer."""
    duration_s: float

    @property
    def requests(self) -> int:
        """Number of requests."""
        return sum(share.answers for share in self.shares) + self.lost + len(self.failures)

    @property
    def is_even(self) -> bool:
        """Whether the answers of the backends that lived differ by one at most, as round robin has it."""
        answers = [share.answers for share in self.shares if share.lived]
        return not answers or max(answers) - min(answers) <= 1


async def run_phase_with_kill(
    address: ClientAddress, requests: int, backends: Sequence[BackendProcess], relays: Relays
) -> tuple[PhaseReport, Kill]:
    """Send requests, and kill a backend while the last of them are in flight.

    Args:
        address: Where the Service is reached.
        requests: How many; with so few that none is in flight, the backend is killed all the same.
        backends: All that are behind the Service; the one with the most requests in flight is killed.
        relays: For a look at which requests are with which backend.
    """
    phase = _Phase(address, requests, backends)
    kills: list[Kill] = []

    async def kill_one() -> None:
        await phase.wait_in_flight(relays)
        kills.append(_kill_busiest(backends, relays))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_one)
        await phase.run()
    return phase.report(kills[0].in_flight), kills[0]


async def run_phase(address: ClientAddress, requests: int, backends: Sequence[BackendProcess]) -> PhaseReport:
    """Send requests to where the Service is reached, and say what became of them."""
    phase = _Phase(address, requests, backends)
    await phase.run()
    return phase.report(frozenset())


class _Phase:
    """A number of requests, sent by ``CLIENTS`` tasks as fast as they are answered."""

    def __init__(self, address: ClientAddress, requests: int, backends: Sequence[BackendProcess]) -> None:
        self._address = address
        self._requests = requests
        self._backends = backends
        self._answers = {backend.name: 0 for backend in backends}
        self._failures: list[Failure] = []
        self._sent = 0
        """Requests that have been sent, or have failed before."""
        self._all_sent = trio.Event()
        self._ended = False
        self._duration_s = 0.0

    async def run(self) -> None:
        """Send all requests and take all answers."""
        started_s = trio.current_time()
        turns = iter(range(self._requests))
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self._be_client, turns)
            self._note_sent(0)
        self._ended = True
        self._duration_s = trio.current_time() - started_s

    async def wait_in_flight(self, relays: Relays) -> None:
        """Return when all requests have been sent and some are with a backend, or all have ended."""
        await self._all_sent.wait()
        while not self._ended and all(relay.backend is None for relay in relays()):  # noqa: ASYNC110 - no event for it
            await trio.sleep(_LOOK_S)

    def report(self, in_flight: frozenset[ClientAddress]) -> PhaseReport:
        """Return what became of the requests, those apart that were in flight on the backend that was killed."""
        failures = tuple(failure for failure in self._failures if failure.client not in in_flight)
        return PhaseReport(
            shares=tuple(
                Share(each.name, str(each.backend), each.state, each.is_alive, self._answers[each.name])
                for each in self._backends
            ),
            lost=len(self._failures) - len(failures),
            failures=failures,
            duration_s=self._duration_s,
        )

    async def _be_client(self, turns: Iterator[int]) -> None:
        for _ in turns:
            await self._request()

    async def _request(self) -> None:
        """Send one request on a connection of its own and note what comes of it."""
        with trio.socket.socket() as sock:
            is_sent = False
            try:
                with trio.fail_after(_TIMEOUT_S):
                    await sock.connect(self._address)
                    await sock.send(_REQUEST)
                    is_sent = True
                    self._note_sent(1)
                    answer = await _receive_all(sock)
            except OSError as error:
                self._note_failure(sock, error.strerror or str(error))
            except trio.TooSlowError:
                self._note_failure(sock, f"no answer within {_TIMEOUT_S:g} s")
            else:
                found = _ANSWER.fullmatch(answer)
                name = found[1].decode(errors="replace") if found else ""
                if name in self._answers:
                    self._answers[name] += 1
                else:
                    self._note_failure(sock, f"the answer was {answer!r}")
            if not is_sent:
                self._note_sent(1)

    def _note_sent(self, count: int) -> None:
        self._sent += count
        if self._sent == self._requests:
            self._all_sent.set()

    def _note_failure(self, sock: trio.socket.SocketType, reason: str) -> None:
        self._failures.append(Failure(sock.getsockname(), reason))


async def _receive_all(sock: trio.socket.SocketType) -> bytes:
    answer = b""
    while received := await sock.recv(65536):
        answer += received
    return answer


def _kill_busiest(backends: Sequence[BackendProcess], relays: Relays) -> Kill:
    """Kill the backend with the most requests in flight.

    Nothing else runs between the look at them and the death: what it had in flight is known exactly.
    """
    in_flight: dict[Backend, set[ClientAddress]] = defaultdict(set)
    for relay in relays():
        if relay.member is not None:
            in_flight[relay.member.backend].add(relay.client_address)
    victim = max(backends, key=lambda backend: (backend.is_alive, len(in_flight[backend.backend])))
    victim.kill()
    return Kill(victim.name, victim.pid, frozenset(in_flight[victim.backend]))

"""UdpFlow: the datagrams between one client port and one Backend, by a socket of their own.

The socket is connected to the Backend, so the kernel passes on nobody else's datagrams and tells when the Backend
refuses. Answers leave by the socket of the listener, from the address that the client sent to. What came from clients
is passed on by ``UdpListener``, which also makes and ends the flows.

Until the Backend has answered once, a copy of the last datagram is kept: should the Backend turn out to be none, the
datagram goes to another one instead of being lost.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

from userspace_proxy.balance.flow_outcome import FlowEnd
from userspace_proxy.balance.live_pool import LivePool, Member

if TYPE_CHECKING:
    import socket

    from userspace_proxy.dataplane.udp_listener import UdpListener

TOUCH_S = 0.01
"""How exact it is known when a flow was used last. Arbitrary: spares busy flows the work, and is nothing against an
idle time-out."""
ANSWERS_PER_EVENT = 16
"""Answers passed on before others get their turn; arbitrary."""
KEPT_BYTES = 1500
"""Larger datagrams are not kept: it would be the memory of many flows. What an Ethernet frame takes."""
KEPT_S = 1.0
"""Older ones are not sent again: a client that wants an answer has sent it again itself."""


class UdpFlow:
    """One flow, from its first datagram until its listener ends it."""

    __slots__ = (
        "_polls",
        "_receive",
        "active_s",
        "answer",
        "bytes_to_backend",
        "bytes_to_client",
        "client",
        "created_s",
        "datagrams_to_backend",
        "datagrams_to_client",
        "detached_s",
        "is_answered",
        "kept",
        "kept_s",
        "key",
        "listener",
        "member",
        "origin",
        "pool",
        "reported",
        "send",
        "sock",
        "tried",
    )

    def __init__(
        self,
        *,
        listener: "UdpListener",
        origin: bytes,
        key: object,
        client: tuple[str, int],
        answer: bytes,
        pool: LivePool,
        tried: tuple[Member, ...],
        member: Member,
        sock: "socket.SocketType",
    ) -> None:
        """Begin; whoever does it has the engine watch the socket.

        Args:
            listener: Makes and ends the flow.
            origin: Who sends the datagrams, and where to (see ``AddressLayout``).
            key: By which the listener finds it: the same, or with balancing by datagram that and the member.
            client: Who sends them, for people.
            answer: The addresses of answers (see ``AddressLayout.answer``).
            pool: Has the member.
            tried: The Members that its datagrams were sent to in vain.
            member: The one that gets the datagrams.
            sock: Connected to it and non-blocking; owned until ``ListenerFlows.end``.
        """
        self.listener = listener
        self.origin = origin
        self.key = key
        self.client = client
        self.answer = answer
        self.pool = pool
        self.tried = tried
        self.member = member
        self.sock = sock
        self.send = sock.send
        self._receive = sock.recv_into
        self._polls = 0
        """In which batch of events it had an answer last."""
        self.created_s = self.active_s = listener.engine.now_s
        """When it was used last, in seconds on the engine's clock; ``TOUCH_S`` too early at most."""
        self.detached_s: float | None = None
        """Since when it gets no more datagrams of its client, and only delivers answers; None: it gets them."""
        self.is_answered = False
        """Whether the Backend has sent anything."""
        self.kept: bytes | None = None
        """The last datagram from the client, if it can be sent again; of no meaning once there was an answer."""
        self.kept_s = 0.0
        """When it was sent."""
        self.datagrams_to_backend = 0
        self.bytes_to_backend = 0
        self.datagrams_to_client = 0
        self.bytes_to_client = 0
        self.reported = (0, 0, 0, 0)
        """What of these four the counters of the Service have already."""

    def on_event(self, mask: int) -> None:  # noqa: ARG002
        """Take an answer, or several if the batch of events before had one too; the engine tells if there are more."""
        listener = self.listener
        answers = listener.answers
        try:
            count = self._receive(answers.buffer)
        except BlockingIOError:
            return
        except OSError as error:
            listener.on_backend_failed(self, error)
            return
        if not self.is_answered:
            self._on_first_answer()
        answers.put(self, count)
        self.datagrams_to_client += 1
        self.bytes_to_client += count
        engine = listener.engine
        if engine.now_s - self.active_s >= TOUCH_S:
            listener.flows.touch(self)
        polls = engine.polls
        if polls - self._polls == 1:
            self._take_more()
        self._polls = polls

    def take_rest(self) -> None:
        """Deliver what the Backend had sent before it was found to be of no use any more, as far as that is there."""
        before = self.datagrams_to_client
        with suppress(OSError):
            self._take(ANSWERS_PER_EVENT)
        if self.datagrams_to_client > before:
            self.kept = None

    def _take_more(self) -> None:
        """Take what else has come, up to a turn's worth: for one answer alone, the call that finds none is too dear."""
        try:
            self._take(ANSWERS_PER_EVENT - 1)
        except BlockingIOError:
            return
        except OSError as error:
            self.listener.on_backend_failed(self, error)

    def _take(self, most: int) -> None:
        answers = self.listener.answers
        for _ in range(most):
            count = self._receive(answers.buffer)
            answers.put(self, count)
            self.datagrams_to_client += 1
            self.bytes_to_client += count

    def on_answer_failed(self, length: int, error: OSError) -> bool:
        """Take back that an answer was sent; return whether it is known what the error means."""
        self.datagrams_to_client -= 1
        self.bytes_to_client -= length
        self.listener.flows.report(self)  # it may have ended since, and been counted with this one
        return self.listener.on_answer_failed(error)

    def keep(self, datagram: memoryview) -> None:
        """Keep a datagram that was just sent, to be sent again if the Backend refuses it."""
        self.kept = bytes(datagram) if len(datagram) <= KEPT_BYTES else None
        self.kept_s = self.listener.engine.now_s

    def forget_kept_if_old(self) -> None:
        """Keep the datagram no longer if it would come too late."""
        if self.listener.engine.now_s - self.kept_s > KEPT_S:
            self.kept = None

    def _on_first_answer(self) -> None:
        self.is_answered = True
        self.kept = None
        if self.tried:
            self.pool.note_connected(self.client[0], self.member, self.tried, self.listener.engine.now_s)

    def on_bug(self) -> None:
        """Give up this flow after an internal error, and nothing else."""
        self.listener.flows.end(self, FlowEnd.BUG)

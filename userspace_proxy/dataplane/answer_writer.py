"""AnswerWriter: sends the answers of one batch of events together, listener by listener.

Entry point: ``AnswerWriter``.
"""

import ctypes
from typing import TYPE_CHECKING

from userspace_proxy.dataplane.datagram_memory import BATCH, HEADER_BYTES, DatagramMemory, Headers, send
from userspace_proxy.dataplane.udp_addresses import AddressLayout

if TYPE_CHECKING:
    from userspace_proxy.dataplane.engine import Engine
    from userspace_proxy.dataplane.udp_flow import UdpFlow
    from userspace_proxy.dataplane.udp_listener import UdpListener


class AnswerWriter:
    """Collects answers; they are sent when a batch of events is done, or there is no more room."""

    __slots__ = (
        "_addresses",
        "_at",
        "_buffers",
        "_descriptions",
        "_end",
        "_engine",
        "_first",
        "_flows",
        "_lengths",
        "_listener",
        "_memory",
        "_unknown",
        "buffer",
    )

    def __init__(self, engine: "Engine") -> None:
        """Start with nothing.

        Args:
            engine: Says when a batch of events is done.
        """
        self._engine = engine
        self._memory = memory = DatagramMemory()
        self._buffers = memory.buffers
        self._lengths = memory.lengths
        self._flows: list[UdpFlow | None] = [None] * BATCH
        self._listener: UdpListener | None = None
        """From whose socket the waiting ones are to be sent; None: none waits."""
        self._unknown: OSError | None = None
        """A failure to be told as the bug that it is, but not to the handler that happens to run."""
        self._first = 0
        """The first waiting one."""
        self._end = 0
        """Behind the last one."""
        self.buffer = memory.buffers[0]
        """Where the next answer is to be received before ``put`` is called."""
        self._addresses: list[memoryview] = []
        self._at = 0
        """Addresses and headers in the memory, as the layout of the listener wants them."""
        self._descriptions: dict[AddressLayout, tuple[Headers, list[memoryview]]] = {}

    def put(self, flow: "UdpFlow", length: int) -> None:
        """Have the first ``length`` bytes of ``buffer`` sent to the client of a flow."""
        place = self._end
        if flow.listener is not self._listener:
            self._turn_to(flow.listener)
        self._lengths[place] = length
        self._addresses[place][:] = flow.answer
        self._flows[place] = flow
        self._end = end = place + 1
        if end < BATCH:
            self.buffer = self._buffers[end]
        else:
            self.send_all()

    def flush(self) -> None:
        """Send all that wait.

        Raises:
            OSError: some could not be sent for a reason that is unknown; all others were.
        """
        self.send_all()
        if self._unknown is not None:
            unknown, self._unknown = self._unknown, None
            raise unknown

    def send_all(self) -> None:
        """Send all that wait, and begin anew; ``flush`` still tells of those that could not be sent."""
        self._send_waiting()
        self._listener = None
        self._first = self._end = 0
        self.buffer = self._buffers[0]

    def _turn_to(self, listener: "UdpListener") -> None:
        """Send what waits for another listener."""
        if self._listener is None:
            self._engine.at_end(self.flush)
        else:
            self._send_waiting()
        self._listener = listener
        layout = listener.layout
        if layout not in self._descriptions:
            self._descriptions[layout] = self._memory.describe(layout)
        headers, self._addresses = self._descriptions[layout]
        self._at = ctypes.addressof(headers)

    def _send_waiting(self) -> None:
        listener, first, end = self._listener, self._first, self._end
        self._first = end
        while listener is not None and first < end:
            try:
                first += send(listener.fd, self._at + first * HEADER_BYTES, end - first)
            except OSError as error:
                flow = self._flows[first]
                if flow is None or not flow.on_answer_failed(self._lengths[first], error):
                    self._unknown = error
                first += 1

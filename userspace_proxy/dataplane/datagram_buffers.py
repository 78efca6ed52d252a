"""DatagramBuffers: what all UDP listeners of an engine receive and answer with. Entry point: ``DatagramBuffers``."""

from userspace_proxy.dataplane.answer_writer import AnswerWriter
from userspace_proxy.dataplane.datagram_memory import DatagramMemory
from userspace_proxy.dataplane.datagram_reader import DatagramReader
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.udp_addresses import AddressLayout


class DatagramBuffers:
    """One memory to receive in, one to answer from: 4 MB, of which small datagrams use a twentieth."""

    __slots__ = ("_memory", "_readers", "answers")

    def __init__(self, engine: Engine) -> None:
        """Reserve the memory; the engine is the only one that may use it."""
        self._memory = DatagramMemory()
        self._readers: dict[AddressLayout, DatagramReader] = {}
        self.answers = AnswerWriter(engine)

    def reader(self, layout: AddressLayout) -> DatagramReader:
        """Return what receives from sockets with a layout; the same one for all of them."""
        reader = self._readers.get(layout)
        if reader is None:
            reader = self._readers[layout] = DatagramReader(self._memory, layout)
        return reader

"""What the control process says to a worker.

A frame is a ``Batch``, which takes effect as a whole. Commands replace whole values by their key and may be repeated: a
worker that starts gets everything. They travel pickled: the control process is trusted by its workers, never the other
way round (see ``reports``).
"""

import pickle
import struct

from attrs import frozen

from userspace_proxy.config import FlowLimits, RelayLimits
from userspace_proxy.model.names import ServicePortName
from userspace_proxy.plan.state import Backend, ListenerKey, ListenerSpec, Pool, PoolKey, Route, SourceAddresses


@frozen
class Start:
    """The first command; there is no other before it."""

    name: str
    """Of the worker, as metrics and the log have it: ``0``, ``1``..."""
    limits: RelayLimits
    """Already the share of one worker."""
    flow_limits: FlowLimits
    """Already the share of one worker."""
    log_level: str
    log_format: str
    """See ``configure_logging``."""
    user: tuple[int, int] | None = None
    """User and group to run as; None: as it was started. All capabilities are given up in any case."""
    logs_connections: bool = False
    """Whether each connection and flow gets a record when it ends (see ``CONNECTION_LOGGER``)."""


@frozen
class SetSources:
    """See ``DataPlane.apply_sources``."""

    sources: SourceAddresses


@frozen
class SetPool:
    """See ``DataPlane.apply_pool``."""

    pool: Pool


@frozen
class RemovePool:
    """See ``DataPlane.remove_pool``."""

    key: PoolKey


@frozen
class Serve:
    """See ``DataPlane.serve``; takes the next file descriptor of the frame."""

    number: int
    """By which the worker names the listener (see ``reports.Stopped``); of every listener another one, which it keeps
    until it is closed."""
    spec: ListenerSpec
    route: Route
    is_shared: bool
    """Other workers accept from the same socket."""


@frozen
class Lead:
    """See ``DataPlane.lead``."""

    key: ListenerKey
    route: Route


@frozen
class Retire:
    """See ``DataPlane.retire``."""

    key: ListenerKey


@frozen
class Close:
    """See ``DataPlane.close``."""

    key: ListenerKey


@frozen
class Forget:
    """See ``DataPlane.forget``."""

    name: ServicePortName


@frozen
class Remember:
    """Which Backend clients of a ServicePort were given by a worker that is gone."""

    name: ServicePortName
    records: tuple[tuple[str, float, Backend], ...]
    """Address of the client, when it was given the Backend (seconds of CLOCK_MONOTONIC, which all processes of a
    machine share), and the Backend; the oldest first."""


@frozen
class Ask:
    """To be answered by a ``reports.Report`` at once: so it is known that the worker lives, and what it has counted."""

    number: int
    """Of the question; grows."""


@frozen
class LogState:
    """Write what is open to the log."""


@frozen
class Stop:
    """See ``DataPlane.stop``."""


Command = (
    Start
    | SetSources
    | SetPool
    | RemovePool
    | Serve
    | Lead
    | Retire
    | Close
    | Forget
    | Remember
    | Ask
    | LogState
    | Stop
)


@frozen
class Batch:
    """Commands that take effect together, in this order."""

    generation: int
    """Number of the batch among those for this worker, from 1. The worker says in ``reports.Applied`` how far it has
    come."""
    commands: tuple[Command, ...]


_GENERATION = struct.Struct("=Q")


def encode_batch(batch: Batch) -> bytes:
    """Return the payload of a frame."""
    return batch_payload(batch.generation, encode_commands(batch.commands))


def batch_payload(generation: int, commands: bytes) -> bytes:
    """Return the payload of a frame from commands that are encoded, as they may be for several workers at once."""
    return _GENERATION.pack(generation) + commands


def encode_commands(commands: tuple[Command, ...]) -> bytes:
    """Return the commands of a batch for ``batch_payload``."""
    return pickle.dumps(commands, pickle.HIGHEST_PROTOCOL)


def decode_batch(payload: bytes) -> Batch:
    """Return what ``encode_batch`` has encoded; for bytes from the control process alone."""
    (generation,) = _GENERATION.unpack_from(payload)
    commands: tuple[Command, ...] = pickle.loads(memoryview(payload)[_GENERATION.size :])  # noqa: S301 - see above
    return Batch(generation, commands)

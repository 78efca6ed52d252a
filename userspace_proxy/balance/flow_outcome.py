"""FlowEnd and DropReason: why a UDP flow ended, and why a datagram was not delivered. The values are metric labels."""

from enum import StrEnum


class FlowEnd(StrEnum):
    """Why a flow ended."""

    IDLE = "idle"
    """No datagram in either direction for the idle time-out: the usual end."""
    EVICTED = "evicted"
    """There were too many, or no descriptor or port for another one, and this one had been silent for longest."""
    ENDPOINT_GONE = "endpoint_gone"
    """Its Backend does not serve any more; late answers had their time."""
    REFUSED = "refused"
    """Its Backend said that nothing listens there, or could not be reached."""
    SERVICE_GONE = "service_gone"
    """The Service port, or the place at which it was served, is gone."""
    STOPPED = "stopped"
    """The proxy stopped."""
    BUG = "bug"
    """An internal error; the log has its traceback."""


class DropReason(StrEnum):
    """Why a datagram was not delivered."""

    NO_ENDPOINT = "no_endpoint"
    """No Backend was there to take it."""
    DENIED = "denied"
    """A traffic policy or ``loadBalancerSourceRanges`` keep the client out, or it pretends to be this proxy."""
    BUFFER_FULL = "buffer_full"
    """A socket's buffer was full, on its way in or out."""
    TOO_BIG = "too_big"
    """The way on does not take datagrams of its size."""
    REFUSED = "refused"
    """The Backend it was sent to refused it, and it could not be sent once more."""
    UNREACHABLE = "unreachable"
    """This node has no way to where it was to go, or may not send it there."""
    NO_DESCRIPTOR = "no_descriptor"
    """It was the first of a flow, and no file descriptor, local port or memory was left."""

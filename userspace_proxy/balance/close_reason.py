"""CloseReason: who ended a connection, and in which phase.

Two letters answer most questions about a connection that ended early. The first letter says who, the second says
when; ``--`` is the usual end. HAProxy's termination states are the model (HAProxy configuration manual, "Session state
at disconnection").
"""

from enum import Enum


class CloseReason(Enum):
    """Why a connection ended; the value is (who, phase) as in logs and metric labels."""

    NORMAL = ("-", "-")
    """Both sides ended their direction, and every byte was delivered."""
    CLIENT_DIALLING = ("C", "D")
    """The client went away before a Backend was connected."""
    CLIENT_OPEN = ("C", "O")
    """The client reset the connection, or could not be reached any more."""
    CLIENT_HALF_CLOSED = ("C", "H")
    """The same, after one direction had ended."""
    BACKEND_DIALLING = ("B", "D")
    """No Backend could be connected: refused, unreachable, or no answer in time."""
    BACKEND_OPEN = ("B", "O")
    """The Backend reset the connection, or could not be reached any more."""
    BACKEND_HALF_CLOSED = ("B", "H")
    """The same, after one direction had ended."""
    NO_BACKEND = ("P", "D")
    """The Pool was empty, be it only since the accept."""
    DENIED = ("P", "A")
    """The proxy refused the client at accept: a traffic policy or ``loadBalancerSourceRanges`` keep it out."""
    NOT_STEERED = ("G", "A")
    """The guard of a proxy port refused the client at accept: it dialled the port itself, to which only steering may
    lead."""
    RESOURCE = ("R", "D")
    """This node had no file descriptor or no local port left for a dial."""
    IDLE_OPEN = ("T", "O")
    """No byte in either direction for the idle time-out."""
    IDLE_HALF_CLOSED = ("T", "H")
    """No byte for the half-closed time-out, or the idle time-out, after one direction had ended."""
    KILLED_DIALLING = ("K", "D")
    """The proxy stopped, or the drain time was over, before a Backend was connected."""
    KILLED_OPEN = ("K", "O")
    """The proxy stopped, or the drain time was over."""
    KILLED_HALF_CLOSED = ("K", "H")
    """The same, after one direction had ended."""
    BUG = ("I", "-")
    """An internal error; the log has its traceback."""

    def __init__(self, who: str, phase: str) -> None:
        self.who = who
        self.phase = phase

    def __str__(self) -> str:
        """Return the two letters, as ``CD``."""
        return self.who + self.phase

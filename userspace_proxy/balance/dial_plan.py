"""What the dialling of one connection does next. Pure: asked at each event of a connection that is not yet connected.

A Backend that refuses costs the client nothing but the time of the next dial; one that does not answer is given
``dial_next_after_s`` before a second one is dialled *beside* it (a lost SYN must not kill a Service with one Backend,
so the first dial is not abandoned). The first to connect wins.
"""

from enum import Enum

from userspace_proxy.config import RelayLimits


class Step(Enum):
    """What to do now."""

    DIAL = "dial"
    """Dial a Backend that was not tried yet."""
    WAIT = "wait"
    """Leave the dials under way alone."""
    GIVE_UP = "give up"
    """Reset the client."""


def next_step(
    limits: RelayLimits, *, untried: bool, pending: int, last_failed: bool, elapsed_s: float, since_dial_s: float
) -> Step:
    """Return what the dialling of a connection does next.

    Args:
        limits: Holds the two times.
        untried: Whether the Pool has a Backend that this connection has not dialled.
        pending: Dials under way.
        last_failed: Whether the dial that was started last has failed.
        elapsed_s: Seconds since the connection was accepted.
        since_dial_s: Seconds since the last dial was started.
    """
    if elapsed_s >= limits.dial_timeout_s:
        return Step.GIVE_UP
    if untried and (not pending or last_failed or since_dial_s >= limits.dial_next_after_s):
        return Step.DIAL
    return Step.WAIT if pending else Step.GIVE_UP

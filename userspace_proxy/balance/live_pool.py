"""LivePool: a Pool in use, which says for each connection whose turn it is. Pure; draws on randomness it is given.

Replacing the Pool keeps the Members of Backends that stay, with their open connections, and keeps the place in the
order: round robin goes on behind the Backend it was at, so that a Pool that changes often is still shared evenly.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection
from ipaddress import IPv6Address

from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import Backend, Pool


class Member:
    """One Backend of a LivePool, with what this process knows of it."""

    __slots__ = ("address", "backend", "connections", "is_ipv6", "open")

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.address = (str(backend.address), backend.port)
        """As ``connect(2)`` wants it."""
        self.is_ipv6 = isinstance(backend.address, IPv6Address)
        self.open = 0
        """Connections that are open or being dialled."""
        self.connections = 0
        """Connections made since the start."""


class LivePool:
    """The Members of one Pool in order, and whose turn it is."""

    __slots__ = ("_leaving", "_next", "_random", "members", "pick")

    def __init__(self, pool: Pool, random: Callable[[], float]) -> None:
        """Begin with a Pool.

        Args:
            pool: The first value.
            random: Returns a float in [0, 1), as ``random.random`` does.
        """
        self._random = random
        self._next = 0
        self.members: list[Member] = []
        self._leaving: list[Member] = []
        """Not in the Pool any more, but with open connections: they may come back."""
        self.pick: Callable[[Collection[Member]], Member | None] = self._pick_round_robin
        """``pick(tried)`` returns the Member for the next dial of a connection that has tried some already, or None
        where all have been tried (or there is none). Round robin moves on by one for each dial, also for one that
        will fail: so the Members that answer still share the connections evenly while another does not."""
        self.replace(pool)

    def replace(self, pool: Pool) -> None:
        """Put a new value of the Pool in force; open connections stay where they are."""
        turn = self.members[self._next].backend if self.members else None
        known = {member.backend: member for member in (*self._leaving, *self.members)}
        ordered = sorted(pool.backends)
        self.members = [known.pop(backend) if backend in known else Member(backend) for backend in ordered]
        self._leaving = [member for member in known.values() if member.open]
        # The one whose turn it was, or the first behind where it would stand.
        self._next = bisect_left(ordered, turn) % len(ordered) if ordered and turn is not None else 0
        least_connections = pool.balance is Balance.LEAST_CONNECTIONS
        self.pick = self._pick_least_connections if least_connections else self._pick_round_robin

    def _pick_round_robin(self, tried: Collection[Member]) -> Member | None:
        members = self.members
        for _ in members:
            member = members[self._next]
            self._next = self._next + 1 if self._next + 1 < len(members) else 0
            if member not in tried:
                return member
        return None

    def _pick_least_connections(self, tried: Collection[Member]) -> Member | None:
        """Power of two choices: near to the least loaded of all at the cost of two draws (Mitzenmacher 2001)."""
        members = [member for member in self.members if member not in tried] if tried else self.members
        count = len(members)
        if count < 2:  # noqa: PLR2004
            return members[0] if members else None
        first = int(self._random() * count)
        second = int(self._random() * (count - 1))
        if second >= first:
            second += 1
        one, other = members[first], members[second]
        return one if one.open <= other.open else other

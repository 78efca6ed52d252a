"""LivePool: a Pool in use, which says for each connection whose turn it is. Pure; draws on randomness it is given.

With affinity a client comes back to the Backend it had, if that is still in the Pool. Which one that is gets written
down when the client is first given it, before anybody knows whether it answers: so all of a burst of connections go to
one Backend. When it does not answer, the one that does instead takes its place.

Replacing the Pool keeps the Members of Backends that stay, with their open connections, and keeps the place in the
order: round robin goes on behind the Backend it was at, so that a Pool that changes often, or is empty for a while, is
still shared evenly.

UDP flows ask their Member whether they may go on (``is_serving``): at Backends of the Pool, and at those that serve
still, whatever traffic policy has taken them out of it. So also when a change of policy removes the Pool itself.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv6Address

from userspace_proxy.balance.affinity import AffinityTable
from userspace_proxy.model.service_port import Balance
from userspace_proxy.plan.state import Backend, Pool, UdpSettings

_NO_UDP = UdpSettings()


class Member:
    """One Backend of a LivePool, with what this process knows of it."""

    __slots__ = ("address", "backend", "connections", "is_ipv6", "is_serving", "open")

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.address = (str(backend.address), backend.port)
        """As ``connect(2)`` wants it."""
        self.is_ipv6 = isinstance(backend.address, IPv6Address)
        self.is_serving = True
        """Whether UDP flows that are there may go on."""
        self.open = 0
        """Connections that are open or being dialled, or flows."""
        self.connections = 0
        """Connections made since the start, or flows."""


class LivePool:
    """The Members of one Pool in order, and whose turn it is."""

    __slots__ = (
        "_adopted",
        "_affinity",
        "_affinity_timeout_s",
        "_by_backend",
        "_leaving",
        "_next",
        "_random",
        "_turn",
        "members",
        "pick",
        "udp",
    )

    def __init__(self, pool: Pool, random: Callable[[], float], affinity: AffinityTable | None = None) -> None:
        """Begin with a Pool.

        Args:
            pool: The first value.
            random: Returns a float in [0, 1), as ``random.random`` does.
            affinity: See ``replace``.
        """
        self._random = random
        self._next = 0
        self._turn: Backend | None = None
        """Whose turn it was before the last change; while the Pool is empty: before it became so."""
        self.members: list[Member] = []
        self._leaving: list[Member] = []
        """Not in the Pool any more, but with open connections: they may come back."""
        self._adopted: list[Member] = []
        """Of a Pool that is gone, with open connections; see ``adopt``."""
        self.pick: Callable[[Collection[Member]], Member | None] = self._pick_round_robin
        """``pick(tried)`` returns the Member for the next dial of a connection that has tried some already, or None
        where all have been tried (or there is none). Round robin moves on by one for each dial, also for one that
        will fail: so the Members that answer still share the connections evenly while another does not."""
        self.replace(pool, affinity)

    def replace(self, pool: Pool, affinity: AffinityTable | None = None) -> None:
        """Put a new value of the Pool in force; open connections stay where they are.

        Args:
            pool: The value.
            affinity: The records of its ServicePort, if the Pool has affinity.
        """
        if self.members:
            self._turn = self.members[self._next].backend
        known = {member.backend: member for member in (*self._leaving, *self.members)}
        ordered = sorted(pool.backends, key=_place)
        self.members = [known.pop(backend) if backend in known else Member(backend) for backend in ordered]
        self.udp = pool.udp or _NO_UDP
        self._leaving = list(known.values())
        self._mark_serving()
        # The one whose turn it was, or the first behind where it would stand.
        behind = 0 if self._turn is None else bisect_left(ordered, _place(self._turn), key=_place)
        self._next = behind if behind < len(ordered) else 0
        least_connections = pool.balance is Balance.LEAST_CONNECTIONS
        self.pick = self._pick_least_connections if least_connections else self._pick_round_robin
        self._affinity = affinity
        self._affinity_timeout_s = pool.affinity_timeout_s or 0
        self._by_backend = {member.backend: member for member in self.members} if affinity is not None else {}

    def adopt(self, members: Iterable[Member]) -> None:
        """Have the flows of a Pool that is gone go on as if they were of this one; nothing new is led to them.

        Args:
            members: All that were ``known`` there. The two Pools are of the same ServicePort and family.
        """
        self._adopted.extend(members)
        self._mark_serving()

    def dissolve(self) -> None:
        """Have no flow go on: the Pool is gone."""
        for member in self.known:
            member.is_serving = False

    @property
    def known(self) -> tuple[Member, ...]:
        """The Members, and all others that have something open."""
        return (*self.members, *self._leaving, *self._adopted)

    def pick_for(self, client: str, tried: Collection[Member], now_s: float) -> Member | None:
        """Return the Member for the next dial of a client's connection, as ``pick`` does; with affinity: its own first.

        Args:
            client: The address of the client, as text.
            tried: The Members that its connection has dialled already.
            now_s: Seconds on a clock that never runs backwards.
        """
        affinity = self._affinity
        if affinity is None:
            return self.pick(tried)
        recorded = self._recorded(affinity, client, now_s)
        member = recorded if recorded is not None and recorded not in tried else self.pick(tried)
        # One that was dialled in vain stays recorded until another one answers.
        if member is not None and (recorded is None or recorded is member):
            affinity.write(client, member.backend, now_s, self._affinity_timeout_s)
        return member

    def note_connected(self, client: str, member: Member, tried: Collection[Member], now_s: float) -> None:
        """Have a client come back to the Member that answered, unless it has one that its connection has not dialled.

        To be called for connections that have dialled several; for the others ``pick_for`` has said all.
        """
        affinity = self._affinity
        if affinity is not None:
            recorded = self._recorded(affinity, client, now_s)
            if recorded is None or recorded in tried:
                affinity.write(client, member.backend, now_s, self._affinity_timeout_s)

    def _mark_serving(self) -> None:
        """Say of all that are known whether they serve; forget those that are not in the Pool and have nothing open."""
        for member in self.members:
            member.is_serving = True
        if self._leaving or self._adopted:
            serving = self.udp.serving.union(member.backend for member in self.members)
            for member in (*self._leaving, *self._adopted):
                member.is_serving = member.backend in serving
        self._leaving = [member for member in self._leaving if member.open]
        self._adopted = [member for member in self._adopted if member.open]

    def _recorded(self, affinity: AffinityTable, client: str, now_s: float) -> Member | None:
        """Return the Member that a client had, if the record is valid."""
        backend = affinity.find(client, now_s, self._affinity_timeout_s)
        return None if backend is None else self._by_backend.get(backend)

    def _pick_round_robin(self, tried: Collection[Member]) -> Member | None:
        members = self.members
        for _ in members:
            place = self._next
            member = members[place]
            self._next = (place + 1) % len(members)
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


def _place(backend: Backend) -> tuple[int, int]:
    """Return where a Backend stands in its Pool: as they sort by themselves, several times as fast."""
    return (int(backend.address), backend.port)

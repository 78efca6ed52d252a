"""AffinityTable: which Backend each client of one ServicePort was given last (``sessionAffinity: ClientIP``).

The key is the client's address alone: whichever address of the ServicePort it dials, and from whichever port, it comes
back to the same Backend. Every new connection renews the record, an open one does not. Nothing here knows which
Backends exist: whoever asks decides whether a record is of use (kube-proxy keeps records of removed endpoints, too).
Pure: the time is an argument. Source: Kubernetes API, ``ServiceSpec.sessionAffinityConfig``. Entry point:
``AffinityTable``.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from operator import itemgetter

from userspace_proxy.plan.state import Backend

Record = tuple[str, float, Backend]
"""The address of a client, when it was given its Backend (seconds on the caller's clock), and the Backend."""

MAX_CLIENTS = 65536
"""Clients remembered for one ServicePort. Arbitrary: more than one node sees of one Service in the default three hours,
and 16 MB at most."""
_DROPS_PER_WRITE = 2
"""Expired records that go with each write: more than come, so that they all go in time, and no write takes long."""


class AffinityTable:
    """The last Backend of each client and when it was given, the longest unused first."""

    __slots__ = ("_max_clients", "_on_eviction", "_records")

    def __init__(self, max_clients: int, on_eviction: Callable[[], None]) -> None:
        """Start empty.

        Args:
            max_clients: Records that are kept, at least 1; beyond that the longest unused one goes.
            on_eviction: Called for each record that had to go before its time.
        """
        self._max_clients = max_clients
        self._on_eviction = on_eviction
        self._records: OrderedDict[str, tuple[float, Backend]] = OrderedDict()
        """Not a plain dict: that has to look for its first key behind all that were removed before it."""

    def find(self, client: str, now_s: float, timeout_s: float) -> Backend | None:
        """Return the Backend of a client that was given one less than ``timeout_s`` ago."""
        record = self._records.get(client)
        return record[1] if record is not None and now_s - record[0] < timeout_s else None

    def write(self, client: str, backend: Backend, now_s: float, timeout_s: float) -> None:
        """Remember that a client was given a Backend now; ``now_s`` must not run backwards."""
        records = self._records
        records[client] = (now_s, backend)
        records.move_to_end(client)
        for _ in range(_DROPS_PER_WRITE):
            oldest = next(iter(records))
            if now_s - records[oldest][0] < timeout_s:
                break
            del records[oldest]
        if len(records) > self._max_clients:
            records.popitem(last=False)
            self._on_eviction()

    def written_since(self, given_s: float) -> list[Record]:
        """Return the records of that moment and of later ones, the oldest first; no others are looked at."""
        found = []
        for client, (written_s, backend) in reversed(self._records.items()):
            if written_s < given_s:
                break
            found.append((client, written_s, backend))
        found.reverse()
        return found

    def take_over(self, records: Iterable[Record]) -> None:
        """Remember what another table has known, unless there is a record of the client that is not older.

        Args:
            records: From a table on the same clock; the oldest first.
        """
        own = self._records
        news = [one for one in records if one[0] not in own or own[one[0]][0] < one[1]]
        for client, _, _ in news:
            own.pop(client, None)
        olds = [(client, given_s, backend) for client, (given_s, backend) in own.items()]
        own.clear()
        for client, given_s, backend in sorted((*olds, *news), key=itemgetter(1)):
            own[client] = (given_s, backend)
        while len(own) > self._max_clients:
            own.popitem(last=False)
            self._on_eviction()

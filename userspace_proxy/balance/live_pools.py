"""LivePools: all Pools in use, and the one a client is led to. Pure.

It gives the Pools of one ServicePort the records they share: which Backend each client had (``AffinityTable``). These
live as long as one of the Pools has affinity, and are forgotten when it is switched off. Entry point: ``LivePools``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from ipaddress import ip_address

from userspace_proxy.balance.affinity import MAX_CLIENTS, AffinityTable, Record
from userspace_proxy.balance.close_reason import CloseReason
from userspace_proxy.balance.live_pool import LivePool
from userspace_proxy.balance.source_class import classify, is_within
from userspace_proxy.model.names import ServicePortName
from userspace_proxy.plan.state import (
    EndpointScope,
    Pool,
    PoolKey,
    Route,
    SourceAddresses,
    Target,
    UdpSettings,
    Verdict,
)

TARGETS_KEPT = 4096
"""Clients for whom it is remembered where a Route leads them: those that come often, as load balancers do, are spared
some 10 us a connection. Arbitrary."""


class LivePools:
    """The LivePools by their keys."""

    __slots__ = ("_affine", "_find_target", "_local_addresses", "_on_eviction", "_pools", "_random", "_tables")

    def __init__(self, random: Callable[[], float], on_eviction: Callable[[], None]) -> None:
        """Start without Pools.

        Args:
            random: See ``LivePool``.
            on_eviction: See ``AffinityTable``.
        """
        self._random = random
        self._on_eviction = on_eviction
        self._pools: dict[PoolKey, LivePool] = {}
        self._tables: dict[ServicePortName, AffinityTable] = {}
        self._affine: defaultdict[ServicePortName, set[PoolKey]] = defaultdict(set)
        """The Pools with affinity, of ServicePorts that have one."""
        self.apply_sources(SourceAddresses())

    def apply_sources(self, sources: SourceAddresses) -> None:
        """Tell the class of clients by this from now on."""
        self._find_target = lru_cache(TARGETS_KEPT)(partial(_find_target, sources))
        self._local_addresses = sources.local_addresses

    def apply(self, pool: Pool) -> None:
        """Put a value of a Pool in force."""
        affinity = self._affinity_of(pool)
        live = self._pools.get(pool.key)
        if live is None:
            self._pools[pool.key] = LivePool(pool, self._random, affinity)
        else:
            live.replace(pool, affinity)

    def remove(self, key: PoolKey) -> None:
        """Forget a Pool, if there is one; where only a policy has changed, its flows go on."""
        live = self._pools.pop(key, None)
        if live is not None:
            others = (PoolKey(key.service_port, scope, key.family) for scope in EndpointScope)
            heir = next((self._pools[other] for other in others if other in self._pools), None)
            if heir is None:
                live.dissolve()
            else:
                heir.adopt(live.known)
        self._end_affinity(key)

    def items(self) -> Iterator[tuple[PoolKey, LivePool]]:
        """Iterate over the Pools in force."""
        return iter(self._pools.items())

    def serves(self, route: Route) -> bool:
        """Return whether a Route leads anybody to a Backend."""
        pools = map(self._pools.get, route.pools)
        return any(pool is not None and pool.members for pool in pools)

    def only_pool(self, route: Route) -> LivePool | None:
        """Return the Pool to which a Route leads all clients; None: one has to look where each is.

        It holds until that Pool comes or goes.
        """
        target = route.host
        return None if isinstance(target, Verdict) or not route.is_same_for_all else self._pools.get(target)

    def is_local(self, address: str) -> bool:
        """Return whether an address is one of this node."""
        parsed = ip_address(address)
        return parsed.is_loopback or parsed in self._local_addresses

    def udp_settings(self, route: Route) -> UdpSettings | None:
        """Return what the Service says of its flows; None if the Route leads to no Pool, so that nobody asks."""
        pools = map(self._pools.get, route.pools)
        return next((pool.udp for pool in pools if pool is not None), None)

    def choose(self, route: Route, client: str, dialled: str) -> LivePool | CloseReason:
        """Return the Pool to which a Route leads a client, or why none.

        Args:
            route: That of the Listener.
            client: The address of the client, as text.
            dialled: The address it dialled, as text.
        """
        target = self._find_target(route, client, dialled)
        return CloseReason.DENIED if isinstance(target, Verdict) else self._pools.get(target, CloseReason.NO_BACKEND)

    def affinity_since(self, given_s: float) -> Iterator[tuple[ServicePortName, list[Record]]]:
        """Iterate over the records of that moment and of later ones, by ServicePort (see ``AffinityTable``)."""
        for name, table in self._tables.items():
            records = table.written_since(given_s)
            if records:
                yield name, records

    def take_over(self, name: ServicePortName, records: Iterable[Record]) -> None:
        """Remember what the Pools of another process have known of a ServicePort, if it has affinity here, too.

        Args:
            name: Its Pools are in force by now.
            records: See ``AffinityTable``.
        """
        table = self._tables.get(name)
        if table is not None:
            table.take_over(records)

    def _affinity_of(self, pool: Pool) -> AffinityTable | None:
        if pool.affinity_timeout_s is None:
            self._end_affinity(pool.key)
            return None
        name = pool.key.service_port
        self._affine[name].add(pool.key)
        if name not in self._tables:
            self._tables[name] = AffinityTable(MAX_CLIENTS, self._on_eviction)
        return self._tables[name]

    def _end_affinity(self, key: PoolKey) -> None:
        affine = self._affine.get(key.service_port, set())
        affine.discard(key)
        if not affine:
            self._affine.pop(key.service_port, None)
            self._tables.pop(key.service_port, None)


def _find_target(sources: SourceAddresses, route: Route, client: str, dialled: str) -> Target:
    source, destination = ip_address(client), ip_address(dialled)
    if route.source_ranges and not is_within(source, destination, route.source_ranges, sources):
        return Verdict.DROP
    return route.target(classify(source, destination, sources))

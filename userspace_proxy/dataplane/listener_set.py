"""ListenerSet: which listeners there are to be, and their sockets, for a DataPlane to serve.

The caller says what should be (``apply_*``, ``remove_*``, in any order) and then calls ``open_missing``, again later
for those that failed. A listener whose Route leads nobody to a Backend only *holds* its port: clients are refused at
once instead of being accepted for nothing, nobody else can take the port, and it serves again with the first Backend.

Where several engines serve, those of TCP accept from one socket. A listener whose clients have to come back to the
engine that knows them (session affinity, and all of UDP) has a group of sockets instead, one for each engine (see
``reuseport``); one that has become a group remains it until it retires.

Each listener that is wanted takes one descriptor, or those of its group, whether it serves or holds its port.
"""

import logging
import socket
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress

from attrs import frozen

from userspace_proxy.config import RelayLimits
from userspace_proxy.dataplane.base import DataPlane
from userspace_proxy.dataplane.reuseport import choose_by_flow, choose_by_source
from userspace_proxy.dataplane.shared_ports import SharedPorts
from userspace_proxy.dataplane.sockets import (
    give_up_port,
    hold_port,
    is_listening,
    listen_errors,
    share_port,
    start_listening,
    stop_listening,
)
from userspace_proxy.dataplane.udp_sockets import (
    give_up_datagram_port,
    hold_datagram_port,
    open_datagram_sockets,
    refuse_datagrams,
)
from userspace_proxy.errors import ListenError
from userspace_proxy.model.names import IPAddress, Protocol, ServicePortName
from userspace_proxy.plan.state import ListenerKey, ListenerSpec, Pool, PoolKey, Route, SourceAddresses

LOG = logging.getLogger(__name__)

MAX_HOLDERS_NAMED = 4
"""Ports in use for which the holder is looked up in one go: that takes milliseconds each on a node with many
processes."""

_Sockets = tuple[socket.socket, ...]


@frozen
class _Wanted:
    """What a listener should be."""

    spec: ListenerSpec
    route: Route


class ListenerSet:
    """Owns every listening socket."""

    def __init__(self, plane: DataPlane, limits: RelayLimits) -> None:
        """Start without listeners.

        Args:
            plane: Serves them.
            limits: Has the backlog and the keepalive time of TCP listeners.
        """
        self._plane = plane
        self._limits = limits
        self._pools: dict[PoolKey, Pool] = {}
        self._wanted: dict[ListenerKey, _Wanted] = {}
        self._keys: defaultdict[ServicePortName, set[ListenerKey]] = defaultdict(set)
        """Those of ``_wanted``, by what they serve: its Pools are all that their Routes lead to."""
        self._ports = SharedPorts()
        """The places of ``_wanted``."""
        self._sockets: dict[ListenerKey, _Sockets] = {}
        """Of those of ``_wanted`` that have their ports."""
        self._serving: set[ListenerKey] = set()
        """Those of ``_sockets`` that are open; the others only hold their ports."""
        self._by_source: set[ListenerKey] = set()
        """Those of ``_serving`` that have a group of which the member is chosen by the client's address."""
        self._doubtful: dict[ListenerKey, None] = {}
        """To be brought about at the next opportunity, in this order, unless they are as they should be."""
        self._failed: dict[ListenerKey, None] = {}
        """Could not be opened, or could not get their ports."""
        self._left: set[tuple[IPAddress, int]] = set()
        """Places of UDP listeners that were closed just now: engines may have their sockets for a moment still."""

    @property
    def open_listeners(self) -> int:
        """Number of listeners that serve; those that only hold their ports do not count."""
        return len(self._serving)

    @property
    def failed(self) -> Collection[ListenerKey]:
        """Listeners that could not be opened, or not get their ports, at the last attempt; a live view."""
        return self._failed.keys()

    @property
    def pools(self) -> Collection[PoolKey]:
        """The Pools in force; a live view."""
        return self._pools.keys()

    def apply_pool(self, pool: Pool) -> None:
        """Put a Pool in force for all listeners whose Route leads to it."""
        self._pools[pool.key] = pool
        self._plane.apply_pool(pool)
        self._doubt_all(pool.key.service_port)

    def remove_pool(self, key: PoolKey) -> None:
        """Forget a Pool; Routes that lead to it lead nowhere."""
        self._pools.pop(key, None)
        self._plane.remove_pool(key)
        self._doubt_all(key.service_port)

    def apply_sources(self, sources: SourceAddresses) -> None:
        """Tell the class of clients by this from now on."""
        self._plane.apply_sources(sources)

    def apply_listener(self, spec: ListenerSpec, route: Route) -> None:
        """Have a listener at that place with that Route, closing the one of the same key elsewhere."""
        key = spec.key
        wanted = self._wanted.get(key)
        if wanted is not None and wanted.spec != spec:
            self._close(key)
        self._keys[key.service_port].add(key)
        self._wanted[key] = _Wanted(spec, route)
        if self._ports.add(spec):
            self._set_shared(spec)
        if key in self._serving and wanted is not None and wanted.route != route:
            self._plane.lead(key, route)
        self._doubtful[key] = None

    def apply_route(self, key: ListenerKey, route: Route) -> None:
        """Give a listener that was applied another Route."""
        self.apply_listener(self._wanted[key].spec, route)

    def remove_listener(self, key: ListenerKey) -> None:
        """Close a listener for good; its connections live on, its flows end."""
        if key not in self._wanted:
            return
        self._close(key)
        name = key.service_port
        self._keys[name].discard(key)
        if not self._keys[name]:
            del self._keys[name]
            self._plane.forget(name)

    def listen_again(self, key: ListenerKey) -> None:
        """Have a listener of TCP listen that somebody has had stop, if it is still to be open."""
        if key not in self._serving or key.service_port.protocol is Protocol.UDP:
            return
        wanted = self._wanted[key]
        stopped = [sock for sock in self._sockets[key] if not is_listening(sock)]
        if not stopped:  # said by several engines, or while it had retired
            return
        try:
            for sock in stopped:
                stop_listening(sock)
                start_listening(sock, wanted.spec, self._limits, names_holder=True)
            self._choose_members(wanted)  # with its last member the group was gone, and how to choose from it
        except ListenError as error:
            LOG.error("%s", error)  # noqa: TRY400 - a known failure
            self._retire(wanted)
            self._failed[key] = None
        else:
            LOG.warning(
                "somebody had the listener stop (ss -K, say); it listens again",
                extra={"service": str(key.service_port)},
            )

    def open_missing(self, *, retry: bool) -> dict[ListenerKey, ListenError | None]:
        """Open the listeners that should be open, and have the others hold their ports.

        Args:
            retry: Try those again that failed before.

        Returns:
            Those that could not be opened, or not get their ports, with the reason, and (None) those that failed before
            and did not now.
        """
        outcomes: dict[ListenerKey, ListenError | None] = {}
        for key in {**self._doubtful, **(self._failed if retry else {})}:
            wanted = self._wanted[key]
            if self._is_as_wanted(wanted):
                self._failed.pop(key, None)
            elif retry or key not in self._failed:
                try:
                    names_holder = key not in self._failed and len(outcomes) < MAX_HOLDERS_NAMED
                    self._bring_about(wanted, names_holder=names_holder)
                except ListenError as error:
                    self._failed[key] = None
                    outcomes[key] = error
                except Exception:
                    self._doubtful.pop(key, None)
                    self._doubtful[key] = None  # it is still to be done, but not before all others
                    raise
                else:
                    if key in self._failed:
                        del self._failed[key]
                        outcomes[key] = None
            self._doubtful.pop(key, None)
        self._left.clear()
        return outcomes

    def close_listeners(self) -> None:
        """Accept no more and hold no port but those by which flows get late answers; open connections go on."""
        self._doubtful.clear()
        self._failed.clear()
        for key in self._serving:
            with suppress(ListenError):
                self._refuse(key)
        self._serving.clear()
        self._plane.stop()
        for key in [key for key in self._sockets if key.service_port.protocol is not Protocol.UDP]:
            self._give_up(self._sockets.pop(key), self._wanted[key].spec)

    def close(self) -> None:
        """Close all sockets that are left; nobody may use them any more."""
        for key, sockets in self._sockets.items():
            self._give_up(sockets, self._wanted[key].spec)
        self._sockets.clear()

    def _is_as_wanted(self, wanted: _Wanted) -> bool:
        key = wanted.spec.key
        if not self._has_to_be_open(wanted):
            return key in self._sockets and key not in self._serving
        if key not in self._serving or len(self._sockets[key]) < self._count_sockets(wanted):
            return False
        return (key in self._by_source) is (len(self._sockets[key]) > 1 and self._has_affinity(wanted))

    def _has_to_be_open(self, wanted: _Wanted) -> bool:
        """Return whether a listener has to be open; without Backends it resets whom it accepts, or drops what it gets.

        One without Backends must be open if there is one at the wildcard address with the same port: to that one the
        kernel would lead the clients, and they are not for it.
        """
        spec = wanted.spec
        pools = map(self._pools.get, wanted.route.pools)
        serves = any(pool is not None and pool.backends for pool in pools)
        return serves or (not spec.address.is_unspecified and self._ports.is_shared(spec))

    def _count_sockets(self, wanted: _Wanted) -> int:
        """Return how many sockets a listener needs to serve."""
        is_group = wanted.spec.key.service_port.protocol is Protocol.UDP or self._has_affinity(wanted)
        return self._plane.members if is_group else 1

    def _has_affinity(self, wanted: _Wanted) -> bool:
        pools = map(self._pools.get, wanted.route.pools)
        return any(pool is not None and pool.affinity_timeout_s is not None for pool in pools)

    def _bring_about(self, wanted: _Wanted, *, names_holder: bool) -> None:
        """Have a listener open, or hold its port, that does not.

        Raises:
            ListenError: it does not still.
        """
        key = wanted.spec.key
        if not self._has_to_be_open(wanted):
            if key in self._serving:
                self._retire(wanted)
            else:
                self._hold(wanted.spec, names_holder=names_holder)
            return
        if key not in self._serving or len(self._sockets[key]) < self._count_sockets(wanted):
            start = self._start_udp if key.service_port.protocol is Protocol.UDP else self._start_tcp
            start(wanted, names_holder=names_holder)
        self._choose_members(wanted)

    def _hold(self, spec: ListenerSpec, *, names_holder: bool) -> None:
        shares_port = self._shares_port(spec)
        if spec.key.service_port.protocol is Protocol.UDP:
            takes_over = (spec.address, spec.port) in self._left
            sock = hold_datagram_port(spec, shares_port=shares_port, names_holder=names_holder, takes_over=takes_over)
        else:
            sock = hold_port(spec, shares_port=shares_port, names_holder=names_holder)
        self._sockets[spec.key] = (sock,)

    def _start_tcp(self, wanted: _Wanted, *, names_holder: bool) -> None:
        """Have a listener open; one that is open becomes a group."""
        spec = wanted.spec
        key = spec.key
        if key not in self._sockets:
            self._hold(spec, names_holder=names_holder)
        sockets = self._sockets[key]
        first = sockets[0]
        if key not in self._serving:
            start_listening(first, spec, self._limits, names_holder=names_holder)
        group = [first]
        try:
            for _ in range(1, self._count_sockets(wanted)):
                share_port(first, is_shared=True)
                group.append(hold_port(spec, shares_port=True, names_holder=names_holder))
                start_listening(group[-1], spec, self._limits, names_holder=names_holder)
            with listen_errors(spec, names_holder=False):
                self._plane.serve(spec, wanted.route, tuple(group))
        except Exception:
            self._give_up(group[1:], spec)
            if key not in self._serving:
                stop_listening(first)
            share_port(first, is_shared=self._ports.is_shared(spec))
            raise
        self._sockets[key] = tuple(group)
        self._serving.add(key)

    def _start_udp(self, wanted: _Wanted, *, names_holder: bool) -> None:
        spec = wanted.spec
        key = spec.key
        before = self._sockets.get(key, ())
        count = self._count_sockets(wanted)
        sockets = open_datagram_sockets(
            spec,
            count,
            shares_port=self._shares_port(spec),
            names_holder=names_holder,
            predecessors=before,
            takes_over=(spec.address, spec.port) in self._left,
        )
        try:
            with listen_errors(spec, names_holder=False):
                self._plane.serve(spec, wanted.route, sockets)
        except Exception:
            self._give_up(sockets, spec)
            raise
        self._sockets[key] = sockets
        self._serving.add(key)
        self._give_up(before, spec)

    def _choose_members(self, wanted: _Wanted) -> None:
        """Have the kernel choose from a group, if it is one, by what is right for what is wanted.

        Raises:
            ListenError: it does not.
        """
        key = wanted.spec.key
        sockets = self._sockets[key]
        if len(sockets) > 1 and self._has_affinity(wanted):
            with listen_errors(wanted.spec, names_holder=False):
                choose_by_source(sockets[0], len(sockets))
            self._by_source.add(key)
        elif key in self._by_source:
            choose_by_flow(sockets[0])
            self._by_source.discard(key)

    def _doubt_all(self, name: ServicePortName) -> None:
        for key in self._keys.get(name, ()):
            self._doubtful[key] = None

    def _retire(self, wanted: _Wanted) -> None:
        """Have a listener only hold its port, until it is opened again; one of UDP delivers late answers.

        Raises:
            ListenError: it does not hold it.
        """
        key = wanted.spec.key
        self._serving.discard(key)
        self._by_source.discard(key)
        self._refuse(key)
        self._plane.retire(key)
        if key.service_port.protocol is Protocol.UDP:
            return
        first, *others = self._sockets[key]
        self._sockets[key] = (first,)
        if others:
            self._give_up(others, wanted.spec)
            share_port(first, is_shared=self._ports.is_shared(wanted.spec))

    def _refuse(self, key: ListenerKey) -> None:
        """Have the kernel refuse the clients of a listener that serves.

        Raises:
            ListenError: it does not, and the listener is closed.
        """
        spec = self._wanted[key].spec
        try:
            for sock in self._sockets[key]:
                if key.service_port.protocol is Protocol.UDP:
                    refuse_datagrams(sock, spec)
                else:
                    stop_listening(sock)
        except ListenError:  # no way even to this node itself: no answers of flows come either
            self._plane.close(key)
            self._give_up(self._sockets.pop(key), spec)
            raise

    def _close(self, key: ListenerKey) -> None:
        """Close a listener that is not wanted any more, or elsewhere."""
        self._doubtful.pop(key, None)
        self._failed.pop(key, None)
        spec = self._wanted.pop(key).spec
        if self._ports.remove(spec):
            self._set_shared(spec)
        self._serving.discard(key)
        self._by_source.discard(key)
        self._plane.close(key)
        self._give_up(self._sockets.pop(key, ()), spec)

    def _give_up(self, sockets: Iterable[socket.socket], spec: ListenerSpec) -> None:
        """Close sockets of a listener, which serve nobody from now on even where engines have them still."""
        for sock in sockets:
            if spec.key.service_port.protocol is Protocol.UDP:
                give_up_datagram_port(sock, spec)
                self._left.add((spec.address, spec.port))
            else:
                give_up_port(sock)
            sock.close()

    def _shares_port(self, spec: ListenerSpec) -> bool:
        """Return whether a socket about to be bound shares its port; never with one of ours at the same address."""
        others = (key for key in self._ports.at_place(spec) if key != spec.key)
        return self._ports.is_shared(spec) and not any(key in self._sockets for key in others)

    def _set_shared(self, spec: ListenerSpec) -> None:
        """Have all listeners at the port of one share it from now on, or not any more; groups do in any case."""
        is_shared = self._ports.is_shared(spec)
        for key in self._ports.at_port(spec):
            sockets = self._sockets.get(key, ())
            for sock in sockets:
                share_port(sock, is_shared=is_shared or len(sockets) > 1)
            self._doubtful[key] = None

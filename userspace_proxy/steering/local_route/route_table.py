"""Our ``local`` routes: what they should be, and what they are in the kernel. Effects; entry point: ``RouteTable``.

What is in force is known without asking: from our own changes and from the kernel's news of those of others. Only
where news was missed are our routes listed. Blocking: 10,000 changes take some 0.1 s, and let go of the interpreter in
between.
"""

import errno
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Protocol

from attrs import frozen

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.local_route.route_messages import (
    OWN_PROTOCOL,
    Prefix,
    build_addition,
    build_removal,
    build_removal_of,
    describe,
    family_of_prefix,
)
from userspace_proxy.steering.local_route.route_news import RouteNews
from userspace_proxy.steering.local_route.route_socket import BATCH, RouteSocket


class _BuildRequest(Protocol):
    """Builds the request for one change."""

    def __call__(self, *, sequence: int, is_acknowledged: bool) -> bytes: ...


_Change = tuple[Prefix, bytes | None, _BuildRequest]
"""What for, the source the route has afterwards (None: there is no route any more), and the request."""


@frozen
class _Sockets:
    """What the kernel is talked to by."""

    requests: RouteSocket
    news: RouteNews


class RouteTable:
    """The routes of ours in this network namespace.

    Nothing is open before the first ``settle``. Not for several threads at a time.
    """

    def __init__(self) -> None:
        self._sockets: _Sockets | None = None
        """None until the first change, and after something went wrong."""
        self._wanted: set[Prefix] = set()
        self._sources: Mapping[Family, bytes] = {}
        self._in_force: dict[Prefix, bytes] = {}
        """With their sources."""
        self._is_known = False
        """Whether ``_in_force`` is what the kernel has."""
        self._due: set[Prefix] = set()
        """Those that may be other than they should be."""
        self._lost: set[Family] = set()
        """Families in which others have removed or changed something that is not put back yet."""

    @property
    def work(self) -> int:
        """How many routes ``settle`` has to look at, about; 0: it need not be called."""
        return len(self._due) if self._is_known else max(len(self._wanted), len(self._in_force), 1)

    def want(self, prefixes: Iterable[Prefix]) -> None:
        """Have routes for these, too."""
        added = set(prefixes) - self._wanted
        self._wanted |= added
        self._due |= added

    def drop(self, prefixes: Iterable[Prefix]) -> None:
        """Have no routes for these any more."""
        removed = self._wanted.intersection(prefixes)
        self._wanted -= removed
        self._due |= removed

    def want_only(self, prefixes: Iterable[Prefix]) -> None:
        """Have routes for these, and for nothing else."""
        wanted = set(prefixes)
        self.drop(self._wanted - wanted)
        self.want(wanted)

    def set_sources(self, sources: Mapping[Family, bytes]) -> None:
        """Have connections of this node to what the routes are for come from these addresses.

        Args:
            sources: Packed; a family that is missing: the kernel's choice.
        """
        if sources != self._sources:
            self._sources = sources
            self._due.update(prefix for prefix in self._wanted if not self._is_right(prefix))

    def follow(self) -> bool:
        """Take note of what others have done; one system call if that is nothing.

        Returns:
            Whether addresses of the node may have come or gone since the last call.
        """
        if self._sockets is None:
            return True
        self._read_news(self._sockets.news)
        has_addresses, self._sockets.news.has_addresses = self._sockets.news.has_addresses, False
        return has_addresses

    def settle(self) -> frozenset[Family]:
        """Make all routes what they should be: what is missing is added before what is too much is removed.

        At the first time routes of an earlier run are taken over, or removed.

        Returns:
            The families in which something was put back that others had removed or changed.

        Raises:
            SteeringError: not all of it worked; what did not is due again.
        """
        try:
            if self._sockets is None:
                self._sockets = _open()
            strange = [] if self._is_known else self._list(self._sockets.requests)
            failures = self._change(self._sockets, [*self._changes(), *strange])
        except OSError as error:
            self.close()
            raise SteeringError(f"routes cannot be changed: {error.strerror or error}") from error
        if failures:
            raise SteeringError(f"not all routes are as they should be: {_describe(failures)}")
        lost, self._lost = frozenset(self._lost), set()
        return lost

    def close(self) -> None:
        """Close the sockets; the routes stay."""
        self._is_known = False
        if self._sockets is not None:
            self._sockets.requests.close()
            self._sockets.news.close()
            self._sockets = None

    def _source(self, prefix: Prefix) -> bytes:
        return self._sources.get(family_of_prefix(prefix), b"")

    def _is_right(self, prefix: Prefix) -> bool:
        return self._in_force.get(prefix) == (self._source(prefix) if prefix in self._wanted else None)

    def _read_news(self, news: RouteNews) -> None:
        for is_there, entry in news.read():
            prefix = entry.prefix
            if prefix not in self._wanted or not entry.has_own_place:
                continue
            if is_there and entry.is_own:
                self._in_force[prefix] = entry.source
            else:
                self._in_force.pop(prefix, None)
            if not self._is_right(prefix):
                self._due.add(prefix)
                self._lost.add(family_of_prefix(prefix))
        if news.has_gap:
            news.has_gap = self._is_known = False

    def _list(self, requests: RouteSocket) -> list[_Change]:
        """Look up what is in force; return how to remove what is of ours but not as we make routes now."""
        strange: list[_Change] = []
        before, self._in_force = self._in_force, {}
        for entry in requests.list_routes(protocol=OWN_PROTOCOL):
            if entry.is_own:
                self._in_force[entry.prefix] = entry.source
            else:
                strange.append((entry.prefix, None, partial(build_removal_of, entry)))
        self._lost.update(
            family_of_prefix(prefix)
            for prefix, source in before.items()
            if prefix in self._wanted and self._in_force.get(prefix) != source
        )
        self._due = {prefix for prefix in self._wanted | self._in_force.keys() if not self._is_right(prefix)}
        self._is_known = True
        return strange

    def _changes(self) -> Iterator[_Change]:
        """Yield what makes those that are due right, what removes something last; forget those that are right."""
        removed = []
        for prefix in list(self._due):
            if self._is_right(prefix):
                self._due.discard(prefix)
            elif prefix in self._wanted:
                source = self._source(prefix)
                yield prefix, source, partial(build_addition, prefix, source)
            else:
                removed.append(prefix)
        for prefix in removed:
            yield prefix, None, partial(build_removal, prefix)

    def _change(self, sockets: _Sockets, changes: Iterable[_Change]) -> dict[Prefix, int]:
        """Make changes and note what came of them; return those that failed, with the errno."""
        failures: dict[Prefix, int] = {}
        pending = iter(changes)
        while batch := list(islice(pending, BATCH)):
            failed = _send(sockets.requests, [build for _, _, build in batch])
            for number, (prefix, source, _) in enumerate(batch):
                if number in failed:
                    failures[prefix] = failed[number]
                    continue
                if source is None:
                    self._in_force.pop(prefix, None)
                else:
                    self._in_force[prefix] = source
                if self._is_right(prefix):
                    self._due.discard(prefix)
            self._read_news(sockets.news)  # not before: what others did since then is the state of now
        return failures


def list_own_routes() -> tuple[str, ...]:
    """Return the routes there are of ours, of whatever run, as ``local 10.96.0.10 dev lo``.

    Raises:
        OSError: they cannot be listed.
    """
    with closing(RouteSocket()) as requests:
        return tuple(describe(entry.prefix) for entry in requests.list_routes(protocol=OWN_PROTOCOL))


def remove_own_routes() -> None:
    """Remove all routes there are of ours, of whatever run.

    Raises:
        SteeringError: some are left; the clause says which, and why.
    """
    failures: dict[Prefix, int] = {}
    try:
        with closing(RouteSocket()) as requests:
            pending = iter(requests.list_routes(protocol=OWN_PROTOCOL))
            while batch := list(islice(pending, BATCH)):
                failed = _send(requests, [partial(build_removal_of, entry) for entry in batch])
                failures |= {batch[number].prefix: reason for number, reason in failed.items()}
    except OSError as error:
        raise SteeringError(f"routes cannot be removed: {error.strerror or error}") from error
    if failures:
        raise SteeringError(f"routes are left: {_describe(failures)}")


def _open() -> _Sockets:
    requests = RouteSocket()
    try:
        return _Sockets(requests, RouteNews(requests.port))
    except OSError:
        requests.close()
        raise


def _send(requests: RouteSocket, builders: list[_BuildRequest]) -> dict[int, int]:
    """Send one batch, and return the errnos by the number of the request; that a route is gone already is none."""
    last = len(builders) - 1
    failed = requests.change(
        [build(sequence=number, is_acknowledged=number == last) for number, build in enumerate(builders)]
    )
    return {number: reason for number, reason in failed if reason != errno.ESRCH}


def _describe(failures: Mapping[Prefix, int]) -> str:
    """Return ``local 10.96.0.10 dev lo and 7 more: Network is down``, for each reason."""
    by_reason: defaultdict[int, list[Prefix]] = defaultdict(list)
    for prefix, reason in failures.items():
        by_reason[reason].append(prefix)
    return "; ".join(
        f"{describe(prefixes[0])}{f' and {len(prefixes) - 1} more' if prefixes[1:] else ''}: {os.strerror(reason)}"
        for reason, prefixes in by_reason.items()
    )

"""What a table of ours should hold, and how that differs from what it held before or what nft lists. Pure.

Entry point: ``Content``. The cost of a change is in proportion to what changes.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Generic, TypeVar

from userspace_proxy.model.names import NamespacedName
from userspace_proxy.steering.nftables.listing import Listed
from userspace_proxy.steering.nftables.rules import (
    Difference,
    Entry,
    Place,
    Rules,
    Share,
    Table,
    build_frame,
    build_share,
    digest,
)
from userspace_proxy.steering.rule_steering import Conditions, ServiceRules

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Content:
    """All that is asked of a table.

    Args:
        table: Which one.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._shares: dict[NamespacedName | None, Share] = {}
        """That of the node itself is at None."""
        self._elements: _Wanted[Place, Entry] = _Wanted()
        self._chains: _Wanted[str, Rules] = _Wanted()

    @property
    def elements(self) -> Iterator[tuple[Place, Entry]]:
        """Those of all sets and maps."""
        return self._elements.items()

    @property
    def chains(self) -> Mapping[str, Rules]:
        """Those with a hook, and all others."""
        return dict(self._chains.items())

    def replace(self, changed: Mapping[NamespacedName, ServiceRules], conditions: Conditions) -> Difference:
        """Let some Services ask for something else, and return what differs.

        Args:
            changed: An empty value is for a Service that is gone.
            conditions: As they are now.
        """
        shares: dict[NamespacedName | None, Share] = {None: build_frame(self._table, conditions)}
        shares |= {name: build_share(self._table, service) for name, service in changed.items()}
        for name in shares:  # first: what one of them loses may be what another one gets
            before = self._shares.pop(name, Share())
            for place, entry in before.elements:
                self._elements.remove(place, entry)
            for chain, rules in before.chains.items():
                self._chains.remove(chain, rules)
        for name, share in shares.items():
            for place, entry in share.elements:
                self._elements.add(place, entry)
            for chain, rules in share.chains.items():
                self._chains.add(chain, rules)
            if share.elements or share.chains:
                self._shares[name] = share
        removed, added = self._elements.take_changes()
        vanished, chains = self._chains.take_changes()
        return Difference(removed, tuple(added.items()), chains, tuple(name for name in vanished if name not in chains))

    def compare(self, listed: Listed | None) -> Difference | None:
        """Return what would make a table as listed what it should be; None: only to write it anew will do."""
        if listed is None or listed.is_dormant or not self._has_all_rules(listed):
            return None
        entries = dict(self._elements.items())
        wanted = {place: entry.value for place, entry in entries.items()}
        if wanted == listed.elements:
            return Difference()
        removed = (place for place, value in listed.elements.items() if wanted.get(place) != value)
        missing = (place for place, value in wanted.items() if listed.elements.get(place) != value)
        return Difference(tuple(removed), tuple((place, entries[place]) for place in missing))

    def _has_all_rules(self, listed: Listed) -> bool:
        names = {name.partition(" ")[2] for name in self._table.sets}
        digests = {name: tuple(digest(rule) for rule in rules) for name, rules in self._chains.items()}
        return names == listed.sets and self._table.hooks == listed.hooks and digests == listed.rules


class _Wanted(Generic[_K, _V]):
    """Values by key, each wanted once or more often; of different ones the last counts."""

    def __init__(self) -> None:
        self._values: dict[_K, list[_V]] = {}
        self._before: dict[_K, _V | None] = {}
        """What counted before the changes so far, where there were some."""

    def items(self) -> Iterator[tuple[_K, _V]]:
        """Yield the values that count."""
        return ((key, values[-1]) for key, values in self._values.items())

    def add(self, key: _K, value: _V) -> None:
        """Want a value once more."""
        self._note(key)
        self._values.setdefault(key, []).append(value)

    def remove(self, key: _K, value: _V) -> None:
        """Want a value once less."""
        self._note(key)
        self._values[key].remove(value)
        if not self._values[key]:
            del self._values[key]

    def take_changes(self) -> tuple[tuple[_K, ...], dict[_K, _V]]:
        """Return the keys whose former values do not count any more, and all values that have come to count."""
        vanished, new = [], {}
        for key, before in self._before.items():
            now = self._now(key)
            if now == before:
                continue
            if before is not None:
                vanished.append(key)
            if now is not None:
                new[key] = now
        self._before.clear()
        return tuple(vanished), new

    def _now(self, key: _K) -> _V | None:
        return self._values[key][-1] if key in self._values else None

    def _note(self, key: _K) -> None:
        if key not in self._before:
            self._before[key] = self._now(key)

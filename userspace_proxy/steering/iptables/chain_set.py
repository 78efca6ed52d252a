"""Chains of rules, put together of what many contribute. Pure; knows no iptables.

Whoever contributes may come, change and go at any time, at a price in proportion to what he contributes: which chains
differ afterwards is known without a look at the others. Entry point: ``ChainSet``.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

Contributor = TypeVar("Contributor", bound=Hashable)

Chains = Mapping[str, tuple[str, ...]]
"""Chains by name, with the texts of their rules in order; a chain without rules is none."""


class ChainRule(NamedTuple):
    """One rule and its place."""

    chain: str
    rank: int
    """Of two rules of a chain the one with the lower rank comes first, of equal rank the one with the lesser text."""
    text: str
    """What follows the name of the chain."""


class ChainSet(Generic[Contributor]):
    """The chains that all contributions make together; a rule that several contribute is there once."""

    def __init__(self) -> None:
        self._contributions: dict[Contributor, tuple[ChainRule, ...]] = {}
        self._chains: dict[str, dict[ChainRule, int]] = {}
        """The rules of each chain, with the number of times they are contributed. Never empty."""
        self._differing: set[ChainRule] = set()
        """Rules that are there now and were not when ``settle`` was called, or the other way round."""

    def __bool__(self) -> bool:
        """Tell whether there is any chain."""
        return bool(self._chains)

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a chain of that name."""
        return name in self._chains

    @property
    def is_changed(self) -> bool:
        """Whether ``changed`` returns anything."""
        return bool(self._differing)

    def replace(self, contributions: Mapping[Contributor, Iterable[ChainRule]]) -> None:
        """Take what some contribute in place of what they did before; nothing is for those that are gone."""
        for contributor in contributions:
            for rule in self._contributions.pop(contributor, ()):
                self._withdraw(rule)
        for contributor, rules in contributions.items():
            kept = tuple(rules)
            if kept:
                self._contributions[contributor] = kept
            for rule in kept:
                self._add(rule)

    def chains(self) -> Chains:
        """Return all chains, sorted by name."""
        return {name: self._texts(name) for name in sorted(self._chains)}

    def changed(self) -> Chains:
        """Return the chains that differ from those when ``settle`` was called, without rules if they have vanished."""
        return {name: self._texts(name) for name in sorted({rule.chain for rule in self._differing})}

    def settle(self) -> None:
        """Let the chains as they are now be those that ``changed`` compares with; at the start there are none."""
        self._differing.clear()

    def _texts(self, name: str) -> tuple[str, ...]:
        return tuple(rule.text for rule in sorted(self._chains.get(name, ())))

    def _add(self, rule: ChainRule) -> None:
        rules = self._chains.setdefault(rule.chain, {})
        count = rules.get(rule, 0)
        rules[rule] = count + 1
        if not count:
            self._differing ^= {rule}

    def _withdraw(self, rule: ChainRule) -> None:
        rules = self._chains[rule.chain]
        rules[rule] -= 1
        if not rules[rule]:
            del rules[rule]
            self._differing ^= {rule}
            if not rules:
                del self._chains[rule.chain]

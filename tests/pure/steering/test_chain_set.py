"""Chains put together of contributions."""

from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.steering.iptables.chain_set import ChainRule, ChainSet

RULES = [ChainRule(chain, rank, text) for chain in "ABC" for rank, text in ((0, "y"), (1, "x"), (0, "z"))]
CONTRIBUTIONS = st.dictionaries(st.integers(0, 4), st.lists(st.sampled_from(RULES), max_size=6), max_size=3)


def build(contributions: dict[int, list[ChainRule]]) -> ChainSet[int]:
    """Return the chains that contributions make at once."""
    chains = ChainSet[int]()
    chains.replace(contributions)
    return chains


@given(st.lists(st.tuples(CONTRIBUTIONS, st.booleans())))
def test_chains_after_any_changes_are_those_built_at_once(
    changes: list[tuple[dict[int, list[ChainRule]], bool]],
) -> None:
    """Whoever came, changed or went; and what counts as changed is what differs from when it was settled."""
    chains, contributed = ChainSet[int](), dict[int, list[ChainRule]]()
    kept: dict[str, tuple[str, ...]] = {}
    for change, is_settled in changes:
        chains.replace(change)
        contributed |= change
        assert chains.chains() == build(contributed).chains()
        assert bool(chains) == any(contributed.values())
        assert all((name in chains) == (name in chains.chains()) for name in "ABC")

        changed = chains.changed()
        assert chains.is_changed == bool(changed)
        assert changed == {
            name: chains.chains().get(name, ())
            for name in sorted(kept.keys() | chains.chains().keys())
            if kept.get(name) != chains.chains().get(name)
        }
        if is_settled:
            chains.settle()
            kept = dict(chains.chains())
            assert not chains.changed()


def test_rules_come_by_rank_and_then_by_text() -> None:
    """The same wants make the same text, whoever came first."""
    rules = [ChainRule("A", 1, "a"), ChainRule("A", 0, "c"), ChainRule("A", 0, "b")]
    assert build({1: rules}).chains() == build({2: rules[2:], 1: rules[:2]}).chains() == {"A": ("b", "c", "a")}


def test_rule_that_several_contribute_is_there_once_until_the_last_has_gone() -> None:
    """That is how a chain that all lead to stays as long as one does."""
    rule = ChainRule("A", 0, "x")
    chains = build({1: [rule, rule], 2: [rule]})
    chains.settle()
    chains.replace({1: []})
    assert chains.chains() == {"A": ("x",)}
    assert not chains.is_changed
    chains.replace({2: []})
    assert chains.changed() == {"A": ()}


def test_rule_that_goes_from_one_to_another_is_no_change() -> None:
    """An address that moves to another Service in one step is not written anew if it leads to the same."""
    rule = ChainRule("A", 0, "x")
    chains = build({1: [rule]})
    chains.settle()
    chains.replace({2: [rule], 1: []})
    assert not chains.is_changed

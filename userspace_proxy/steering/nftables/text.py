"""What ``nft -f`` is told to do to a table of ours. Pure: runs nothing.

Entry points: ``write_all``, ``write_difference``, ``write_removal``. Source: nft(8).
"""

from collections.abc import Iterable, Iterator, Mapping

from userspace_proxy.steering.nftables.rules import Difference, Entry, Place, Rules, Table, digest

_ELEMENTS_PER_STATEMENT = 500
"""Arbitrary, but a statement must not be longer than a socket's buffer, 208 KiB by default."""


def write_all(table: Table, elements: Iterable[tuple[Place, Entry]], chains: Mapping[str, Rules]) -> list[str]:
    """Return what makes a table what it should be, whatever was in it; counters start at zero.

    Returns:
        Statements for one transaction; where that is too much for the kernel, for several in this order.
    """
    lines = [f"add table {table.path}", f"delete table {table.path}", f"add table {table.path}"]
    for name, definition in table.sets.items():
        kind, _, own_name = name.partition(" ")
        lines.append(f"add {kind} {table.path} {own_name} {{ {definition} }}")
    lines += [
        f"add chain {table.path} {name} "
        f"{{ type {hook.kind} hook {hook.name} priority {hook.priority}; policy accept; }}"
        for name, hook in table.hooks.items()
    ]
    lines += [f"add chain {table.path} {name}" for name in chains if name not in table.hooks]
    lines += [line for name, rules in chains.items() for line in _add_rules(table, name, rules)]
    return [_join(lines), *_write_elements(table, "add", map(_write_element, elements))]


def write_difference(table: Table, difference: Difference) -> list[str]:
    """Return statements that make a difference, as ``write_all`` does; nothing if there is none."""
    removed, chains, vanished = difference.removed, difference.chains, difference.vanished_chains
    lines = [f"add chain {table.path} {name}" for name in chains]
    for name, rules in chains.items():
        lines += [f"flush chain {table.path} {name}", *_add_rules(table, name, rules)]
    ending = [f"{verb} chain {table.path} {name}" for name in vanished for verb in ("flush", "delete")]
    return [
        *_write_elements(table, "delete", removed),
        *([_join(lines)] if lines else ()),
        *_write_elements(table, "add", map(_write_element, difference.added)),
        *([_join(ending)] if ending else ()),
    ]


def write_removal(table: Table) -> str:
    """Return the statement that removes a table, if it is there, and nothing else."""
    return _join([f"add table {table.path}", f"delete table {table.path}"])


def _write_element(element: tuple[Place, Entry]) -> Place:
    """Return the set, and the element as ``add element`` wants it."""
    (name, key), entry = element
    comment = f' comment "{entry.comment}"' if entry.comment else ""
    value = f" : {entry.value}" if entry.value else ""
    return name, f"{key}{comment}{value}"


def _write_elements(table: Table, verb: str, elements: Iterable[Place]) -> Iterator[str]:
    """Yield statements, none of them too long; each element has a line of its own, to be found by its number."""
    by_set: dict[str, list[str]] = {}
    for name, text in elements:
        by_set.setdefault(name, []).append(text)
    for name, texts in by_set.items():
        for start in range(0, len(texts), _ELEMENTS_PER_STATEMENT):
            chunk = ",\n".join(texts[start : start + _ELEMENTS_PER_STATEMENT])
            yield f"{verb} element {table.path} {name} {{\n{chunk}\n}}\n"


def _add_rules(table: Table, chain: str, rules: Rules) -> list[str]:
    return [f'add rule {table.path} {chain} {rule} comment "{digest(rule)}"' for rule in rules]


def _join(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)

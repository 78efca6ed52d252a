"""Removes what a killed run has left in the kernel. Needs no cluster and no state. Entry point: ``cleanup``."""

from attrs import frozen

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.iptables_rules import OwnRules, parse_saved, remove_text
from userspace_proxy.steering.iptables_tool import Tool, Variant, find_tools, may_have_legacy_tables


@frozen
class CleanupReport:
    """What ``cleanup`` found."""

    removed: tuple[str, ...]
    """What was removed, or would be; one phrase for each rule and chain. Empty: there was nothing."""
    failed: tuple[str, ...]
    """What could not be removed or looked at, each with the reason."""


async def cleanup(*, dry_run: bool) -> CleanupReport:
    """Remove all chains of ours and every rule that leads to them, in both families and in all tables in use.

    Not for while a run is alive: it would lose its rules.

    Args:
        dry_run: Only look.
    """
    removed: list[str] = []
    failed: list[str] = []
    for tool in (tool for family in Family for tool in find_tools(family)):
        if tool.variant is Variant.LEGACY and not may_have_legacy_tables(tool.family):
            continue
        try:
            tables = parse_saved(await tool.save())
        except SteeringError as error:
            failed.append(f"{tool.name}: rules cannot be looked at: {error}")
            continue
        for table, found in tables.items():
            try:
                if not dry_run:
                    await tool.restore(remove_text(table, found))
            except SteeringError as error:
                failed.append(f"{tool.name}: rules stay in table {table}: {error}")
            else:
                removed.extend(_describe(tool, table, found))
    return CleanupReport(tuple(removed), tuple(failed))


def _describe(tool: Tool, table: str, found: OwnRules) -> list[str]:
    jumps = [f"{tool.name}: table {table}: rule {jump}" for jump in found.jumps]
    return jumps + [
        f"{tool.name}: table {table}: chain {name} (rules: {count})" for name, count in found.chains.items()
    ]

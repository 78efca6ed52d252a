"""What cleanup finds, removes and reports; the commands are fakes."""

from functools import partial
from pathlib import Path

import pytest
import trio
from loopback.steering.fake_commands import FakeCommands

from userspace_proxy.steering.cleanup import CleanupReport, cleanup, remove_other_kinds
from userspace_proxy.steering.none import NoSteering

NFT = ("iptables-nft-save", "iptables-nft-restore")
NFT6 = ("ip6tables-nft-save", "ip6tables-nft-restore")
LEFT = (
    "*filter\n:INPUT ACCEPT [0:0]\n:USP-GUARD - [0:0]\nCOMMIT\n"
    "*nat\n:OUTPUT ACCEPT [0:0]\n:USP-REDIRECT - [0:0]\n-A OUTPUT -j USP-REDIRECT\n-A OUTPUT -j USP-REDIRECT\n"
    "-A USP-REDIRECT -j RETURN\nCOMMIT\n"
)
FOUND = (
    "iptables-nft: table filter: chain USP-GUARD (rules: 0)",
    "iptables-nft: table nat: rule OUTPUT -j USP-REDIRECT",
    "iptables-nft: table nat: rule OUTPUT -j USP-REDIRECT",
    "iptables-nft: table nat: chain USP-REDIRECT (rules: 1)",
)


def clean_up(*, dry_run: bool = False, kube_proxy: bool = False) -> CleanupReport:
    """Run cleanup to its end."""
    return trio.run(partial(cleanup, dry_run=dry_run, runtime_dir=Path("run"), kube_proxy=kube_proxy))


def test_cleanup_removes_chains_and_every_jump_from_all_tables(commands: FakeCommands) -> None:
    """One restore for each table that has something, whatever version of ours wrote it."""
    commands.add(*NFT, stdout=LEFT)
    commands.add(*NFT6)
    assert clean_up() == CleanupReport(FOUND, ())
    assert commands.calls() == {NFT[0]: [""], NFT[1]: ["--noflush -w 5"] * 2, NFT6[0]: [""]}
    assert commands.input(NFT[1]) == (
        "*filter\n:USP-GUARD - [0:0]\n-X USP-GUARD\nCOMMIT\n"
        "*nat\n:USP-REDIRECT - [0:0]\n-D OUTPUT -j USP-REDIRECT\n-D OUTPUT -j USP-REDIRECT\n-X USP-REDIRECT\nCOMMIT\n"
    )


def test_cleanup_as_dry_run_says_the_same_and_changes_nothing(commands: FakeCommands) -> None:
    """The report is what would be removed."""
    commands.add(*NFT, stdout=LEFT)
    assert clean_up(dry_run=True) == CleanupReport(FOUND, ())
    assert NFT[1] not in commands.calls()


@pytest.mark.parametrize("commands_there", [(), NFT])
def test_cleanup_where_nothing_is_left_says_nothing(commands: FakeCommands, commands_there: tuple[str, ...]) -> None:
    """Absent commands, an absent subsystem and tables without anything of ours are not worth a word."""
    commands.add(*commands_there, stderr="Failed to initialize nft: Protocol not supported", status=1)
    assert clean_up() == CleanupReport((), ())


@pytest.mark.parametrize(("tables", "looked_at"), [("", False), ("nat\n", True)])
def test_cleanup_looks_at_legacy_tables_only_where_there_are_any(
    commands: FakeCommands, tables: str, *, looked_at: bool
) -> None:
    """A cleanup leaves no trace of its own."""
    commands.add("iptables-legacy-save", "iptables-legacy-restore", *NFT)
    commands.legacy_tables.write_text(tables)
    clean_up()
    assert ("iptables-legacy-save" in commands.calls()) is looked_at


def test_cleanup_that_cannot_look_or_remove_reports_it_and_goes_on(commands: FakeCommands) -> None:
    """One family's failure does not keep the other's leftovers."""
    commands.add(*NFT, stderr="Could not fetch rule set generation id: Permission denied (you must be root)", status=4)
    commands.add(NFT6[0], stdout=LEFT)
    commands.add(NFT6[1], stderr="ip6tables-nft-restore: line 2 failed", status=4)
    assert clean_up() == CleanupReport(
        (),
        (
            "iptables-nft: rules cannot be looked at: not permitted (needs NET_ADMIN)",
            "ip6tables-nft: rules stay in table filter: ip6tables-nft-restore: line 2 failed: :USP-GUARD - [0:0]",
            "ip6tables-nft: rules stay in table nat: ip6tables-nft-restore: line 2 failed: :USP-REDIRECT - [0:0]",
        ),
    )


def test_cleanup_that_may_not_look_at_tables_of_nftables_reports_it(commands: FakeCommands) -> None:
    """Where nft cannot be run nobody knows what is there."""
    commands.add("nft", stderr="Operation not permitted (you must be root)", status=1)
    assert clean_up() == CleanupReport((), ("nftables: tables cannot be looked at: not permitted (needs NET_ADMIN)",))


def test_removal_for_a_run_is_told_in_few_words_and_passes_over_what_may_not_be_looked_at(
    commands: FakeCommands,
) -> None:
    """Nobody has asked for it: a log is no place for a list of hundreds of chains, nor for what may not concern it."""
    commands.add(*NFT, stdout=LEFT)
    commands.add(*NFT6, stderr="Could not fetch rule set generation id: Permission denied (you must be root)", status=4)
    commands.add("nft", stderr="Operation not permitted (you must be root)", status=1)
    report = trio.run(partial(remove_other_kinds, NoSteering(), runtime_dir=Path("run"), proxy_ports=()))
    assert report == CleanupReport(
        (
            "iptables-nft: table filter: chains: 1, rules that led to them: 0",
            "iptables-nft: table nat: chains: 1, rules that led to them: 2",
        ),
        (),
    )

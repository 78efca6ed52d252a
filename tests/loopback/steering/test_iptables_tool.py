"""Which iptables commands are used, and what is made of their complaints; the commands are fakes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from loopback.steering.fake_commands import FakeCommands
from loopback.steering.fake_tool import FakeKernel, fake_tool

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.iptables.filter import build_filter_probe
from userspace_proxy.steering.iptables.tool import RulesState, Tool, Variant, choose_tool, find_tools, try_filter

PROBE = build_filter_probe(Family.IPV4, os.getpid())[0]
"""What a process of this id installs."""
SAVES = ("iptables-nft-save", "iptables-legacy-save", "iptables-save")
RESTORES = ("iptables-nft-restore", "iptables-legacy-restore", "iptables-restore")
RULES = "*nat\n:USP-REDIRECT - [0:0]\n-A USP-REDIRECT -p tcp -j REDIRECT\nCOMMIT\n"


def only_tool(commands: FakeCommands) -> Tool:
    """Return a tool whose commands are fakes that succeed."""
    commands.add("iptables-nft-save", "iptables-nft-restore")
    (tool,) = find_tools(Family.IPV4)
    return tool


@pytest.mark.parametrize(
    ("on_path", "found"),
    [
        ((), []),
        (("iptables-save", "iptables-restore"), ["iptables"]),
        ((*SAVES, *RESTORES), ["iptables-nft", "iptables-legacy"]),
        (("iptables-legacy-save", "iptables-legacy-restore"), ["iptables-legacy"]),
        (("iptables-nft-save", "iptables-restore"), []),
        (("ip6tables-save", "ip6tables-restore"), []),
    ],
)
def test_tools_are_those_on_path_and_the_unsuffixed_one_if_there_is_no_other(
    commands: FakeCommands, on_path: tuple[str, ...], found: list[str]
) -> None:
    """The unsuffixed command is one of the suffixed ones, so it would be tried twice; half a tool is none."""
    commands.add(*on_path)
    assert [tool.name for tool in find_tools(Family.IPV4)] == found


@pytest.mark.parametrize(
    ("stderr", "status", "sentence"),
    [
        pytest.param(
            'iptables-nft-restore v1.8.9 (nf_tables): unknown option "--to-ports"\nError occurred at line: 3\n'
            "Try `iptables-nft-restore -h' or 'iptables-nft-restore --help' for more information.\n",
            2,
            'iptables-nft-restore: unknown option "--to-ports": -A USP-REDIRECT -p tcp -j REDIRECT',
            id="parse error",
        ),
        pytest.param(
            "iptables-nft-restore v1.8.9 (nf_tables): \n"
            "line 3: RULE_APPEND failed (No such file or directory): rule in chain USP-REDIRECT\n",
            4,
            "iptables-nft-restore: line 3: RULE_APPEND failed (No such file or directory): rule in chain USP-REDIRECT: "
            "-A USP-REDIRECT -p tcp -j REDIRECT",
            id="the kernel's refusal, nft",
        ),
        pytest.param(
            "iptables-restore: line 4 failed\n",
            1,
            "iptables-nft-restore: line 4 failed: COMMIT",
            id="the kernel's refusal, legacy: it does not say which rule",
        ),
        pytest.param(
            "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat'\n"
            "Error occurred at line: 1\n",
            1,
            "iptables-nft-restore: unable to initialize table 'nat'",
            id="no table",
        ),
        pytest.param(
            "Fatal: can't open lock file /run/xtables.lock: Permission denied\n",
            4,
            "iptables-nft-restore: Fatal: can't open lock file /run/xtables.lock: Permission denied",
            id="lock file",
        ),
        pytest.param(
            "iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: "
            "Permission denied (you must be root)\n",
            4,
            "not permitted (needs NET_ADMIN)",
            id="not permitted",
        ),
        pytest.param("line 99 failed\n", 1, "iptables-nft-restore: line 99 failed", id="a line that is not there"),
        pytest.param("", 3, "iptables-nft-restore: exit status 3", id="nothing said"),
    ],
)
def test_restore_that_fails_says_why_with_the_offending_rule(
    commands: FakeCommands, stderr: str, status: int, sentence: str
) -> None:
    """Version, advice and line numbers of a text nobody sees are left out; the rule itself is shown."""
    tool = only_tool(commands)
    commands.add("iptables-nft-restore", stderr=stderr, status=status)
    with pytest.raises(SteeringError) as raised:
        trio.run(tool.restore, RULES)
    assert str(raised.value) == sentence


def test_restore_touches_only_what_is_named_and_waits_for_the_lock_for_a_bounded_time(commands: FakeCommands) -> None:
    """Without --noflush all rules of others would go; without a bound a stuck lock holder would stop us for ever."""
    tool = only_tool(commands)
    trio.run(tool.restore, RULES)
    assert commands.calls() == {"iptables-nft-restore": ["--noflush -w 5"]}
    assert commands.input("iptables-nft-restore") == RULES


@pytest.mark.parametrize(
    "stderr",
    [
        "iptables-nft-save: Failed to initialize nft: Protocol not supported",
        "iptables-nft-save v1.8.9 (nf_tables): Could not fetch rule set generation id: Invalid argument",
        "ip6tables-save v1.8.9 (legacy): Cannot initialize: Address family not supported by protocol",
    ],
)
def test_save_without_kernel_support_finds_nothing(commands: FakeCommands, stderr: str) -> None:
    """Where there is no such subsystem there are no rules in it: that is no failure."""
    tool = only_tool(commands)
    commands.add("iptables-nft-save", stderr=stderr, status=1)
    assert trio.run(tool.save) == ""


def test_save_that_fails_otherwise_is_an_error(commands: FakeCommands) -> None:
    """Not being able to look is not the same as nothing being there."""
    tool = only_tool(commands)
    commands.add("iptables-nft-save", stderr="iptables-nft-save: Resource temporarily unavailable", status=4)
    with pytest.raises(SteeringError, match="iptables-nft-save: Resource temporarily unavailable"):
        trio.run(tool.save)


def test_command_that_cannot_be_run_is_a_sentence(commands: FakeCommands) -> None:
    """A broken executable on PATH is named."""
    tool = only_tool(commands)
    (commands.path / "iptables-nft-save").write_bytes(b"\x7fELF")
    with pytest.raises(SteeringError, match=r"iptables-nft-save cannot be run: .*Exec format error"):
        trio.run(tool.save)


def test_command_that_hangs_is_ended_and_named(commands: FakeCommands) -> None:
    """A command that never ends stops neither us nor, by the lock it holds, everybody else."""
    tool = only_tool(commands)
    commands.add("iptables-nft-restore", takes_s=60)
    with pytest.raises(SteeringError, match="iptables-nft-restore did not finish within 20 s and was ended"):
        trio.run(tool.restore, RULES, clock=trio.testing.MockClock(rate=100))


async def choose(commands: FakeCommands, family: Family = Family.IPV4) -> Tool:
    """Return the tool chosen."""
    return await choose_tool(family, commands.path)


def choose_by_fakes(commands: FakeCommands, fail: Callable[[str], str]) -> str:
    """Return the tool chosen, or the sentence if none; ``fail`` says what a command complains of, if it does."""
    for name in (*SAVES[:2], *RESTORES[:2]):
        commands.add(name, stderr=fail(name), status=4 if fail(name) else 0)
    try:
        return trio.run(choose, commands).name
    except SteeringError as error:
        return str(error)


def test_choice_prefers_nft_and_leaves_legacy_untouched(commands: FakeCommands) -> None:
    """Running the legacy variant once would create its tables."""
    assert choose_by_fakes(commands, lambda _: "") == "iptables-nft"
    assert commands.calls() == {"iptables-nft-restore": ["--noflush -w 5"] * 2}


@pytest.mark.parametrize(
    ("rules_in", "chosen"),
    [
        ("iptables-legacy-save", "iptables-legacy"),
        ("iptables-nft-save", "iptables-nft"),
        ("iptables-nft-save iptables-legacy-save", "iptables-nft"),
        ("", "iptables-nft"),
    ],
)
def test_choice_where_legacy_tables_exist_is_the_variant_in_use(
    commands: FakeCommands, rules_in: str, chosen: str
) -> None:
    """Rules of others say which one; tables that are empty say nothing."""
    commands.add(*SAVES[:2], *RESTORES[:2], stdout="*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n")
    commands.add(*rules_in.split(), stdout="*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j RETURN\nCOMMIT\n")
    commands.legacy_tables.write_text("nat\n")
    assert trio.run(choose, commands).name == chosen


def test_choice_where_rules_cannot_be_read_leaves_the_reason_to_the_probe(commands: FakeCommands) -> None:
    """A failure to look is no reason to prefer anything."""
    commands.legacy_tables.write_text("nat\n")
    assert choose_by_fakes(commands, lambda name: "busy" if "save" in name else "") == "iptables-nft"


def test_choice_falls_to_legacy_where_nft_does_not_work(commands: FakeCommands) -> None:
    """A kernel without nf_tables has the other."""
    assert choose_by_fakes(commands, lambda name: "no" if "nft" in name else "") == "iptables-legacy"


def test_choice_without_the_right_tries_no_other_variant(commands: FakeCommands) -> None:
    """All variants need the same right; the other one would say so less clearly."""
    assert choose_by_fakes(commands, lambda _: "iptables: you must be root") == "not permitted (needs NET_ADMIN)"
    assert commands.calls().keys() == {"iptables-nft-restore"}


def test_choice_without_any_that_works_tells_each_reason(commands: FakeCommands) -> None:
    """Both variants are named."""
    assert choose_by_fakes(commands, lambda name: f"no {name[9:12]}") == (
        "iptables-nft-restore: no nft; iptables-legacy-restore: no leg"
    )


def test_choice_without_commands_says_what_is_missing_on_path(commands: FakeCommands) -> None:
    """Nothing to try is a reason like others."""
    with pytest.raises(SteeringError, match=r"^ip6tables is not on PATH$"):
        trio.run(choose, commands, Family.IPV6)


def fake_lock(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let a file stand for the lock that all programs share."""
    monkeypatch.setattr("userspace_proxy.steering.iptables.tool._LOCK_PATH", path)


def test_lock_of_all_programs_is_used_where_it_can_be(
    commands: FakeCommands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It keeps us and others out of each other's way; where it does not exist yet the command makes it."""
    fake_lock(monkeypatch, tmp_path / "xtables.lock")
    commands.add("iptables-legacy-save", "iptables-legacy-restore")
    (tool,) = find_tools(Family.IPV4)
    assert tool.with_own_lock(tmp_path / "run") == tool
    (tmp_path / "xtables.lock").touch()
    assert tool.with_own_lock(tmp_path / "run") == tool
    assert not (tmp_path / "run").exists()


def test_lock_of_our_own_is_used_where_that_of_all_programs_cannot_be(
    commands: FakeCommands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The legacy variant does nothing without one, and tells its commands where it is; the nft variant needs none."""
    fake_lock(monkeypatch, tmp_path / "read-only" / "xtables.lock")
    commands.add("iptables-nft-save", "iptables-nft-restore", "iptables-legacy-save", "iptables-legacy-restore")
    restore = commands.path / "iptables-legacy-restore"
    restore.write_text(f'#!/bin/sh\necho -n "$XTABLES_LOCKFILE" >{tmp_path}/told\n')
    nft, legacy = find_tools(Family.IPV4)
    assert nft.with_own_lock(tmp_path / "run") == nft
    own = legacy.with_own_lock(tmp_path / "run")
    trio.run(own.restore, RULES)
    assert (tmp_path / "told").read_text() == f"{tmp_path}/run/xtables.lock"
    assert (tmp_path / "run").is_dir()


STATES = {"nat": b"1", "filter": b"2"}


@pytest.mark.parametrize(
    ("variant", "generation", "legacy_tables", "state"),
    [
        (Variant.NFT, 7, "nat\nfilter\n", RulesState(7, ())),
        (Variant.NFT, None, "nat\nfilter\n", None),
        (Variant.LEGACY, 7, "nat\nfilter\n", RulesState(None, (b"1", b"2"))),
        (Variant.PLAIN, 7, "nat\n", RulesState(7, (b"1",))),
        (Variant.PLAIN, 7, "", RulesState(7, ())),
        (Variant.PLAIN, None, "nat\n", RulesState(None, (b"1",))),
        (Variant.PLAIN, None, "", None),
    ],
)
def test_state_is_that_of_the_tables_that_the_variant_has(
    commands: FakeCommands,
    monkeypatch: pytest.MonkeyPatch,
    *,
    variant: Variant,
    generation: int | None,
    legacy_tables: str,
    state: RulesState | None,
) -> None:
    """Looking at a table of the legacy variant would create it, so a command that may be either asks first."""
    module = "userspace_proxy.steering.iptables.tool"

    def read_generation() -> int:
        if generation is None:
            raise PermissionError
        return generation

    monkeypatch.setattr(f"{module}.read_generation", read_generation)
    monkeypatch.setattr(f"{module}.read_legacy_table", lambda _, table: STATES[table])
    commands.legacy_tables.write_text(legacy_tables)
    assert Tool(Family.IPV4, variant, "save", "restore").read_state(STATES) == state


def test_state_of_the_legacy_variant_is_unknown_without_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot tell has to look."""

    def refuse(*_: object) -> bytes:
        raise PermissionError

    monkeypatch.setattr("userspace_proxy.steering.iptables.tool.read_legacy_table", refuse)
    assert Tool(Family.IPV4, Variant.LEGACY, "save", "restore").read_state(STATES) is None


@pytest.mark.parametrize(
    ("state", "changes", "after"),
    [
        (RulesState(7, ()), 2, RulesState(9, ())),
        (RulesState(7, (b"1",)), 0, RulesState(7, (b"1",))),
        (RulesState(7, (b"1",)), 1, None),
        (RulesState(None, (b"1",)), 1, None),
    ],
)
def test_state_after_our_own_changes_is_known_of_nf_tables_alone(
    state: RulesState, changes: int, after: RulesState | None
) -> None:
    """Each table changed is one generation; the other variant does not count."""
    assert state.after(changes) == after


async def test_probe_that_was_killed_under_the_same_process_id_is_removed_by_the_next() -> None:
    """In a container each run has the same id, so it would stand in the way of all."""
    kernel = FakeKernel()
    kernel.restore(PROBE)
    kernel.restore(PROBE.replace(str(os.getpid()), f"{os.getpid()}0"))
    await try_filter(fake_tool(kernel))
    assert kernel.own()["filter"].keys() == {"INPUT", f"USP-PROBE-{os.getpid()}0"}, "that of another process stays"
    assert kernel.own()["nat"] == {}


async def test_probe_that_cannot_be_removed_tells_why() -> None:
    """It is not always a leftover that stands in the way."""
    kernel = FakeKernel()
    kernel.refuses = "-X USP-PROBE"
    with pytest.raises(SteeringError, match=r"^no -X USP-PROBE$"):
        await try_filter(fake_tool(kernel))

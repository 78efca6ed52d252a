"""What is made of the complaints of nft, and that probes leave nothing; the command is a fake."""

import pytest
import trio
from loopback.steering.fake_commands import FakeCommands

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.nftables.probe import try_tables
from userspace_proxy.steering.nftables.tool import find_tool

STATEMENTS = ["add table ip own\nadd chain ip own steer\n", "add element ip own steered {\n1 : 2,\n3 : 4\n}\n"]


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        pytest.param(
            "/dev/stdin:2:18-22: Error: Could not process rule: No such file or directory\n"
            "add chain ip own steer\n                 ^^^^^\n",
            "nft: Could not process rule: No such file or directory: add chain ip own steer",
            id="statement",
        ),
        pytest.param(
            "/dev/stdin:5:1-5: Error: Could not process rule: File exists\n3 : 4\n^^^^^\n"
            "/dev/stdin:4:1-5: Error: Could not process rule: File exists\n1 : 2,\n^^^^^\n",
            "nft: Could not process rule: File exists: 3 : 4",
            id="element, the first of several",
        ),
        pytest.param(
            "/dev/stdin:9:1-5: Error: syntax error, unexpected end of file\n",
            "nft: syntax error, unexpected end of file",
            id="line that is not there",
        ),
        pytest.param(
            "Operation not permitted (you must be root)\nnetlink: Error: cache initialization failed: "
            "Operation not permitted\n",
            "not permitted (needs NET_ADMIN)",
            id="right",
        ),
        pytest.param(
            "netlink: Error: cache initialization failed: Protocol not supported\n",
            "the kernel has no nf_tables",
            id="kernel",
        ),
        pytest.param(
            "netlink: Error: Could not process rule: Message too long\n",
            "nft: Could not process rule: Message too long",
            id="nothing to quote",
        ),
        pytest.param("Error: JSON support not compiled-in\n", "nft: JSON support not compiled-in", id="build"),
        pytest.param("nft: symbol lookup error:\n  libnftables.so\n", "nft: nft: symbol lookup error: libnftables.so"),
        pytest.param("", "nft: exit status 1", id="silence"),
    ],
)
async def test_failure_is_one_clause_with_the_offending_line(
    commands: FakeCommands, stderr: str, sentence: str
) -> None:
    """It says what nft said of the first thing it did not like, and quotes that from what it was told."""
    commands.add("nft", stderr=stderr, status=1)
    with pytest.raises(SteeringError) as caught:
        await find_tool().change(STATEMENTS)
    assert str(caught.value) == sentence


async def test_long_line_is_cut(commands: FakeCommands) -> None:
    """A rule may name hundreds of networks."""
    commands.add("nft", stderr="/dev/stdin:1:1-5: Error: no\n", status=1)
    with pytest.raises(SteeringError, match=r"^nft: no: add rule (network, )+ne\.\.\.$") as caught:
        await find_tool().change([f"add rule {'network, ' * 100}\n"])
    assert len(str(caught.value)) == len("nft: no: ...") + 200


async def test_what_is_too_long_for_one_transaction_is_told_piece_by_piece(commands: FakeCommands) -> None:
    """The complaint is about the whole at first; it is said how many transactions it has become."""
    nft = commands.path / "nft"
    nft.write_text(
        "#!/bin/bash\n"
        f'told=$(</dev/stdin); echo "${{#told}}" >>{commands.path}/nft.calls\n'
        '(( ${#told} < 60 )) || { echo "netlink: Error: Could not process rule: Message too long" >&2; exit 1; }\n'
    )
    nft.chmod(0o755)
    assert await find_tool().change(STATEMENTS) == len(STATEMENTS)
    pieces = [len(text) - 1 for text in STATEMENTS]
    assert commands.calls() == {"nft": [str(sum(pieces) + 1), *map(str, pieces)]}


async def test_piece_that_is_too_long_still_fails(commands: FakeCommands) -> None:
    """It cannot be made shorter."""
    commands.add("nft", stderr="netlink: Error: Could not process rule: Message too long\n", status=1)
    with pytest.raises(SteeringError, match="Message too long"):
        await find_tool().change(STATEMENTS)
    assert commands.calls() == {"nft": ["-f -"] * 2}


def test_missing_command_is_said() -> None:
    """Without it there is nothing to try."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        with pytest.raises(SteeringError, match=r"^nft is not on PATH$"):
            find_tool()


@pytest.mark.parametrize(
    "listed",
    [
        "nonsense",
        '{"nftables": [{"table": {}}]}',
        '{"nftables": [{"rule": {"chain": "x"}}]}',
        '{"nftables": [{"set": {"name": "x", "elem": [[1, 2, 3]]}}]}',
        '{"nftables": [{"set": {"name": "x", "elem": [{"concat": ["a", {"range": [1, 2]}, 80]}]}}]}',
    ],
)
async def test_listing_that_cannot_be_read_is_a_failure(commands: FakeCommands, listed: str) -> None:
    """Other releases of nft may list otherwise."""
    commands.add("nft", stdout=listed)
    with pytest.raises(SteeringError, match="what it lists cannot be read"):
        await find_tool().list_table("ip own")


async def test_absent_table_and_kernel_have_nothing_to_list(commands: FakeCommands) -> None:
    """Neither is a failure."""
    commands.add("nft", stderr="Error: No such file or directory\nlist table ip own\n              ^^^\n", status=1)
    assert await find_tool().list_table("ip own") is None
    commands.add("nft", stderr="netlink: Error: cache initialization failed: Invalid argument\n", status=1)
    assert await find_tool().list_tables() == ()


async def test_rules_that_are_listed_otherwise_than_written_refuse_the_kind(commands: FakeCommands) -> None:
    """They could not be told from what others have changed, so they would be written for ever."""
    commands.add("nft", stdout='{"nftables": [{"table": {"family": "ip", "name": "any"}}]}')
    with pytest.raises(SteeringError, match=r"^nft lists other rules than it was told to write$"):
        await try_tables(find_tool(), Family.IPV4)


async def test_probe_removes_its_table_though_it_is_cancelled(commands: FakeCommands) -> None:
    """Whoever is told to stop meanwhile leaves nothing in the kernel."""
    commands.add("nft", stdout='{"nftables": []}')
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(SteeringError):
            await try_tables(find_tool(), Family.IPV4)
    calls = commands.calls()["nft"]
    assert calls[0] == calls[2] == calls[-1] == "-f -"
    assert calls[1].startswith("-j -n list table ip userspace-proxy-probe-")


async def test_missing_right_is_tried_once(commands: FakeCommands) -> None:
    """Without filtering it needs the same right; there is nothing to remove."""
    commands.add("nft", stderr="netlink: Error: Operation not permitted\n", status=1)
    with pytest.raises(SteeringError, match=r"^not permitted \(needs NET_ADMIN\)$"):
        await try_tables(find_tool(), Family.IPV4)
    assert commands.calls() == {"nft": ["-f -"] * 2}

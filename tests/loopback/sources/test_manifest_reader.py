"""Tests of running the parser process: its deaths, its silence, and what a cancelled call leaves behind."""

import math
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from deadline import DEADLINE_S
from manifest_driver import service_text, write
from process_tree import children
from trio.testing import MockClock, wait_all_tasks_blocked

from userspace_proxy.sources import manifest_reader
from userspace_proxy.sources.manifest_messages import NAME_SEPARATOR, FileEnd, MessageReader, ServiceFound, Started
from userspace_proxy.sources.manifest_reader import read_files
from userspace_proxy.sources.manifest_store import FileContent
from userspace_proxy.sources.manifests import read_manifests

pytestmark = pytest.mark.slow


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Return a good file."""
    path = tmp_path / "good.yaml"
    write(path, service_text())
    return path


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    """Return a file that keeps the parser busy for some time before it has anything to tell."""
    path = tmp_path / "busy.yaml"
    write(path, "kind: List\nitems:\n" + "- {a: b}\n" * 300_000)
    return path


@pytest.fixture
def clock() -> MockClock:
    """Return a clock that goes as all others do, and can be put forward."""
    return MockClock(rate=1.0)


async def wait_parsing(before: set[int]) -> int:
    """Wait until a parser is in its first file, whose CPU time it limits first; return its pid.

    What it has told until then has been taken in.
    """
    with trio.fail_after(DEADLINE_S):
        while True:
            for pid in children() - before:
                limits = await trio.Path(f"/proc/{pid}/limits").read_text()
                if "Max cpu time              unlimited" not in limits:
                    await wait_all_tasks_blocked()
                    return pid
            await trio.sleep(0.005)


async def read_while(paths: list[Path], act: Callable[[int], object]) -> list[FileContent]:
    """Read files, and do something to the parser when it is in the first."""
    contents: list[FileContent] = []
    before = children()

    async def read() -> None:
        contents.extend(await read_files([str(path) for path in paths]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        act(await wait_parsing(before))
    assert children() == before
    return contents


@pytest.mark.parametrize(
    ("death", "text", "try_again"),
    [
        (signal.SIGXCPU, "takes too much CPU time to parse; split it", False),
        (signal.SIGSEGV, "crashes the parser (SIGSEGV), probably by nesting too deeply", False),
        (signal.SIGKILL, "the parser was killed while it read this, perhaps for want of memory", True),
        (signal.SIGTERM, "the parser ended with status -15; its reason, if any, is on standard error", False),
    ],
)
async def test_parser_death_is_blamed_on_the_file_it_read(
    busy: Path, good: Path, *, death: signal.Signals, text: str, try_again: bool
) -> None:
    """One file is not read, with the reason; the others are, by another parser."""
    blamed, read = await read_while([busy, good], lambda pid: os.kill(pid, death))
    assert blamed.failure is not None
    assert (blamed.failure.origin, blamed.failure.text) == (str(busy), text)
    assert blamed.try_again is try_again
    assert not blamed.definitions
    assert read.failure is None
    assert len(read.definitions) == 1


async def test_parser_silence_is_blamed_on_the_file_it_read(busy: Path, good: Path, clock: MockClock) -> None:
    """A file system that does not answer does not stop the reading of other files for ever."""

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        clock.jump(manifest_reader._MAX_SILENCE_S)

    blamed, read = await read_while([busy, good], stop)
    assert blamed.failure is not None
    assert "got nowhere" in blamed.failure.text
    assert blamed.try_again
    assert len(read.definitions) == 1


def test_parser_tells_all_of_a_file_before_it_reads_the_next(good: Path, busy: Path) -> None:
    """Its death in the next one costs nothing of what it has read."""
    with subprocess.Popen(manifest_reader._COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parser:
        assert parser.stdin is not None
        assert parser.stdout is not None
        with parser.stdin as names:
            names.write(NAME_SEPARATOR.join(map(os.fsencode, (good, busy))))
        reader = MessageReader()
        told: list[type] = []
        while FileEnd not in told:
            data = os.read(parser.stdout.fileno(), 65536)
            assert data
            told += map(type, reader.feed(data))
        parser.kill()
    assert told == [Started, ServiceFound, FileEnd]


async def test_parser_limits_itself(busy: Path) -> None:
    """It is the first to lose memory and CPU time, and cannot take all of either."""
    facts: list[str] = []

    def look_and_kill(pid: int) -> None:
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="utf-8")
        facts.extend(" ".join(line.split()[:4]) for line in limits.splitlines())
        facts.append(f"niceness +{os.getpriority(os.PRIO_PROCESS, pid) - os.getpriority(os.PRIO_PROCESS, 0)}")
        facts.append("oom " + Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="utf-8").strip())
        os.kill(pid, signal.SIGKILL)

    await read_while([busy], look_and_kill)
    assert {"Max address space 2147483648", "Max core file size", "niceness +5", "oom 1000"} <= set(facts)
    assert any(fact.startswith("Max cpu time 6") for fact in facts)  # 60 seconds and what the start took


@pytest.mark.parametrize(
    ("command", "reason", "starts"),
    [
        (("/nonexistent/python",), "No such file or directory", 0),
        (("sh", "-c", "echo start >>starts; exit 1"), "it ended with status 1", 1),
    ],
)
async def test_parser_that_does_not_start_is_no_fault_of_a_file(
    good: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], reason: str, starts: int
) -> None:
    """It is said of all files, is not tried for each of them, and may pass."""
    monkeypatch.chdir(good.parent)
    monkeypatch.setattr(manifest_reader, "_COMMAND", command)
    contents = await read_files([str(good), "other.yaml"])
    log = trio.Path("starts")
    assert (len((await log.read_text()).splitlines()) if await log.exists() else 0) == starts
    assert [content.try_again for content in contents] == [True, True]
    assert [str(content.failure) for content in contents] == [
        f"{path}: the parser did not start: {reason}" for path in (good, "other.yaml")
    ]


async def test_file_that_is_replaced_by_a_fifo_is_refused(tmp_path: Path) -> None:
    """Whatever takes its place between the look and the reading cannot hold the parser up."""
    os.mkfifo(tmp_path / "fifo.yaml")
    (content,) = await read_files([str(tmp_path / "fifo.yaml")])
    assert str(content.failure) == f"{tmp_path}/fifo.yaml: is no regular file any more"


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before the task steps of a run have reached a number."""

    def __init__(self, step: float) -> None:
        self.scope = trio.CancelScope()
        self.steps = 0
        self._step = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002
        """Count a step of any task."""
        self.steps += 1
        if self.steps == self._step:
            self.scope.cancel()


async def test_read_cancelled_at_any_await_leaves_no_process(good: Path) -> None:
    """Wherever the cancellation falls, the parser is killed and waited for before the call ends."""
    before = children()
    step: float = math.inf
    steps = 0
    while step == math.inf or step <= steps:
        instrument = CancelAtStep(step)
        trio.lowlevel.add_instrument(instrument)
        try:
            with instrument.scope:
                await read_manifests([good])
        finally:
            trio.lowlevel.remove_instrument(instrument)
        assert children() == before
        if step == math.inf:
            steps, step = instrument.steps, 0
            assert steps > 10
        step += 1

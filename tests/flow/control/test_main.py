"""The control process on a scripted source: what a bug or a failure in one part does to the others."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from builders import endpoint_slice, service
from cli_driver import own_loopback_range
from trio.testing import MockClock

from userspace_proxy.config import Config, SteeringKind
from userspace_proxy.control import source as source_module
from userspace_proxy.control.main import RESTART_S, Running, run_control
from userspace_proxy.dataplane.engine_listeners import EngineListeners
from userspace_proxy.errors import ConfigError, SteeringError
from userspace_proxy.plan.state import Pool
from userspace_proxy.sources.base import Applied, Synced, WatchEvents
from userspace_proxy.steering.loopback import LoopbackSteering

pytestmark = pytest.mark.usefixtures("undone")

WEB = service("shop/web")
WEB_1 = endpoint_slice("shop/web-1", "10.0.1.1")
LIST: tuple[WatchEvents, ...] = ([Applied(WEB)], [Applied(WEB_1), Synced()])
Step = WatchEvents | Exception | float
"""What a source does next: send, fail, or rest for some seconds."""


class ScriptedSource:
    """Takes the place of the source: each start follows the next script, and then waits for ever."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self._scripts = iter(scripts)
        self.started_at: list[float] = []
        self.send: trio.MemorySendChannel[WatchEvents] | None = None
        """Of the last start."""
        self.reload_requested: trio.MemoryReceiveChannel[None] | None = None
        """Of the last start."""

    async def __call__(
        self,
        paths: Sequence[Path],  # noqa: ARG002 - the interface's
        send: trio.MemorySendChannel[WatchEvents],
        reload_requested: trio.MemoryReceiveChannel[None],
    ) -> None:
        """Follow the next script."""
        self.started_at.append(trio.current_time())
        self.send = send
        self.reload_requested = reload_requested
        for step in next(self._scripts):
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await trio.sleep(step)
            else:
                await send.send(step)
        await trio.sleep_forever()


@pytest.fixture
def run_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[ScriptedSource], Awaitable[None]]:
    """Return a function that runs the control process on a source, to its end."""

    async def run(source: ScriptedSource, on_ready: Callable[[Running], None] = lambda _: None) -> None:
        monkeypatch.setattr(source_module, "run_manifests", source)
        config = Config(
            manifests=(tmp_path,),
            state_dir=tmp_path / "state",
            runtime_dir=tmp_path / "run",
            steering=SteeringKind.LOOPBACK,
            workers=0,
            loopback_range=own_loopback_range(),
            metrics_bind_address=None,
        )
        with trio.fail_after(1000):
            await run_control(config, on_ready)

    return run


@asynccontextmanager
async def running(
    run_with: Callable[[ScriptedSource, Callable[[Running], None]], Awaitable[None]], source: ScriptedSource
) -> AsyncIterator[Running]:
    """Yield a run that is ready; stop it at the end."""
    ready: list[Running] = []
    is_ready = trio.Event()

    def on_ready(running: Running) -> None:
        ready.append(running)
        is_ready.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(run_with, source, on_ready))
        await is_ready.wait()
        yield ready[0]
        nursery.cancel_scope.cancel()


def bugs(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the parts of the process whose bugs were logged with a traceback."""
    return [record.resource for record in caplog.records if "a bug in" in record.getMessage() and record.exc_info]  # type: ignore[attr-defined]


async def test_bug_in_the_source_starts_it_again(
    autojump_clock: MockClock, run_with: Callable[..., Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """After a rest, and what it says then is served."""
    source = ScriptedSource([[Applied(WEB)], RuntimeError("a bug")], LIST)
    async with running(run_with, source) as run:
        assert source.started_at == [0, RESTART_S]
        assert run.listeners.open_listeners == 1
        assert bugs(caplog) == ["source"]


async def test_bug_in_the_source_later_leaves_what_is_served(
    autojump_clock: MockClock, run_with: Callable[..., Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """The last good state stays in force, and the second list is no change."""
    source = ScriptedSource([*LIST, 1.0, RuntimeError("a bug")], LIST)
    async with running(run_with, source) as run:
        assert run.listeners.open_listeners == 1
        await trio.sleep(2 * RESTART_S)
        assert len(source.started_at) == 2
        assert run.listeners.open_listeners == 1
        assert bugs(caplog) == ["source"]


async def test_source_that_starts_again_says_what_is_all(
    autojump_clock: MockClock, run_with: Callable[..., Awaitable[None]]
) -> None:
    """What was deleted while it was down is served no more."""
    source = ScriptedSource([*LIST, 1.0, RuntimeError("a bug")], [[Synced()]])
    async with running(run_with, source) as run:
        await trio.sleep(2 * RESTART_S)
        assert run.listeners.open_listeners == 0
        assert not run.pipeline.desired.services


async def test_known_failure_of_a_source_that_starts_again_leaves_what_is_served(
    autojump_clock: MockClock, run_with: Callable[..., Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """A path that is gone by then is said, and tried again; nobody loses a Service by it."""
    source = ScriptedSource([*LIST, 1.0, RuntimeError("a bug")], [ConfigError("no such path")], LIST)
    async with running(run_with, source) as run:
        await trio.sleep(3 * RESTART_S)
        assert source.started_at == [0, 1 + RESTART_S, 1 + 2 * RESTART_S]
        assert run.listeners.open_listeners == 1
        assert bugs(caplog) == ["source"]
        assert "no such path" in [record.getMessage() for record in caplog.records]


async def test_sighup_has_the_source_read_all_again(
    autojump_clock: MockClock, run_with: Callable[..., Awaitable[None]]
) -> None:
    """Once however often it was asked for while the source was busy, and again the next time."""
    source = ScriptedSource(LIST)
    async with running(run_with, source):
        assert source.reload_requested is not None
        for _ in range(2):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
                await trio.sleep(1)
            await source.reload_requested.receive()
            with pytest.raises(trio.WouldBlock):
                source.reload_requested.receive_nowait()


@pytest.mark.parametrize("error", [ConfigError("no such path"), SteeringError("no lock")])
async def test_known_failure_of_the_source_at_the_start_ends_the_run(
    autojump_clock: MockClock,
    run_with: Callable[..., Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """It is one sentence for the user, and no bug."""
    with pytest.raises(ExceptionGroup) as caught:
        await run_with(ScriptedSource([error]))
    assert caught.group_contains(type(error), match=str(error))
    assert bugs(caplog) == []


async def test_bug_in_the_pipeline_costs_a_rest_and_no_change(
    autojump_clock: MockClock,
    run_with: Callable[..., Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The change that could not be applied is in force after a rest, and is counted as not in force until then."""
    source = ScriptedSource(LIST)
    async with running(run_with, source) as run:
        strikes: list[Pool] = []
        apply_pool = run.listeners.apply_pool

        def strike_once(pool: Pool) -> None:
            if not strikes:
                strikes.append(pool)
                raise RuntimeError("a bug")
            apply_pool(pool)

        monkeypatch.setattr(run.listeners, "apply_pool", strike_once)
        assert source.send is not None
        await source.send.send([Applied(endpoint_slice("shop/web-1", "10.0.1.2", "10.0.1.3"))])
        await trio.sleep(RESTART_S - 1)
        assert bugs(caplog) == ["pipeline"]
        await trio.sleep(2)
        assert isinstance(run.engines.plane, EngineListeners)
        ((_, pool),) = run.engines.plane.pools()
        assert len(pool.members) == 2
        assert bugs(caplog) == ["pipeline"]


async def test_bug_in_the_dump_ends_nothing(
    autojump_clock: MockClock,
    run_with: Callable[..., Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who asks for the state must not lose it; a second signal is heard, too."""

    async def strike() -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a bug")

    async with running(run_with, ScriptedSource(LIST)) as run:
        monkeypatch.setattr(run.engines, "log_state", strike)
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGUSR1)
            await trio.sleep(1)
            assert bugs(caplog) == ["dump"] * count
        assert run.listeners.open_listeners == 1


async def test_bug_while_taking_down_does_not_leave_the_rules(
    autojump_clock: MockClock, run_with: Callable[..., Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steering is closed whatever else goes wrong."""
    closed = []

    async def aclose(self: LoopbackSteering) -> None:
        await trio.lowlevel.checkpoint()
        closed.append(self)

    def strike() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(LoopbackSteering, "aclose", aclose)
    ready: list[Running] = []

    def on_ready(run: Running) -> None:
        ready.append(run)
        monkeypatch.setattr(run.engines, "abort", strike)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(ExceptionGroup) as caught:
        await run_with(ScriptedSource(LIST), on_ready)
    assert caught.group_contains(RuntimeError, match="a bug")
    assert closed == [ready[0].chosen.steering]

"""The control process on a scripted API server: what is its own to do about it."""

import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
from builders import endpoint_slice, service, service_port
from cli_driver import own_loopback_range
from trio.testing import MockClock

from userspace_proxy.config import ApiAccess, Config, SteeringKind
from userspace_proxy.control import source as source_module
from userspace_proxy.control.main import RESTART_S, Running, run_control
from userspace_proxy.errors import ConfigError
from userspace_proxy.model.node import Node
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Service
from userspace_proxy.sources.api_events import EventTeller, Notice
from userspace_proxy.sources.base import ApiState, Applied, ProblemsFound, Synced, WatchEvents

pytestmark = pytest.mark.usefixtures("undone")

WEB = service("shop/web")
WEB_1 = endpoint_slice("shop/web-1", "10.0.1.1")
API = service("default/kubernetes", service_port("https", 443), cluster_ips=["10.96.0.1"])
LIST: WatchEvents = [Applied(WEB), Applied(WEB_1), Applied(Node("node-1")), Synced()]
RunWith = Callable[..., Awaitable[None]]


class ScriptedApi:
    """Takes the place of ``run_api``: each start sends the next batch, or fails with the next error."""

    def __init__(self, *script: WatchEvents | Exception) -> None:
        self._script = list(script)
        self.asked: list[tuple[ApiAccess, str]] = []
        """Of each start: where, and for which Node."""
        self.state = ApiState()

    async def __call__(
        self,
        access: ApiAccess,
        send: trio.MemorySendChannel[WatchEvents],
        *,
        node_name: str,
        state: ApiState,
        wall_clock: Callable[[], float],
    ) -> None:
        """Do what comes next in the script, and wait for ever unless more is to come."""
        self.asked.append((access, node_name))
        self.state = state
        state.server = "https://10.96.0.1:443"
        assert wall_clock() > 0
        step = self._script.pop(0)
        if isinstance(step, Exception):
            raise step
        await send.send(step)
        if self._script and isinstance(self._script[0], RuntimeError):
            await trio.sleep(1)
            raise self._script.pop(0)  # type: ignore[misc] # an exception, as was just seen
        await trio.sleep_forever()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Notice]:
    """Keep Events from being sent, and return those that would be."""
    notices: list[Notice] = []

    async def run(_: EventTeller) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(EventTeller, "tell", lambda _, notice: notices.append(notice))
    monkeypatch.setattr(EventTeller, "run", run)
    return notices


@pytest.fixture
def run_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: Sequence[Notice]) -> RunWith:
    """Return a function that runs the control process on a script, and stops it once it has done something."""
    del told  # only to be in place

    async def run(api: ScriptedApi, act: Callable[[Running], Awaitable[None]]) -> None:
        monkeypatch.setattr(source_module, "run_api", api)
        config = Config(
            state_dir=tmp_path / "state",
            runtime_dir=tmp_path / "run",
            api=ApiAccess(service_proxy_name="mine"),
            node_name="node-1",
            steering=SteeringKind.LOOPBACK,
            workers=0,
            loopback_range=own_loopback_range(),
            metrics_bind_address=None,
        )

        async def act_and_stop(running: Running) -> None:
            await act(running)
            os.kill(os.getpid(), signal.SIGTERM)

        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                await run_control(config, lambda running: nursery.start_soon(partial(act_and_stop, running)))

    return run


async def do_nothing(_: Running) -> None:
    """See that it got so far."""
    await trio.sleep(2 * RESTART_S)


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return the messages of one level."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]


async def test_run_without_manifests_asks_the_api_server(autojump_clock: MockClock, run_with: RunWith) -> None:
    """With what is configured; what is known of it is there to be looked at, and the Node is known."""
    api = ScriptedApi(LIST)

    async def look(running: Running) -> None:
        await trio.lowlevel.checkpoint()
        assert running.api is api.state
        assert running.pipeline.node == Node("node-1")
        assert running.listeners.open_listeners == 1

    await run_with(api, look)
    assert api.asked == [(ApiAccess(service_proxy_name="mine"), "node-1")]


@pytest.mark.parametrize(("services", "warnings"), [([], 0), ([API], 1)])
async def test_run_that_reaches_the_api_server_through_itself_warns(
    autojump_clock: MockClock,
    run_with: RunWith,
    caplog: pytest.LogCaptureFixture,
    services: Sequence[Service],
    warnings: int,
) -> None:
    """Once all is known; it works until the next start."""
    await run_with(ScriptedApi([*map(Applied, services), *LIST]), do_nothing)
    said = [text for text in messages(caplog, logging.WARNING) if "an address of Service default/kubernetes" in text]
    assert len(said) == warnings


async def test_run_whose_kubeconfig_is_broken_ends(autojump_clock: MockClock, run_with: RunWith) -> None:
    """It is one sentence for the user: trying again would be of no use."""
    with pytest.raises(ExceptionGroup) as caught:
        await run_with(ScriptedApi(ConfigError("no such file")), do_nothing)
    assert caught.group_contains(ConfigError, match="no such file")


async def test_run_whose_kubeconfig_breaks_later_serves_on(
    autojump_clock: MockClock, run_with: RunWith, caplog: pytest.LogCaptureFixture
) -> None:
    """A source that has to start again and cannot is tried until it can."""
    api = ScriptedApi(LIST, RuntimeError("a bug"), ConfigError("no such file"), LIST)

    async def wait(running: Running) -> None:
        await trio.sleep(3 * RESTART_S)
        assert running.listeners.open_listeners == 1
        assert running.pipeline.node == Node("node-1")

    await run_with(api, wait)
    assert len(api.asked) == 3
    assert "no such file" in messages(caplog, logging.ERROR)


async def test_run_told_to_read_again_says_that_there_is_nothing(
    autojump_clock: MockClock, run_with: RunWith, caplog: pytest.LogCaptureFixture
) -> None:
    """The API server tells what changes."""
    caplog.set_level(logging.INFO)

    async def hang_up(_: Running) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await trio.sleep(1)

    await run_with(ScriptedApi(LIST), hang_up)
    assert [text for text in messages(caplog, logging.INFO) if text.startswith("nothing to read again")]


async def test_run_tells_owners_of_problems_that_have_a_reason(
    autojump_clock: MockClock, run_with: RunWith, told: list[Notice]
) -> None:
    """Others are for the log alone."""
    subject = "Service shop/web"
    plain = Problem(Severity.ERROR, subject, "spec", "is odd")
    reasoned = Problem(Severity.ERROR, subject, "spec", "is odder", event_reason="Odd")
    await run_with(ScriptedApi([ProblemsFound(subject, (plain, reasoned)), *LIST]), do_nothing)
    assert told == [Notice(subject, "Odd", "is odder")]

"""The demonstration from start to end: backends, the proxy over them, and somebody who looks or drives.

It runs the proxy as ``run`` does, in this process, with everything of its own: addresses, state, admin port. Nothing
of it is left when it ends. Entry point: ``run_demo``.
"""

import signal
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import trio

from userspace_proxy.balance.live_pool import Member
from userspace_proxy.config import Config, SteeringKind
from userspace_proxy.control.main import Running, run_control
from userspace_proxy.dataplane.engine_listeners import EngineListeners
from userspace_proxy.demo.backend_process import BackendProcess, start_backends
from userspace_proxy.demo.instance import Instance, open_instance
from userspace_proxy.demo.table import build_rows, run_table
from userspace_proxy.demo.texts import intro_lines, invitation_lines, kill_lines, phase_lines, verdict_line
from userspace_proxy.demo.traffic import run_phase, run_phase_with_kill
from userspace_proxy.errors import DemoError

_DRAIN_TIMEOUT_S = 1.0
"""Arbitrary: an answer takes milliseconds."""


async def run_demo(requests: int | None) -> bool:
    """Run the demonstration until it is over, or stopped by SIGINT or SIGTERM.

    Args:
        requests: Requests to send to itself before it ends; None: it serves until it is stopped.

    Returns:
        Whether all went well: it was not stopped before the last request, none failed but those that were in flight on
        the backend that was killed, and the backends that live had an even share. Without ``requests`` always True.

    Raises:
        DemoError: it cannot run here.
        ConfigError: the proxy cannot run here.
        BrokenPipeError: nobody reads what it says any more.

    Cancellation: everything is taken down.
    """
    demo = _Demo(requests)
    async with trio.open_nursery() as nursery:
        await nursery.start(_cancel_at_signal, nursery.cancel_scope)
        await demo.run()
        nursery.cancel_scope.cancel()
    if demo.broken_pipe is not None:
        raise demo.broken_pipe
    return demo.is_well


async def _cancel_at_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Cancel at a signal outside of ``run_control``, which handles them itself while it runs."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
        task_status.started()
        async for _ in received:
            scope.cancel()


class _Demo:
    def __init__(self, requests: int | None) -> None:
        self._requests = requests
        self.is_well = requests is None
        self.broken_pipe: BrokenPipeError | None = None

    async def run(self) -> None:
        """See ``run_demo``."""
        with (
            TemporaryDirectory(prefix="userspace-proxy-demo-") as directory,
            open_instance(Path(directory)) as instance,
            start_backends(instance.backends, instance.listening) as backends,
        ):
            for backend in backends:
                await backend.wait_ready()
            async with trio.open_nursery() as nursery:

                async def look_on(running: Running) -> None:
                    await self._look_on(instance, backends, running)
                    nursery.cancel_scope.cancel()

                await run_control(
                    _config(instance, Path(directory)), lambda running: nursery.start_soon(look_on, running)
                )
                nursery.cancel_scope.cancel()

    async def _look_on(self, instance: Instance, backends: Sequence[BackendProcess], running: Running) -> None:
        """Do what the demonstration is about while the proxy runs."""
        placements = list(running.pipeline.placements())
        for failure in running.pipeline.failures:
            raise DemoError(failure)
        if not placements:
            raise DemoError(f"{instance.manifest} has no Service that can be served; the log says why")
        listener = placements[0].listener
        address = (str(listener.address), listener.port)
        try:
            _print(intro_lines(instance, running))
            if self._requests is None:
                _print(invitation_lines("http://{}:{}/".format(*address), backends))
                await _show(backends, running)
            else:
                self.is_well = await _drive(address, self._requests, backends, running)
        except BrokenPipeError as error:
            self.broken_pipe = error


def _config(instance: Instance, directory: Path) -> Config:
    return Config(
        manifests=(instance.manifest,),
        state_dir=directory / "state",
        runtime_dir=directory / "run",
        steering=SteeringKind.LOOPBACK,
        workers=0,
        drain_timeout_s=_DRAIN_TIMEOUT_S,
        loopback_range=instance.loopback_range,
        metrics_bind_address=(IPv4Address("127.0.0.1"), 0),
    )


async def _show(backends: Sequence[BackendProcess], running: Running) -> None:
    def members() -> Iterable[Member]:
        return (member for _, pool in _engine_listeners(running).pools() for member in pool.members)

    await run_table(lambda: build_rows(backends, members()))


async def _drive(address: tuple[str, int], requests: int, backends: Sequence[BackendProcess], running: Running) -> bool:
    """Send requests in two phases, the second with a backend less, and return whether all went well."""
    first, kill = await run_phase_with_kill(address, requests // 2, backends, _engine_listeners(running).relays)
    _print(phase_lines("phase 1: all backends", first))
    _print(kill_lines(kill, first.lost))
    second = await run_phase(address, requests - requests // 2, backends)
    _print(phase_lines(f"phase 2: without {kill.name}", second))
    _print([verdict_line([first, second])])
    return all(phase.is_even and not phase.failures for phase in (first, second))


def _engine_listeners(running: Running) -> EngineListeners:
    """Return what the engine serves, which is in this process so that it can be looked at."""
    plane = running.engines.plane
    if not isinstance(plane, EngineListeners):
        raise TypeError(plane)
    return plane


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)

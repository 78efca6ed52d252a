"""The control process from start to end: opens, connects and supervises the parts, and takes them down in order.

Entry point: ``run_control``. The order of the end matters: first no more clients are accepted (a new one is refused at
once, as rules still lead to where nobody listens), then open connections get their time, and the rules go last.
"""

import contextlib
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial

import trio
from attrs import evolve, frozen

from userspace_proxy.config import Config, SteeringKind
from userspace_proxy.control.admin_http import Response, Routes, serve_admin, text_response
from userspace_proxy.control.cleanup import remove_leftovers
from userspace_proxy.control.collector import build_registry, metrics_page
from userspace_proxy.control.cooperate import cooperate
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.dump import log_state
from userspace_proxy.control.engines import Engines
from userspace_proxy.control.health import Health
from userspace_proxy.control.hosts_writer import HostsWriter
from userspace_proxy.control.instance_lock import instance_lock, node_lock, require_free_node
from userspace_proxy.control.local_engine import LocalEngine
from userspace_proxy.control.pipeline import Pipeline
from userspace_proxy.control.process_limits import (
    count_default_workers,
    count_local_ports,
    flow_limits_within,
    raise_open_files_limit,
)
from userspace_proxy.control.service_health import ServiceHealthFacts, run_service_health
from userspace_proxy.control.service_manager import ServiceManager
from userspace_proxy.control.source import run_source
from userspace_proxy.control.workers import Workers
from userspace_proxy.dataplane.counters import EngineCounters
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.errors import UserspaceProxyError
from userspace_proxy.model.names import Family, IPAddress, NamespacedName, family_of
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.plan.settings import plan_settings_for
from userspace_proxy.plan.state import ListenerKey, PlanSettings
from userspace_proxy.sources.api_events import EventTeller, Notice
from userspace_proxy.sources.api_source import cluster_address_warning
from userspace_proxy.sources.base import ApiState
from userspace_proxy.steering.base import WILDCARD
from userspace_proxy.steering.node_state import read_local_addresses
from userspace_proxy.steering.probe import Chosen, choose_steering

LOG = logging.getLogger(__name__)

GC_THRESHOLDS = (50_000, 20, 100)
"""See ``gc.set_threshold``; arbitrary, some seventy times as seldom as by default. There are few cycles (relays cut
theirs), and a full collection over 10,000 Services takes 75 ms."""
RESTART_S = 5.0
"""Rest before a task that has failed by a bug is started again; arbitrary."""


@frozen
class Running:
    """A proxy whose first complete list is in force, to look at; it must not be changed from outside."""

    pipeline: Pipeline
    listeners: ListenerSet
    engines: Engines
    chosen: Chosen
    startup_s: float
    """Seconds it took."""
    api: ApiState | None
    """What is known of the API server's objects; None: they come from manifests."""
    node_name: str
    """See ``Config``."""


async def run_control(config: Config, on_ready: Callable[[Running], None]) -> None:
    """Serve until SIGTERM or SIGINT, drain, clean up, and return.

    The first signal lets open connections end until ``Config.drain_timeout_s``, and flows get their late answers; a
    second one ends all at once.
    SIGHUP reads all manifests again, SIGUSR1 writes the state to the log. An API server that cannot be reached is
    tried for ever, at the start too: what a run before has left in force stays as it is meanwhile.

    Args:
        config: What to do.
        on_ready: Called once, when the first complete list is in force.

    Raises:
        ConfigError: something in the configuration cannot be used.
        SteeringError: the steering asked for does not work here, or something of it was left at the end.

    Cancellation: as a second signal; rules are removed.
    """
    started_s = trio.current_time()
    gc.set_threshold(*GC_THRESHOLDS)
    limit = raise_open_files_limit()
    config = evolve(
        config,
        workers=count_default_workers() if config.workers is None else config.workers,
        flow_limits=flow_limits_within(config.flow_limits, limit, count_local_ports()),
    )
    flows = config.flow_limits.max_total_flows
    LOG.debug("open files limit", extra={"reason": f"soft limit was {limit.before}, is {limit.after}; {flows} flows"})
    with contextlib.ExitStack() as locks:
        locks.enter_context(instance_lock(config.runtime_dir))
        if config.steering is SteeringKind.AUTO or config.steering.changes_node:
            require_free_node()
        chosen = await choose_steering(config)
        if chosen.steering.kind.changes_node:
            locks.enter_context(node_lock())
        for line in chosen.explain():
            LOG.info("%s", line)
        await _Control(config, chosen).run(on_ready, started_s)


class _Control:
    def __init__(self, config: Config, chosen: Chosen) -> None:
        self._config = config
        self._chosen = chosen
        self._counters = ControlCounters(steering_kind=chosen.steering.kind, steering_repairs=chosen.steering.repairs)
        self._engines = _engines(config, self._counters, self._listen_again)
        self._listeners = ListenerSet(self._engines.plane, config.limits)
        self._pipeline = Pipeline(
            steering=chosen.steering,
            listeners=self._listeners,
            engines=self._engines,
            settings=lambda node: plan_settings_for(config, node, read_local_addresses()),
            counters=self._counters,
            wall_clock=_wall_clock,
            on_problem=self._on_problem,
        )
        self._api = None if config.manifests else ApiState()
        self._engine_counters: Mapping[str, EngineCounters] = {}
        """As of the last scrape."""
        self._registry = build_registry(lambda: self._engine_counters, self._counters, self._api)
        self._hosts = _hosts_writer(config, chosen, self._pipeline)
        self._stopping = trio.Event()
        self._events = EventTeller(config.api, config.node_name, _wall_clock)
        self._health = Health(
            progress=self._pipeline,
            families=lambda: tuple(_families(self._pipeline.settings)),
            api=self._api,
            counters=self._counters,
            wall_clock=_wall_clock,
            is_stopping=self._stopping.is_set,
        )
        self._request_reload, self._reloads = trio.open_memory_channel[None](1)
        self._manager = ServiceManager(os.environ)
        self._everything = trio.CancelScope()
        """What a second signal ends at once."""

    async def run(self, on_ready: Callable[[Running], None], started_s: float) -> None:
        """See ``run_control``."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._handle_signals)  # to the very end: none may kill what removes the rules
            try:
                with self._everything:
                    await self._run_parts(on_ready, started_s)
            finally:
                await self._take_down()
            nursery.cancel_scope.cancel()

    async def _run_parts(self, on_ready: Callable[[Running], None], started_s: float) -> None:
        """Serve until the first signal, and drain."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_for_ever, "engines", self._engines.run)
            nursery.start_soon(self._manager.ping)
            await self._start_admin(nursery)
            with trio.CancelScope() as serving:
                async with trio.open_nursery() as inner:
                    inner.start_soon(self._run_for_ever, "source", self._run_source)
                    inner.start_soon(self._run_for_ever, "pipeline", self._pipeline.run)
                    if self._api is not None:
                        inner.start_soon(self._run_for_ever, "events", self._run_events)
                    inner.start_soon(self._run_for_ever, "health checks", self._run_service_health)
                    if self._hosts is not None:
                        inner.start_soon(self._run_for_ever, "hosts file", self._hosts.run)
                    inner.start_soon(self._announce, on_ready, started_s)
                    inner.start_soon(self._contain, "leftovers", self._remove_leftovers)
                    await self._stopping.wait()
                    self._manager.tell("STOPPING=1")
                    serving.cancel()
            await self._drain()
            nursery.cancel_scope.cancel()

    async def _take_down(self) -> None:
        try:
            self._listeners.close_listeners()
            self._engines.abort()
            self._listeners.close()
        finally:
            with trio.CancelScope(shield=True):
                try:
                    if self._hosts is not None:
                        await self._hosts.aclose()
                finally:
                    await self._chosen.steering.aclose()
        LOG.info("stopped")

    async def _announce(self, on_ready: Callable[[Running], None], started_s: float) -> None:
        await self._pipeline.in_force.wait()
        gc.freeze()  # what is there now stays: the collector need not walk over it again and again
        took_s = trio.current_time() - started_s
        on_ready(
            Running(
                pipeline=self._pipeline,
                listeners=self._listeners,
                engines=self._engines,
                chosen=self._chosen,
                startup_s=took_s,
                api=self._api,
                node_name=self._config.node_name,
            )
        )
        self._manager.tell("READY=1")
        if self._api is not None:
            self._warn_of_surroundings(self._api)

    def _warn_of_surroundings(self, api: ApiState) -> None:
        """Say what is probably not meant so, now that everything is known."""
        warning = cluster_address_warning(api.server, self._pipeline.services.values())
        if warning:
            LOG.warning("%s", warning)
        nodes = api.resources.get("nodes")
        if self._pipeline.node is None and nodes is not None and not nodes.failure:
            LOG.warning(
                "the API server knows no Node with the name of this one: "
                "/healthz says that this node is not eligible; give the right --hostname-override",
                extra={"resource": self._config.node_name},
            )

    async def _run_source(self) -> None:
        await run_source(
            self._config,
            self._pipeline,
            reload_requested=self._reloads,
            api=self._api or ApiState(),
            wall_clock=_wall_clock,
        )

    async def _remove_leftovers(self) -> None:
        await remove_leftovers(self._chosen.steering, self._pipeline, self._config.runtime_dir)

    async def _run_service_health(self) -> None:
        facts = ServiceHealthFacts(
            checks=lambda: self._pipeline.health_checks,
            changed=lambda: self._pipeline.health_checks_changed,
            addresses=lambda: _health_check_addresses(self._pipeline.settings),
            is_healthy=self._health.is_healthy,
            on_failure=self._on_health_check_failure,
        )
        await run_service_health(facts, self._counters)

    async def _run_events(self) -> None:
        await self._pipeline.in_force.wait()  # until then the source says what is wrong with the way to the API server
        await self._events.run()

    def _listen_again(self, key: ListenerKey) -> None:
        self._listeners.listen_again(key)

    def _on_problem(self, problem: Problem) -> None:
        if problem.event_reason and self._api is not None:
            self._events.tell(Notice(problem.subject, problem.event_reason, problem.text))

    def _on_health_check_failure(self, service: NamespacedName, sentence: str) -> None:
        reason = "FailedToStartServiceHealthcheck"  # as kube-proxy calls it
        subject = f"Service {service}"
        self._on_problem(Problem(Severity.WARNING, subject, "spec.healthCheckNodePort", sentence, event_reason=reason))

    async def _start_admin(self, nursery: trio.Nursery) -> None:
        metrics: Routes = {
            "/metrics": self._metrics,
            "/livez": lambda: text_response(200, "ok"),
            "/readyz": self._readiness,
        }
        servers = (
            ("serving metrics and health", "--metrics-bind-address", self._config.metrics_bind_address, metrics),
            (
                "serving health as kube-proxy does",
                "--healthz-bind-address",
                self._config.healthz_bind_address,
                self._health.routes(),
            ),
        )
        for what, setting, address, routes in servers:
            if address is None:
                continue
            serve = partial(
                serve_admin,
                routes,
                address,
                setting=setting,
                hard_fail=self._config.bind_address_hard_fail,
                counters=self._counters,
            )
            bound = await nursery.start(serve)
            if bound is not None:
                LOG.info(what, extra={"address": "{} port {}".format(*bound)})

    async def _metrics(self) -> Response:
        self._engine_counters = await self._engines.counters()
        return await cooperate(metrics_page(self._registry))

    def _readiness(self) -> Response:
        """Return 200 while clients are served; single listeners that cannot be opened are told, and change nothing."""
        failures = "\n".join((*self._engines.failures, *self._pipeline.failures, *self._api_failures()))
        if self._stopping.is_set():
            return text_response(503, "stopping")
        if not self._pipeline.in_force.is_set():
            return text_response(503, f"the first complete list is not in force yet\n{failures}".rstrip())
        if self._pipeline.steering_failure or not self._engines.serves:
            return text_response(503, failures)
        return text_response(200, f"ok\n{failures}".rstrip())

    def _api_failures(self) -> Iterator[str]:
        for name, state in self._api.resources.items() if self._api else ():
            if state.failure:
                yield f"{name} of the API server: {state.failure}"

    async def _run_for_ever(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a task that does not return; one that fails by a bug is started again."""
        while True:
            await self._contain(name, run)
            await trio.sleep(RESTART_S)

    async def _contain(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run something; a bug in it is logged and counted, and ends nothing else."""
        try:
            await run()
        except* UserspaceProxyError as errors:
            if not self._pipeline.in_force.is_set():
                raise  # not a bug, but no way to start either
            LOG.error("%s", "; ".join(map(str, errors.exceptions)))  # noqa: TRY400 - a known failure
        except* Exception:
            LOG.exception("a bug in a part of the control process; the rest goes on", extra={"resource": name})
            self._counters.unexpected_errors += 1

    async def _log_state(self) -> None:
        log_state(self._pipeline, self._listeners, api=self._api, now_s=_wall_clock())
        await self._engines.log_state()

    async def _handle_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        with trio.open_signal_receiver(*numbers) as received:
            task_status.started()
            async for number in received:
                name = signal.Signals(number).name
                if number == signal.SIGHUP and self._api is not None:
                    LOG.info(
                        "nothing to read again: the API server tells what changes, and files with credentials are "
                        "read when they do",
                        extra={"reason": name},
                    )
                elif number == signal.SIGHUP:
                    LOG.info("reading all manifests again", extra={"reason": name})
                    with contextlib.suppress(trio.WouldBlock):  # one is waiting to be served already
                        self._request_reload.send_nowait(None)
                elif number == signal.SIGUSR1:
                    await self._contain("dump", self._log_state)
                elif self._stopping.is_set():
                    LOG.warning("stopping at once", extra={"reason": name})
                    self._everything.cancel()
                else:
                    LOG.info("stopping; open connections may end by themselves", extra={"reason": name})
                    self._stopping.set()

    async def _drain(self) -> None:
        """Accept no more, and wait for connections and flows to end, as long as they may; flows take some seconds."""
        self._listeners.close_listeners()
        with trio.move_on_after(self._config.drain_timeout_s) as scope:
            await self._engines.wait_empty()
        if scope.cancelled_caught:
            left = "{} connections, {} flows".format(*self._engines.open_now)
            LOG.warning(
                "the drain time is over; the connections left are reset, the flows ended",
                extra={"reason": f"{left} after {self._config.drain_timeout_s} s"},
            )


def _engines(config: Config, counters: ControlCounters, on_stopped: Callable[[ListenerKey], None]) -> Engines:
    if config.workers:
        return Workers(config, counters, on_stopped)
    return LocalEngine(config.limits, config.flow_limits, on_stopped)


def _hosts_writer(config: Config, chosen: Chosen, pipeline: Pipeline) -> HostsWriter | None:
    if config.hosts_file is None:
        return None
    return HostsWriter(config.hosts_file, pipeline, clients_dial_listener=chosen.steering.clients_dial_listener)


def _wall_clock() -> float:
    return datetime.now(UTC).timestamp()


def _families(settings: PlanSettings) -> Iterator[Family]:
    """Yield the families that this node has an address of."""
    for family in Family:
        if any(family_of(address) is family for address in settings.sources.local_addresses):
            yield family


def _health_check_addresses(settings: PlanSettings) -> Iterator[IPAddress]:
    """Yield where load balancers ask for this node: where NodePorts answer."""
    for family in _families(settings):
        yield from settings.node_port_addresses.get(family, (WILDCARD[family],))

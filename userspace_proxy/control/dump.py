"""What SIGUSR1 writes to the log: where everything stands, and what every task is waiting for.

It can be long, so it is written in steps. Entry point: ``log_state``.
"""

import logging
from collections.abc import Generator, Iterator

import trio

from userspace_proxy.control.pipeline import Pipeline
from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.dataplane.listener_set import ListenerSet

LOG = logging.getLogger(__name__)


def log_state(pipeline: Pipeline, listeners: ListenerSet, engine: Engine) -> Generator[None, None, None]:
    """Log counts, failures and the tree of tasks, then each Backend with its connections, a Pool at each step."""
    LOG.info(
        "state: %d services, %d listeners, %d connections, %d file descriptors watched",
        len(pipeline.desired.services),
        listeners.open_listeners,
        listeners.open_relays,
        len(engine.handlers),
    )
    for failure in pipeline.failures:
        LOG.info("state: not in force", extra={"reason": failure})
    root = trio.lowlevel.current_root_task()
    for line in [] if root is None else _task_lines(root, 0):
        LOG.info("task: %s", line)
    for key, pool in list(listeners.pools()):
        for member in pool.members:
            LOG.info(
                "state: backend with %d open connections, %d made",
                member.open,
                member.connections,
                extra={"service": str(key.service_port), "backend": str(member.backend)},
            )
        yield


def _task_lines(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    frames = []
    for frame, line in task.iter_await_frames():
        frames.append(f"{frame.f_code.co_qualname}:{line}")
        if frame.f_globals["__name__"].startswith("trio."):
            break  # what it waits in; how trio does that is not of interest
    yield f"{'  ' * depth}{task.name}: {' > '.join(frames)}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _task_lines(child, depth + 1)

"""What SIGUSR1 writes to the log of the control process: where it stands, and what every task is waiting for.

Entry point: ``log_state``.
"""

import logging
from collections.abc import Iterator

import trio

from userspace_proxy.control.pipeline import Pipeline
from userspace_proxy.dataplane.listener_set import ListenerSet
from userspace_proxy.sources.base import ApiState

LOG = logging.getLogger(__name__)


def log_state(pipeline: Pipeline, listeners: ListenerSet, *, api: ApiState | None, now_s: float) -> None:
    """Log counts, failures and the tree of tasks.

    Args:
        pipeline: Knows what should be.
        listeners: Knows what is.
        api: What is known of the API server's objects; None: they come from elsewhere.
        now_s: In seconds since the epoch.
    """
    LOG.info(
        "state: %d services, %d listeners",
        len(pipeline.desired.services),
        listeners.open_listeners,
    )
    for failure in pipeline.failures:
        LOG.info("state: not in force", extra={"reason": failure})
    for name, resource in api.resources.items() if api else ():
        age = "never known" if resource.current_at_s is None else f"current {now_s - resource.current_at_s:.0f} s ago"
        LOG.info("state: API server", extra={"resource": name, "reason": f"{age}; {resource.failure or 'is watched'}"})
    root = trio.lowlevel.current_root_task()
    for line in [] if root is None else _task_lines(root, 0):
        LOG.info("task: %s", line)


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

"""Has what earlier runs have left removed: all of it by the command ``cleanup``, other kinds of steering by each run.

Whoever does it has the right to change the node, so nobody else has rules or routes that are in use. Entry points:
``run_cleanup``, ``remove_leftovers``.
"""

import logging
from contextlib import nullcontext
from pathlib import Path

from attrs import evolve

from userspace_proxy.control.instance_lock import node_lock
from userspace_proxy.control.pipeline import Pipeline
from userspace_proxy.errors import SteeringError
from userspace_proxy.plan.state import FrontendKind
from userspace_proxy.steering.base import Steering
from userspace_proxy.steering.cleanup import CleanupReport, cleanup, remove_other_kinds
from userspace_proxy.steering.hosts_file import remove_hosts_block

LOG = logging.getLogger(__name__)


async def run_cleanup(
    *, dry_run: bool, kube_proxy_leftovers: bool, hosts_file: Path | None, runtime_dir: Path
) -> CleanupReport:
    """Remove what is left of ours, and hold the lock of the node meanwhile.

    Args:
        dry_run: Only look; a run may be alive.
        kube_proxy_leftovers: Remove what kube-proxy's userspace mode has left, too.
        hosts_file: Remove our block from this file, too; None: from none.
        runtime_dir: See ``Config``.

    Raises:
        ConfigError: a run is alive that has rules or routes.
    """
    with nullcontext() if dry_run else node_lock():
        report = await cleanup(dry_run=dry_run, runtime_dir=runtime_dir, kube_proxy=kube_proxy_leftovers)
    if hosts_file is None:
        return report
    try:
        if remove_hosts_block(hosts_file, dry_run=dry_run):
            return evolve(report, removed=(*report.removed, f"hosts file {hosts_file}: our block"))
    except SteeringError as error:
        return evolve(report, failed=(*report.failed, str(error)))
    return report


async def remove_leftovers(steering: Steering, pipeline: Pipeline, runtime_dir: Path) -> None:
    """Remove the rules and routes of other kinds, once those of a run are in force; what cannot be removed is logged.

    Kinds that change nothing on the node do not begin to here; ``cleanup`` is for those who use one after another kind.

    Args:
        steering: Holds the lock of the node if it changes it.
        pipeline: Knows which proxy ports are in use.
        runtime_dir: See ``Config``.
    """
    await pipeline.in_force.wait()
    if not steering.kind.changes_node:
        return
    steered = (one for one in pipeline.placements() if one.frontend.kind is not FrontendKind.NODE_PORT)
    proxy_ports = frozenset(placement.listener.port for placement in steered)
    report = await remove_other_kinds(steering, runtime_dir=runtime_dir, proxy_ports=proxy_ports)
    for phrase in report.removed:
        LOG.info("what an earlier run has left is removed", extra={"resource": phrase})
    for phrase in report.failed:
        LOG.warning("what an earlier run has left stays; stop this one and run cleanup", extra={"reason": phrase})

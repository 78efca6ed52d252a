"""One Steering object alone, with thousands of Services: what its parts cost without a proxy around it.

A program for ``steering_scale.py``, which runs it in a network namespace: it changes the rules and routes of the one it
is in. Prints a JSON object with lists of seconds by name. With ``, stall`` behind the name: for how long other tasks
had to wait meanwhile, at most, and so clients of a proxy.

- place: where all Listeners are to be opened; apply: all of it brought into force; ``, CPU``: with what CPU time, that
  of children included.
- add: one Service more brought into force; remove: the same one removed.
- idle: CPU time, children included, of one look at whether all is there still.
- foreign: the same look after somebody else has changed a rule or a route; flushed: after all of ours were removed.
- end: all of it removed.
"""

import argparse
import gc
import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from apiserver.scale import NAMESPACE, PORT, cluster_ip

from userspace_proxy.config import Config, SteeringKind
from userspace_proxy.control.main import GC_THRESHOLDS
from userspace_proxy.model.names import Family, NamespacedName, Protocol, ServicePortName
from userspace_proxy.plan.state import Frontend, FrontendKind
from userspace_proxy.steering.base import ServiceSteering, Steering, Surroundings
from userspace_proxy.steering.probe import choose_steering

LOOKS = 200
OFTEN = 10
TICK_S = 0.001


def steering_of(steering: Steering, number: int) -> tuple[NamespacedName, ServiceSteering]:
    """Return what steering has to do for a Service with one port."""
    name = NamespacedName(NAMESPACE, f"web-{number:05d}")
    service_port = ServicePortName(name, "http", Protocol.TCP)
    frontend = Frontend(FrontendKind.CLUSTER_IP, service_port, Family.IPV4, ip_address(cluster_ip(number)), PORT)
    return name, ServiceSteering(steering.place([frontend]))


def cpu_s() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Meter:
    """Notes how long calls take, and for how long other tasks have had to wait meanwhile."""

    def __init__(self) -> None:
        self.figures: dict[str, list[float]] = defaultdict(list)

    async def note(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Await it, and note both under a name."""
        async with trio.open_nursery() as nursery:
            longest = [0.0]
            await nursery.start(_tick, longest)
            began = time.perf_counter()
            await run()
            self.figures[name].append(time.perf_counter() - began)
            await trio.sleep(2 * TICK_S)  # a wait at the very end counts too
            self.figures[f"{name}, stall"].append(longest[0])
            nursery.cancel_scope.cancel()


async def _tick(longest: list[float], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Look at the clock often; note by how much a look was late."""
    task_status.started()
    last = time.perf_counter()
    while True:
        await trio.sleep(TICK_S)
        now = time.perf_counter()
        longest[0] = max(longest[0], now - last - TICK_S)
        last = now


async def measure(
    steering: Steering, services: int, adds: int, disturbances: Mapping[str, list[list[str]]]
) -> Mapping[str, list[float]]:
    """Return figures, and leave nothing in the kernel."""
    surroundings = Surroundings()
    meter = Meter()
    try:
        began = time.perf_counter()
        everything = dict(steering_of(steering, number) for number in range(services))
        meter.figures["place"].append(time.perf_counter() - began)
        used_s = cpu_s()
        await meter.note("apply", partial(steering.apply, everything, surroundings))
        meter.figures["apply, CPU"].append(cpu_s() - used_s)
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)  # as the proxy does
        await steering.refresh()
        for number in range(services, services + adds):
            one = dict([steering_of(steering, number)])
            await meter.note("add", partial(steering.apply, one, surroundings))
            await meter.note("remove", partial(steering.apply, dict.fromkeys(one, ServiceSteering()), surroundings))
        await steering.refresh()
        used_s = cpu_s()
        for _ in range(LOOKS):
            await steering.refresh()
        meter.figures["idle"].append((cpu_s() - used_s) / LOOKS)
        for name, commands in disturbances.items():
            for _ in range(OFTEN):
                for command in commands:
                    await trio.run_process(command)
                await meter.note(name, steering.refresh)
        meter.figures["repairs"].append(sum(steering.repairs.values()))
    finally:
        await meter.note("end", steering.aclose)
    return meter.figures


async def run(kind: SteeringKind, services: int, adds: int, disturbances: Mapping[str, list[list[str]]]) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config(state_dir=Path(folder) / "state", runtime_dir=Path(folder) / "run", steering=kind)
        config.runtime_dir.mkdir()
        chosen = await choose_steering(config)
        print(json.dumps(await measure(chosen.steering, services, adds, disturbances)))


def main() -> None:
    """Measure in the namespace this runs in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", type=SteeringKind, required=True)
    parser.add_argument("--services", type=int, required=True)
    parser.add_argument("--adds", type=int, required=True)
    parser.add_argument("--foreign", type=json.loads, required=True, help="commands that change something foreign")
    parser.add_argument("--flush", type=json.loads, required=True, help="commands that remove what is ours")
    arguments = parser.parse_args()
    disturbances = {"foreign": arguments.foreign, "flushed": arguments.flush}
    trio.run(run, arguments.kind, arguments.services, arguments.adds, disturbances)


if __name__ == "__main__":
    main()

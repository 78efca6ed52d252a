"""What the demonstration says, as lines of text. Builds texts, prints nothing."""

from collections.abc import Iterator, Sequence

from userspace_proxy.control.main import Running
from userspace_proxy.control.report import placement_lines, table_lines
from userspace_proxy.demo.backend_process import BackendProcess
from userspace_proxy.demo.instance import Instance
from userspace_proxy.demo.traffic import Kill, PhaseReport

_FAILURES_SHOWN = 5
"""Failures of a phase that are told one by one; arbitrary."""


def intro_lines(instance: Instance, running: Running) -> Iterator[str]:
    """Yield what is served, and where it is reached."""
    if instance.copied_because:
        yield f"{instance.copied_because}: this demo uses a copy of its example with other addresses and ports"
    yield f"manifest: {instance.manifest}"
    yield ""
    yield from placement_lines(running.pipeline.placements(), clients_dial_listener=True)
    yield ""


def invitation_lines(url: str, backends: Sequence[BackendProcess]) -> Iterator[str]:
    """Yield what a user may try while the demonstration runs."""
    yield "Try from another terminal:"
    commands = (f"curl {url}", f"kill -9 {backends[0].pid}")
    effects = ("the backends answer in turn", "one backend dies; the others answer")
    yield from (f"  {line}" for line in table_lines(commands[:1] + effects[:1], [commands[1:] + effects[1:]]))
    yield "Ctrl-C ends the demo."
    yield ""


def phase_lines(title: str, report: PhaseReport) -> Iterator[str]:
    """Yield how the requests of a phase were shared."""
    yield title
    rows = [(share.name, share.endpoint, share.state, f"{share.answers:,}") for share in report.shares]
    yield from (f"  {line}" for line in table_lines(("BACKEND", "ENDPOINT", "STATE", "ANSWERS"), rows))
    lost = f", {report.lost} lost with the killed backend" if report.lost else ""
    yield (
        f"  {_count(report.requests, 'request')} in {report.duration_s:.2f} s: "
        f"{_count(len(report.failures), 'failure')}{lost}"
    )
    for failure in report.failures[:_FAILURES_SHOWN]:
        yield f"    client {failure.client[0]} port {failure.client[1]}: {failure.reason}"
    if len(report.failures) > _FAILURES_SHOWN:
        yield f"    and {len(report.failures) - _FAILURES_SHOWN} more"
    if not report.is_even:
        yield "  uneven: the answers of the backends that live differ by more than 1"
    yield ""


def kill_lines(kill: Kill, lost: int) -> Iterator[str]:
    """Yield what was killed, and what that cost."""
    yield (
        f"{kill.name} (pid {kill.pid}) was killed by SIGKILL with {_count(len(kill.in_flight), 'request')} in flight "
        f"on it, {lost} of them lost; its endpoint stays in the EndpointSlice"
    )
    yield ""


def verdict_line(phases: Sequence[PhaseReport]) -> str:
    """Return the sum of everything."""
    spread = "spread evenly" if all(phase.is_even for phase in phases) else "NOT spread evenly"
    return (
        f"{_count(sum(phase.requests for phase in phases), 'request')}, {spread}: "
        f"{_count(sum(len(phase.failures) for phase in phases), 'failure')}, "
        f"besides {sum(phase.lost for phase in phases)} in flight on the killed backend"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

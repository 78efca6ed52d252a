"""What the demonstration says of what went wrong; the rest of its words is seen where it is run."""

from userspace_proxy.demo.texts import phase_lines, verdict_line
from userspace_proxy.demo.traffic import Failure, PhaseReport, Share

FAILURES = tuple(Failure(("127.0.0.1", 40000 + number), "Connection refused") for number in range(7))
GOOD = PhaseReport((Share("backend-1", "127.90.0.11:8080", "running", lived=True, answers=3),), 2, (), 0.25)
BAD = PhaseReport(
    (
        Share("backend-1", "127.90.0.11:8080", "running", lived=True, answers=1200),
        Share("backend-2", "127.90.0.12:8080", "running", lived=True, answers=10),
    ),
    0,
    FAILURES,
    1.5,
)


def test_phase_lines_of_a_bad_phase_tell_a_few_failures_and_the_uneven_spread() -> None:
    """All that is counted as a failure is said, the first few with client and reason."""
    assert list(phase_lines("phase 1", BAD)) == [
        "phase 1",
        "  BACKEND    ENDPOINT          STATE    ANSWERS",
        "  backend-1  127.90.0.11:8080  running  1,200",
        "  backend-2  127.90.0.12:8080  running  10",
        "  1,217 requests in 1.50 s: 7 failures",
        *(f"    client 127.0.0.1 port {port}: Connection refused" for port in range(40000, 40005)),
        "    and 2 more",
        "  uneven: the answers of the backends that live differ by more than 1",
        "",
    ]


def test_phase_lines_of_a_good_phase_set_lost_requests_apart() -> None:
    """What was in flight on the killed backend is no failure, but is told."""
    assert list(phase_lines("phase 1", GOOD))[-2:] == [
        "  5 requests in 0.25 s: 0 failures, 2 lost with the killed backend",
        "",
    ]


def test_verdict_line_sums_both_phases() -> None:
    """Failures and requests of both count, and one uneven phase is enough."""
    assert verdict_line([GOOD, BAD]) == (
        "1,222 requests, NOT spread evenly: 7 failures, besides 2 in flight on the killed backend"
    )

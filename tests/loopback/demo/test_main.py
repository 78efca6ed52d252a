"""The demonstration as a user runs it: in a process of its own, seen by what it prints and what it leaves."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from deadline import DEADLINE_S, wait_until
from loopback.demo.demo_run import DemoRun, Terminal

from userspace_proxy.demo.instance import INSTANCES

Start = Callable[..., DemoRun]

NO_CAPABILITIES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
URL = r"curl (http://\S+)"
SERVING = r"backend-3 \(pid \d+\) running"
SERVING_ON_TERMINAL = r"backend-3 +\S+ +\d+ +running"
"""Printed last before it waits."""
PHASE = re.compile(
    r"phase \d: .*\n.*BACKEND.*\n((?:.*127\..*\n)+)\s*([\d,]+) requests? in \S+ s: (\d+) failures?(?:, (\d+) lost)?"
)


def answers(phase: str) -> dict[str, int]:
    """Return the number of answers of each living backend in the rows of a phase."""
    return {row.split()[0]: int(row.split()[-1]) for row in phase.splitlines() if " running " in row}


def get(url: str) -> str:
    """Return what a GET is answered with."""
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:  # noqa: S310 - http, as the demo printed it
        return str(answer.read().decode())


@pytest.mark.slow
@pytest.mark.parametrize("requests", [1, 2, 3, 20, 61, 300])
def test_demo_with_requests_loses_none_and_spreads_them_evenly(start_demo: Start, requests: int) -> None:
    """However few or many: every request is answered but those with the killed backend, in equal shares by phase."""
    demo = start_demo("--requests", str(requests))
    assert demo.process.wait(DEADLINE_S) == 0, demo.output + demo.errors
    first, second = PHASE.findall(demo.output)
    for (rows, count, failures, lost), expected, living in ((first, requests // 2, 2), (second, -(-requests // 2), 2)):
        all_answers = sum(int(row.split()[-1]) for row in rows.splitlines())
        shares = answers(rows).values()
        assert int(count.replace(",", "")) == expected
        assert all_answers + int(lost or 0) == expected
        assert failures == "0"
        assert len(shares) == living
        assert max(shares) - min(shares) <= 1
        assert rows.count("dead (SIGKILL)") == 1
    assert second[3] == ""
    assert re.search(rf"^{requests} requests?, spread evenly: 0 failures, besides", demo.output, re.MULTILINE)
    assert demo.errors == ""
    assert demo.leftovers() == []


@pytest.mark.slow
def test_demo_with_requests_kills_a_backend_with_requests_in_flight(start_demo: Start) -> None:
    """The kill strikes, and it is told how many requests were in flight and how many of them lost."""
    lost = 0
    for _ in range(5):  # on a busy machine the backend may have answered before the proxy has read it
        demo = start_demo("--requests", "200")
        assert demo.process.wait(DEADLINE_S) == 0, demo.output + demo.errors
        found = re.search(
            r"was killed by SIGKILL with (\d+) requests? in flight on it, (\d+) of them lost", demo.output
        )
        assert found, demo.output
        lost = int(found[2])
        assert lost <= int(found[1]) <= 16
        if lost:
            break
    assert lost


@pytest.mark.slow
def test_demo_beside_another_uses_other_addresses(start_demo: Start) -> None:
    """Two demonstrations run side by side; the second says that it uses a copy, and takes nothing from the first."""
    one = start_demo()
    url = one.wait_for(URL)[1]
    other = start_demo("--requests", "60")
    assert other.process.wait(DEADLINE_S) == 0, other.output + other.errors
    assert re.search(r"is in use by pid \d+ \(\S+\): this demo uses a copy of its example", other.output)
    assert {get(url) for _ in range(3)} == {f"hello from backend-{number}\n" for number in (1, 2, 3)}
    assert one.errors == ""
    assert other.leftovers() == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give its rights away; without root all tests run so")
def test_demo_without_any_capability_runs(start_demo: Start) -> None:
    """It needs no right of root: the Service's port 80 is then at 10080."""
    demo = start_demo("--requests", "60", through=NO_CAPABILITIES)
    assert demo.process.wait(DEADLINE_S) == 0, demo.output + demo.errors
    assert re.search(r"127\.\S+:100\d\d\n", demo.output)
    assert demo.errors == ""


@pytest.mark.slow
def test_demo_serves_while_one_backend_lives(start_demo: Start) -> None:
    """With two backends of three killed and still in the EndpointSlice no request fails; the table says they died."""
    demo = start_demo()
    url = demo.wait_for(URL)[1]
    pids = re.findall(r"backend-\d \(pid (\d+)\)", demo.wait_for(f".*{SERVING}.*")[0])
    assert [get(url) for _ in range(6)] == [f"hello from backend-{number}\n" for number in (1, 2, 3)] * 2
    for pid in pids[:2]:
        os.kill(int(pid), signal.SIGKILL)
    demo.wait_for(r"backend-1 \(pid \d+\) dead \(SIGKILL\).*backend-2 \(pid \d+\) dead \(SIGKILL\)")
    assert {get(url) for _ in range(20)} == {"hello from backend-3\n"}
    demo.wait_for(r"backend-3 \(pid \d+\) running, connections 22,")
    assert demo.errors == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_at_a_signal_ends_and_leaves_nothing(start_demo: Start, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM are the usual end: exit status 0, no process, no file."""
    demo = start_demo()
    demo.wait_for(SERVING)
    assert len(demo.pids()) >= 4
    demo.process.send_signal(number)
    assert demo.process.wait(DEADLINE_S) == 0
    assert demo.leftovers() == []
    assert demo.errors == ""


@pytest.mark.slow
def test_demo_at_a_signal_while_it_starts_leaves_nothing(start_demo: Start) -> None:
    """Ctrl-C before anything is served ends it as well as later, with the backends that were started already."""
    demo = start_demo()
    wait_until(lambda: len(demo.pids()) > 1)
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(DEADLINE_S) == 0
    assert demo.leftovers() == []
    assert demo.errors == ""


@pytest.mark.slow
def test_demo_with_requests_at_a_signal_fails(start_demo: Start) -> None:
    """Who stops it before the last request has not seen it succeed: exit status 1, and nothing left."""
    demo = start_demo("--requests", "100000")
    demo.wait_for("DIAL")
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(DEADLINE_S) == 1
    assert demo.leftovers() == []
    assert demo.errors == ""


@pytest.mark.slow
def test_demo_killed_leaves_no_process(start_demo: Start) -> None:
    """Even SIGKILL leaves no backend behind."""
    demo = start_demo()
    demo.wait_for(SERVING)
    demo.process.kill()
    demo.process.wait(DEADLINE_S)
    wait_until(lambda: demo.pids() == [])


@pytest.mark.slow
def test_demo_into_a_pipe_that_is_closed_ends_quietly(start_demo: Start, tmp_path: Path) -> None:
    """Somebody who reads only the first line (``| head -1``) gets no traceback for it, and nothing is left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "userspace_proxy", "demo", "--requests", "20"],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=DEADLINE_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_demo_on_a_terminal_shows_a_live_table_until_ctrl_c(start_demo: Start) -> None:
    """On a terminal the numbers change in place, log lines stand above the table, and Ctrl-C ends it."""
    with Terminal() as terminal:
        demo = start_demo("--log-level", "info", through=("setsid", "--ctty"), terminal=terminal.theirs)
        url = terminal.wait_for(URL)[1]
        terminal.wait_for(r"backend-3 +127\.9\d\.0\.13:\d+ +\d+ +running +0 +0")
        assert get(url) == "hello from backend-1\n"
        terminal.wait_for(r"backend-1 +127\.9\d\.0\.11:\d+ +\d+ +running +1 +0")
        terminal.type(b"\x03")
        assert demo.process.wait(DEADLINE_S) == 0
        terminal.wait_for(r"stopped\s+BACKEND")
        assert re.search(r"\x1b\[2K[^\n]*control\.main: stopped", terminal.written), "not where the table was erased"
        assert "Traceback" not in terminal.screen
        assert demo.leftovers() == []


@pytest.mark.slow
def test_demo_on_a_terminal_that_is_closed_ends(start_demo: Start) -> None:
    """A window that is closed takes the demonstration with it, although SIGHUP is not what ends the proxy."""
    with Terminal() as terminal:
        demo = start_demo(through=("setsid", "--ctty"), terminal=terminal.theirs)
        terminal.wait_for(SERVING_ON_TERMINAL)
        terminal.hang_up()
        demo.process.wait(DEADLINE_S)
        assert demo.leftovers() == []


@pytest.mark.slow
def test_demo_without_a_free_address_says_what_is_in_the_way(start_demo: Start) -> None:
    """If all its addresses are in use it is one sentence that names who has the first, and exit status 1."""
    with ExitStack() as held:
        for number in range(INSTANCES):
            sock = held.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):  # a demonstration somewhere else on this machine
                sock.bind((f"127.{90 + number}.0.13", 8080 + number))
                sock.listen()
        demo = start_demo()
        assert demo.process.wait(DEADLINE_S) == 1, demo.output
    assert demo.output == ""
    assert re.fullmatch(r"userspace-proxy: the demo finds no free addresses: 127\.90.* is in use by .*\n", demo.errors)
    assert demo.leftovers() == []


@pytest.mark.slow
def test_demo_that_cannot_listen_for_its_service_says_why(start_demo: Start) -> None:
    """A Service that is not served is no demonstration: one sentence, exit status 1, nothing left."""
    demo = start_demo("--requests", "1")
    assert demo.process.wait(DEADLINE_S) == 0
    address, _, port = demo.wait_for(r"TCP  (127\.\S+)\n")[1].partition(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, int(port)))
        sock.listen()
        demo = start_demo("--requests", "1")
        assert demo.process.wait(DEADLINE_S) == 1
    sentence = (
        f"userspace-proxy: cannot listen on {address}:{port} for default/hello:http: in use by pid {os.getpid()} "
    )
    assert demo.errors.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in demo.errors
    assert demo.leftovers() == []

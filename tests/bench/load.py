"""The load: what clients do, each kind a function that keeps it up for a while and returns what it saw.

``in_own_process`` runs one in a child process, so that none inherits memory or garbage of another; without threads.
All but ``open_loop`` are closed loops: a client sends when it has its answer, so they tell rates and CPU, not latency.
"""

import gc
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from time import perf_counter

from attrs import frozen
from bench.backends import FileSource, forget_some, send_some
from bench.meters import CpuMeter, CpuUse, used_between
from bench.processes import memory_bytes

MESSAGE = b"x" * 64
ANSWER_BYTES = 4096
BURST = 8
"""Requests sent at the same time in an open loop: one at a time would keep the client busier than what it measures."""
WARM_UP = 0.2
"""So much of the time that counts goes before it, uncounted."""
TOO_LONG_S = 60
"""No load takes that long beyond its time; one that does hangs."""
US = 1e6
BITS_PER_GBIT = 1e9
BYTES_PER_GB = 1e9
SETTLE_S = 0.5
"""Memory is weighed when the last connection has been open for so long."""

SOURCES = tuple((f"127.0.2.{number}", 0) for number in range(1, 9))
"""Clients are at several addresses, so that no pair of addresses runs out of ports."""
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: the port is chosen by connect, which needs it free for that pair only

Address = tuple[str, int]
Figures = Mapping[str, float]
"""What was seen, by the names of ``results.FIGURES``."""


@frozen
class Target:
    """Where clients connect to, and the meter of the proxy that answers there."""

    addresses: Sequence[Address]
    """Taken in turn."""
    meter: CpuMeter


def in_own_process(load: Callable[[], Figures]) -> Figures:
    """Return what a load returns that runs in a child process.

    Raises:
        SystemExit: a connection failed or hung: figures would mean nothing.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            gc.disable()
            signal.alarm(TOO_LONG_S)
            os.write(writing, json.dumps(dict(load())).encode())
            status = 0
        except OSError as error:
            os.write(writing, json.dumps(str(error)).encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit(f"a client failed, so there are no figures: {said or 'no answer came, see above'}")
    figures: Figures = json.loads(said)
    return figures


def short_connections(target: Target, clients: int, seconds: float) -> Figures:
    """Connect, send 64 bytes, receive them, close, and again; so many clients at a time."""

    def connect() -> socket.socket:
        sock = _connect(target)
        sock.send(MESSAGE)
        return sock

    epoll = select.epoll()
    sockets = {}
    for _ in range(clients):
        sock = connect()
        sockets[sock.fileno()] = sock
        epoll.register(sock, select.EPOLLIN)

    def lap() -> int:
        ready = epoll.poll()
        for fd, _ in ready:
            sock = sockets.pop(fd)
            _expect(sock)
            sock.close()
            sock = connect()
            sockets[sock.fileno()] = sock
            epoll.register(sock, select.EPOLLIN)
        return len(ready)

    return _closed_loop(lap, seconds, target.meter)


def round_trips(target: Target, connections: int, seconds: float) -> Figures:
    """Send 64 bytes on each of some open connections, receive them, and again.

    Answers are received in the order of the connections: those of others wait meanwhile, and no call is spent on asking
    whose has come.
    """
    sockets = _connected(target, connections)
    for sock in sockets:
        sock.send(MESSAGE)

    def lap() -> int:
        for sock in sockets:
            _expect(sock)
            sock.send(MESSAGE)
        return connections

    return _closed_loop(lap, seconds, target.meter)


def open_loop(target: Target, connections: int, rate_per_s: float, seconds: float) -> Figures:
    """Send 64 bytes at planned times, eight at a time, whatever has been answered, over some open connections in turn.

    Latency counts from the planned time: a request that had to wait, here or at the proxy, waited for its client too.
    How late requests left is returned beside it, as that is not the proxy's doing.
    """
    sockets = {sock.fileno(): (sock, index) for index, sock in enumerate(_connected(target, connections))}
    by_index = [sock for sock, _ in sockets.values()]
    epoll = select.epoll()
    for fd in sockets:
        epoll.register(fd, select.EPOLLIN)
    Path("/proc/self/timerslack_ns").write_text("1", encoding="ascii")  # by default a sleep may last 50 us longer
    warm_up = int(rate_per_s * seconds * WARM_UP)
    requests = warm_up + max(int(rate_per_s * seconds), 1)
    metered = warm_up // 2  # reading a meter makes the requests after it late: none of them is to count
    before = target.meter.read()
    start = perf_counter()
    planned = [start + number // BURST * BURST / rate_per_s for number in range(requests)]
    answered = list(range(connections))
    late = [0.0] * requests
    latency = [0.0] * requests
    sent = done = 0
    while done < requests:
        now = perf_counter()
        while sent < requests and planned[sent] <= now:
            if sent == metered:
                before = target.meter.read()
                now = perf_counter()
            by_index[sent % connections].send(MESSAGE)
            late[sent] = now - planned[sent]
            sent += 1
            now = perf_counter()
        wait_s = planned[sent] - now if sent < requests else 1.0
        # epoll counts in milliseconds, select in microseconds.
        if not select.select([epoll], (), (), max(wait_s, 0))[0]:
            continue
        for fd, _ in epoll.poll(0):
            sock, index = sockets[fd]
            answers = len(sock.recv(ANSWER_BYTES)) // len(MESSAGE)
            now = perf_counter()
            for _ in range(answers):
                number = answered[index]
                latency[number] = now - planned[number]
                answered[index] = number + connections
            done += answers
    return {
        "offered_per_s": rate_per_s,
        **_of_latencies(latency[warm_up:], (50, 99, 99.9)),
        "late_p99_us": percentile(late[warm_up:], 99) * US,
        **_cpu_figures(used_between(before, target.meter.read()), requests - metered),
    }


def bulk_to_client(target: Target, streams: int, seconds: float) -> Figures:
    """Receive over some connections as fast as they go."""
    return _bulk(target, streams, seconds, forget_some, select.EPOLLIN)


def bulk_to_backend(target: Target, streams: int, seconds: float, *, from_file: bool) -> Figures:
    """Send over some connections as fast as they go."""
    return _bulk(target, streams, seconds, FileSource().send_some if from_file else send_some, select.EPOLLOUT)


def _bulk(target: Target, streams: int, seconds: float, move: Callable[[socket.socket], int], events: int) -> Figures:
    sockets = {}
    epoll = select.epoll()
    for _ in range(streams):
        sock = _connect(target)
        sock.setblocking(False)  # noqa: FBT003
        sockets[sock.fileno()] = sock
        epoll.register(sock, events)

    def lap() -> int:
        moved = 0
        for fd, _ in epoll.poll():
            try:
                moved += move(sockets[fd])
            except BlockingIOError:
                continue
        return moved

    moved, took_s, cpu = _repeat(lap, seconds, target.meter)
    per_gb = BYTES_PER_GB / moved
    return {
        "gbit_per_s": moved * 8 / BITS_PER_GBIT / took_s,
        "cpu_ms_per_gb": cpu.total_s * per_gb * 1e3,
        "user_ms_per_gb": cpu.user_s * per_gb * 1e3,
        "idle_percent": cpu.idle_share * 100,
    }


def idle_connections(target: Target, connections: int) -> Figures:
    """Open connections, exchange 64 bytes on each, leave them open, and weigh the proxy before and after."""
    before = sum(memory_bytes(pid) for pid in target.meter.pids)
    sockets = _connected(target, connections)
    select.select((), (), (), SETTLE_S)
    after = sum(memory_bytes(pid) for pid in target.meter.pids)
    return {
        "kb_per_connection": (after - before) / 1e3 / len(sockets),
        "start_mb": before / 1e6,
    }


def first_bytes(target: Target, connections: int) -> Figures:
    """Connect to one listener after another, one at a time; time from then until the first byte of the answer."""
    taken = []
    for _ in range(connections + connections // 5):
        began = perf_counter()
        with _connect(target) as sock:
            sock.send(MESSAGE)
            _expect(sock)
            taken.append(perf_counter() - began)
    return _of_latencies(taken[-connections:], (50, 99))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least of some values that at least so many per cent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(-int(-len(ordered) * percent // 100) - 1, 0)]


def _of_latencies(taken_s: Sequence[float], percents: Sequence[float]) -> Figures:
    return {f"p{str(each).replace('.', '')}_us": percentile(taken_s, each) * US for each in percents}


_number = count()


def _connect(target: Target) -> socket.socket:
    """Return a new connection."""
    number = next(_number)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.bind(SOURCES[number % len(SOURCES)])
    sock.connect(target.addresses[number % len(target.addresses)])
    return sock


def _connected(target: Target, connections: int) -> list[socket.socket]:
    """Return open connections; each has had its first answer, so that its backend is connected too."""
    sockets = []
    for _ in range(connections):
        sock = _connect(target)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.send(MESSAGE)
        _expect(sock)
        sockets.append(sock)
    return sockets


def _expect(sock: socket.socket) -> None:
    """Receive an answer.

    Raises:
        ConnectionError: it is not what was sent.
    """
    received = sock.recv(ANSWER_BYTES)
    if received != MESSAGE:
        raise ConnectionError(f"{len(MESSAGE)} bytes were to be echoed, what came is {received[:80]!r}")


def _closed_loop(lap: Callable[[], int], seconds: float, meter: CpuMeter) -> Figures:
    operations, took_s, cpu = _repeat(lap, seconds, meter)
    return {"rate_per_s": operations / took_s, **_cpu_figures(cpu, operations)}


def _repeat(lap: Callable[[], int], seconds: float, meter: CpuMeter) -> tuple[int, float, CpuUse]:
    """Repeat laps; return how much they did in the time that counts, how long that was, and what the proxy used."""
    until = perf_counter() + seconds * WARM_UP
    while perf_counter() < until:
        lap()
    before = meter.read()
    began = now = perf_counter()
    until = began + seconds
    done = 0
    while now < until or not done:
        done += lap()
        now = perf_counter()
    return done, now - began, used_between(before, meter.read())


def _cpu_figures(cpu: CpuUse, operations: int) -> Figures:
    return {
        "cpu_us": cpu.total_s / operations * US,
        "user_us": cpu.user_s / operations * US,
        "workers_us": cpu.descendants_s / operations * US,
        "idle_percent": cpu.idle_share * 100,
    }

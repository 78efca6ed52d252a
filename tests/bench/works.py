"""What is measured: each Work is a load and the proxies that it is put on.

Entry points: ``all_works``, ``Work``, ``Settings``.
"""

import math
from collections.abc import Callable
from functools import partial

from attrs import frozen
from bench import load
from bench.load import Figures, Target
from bench.proxies import BARE_LOOP, DIRECT, HAPROXY, HAPROXY_COPYING, NGINX, OURS, OURS_TWICE, SOCAT

THREE = (OURS, HAPROXY, NGINX)
ALL = (*THREE, SOCAT, DIRECT)
SMALL = (OURS, HAPROXY, HAPROXY_COPYING, NGINX, BARE_LOOP, DIRECT)
"""Who is measured with messages that are too small for splicing to be of use."""
FEW_CLIENTS, MANY_CLIENTS = 1, 32
HALF_LOAD_CONNECTIONS = 64
HALF_LOAD_TIMES = 3
"""So much longer than other loads: a percentile is made by few requests."""
WORKER_SHARE = 0.25
"""Of a core, for each worker where two are to run beside each other and beside their load on two cores."""


@frozen
class Settings:
    """How long and how much."""

    rounds: int
    seconds: float
    """For each load of a round, beside a fifth of that to warm up."""
    idle_connections: int
    listeners: tuple[int, ...]
    first_bytes: int
    """Connections whose first byte is waited for, in each round."""
    half_load_per_s: float = math.nan
    """Requests per second; known when ``round-trips-64`` has been measured."""


FULL = Settings(rounds=5, seconds=1.0, idle_connections=5000, listeners=(1, 100, 10_000), first_bytes=1000)
QUICK = Settings(rounds=1, seconds=0.25, idle_connections=1000, listeners=(1, 100, 2000), first_bytes=300)


@frozen
class Work:
    """One thing that clients do, and who is measured while they do it."""

    name: str
    title: str
    contestants: tuple[str, ...]
    load: Callable[[Target, Settings], Figures]
    backend: str = "echo"
    """Field of ``backends.Ports``: what is behind the proxy."""
    anew_with: int | None = None
    """A proxy is started for each round, with so many listeners; None: all run all the time."""
    worker_share: float | None = None
    """Each worker gets so much of a core; None: what it can get."""
    is_pinned: bool = True
    """A proxy has a core for itself, if there are several; client and backend have the others. Not where there are two
    workers, and not where client, proxy and backend are all busy: there the kernel finds places as on a node."""


def _short(clients: int, target: Target, settings: Settings) -> Figures:
    return load.short_connections(target, clients, settings.seconds)


def _round_trips(connections: int, target: Target, settings: Settings) -> Figures:
    return load.round_trips(target, connections, settings.seconds)


def _half_load(target: Target, settings: Settings) -> Figures:
    return load.open_loop(target, HALF_LOAD_CONNECTIONS, settings.half_load_per_s, HALF_LOAD_TIMES * settings.seconds)


def _bulk_to_client(streams: int, target: Target, settings: Settings) -> Figures:
    return load.bulk_to_client(target, streams, settings.seconds)


def _bulk_to_backend(streams: int, source: str, target: Target, settings: Settings) -> Figures:
    return load.bulk_to_backend(target, streams, settings.seconds, from_file=source == "file")


def _idle(target: Target, settings: Settings) -> Figures:
    return load.idle_connections(target, settings.idle_connections)


def _first_bytes(target: Target, settings: Settings) -> Figures:
    return load.first_bytes(target, settings.first_bytes)


def all_works(settings: Settings) -> list[Work]:
    """Return all that can be measured, in the order in which it is."""
    many = f"short connections, {MANY_CLIENTS} clients"
    return [
        Work("short-1", "short connections, 1 client", (*SMALL, SOCAT), partial(_short, FEW_CLIENTS)),
        Work("short-32", many, (*SMALL, SOCAT), partial(_short, MANY_CLIENTS)),
        Work("round-trips-1", "round trips, 1 connection", SMALL, partial(_round_trips, 1)),
        Work("round-trips-64", "round trips, 64 connections", SMALL, partial(_round_trips, 64)),
        Work("round-trips-1000", "round trips, 1,000 connections", SMALL, partial(_round_trips, 1000)),
        Work("half-load", f"half load, {HALF_LOAD_CONNECTIONS} connections", (*THREE, DIRECT), _half_load),
        *(work for source in ("memory", "file") for streams in (1, 8) for work in _bulk_works(source, streams)),
        Work("idle", f"{settings.idle_connections:,} idle connections", THREE, _idle, anew_with=1),
        *(_first_byte_work(listeners) for listeners in settings.listeners),
        Work("workers", many, (OURS, OURS_TWICE), partial(_short, MANY_CLIENTS), is_pinned=False),
        Work(
            "workers-quarter-core",
            f"{many}, each worker with {WORKER_SHARE:.0%} of a core",
            (OURS, OURS_TWICE),
            partial(_short, MANY_CLIENTS),
            worker_share=WORKER_SHARE,
            is_pinned=False,
        ),
    ]


def _bulk_works(source: str, streams: int) -> list[Work]:
    name = f"bulk-{source}-{streams}"
    title = f"bulk from {source}, {streams} stream{'s' * (streams > 1)}"
    contestants = ALL if streams == 1 else (*THREE, DIRECT)
    download = partial(_bulk_to_client, streams)
    upload = partial(_bulk_to_backend, streams, source)
    return [
        Work(f"{name}-to-client", f"{title}, to the client", contestants, download, backend=source, is_pinned=False),
        Work(f"{name}-to-backend", f"{title}, to the backend", contestants, upload, backend="sink", is_pinned=False),
    ]


def _first_byte_work(listeners: int) -> Work:
    title = f"first byte, {listeners:,} listener{'s' * (listeners > 1)}"
    contestants = (*THREE, DIRECT) if listeners == 1 else THREE
    return Work(f"first-byte-{listeners}", title, contestants, _first_bytes, anew_with=listeners)

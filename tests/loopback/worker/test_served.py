"""Served, where a worker process cannot be brought to it, or nothing is seen of it from outside."""

import os
from ipaddress import ip_address
from time import monotonic

import pytest
from engine_driver import FullEpoll, raise_bug
from loopback.worker.serving import Shop, key_of, serve, set_pool
from worker_driver import START

from userspace_proxy.dataplane.engine import Engine
from userspace_proxy.ipc.commands import Close, SetSources
from userspace_proxy.plan.state import SourceAddresses
from userspace_proxy.worker.served import Served


def new_served() -> tuple[Engine, Served]:
    """Return an engine that serves nothing yet."""
    engine = Engine(monotonic, raise_bug)
    return engine, Served(engine, START, lambda: 0.0, lambda _: None)


def test_class_of_clients_is_told_by_the_sources_that_came_last() -> None:
    """They are whole values: an address that is not among them any more is one of this node no longer."""
    engine, served = new_served()
    local = []
    for addresses in ([], ["192.0.2.7"], []):
        served.apply(SetSources(SourceAddresses(local_addresses=frozenset(map(ip_address, addresses)))))
        local.append(served.listeners.live_pools.is_local("192.0.2.7"))
    assert local == [False, True, False]
    engine.close()


def test_listener_that_the_kernel_does_not_watch_is_lost_until_it_does(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    """Its descriptor is closed; one sentence says so, and one more when it happens again after it was well."""
    engine, served = new_served()
    server, sock = shop.listening(), shop.listening()
    served.apply(set_pool(server))
    full = FullEpoll(engine._epoll, 0)
    engine._epoll = full  # type: ignore[assignment]
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    served_now = []
    for room in (0, 0, 1, 0):
        full.room = room
        served_now.append(served.serve(serve(1, sock), iter([os.dup(sock.fileno())])))
    assert served_now == [False, False, True, False]
    engine.close_waiting()
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    assert [record.message for record in caplog.records] == [
        "listeners are not served by this worker, the others go on"
    ] * 2
    served.apply(Close(key_of()))
    engine.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1  # noqa: PTH208

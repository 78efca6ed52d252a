"""A worker serves the sockets it is sent, as it is told, and has no use for any other."""

import os
import select
import signal
import socket
from collections.abc import Callable

import pytest
from builders import route
from deadline import wait_until
from loopback.worker.serving import (
    DNS,
    Shop,
    key_of,
    pool_key_of,
    port_of,
    serve,
    set_pool,
    wait_readable,
)
from worker_driver import WorkerProcess, open_worker

from userspace_proxy.ipc.commands import (
    Close,
    Command,
    Forget,
    Lead,
    RemovePool,
    Retire,
    Serve,
    SetPool,
    Stop,
)
from userspace_proxy.ipc.frames import MAX_FDS
from userspace_proxy.ipc.reports import Stopped
from userspace_proxy.model.names import Protocol
from userspace_proxy.plan.state import ListenerKey, Verdict

UDP = Protocol.UDP
QUIET_S = 0.3
"""For so long it is watched that nothing happens."""
QUIET_CPU_S = 0.1
"""What may be used of that at most; one that spins uses all of it, or half where two CPUs are busy."""


def has_socket(worker: WorkerProcess, sock: socket.socket) -> bool:
    """Return whether a worker has a socket open."""
    return f"socket:[{os.fstat(sock.fileno()).st_ino}]" in worker.open_files()


def assert_quiet(worker: WorkerProcess) -> None:
    """Fail if a worker does anything by itself."""
    before_s = worker.cpu_s()
    select.select([], [], [], QUIET_S)
    assert worker.cpu_s() - before_s < QUIET_CPU_S


def test_worker_relays_between_the_clients_of_a_tcp_socket_and_a_backend(shop: Shop, worker: WorkerProcess) -> None:
    """Both directions, and the end of both."""
    server, sock = shop.listening(), shop.listening()
    assert worker.apply(set_pool(server), serve(1, sock), sockets=[sock]) == ()
    client, _, connection = shop.connect(port_of(sock), server)
    client.sendall(b"ping")
    assert connection.recv(10) == b"ping"
    connection.sendall(b"pong")
    connection.close()
    assert [client.recv(10), client.recv(10)] == [b"pong", b""]


def test_worker_passes_on_the_datagrams_of_a_udp_socket_and_late_answers(shop: Shop, worker: WorkerProcess) -> None:
    """A listener that has retired still delivers answers by its socket; one that is closed does not."""
    server, sock = shop.receiving(), shop.receiving()
    assert worker.apply(set_pool(server, name=DNS, protocol=UDP), serve(1, sock, DNS, UDP), sockets=[sock]) == ()
    client = shop.udp_client(port_of(sock))
    client.send(b"ping")
    datagram, flow = wait_readable(server).recvfrom(10)
    assert datagram == b"ping"
    server.sendto(b"pong", flow)
    assert client.recv(10) == b"pong"
    worker.apply(set_pool(name=DNS, protocol=UDP), Retire(key_of(DNS, UDP)))
    server.sendto(b"late", flow)
    assert client.recv(10) == b"late"
    worker.apply(Close(key_of(DNS, UDP)))
    wait_until(lambda: not has_socket(worker, sock))
    assert worker.report().open_flows == 0


def test_change_of_a_pool_is_for_new_connections(shop: Shop, worker: WorkerProcess) -> None:
    """Open ones stay where they are."""
    first, second, sock = shop.listening(), shop.listening(), shop.listening()
    worker.apply(set_pool(first), serve(1, sock), sockets=[sock])
    client, _, connection = shop.connect(port_of(sock), first)
    worker.apply(set_pool(second))
    assert shop.connect(port_of(sock), first, second)[1] is second
    client.sendall(b"still here")
    assert connection.recv(20) == b"still here"


@pytest.mark.parametrize(
    "change", [Lead(key_of(), route(Verdict.DROP)), RemovePool(pool_key_of()), set_pool()], ids=type
)
def test_client_that_is_led_nowhere_is_reset(shop: Shop, worker: WorkerProcess, change: Command) -> None:
    """By a Route, for want of a Pool, or of Backends: at once."""
    server, sock = shop.listening(), shop.listening()
    worker.apply(set_pool(server), serve(1, sock), sockets=[sock])
    shop.connect(port_of(sock), server)
    worker.apply(change)
    with pytest.raises(ConnectionResetError):
        shop.client(port_of(sock)).recv(1)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize("end", [Retire, Close, lambda _: Stop()], ids=["Retire", "Close", "Stop"])
def test_listener_that_ends_leaves_no_event_behind(
    shop: Shop, worker: WorkerProcess, protocol: Protocol, end: Callable[[ListenerKey], Command]
) -> None:
    """Though others hold the socket, and clients come to it, the worker has nothing to do with it."""
    sock, server = (shop.listening(), shop.listening()) if protocol is Protocol.TCP else (shop.receiving(),) * 2
    worker.apply(set_pool(server, protocol=protocol), serve(1, sock, protocol=protocol), sockets=[sock])
    assert worker.report().watched == 2
    worker.apply(end(key_of(protocol=protocol)))
    assert worker.report().watched == 1  # the line to control
    for _ in range(3):
        if protocol is Protocol.TCP:
            shop.client(port_of(sock))
        else:
            shop.udp_client(port_of(sock)).send(b"anybody?")
    assert_quiet(worker)
    assert has_socket(worker, sock) == (protocol is Protocol.UDP and end is not Close)


def test_listener_serves_again_after_it_has_retired(shop: Shop, worker: WorkerProcess) -> None:
    """By the same socket; who has come in between is served, too."""
    server, sock = shop.listening(), shop.listening()
    worker.apply(set_pool(server), serve(1, sock), sockets=[sock])
    worker.apply(Retire(key_of()))
    client = shop.client(port_of(sock))
    worker.apply(serve(1, sock), sockets=[sock])
    wait_readable(server).accept()[0].close()
    assert client.recv(1) == b""


def test_listener_that_gets_other_sockets_lets_go_of_those_before(shop: Shop, worker: WorkerProcess) -> None:
    """As often as it happens: the worker has one socket for each listener."""
    server = shop.listening()
    socks = [shop.listening() for _ in range(20)]
    dns = [shop.receiving() for _ in range(20)]
    worker.apply(set_pool(server), set_pool(server, name=DNS, protocol=UDP))
    worker.apply(serve(1, socks[0]), serve(2, dns[0], DNS, UDP), sockets=[socks[0], dns[0]])
    open_files = len(worker.open_files())
    for sock, other in zip(socks, dns, strict=True):
        worker.apply(serve(1, sock), serve(2, other, DNS, UDP), sockets=[sock, other])
    wait_until(lambda: len(worker.open_files()) == open_files)
    assert has_socket(worker, socks[-1])
    assert worker.report().watched == 3
    shop.connect(port_of(socks[-1]), server)


def test_hundreds_of_listeners_come_and_go_without_a_descriptor_left(shop: Shop, worker: WorkerProcess) -> None:
    """In frames with as many descriptors as go into one; each serves its own socket."""
    names = [f"shop/web-{number}:http" for number in range(2 * MAX_FDS)]
    server = shop.listening()
    socks = [shop.listening() for _ in names]
    before = sorted(worker.open_files())
    worker.apply(*(set_pool(server, name=name) for name in names))
    for start in range(0, len(names), MAX_FDS):
        part = range(start, start + MAX_FDS)
        commands: list[Serve] = [serve(number, socks[number], names[number]) for number in part]
        assert worker.apply(*commands, sockets=[socks[number] for number in part]) == ()
    for sock in (socks[0], socks[-1]):
        client, _, connection = shop.connect(port_of(sock), server)
        client.close()
        connection.close()
    wait_until(lambda: worker.report().open_relays == 0)
    worker.apply(*(Close(key_of(name)) for name in names))
    wait_until(lambda: sorted(worker.open_files()) == before)
    report = worker.report()
    assert report.watched == 1
    assert {service.connections for service in report.services if service.service in (names[0], names[-1])} <= {1}
    worker.apply(*(Forget(key_of(name).service_port) for name in names))


def test_listeners_without_room_for_their_descriptors_are_lost_until_there_is_room(
    shop: Shop, worker: WorkerProcess
) -> None:
    """Those that there is room for are served; the log says it once; what is said of the others is without effect."""
    names = [f"shop/web-{number}:http" for number in range(6)]
    server = shop.listening()
    socks = [shop.listening() for _ in names]
    commands = [serve(number, sock, name) for number, (sock, name) in enumerate(zip(socks, names, strict=True))]
    pools: list[SetPool] = [set_pool(server, name=name) for name in names]
    worker.leave_room(4)
    assert worker.apply(*pools, *commands, sockets=socks) == (4, 5)
    worker.leave_room(0)
    assert worker.apply(*commands[4:], sockets=socks[4:]) == (4, 5)
    worker.apply(Lead(key_of(names[4]), route(Verdict.DROP)), Retire(key_of(names[4])))
    assert worker.log.count("listeners are not served by this worker") == 1
    assert worker.report().watched == 5
    worker.apply(Close(key_of(names[0])), Close(key_of(names[5])))
    wait_until(lambda: not has_socket(worker, socks[0]))
    assert worker.apply(commands[4], sockets=socks[4:5]) == ()
    assert [has_socket(worker, sock) for sock in socks] == [False, True, True, True, True, False]


def test_listener_that_others_have_stop_is_told_of(shop: Shop, worker: WorkerProcess) -> None:
    """Now and then, by its number, without spinning; once it listens again it serves."""
    server, sock = shop.listening(), shop.listening()
    worker.apply(set_pool(server), serve(7, sock), sockets=[sock])
    sock.shutdown(socket.SHUT_RDWR)
    assert [worker.receive(Stopped), worker.receive(Stopped)] == [Stopped(7)] * 2
    assert_quiet(worker)
    sock.listen()
    shop.connect(port_of(sock), server)


def test_clients_in_the_queue_of_a_worker_that_is_killed_are_served_by_its_successor(shop: Shop) -> None:
    """The socket lives on in whoever holds it."""
    server, sock = shop.listening(), shop.listening()
    with open_worker() as killed:
        killed.apply(set_pool(server), serve(1, sock), sockets=[sock])
        killed.process.send_signal(signal.SIGSTOP)
        client = shop.client(port_of(sock))
        killed.process.kill()
        killed.process.wait()
    with open_worker() as successor:
        successor.apply(set_pool(server), serve(1, sock), sockets=[sock])
        wait_readable(server).accept()[0].close()
        assert client.recv(1) == b""


def test_socket_that_is_shared_is_served_by_each_worker_that_has_it(shop: Shop) -> None:
    """With one of two stopped, the other takes what comes."""
    server, sock = shop.listening(), shop.listening()
    with open_worker() as one, open_worker() as other:
        for worker in (one, other):
            worker.apply(set_pool(server), serve(1, sock, is_shared=True), sockets=[sock])
        for stopped, running in ((one, other), (other, one)):
            before = running.report().open_relays
            stopped.apply(Close(key_of()))
            for _ in range(3):
                shop.connect(port_of(sock), server)
            assert running.report().open_relays == before + 3
            stopped.apply(serve(1, sock, is_shared=True), sockets=[sock])

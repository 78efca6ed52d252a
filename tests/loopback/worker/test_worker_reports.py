"""What a worker reports: what has changed, and no less than what has happened."""

import socket

import pytest
from builders import backend, service_port_name
from deadline import wait_until
from loopback.worker.serving import DNS, HOST, WEB, Shop, key_of, port_of, serve, set_pool, wait_readable
from worker_driver import WorkerProcess, open_worker

from userspace_proxy.ipc.commands import Close, Forget, Remember
from userspace_proxy.ipc.reports import AffinityReport, FlowReport, ServiceReport
from userspace_proxy.model.names import Protocol

UDP = Protocol.UDP
FIRST, SECOND, THIRD = "127.0.0.11", "127.0.0.12", "127.0.0.13"
"""Clients."""
HOUR_S = 3600


def test_report_tells_what_connections_have_done(shop: Shop, worker: WorkerProcess) -> None:
    """Every connection, byte, dial and end, up to the moment of the question."""
    server, sock = shop.listening(), shop.listening()
    worker.apply(set_pool(server), serve(1, sock), sockets=[sock])
    assert worker.report().services == (ServiceReport(WEB, "TCP", 0, 0, 0, 0, (), ()),)
    client, _, connection = shop.connect(port_of(sock), server)
    client.sendall(b"ping")
    assert connection.recv(10) == b"ping"
    connection.sendall(b"hello")
    assert client.recv(10) == b"hello"
    report = worker.report()
    assert report.services == (ServiceReport(WEB, "TCP", 1, 1, 4, 5, (), (("connected", 1),)),)
    assert (report.open_relays, report.open_flows, report.watched) == (1, 0, 4)
    assert sum(report.dial_duration) == 1
    connection.close()
    assert client.recv(1) == b""
    client.close()
    wait_until(lambda: worker.report().open_relays == 0)


def test_report_tells_how_connections_have_ended(shop: Shop, worker: WorkerProcess) -> None:
    """Also those that no Backend was found for, of which nothing else is told."""
    sock, dead = shop.listening(), socket.create_server((HOST, 0))
    dead.close()
    worker.apply(set_pool(), serve(1, sock), sockets=[sock])
    with pytest.raises(ConnectionResetError):
        shop.client(port_of(sock)).recv(1)
    (service,) = worker.report().services
    assert (service.connections, service.active, service.dials) == (1, 0, ())
    assert sum(count for _, _, count in service.closed) == 1


def test_report_tells_what_flows_have_done(shop: Shop, worker: WorkerProcess) -> None:
    """Every flow and datagram, up to the moment of the question; those too that were dropped without a flow."""
    server, sock = shop.receiving(), shop.receiving()
    worker.apply(set_pool(name=DNS, protocol=UDP), serve(1, sock, DNS, UDP), sockets=[sock])
    client = shop.udp_client(port_of(sock))
    client.send(b"lost")
    wait_until(lambda: any(service.dropped for service in worker.report().udp_services))
    worker.apply(set_pool(server, name=DNS, protocol=UDP))
    client.send(b"ping")
    _, flow = wait_readable(server).recvfrom(10)
    server.sendto(b"hello", flow)
    assert client.recv(10) == b"hello"
    report = worker.report()
    (dns,) = report.udp_services
    assert dns._replace(dropped=()) == FlowReport(DNS, 1, 1, (), 1, 1, 4, 5, 0, ())
    assert dict(dns.dropped)["no_endpoint"] == 1
    assert (report.open_relays, report.open_flows) == (0, 1)
    assert worker.report().udp_services == ()
    client.send(b"more")
    assert wait_readable(server).recv(10) == b"more"
    assert [service.datagrams_to_backend for service in worker.report().udp_services] == [2]


def test_report_tells_only_what_has_changed(shop: Shop, worker: WorkerProcess) -> None:
    """Of some Services that of a new connection, once; of each new one, though nothing has happened there."""
    names = ["shop/a:http", "shop/b:http", "shop/c:http"]
    server, socks = shop.listening(), [shop.listening() for _ in names]
    worker.apply(*(set_pool(server, name=name) for name in names))
    worker.apply(*(serve(number, socks[number], names[number]) for number in (0, 1)), sockets=socks[:2])
    assert [service.service for service in worker.report().services] == names[:2]
    assert worker.report().services == ()
    client, _, connection = shop.connect(port_of(socks[1]), server)
    for sent in (1, 2):
        client.sendall(b"ping")
        assert connection.recv(10) == b"ping"
        (service,) = worker.report().services
        assert (service.service, service.connections, service.bytes_to_backend) == (names[1], 1, 4 * sent)
        assert worker.report().services == ()
    worker.apply(serve(2, socks[2], names[2]), sockets=socks[2:])
    assert [service.service for service in worker.report().services] == names[2:]


def test_report_tells_nothing_of_a_service_that_was_forgotten(shop: Shop, worker: WorkerProcess) -> None:
    """Also where another one takes its place; one that comes back is a new one."""
    server, sock, other = shop.listening(), shop.listening(), shop.listening()
    worker.apply(set_pool(server), serve(1, sock), sockets=[sock])
    client, _, connection = shop.connect(port_of(sock), server)
    connection.close()
    client.close()
    wait_until(lambda: worker.report().open_relays == 0)
    worker.apply(Close(key_of()), Forget(service_port_name(WEB)))
    assert worker.report().services == ()
    worker.apply(set_pool(server, name="shop/other:http"), serve(2, other, "shop/other:http"), sockets=[other])
    worker.apply(serve(3, sock), sockets=[sock])
    services = worker.report().services
    assert [(service.service, service.connections) for service in services] == [("shop/other:http", 0), (WEB, 0)]
    worker.apply(Close(key_of()), Forget(service_port_name(WEB)), serve(4, sock), sockets=[sock])
    assert [service.service for service in worker.report().services] == [WEB]


def test_report_tells_nothing_of_a_service_of_udp_that_was_forgotten(shop: Shop, worker: WorkerProcess) -> None:
    """One that comes back is a new one."""
    server, sock = shop.receiving(), shop.receiving()
    commands = (set_pool(server, name=DNS, protocol=UDP), serve(1, sock, DNS, UDP))
    worker.apply(*commands, sockets=[sock])
    shop.udp_client(port_of(sock)).send(b"ping")
    assert wait_readable(server).recv(10) == b"ping"
    assert [service.flows for service in worker.report().udp_services] == [1]
    worker.apply(Close(key_of(DNS, UDP)), Forget(service_port_name(DNS, UDP)))
    assert worker.report().udp_services == ()
    worker.apply(*commands, sockets=[sock])
    assert [service.flows for service in worker.report().udp_services] == [0]


def test_records_of_affinity_are_reported_and_hold_in_a_successor(shop: Shop, worker: WorkerProcess) -> None:
    """A client comes to the Backend it had, though it would not be that one's turn."""
    servers, sock = (shop.listening(), shop.listening()), shop.listening()
    commands = (set_pool(*servers, affinity_timeout_s=HOUR_S), serve(1, sock))
    worker.apply(*commands, sockets=[sock])
    given = {source: shop.connect(port_of(sock), *servers, source=source)[1] for source in (FIRST, SECOND)}
    assert len(set(given.values())) == 2
    reports = worker.report().affinity
    assert [one._replace(given_s=0.0) for one in reports] == [
        AffinityReport(WEB, "TCP", source, HOST, port_of(given[source]), 0.0) for source in (FIRST, SECOND)
    ]
    shop.connect(port_of(sock), *servers, source=THIRD)
    assert [one.client for one in worker.report().affinity] == [THIRD]
    records = tuple((one.client, one.given_s, backend(f"{HOST}:{one.backend_port}")) for one in reports)
    worker.apply(Close(key_of()))
    with open_worker() as successor:
        successor.apply(commands[0], Remember(service_port_name(WEB), records), commands[1], sockets=[sock])
        for source in (SECOND, FIRST):
            assert shop.connect(port_of(sock), *servers, source=source)[1] is given[source]
        assert [one.client for one in successor.report().affinity] == [SECOND, FIRST]

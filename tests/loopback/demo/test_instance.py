"""Where a demonstration runs, with real sockets."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from userspace_proxy.demo.instance import INSTANCES, Instance, open_instance
from userspace_proxy.errors import DemoError


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    """Return an open instance."""
    with open_instance(tmp_path) as opened:
        yield opened


def ports_and_endpoints(instance: Instance) -> tuple[int, list[str]]:
    """Return what the manifest of an instance says: the port of the Service, and all endpoints."""
    service, endpoint_slice = yaml.safe_load_all(instance.manifest.read_text())
    port = endpoint_slice["ports"][0]["port"]
    addresses = [address for endpoint in endpoint_slice["endpoints"] for address in endpoint["addresses"]]
    return service["spec"]["ports"][0]["port"], [f"{address}:{port}" for address in addresses]


def text(sock: socket.socket) -> str:
    """Return where a socket listens."""
    return "{}:{}".format(*sock.getsockname())


def test_open_instance_beside_another_takes_the_next_and_a_manifest_to_match(
    instance: Instance, tmp_path: Path
) -> None:
    """Each has addresses of its own, listens at them, and its manifest names just these."""
    with open_instance(tmp_path) as other:
        for one in (instance, other):
            listening = [text(sock) for sock in one.listening]
            assert listening == [str(backend) for backend in one.backends]
            assert ports_and_endpoints(one) == (80 + one.number, listening)
            assert not any(backend.address in one.loopback_range for backend in one.backends)
        assert other.number > instance.number
        assert not set(other.backends) & set(instance.backends)
        assert not other.loopback_range.overlaps(instance.loopback_range)
        assert other.copied_because


def test_open_instance_at_its_end_leaves_the_addresses_free(tmp_path: Path) -> None:
    """What one has used can be had by the next at once, with connections of the one still in TIME_WAIT."""
    with open_instance(tmp_path) as one, socket.create_connection(one.listening[0].getsockname()) as client:
        one.listening[0].accept()[0].close()
        assert client.recv(1) == b""
    with open_instance(tmp_path) as next_one:
        assert next_one.number == one.number


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to hold a port below 1024")
def test_open_instance_passes_over_one_whose_service_port_is_in_use(tmp_path: Path) -> None:
    """A web server that has port 80 on all addresses makes it take other addresses instead of failing later."""
    with open_instance(tmp_path) as one:
        port = ports_and_endpoints(one)[0]
    with socket.socket() as web_server:
        web_server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        web_server.bind(("0.0.0.0", port))
        web_server.listen()
        with open_instance(tmp_path) as other:
            assert other.number > one.number
            assert f":{port} is in use by pid {os.getpid()} " in other.copied_because


def test_open_instance_with_all_in_use_names_the_first_in_the_way(tmp_path: Path) -> None:
    """After the last there is none left: one sentence, and what was opened is closed."""
    in_the_way = r"no free addresses: 127\.90\S+ is in use by pid"
    with ExitStack() as opened, pytest.raises(DemoError, match=in_the_way):  # noqa: PT012
        for _ in range(INSTANCES + 1):
            opened.enter_context(open_instance(tmp_path))
    with open_instance(tmp_path) as one:
        assert one.backends

"""``run`` on manifests as users have them: what they say is served, and followed as it changes."""

import json
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from cli_driver import (
    PORT,
    dial,
    free_port,
    open_run,
    service_object,
    slice_objects,
    wait_until_dialled,
    write_manifests,
)
from peers import greet, open_peers

pytestmark = pytest.mark.slow

KUBECTL_OUTPUT = Path(__file__).with_name("kubectl_output.yaml").read_text()


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """Return a file for manifests."""
    return tmp_path / "shop.yaml"


def put(path: Path, text: str) -> None:
    """Write a text as an editor does: in place."""
    path.write_text(text)


async def test_run_spreads_connections_evenly(manifests: Path) -> None:
    """Round robin is exact in each worker: of nine connections each of three endpoints gets three."""
    async with open_peers() as peers:
        backends = [peers.listen(greet(name)).backend for name in (b"a", b"b", b"c")]
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", *backends)])
        async with open_run(manifests.parent, "--manifests", manifests, "--workers", "1") as run:
            await run.wait_ready()
            greetings = Counter([await dial(peers, run.dial_address()) for _ in range(9)])
            assert greetings == {"a": 3, "b": 3, "c": 3}


async def test_run_follows_endpoints_and_leaves_open_connections_alone(manifests: Path) -> None:
    """Once the file has changed new connections go to the new endpoint; the old one keeps what it has."""
    async with open_peers() as peers:
        old, new = peers.listen(greet(b"a")).backend, peers.listen(greet(b"b")).backend
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", old)])
        async with open_run(manifests.parent, "--manifests", manifests) as run:
            await run.wait_ready()
            address = run.dial_address()
            client = await peers.connect(address)
            assert await client.receive(1) == b"a"
            write_manifests(manifests, [service_object(), *slice_objects("shop/web", new)])
            await wait_until_dialled(peers, address, "b")
            assert [await dial(peers, address) for _ in range(4)] == ["b"] * 4
            await client.send(b"x")
            assert await client.receive(1) == b"x"


async def test_run_without_endpoints_refuses_and_with_endpoints_serves_again(manifests: Path) -> None:
    """Nobody is accepted for nothing."""
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", backend)])
        async with open_run(manifests.parent, "--manifests", manifests) as run:
            await run.wait_ready()
            for objects, answer in (
                ([service_object()], "refused"),
                ([service_object(), *slice_objects("shop/web", backend)], "a"),
            ):
                write_manifests(manifests, objects)
                await wait_until_dialled(peers, run.dial_address(), answer)


async def test_run_serves_a_service_that_appears_and_stops_for_one_that_goes(manifests: Path) -> None:
    """A NodePort is open as long as its Service is there."""
    port = free_port()
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        write_manifests(manifests, [])
        async with open_run(manifests.parent, "--manifests", manifests) as run:
            await run.wait_for(r"(?m)^ready: 0 services, 0 endpoints, 0 listeners, ")
            assert "SERVICE" not in run.output
            for objects, answer in (
                ([service_object(node_port=port), *slice_objects("shop/web", backend)], "a"),
                ([], "refused"),
            ):
                write_manifests(manifests, objects)
                await wait_until_dialled(peers, ("127.0.0.1", port), answer)


async def test_run_whose_manifest_breaks_serves_on_and_says_where(manifests: Path) -> None:
    """The last good version stays in force until the file is repaired."""
    async with open_peers() as peers:
        backends = [peers.listen(greet(name)).backend for name in (b"a", b"b")]
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", backends[0])])
        async with open_run(manifests.parent, "--manifests", manifests) as run:
            await run.wait_ready()
            put(manifests, "kind: Service\nmetadata: {name: [}\n")
            said = (await run.wait_for_log(r"ERROR .*shop\.yaml.*"))[0]
            assert "line 2" in said
            assert "stays in force" in said
            assert await dial(peers, run.dial_address()) == "a"
            write_manifests(manifests, [service_object(), *slice_objects("shop/web", backends[1])])
            await wait_until_dialled(peers, run.dial_address(), "b")
            assert run.log.count("ERROR") == 1


async def test_run_told_to_read_again_does_and_serves_on(manifests: Path) -> None:
    """SIGHUP, several times over: connections stay, and the files say what they said."""
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", backend)])
        async with open_run(manifests.parent, "--manifests", manifests) as run:
            await run.wait_ready()
            client = await peers.connect(run.dial_address())
            assert await client.receive(1) == b"a"
            reading = "reading all manifests again reason=SIGHUP"
            for count in range(3):
                run.signal(signal.SIGHUP)
                await run.wait_for_log(rf"(?s)({reading}.*){{{count + 1}}}")
            await client.send(b"x")
            assert await client.receive(1) == b"x"
            assert await dial(peers, run.dial_address()) == "a"
            generations = re.findall(r"(?m)^userspace_proxy_applied_generation\{.*\} (\S+)$", (await run.get())[1])
            assert set(generations) == {"1.0"}, "what is read again and is the same is no change"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "", id="empty: nothing to say"),
        pytest.param(bytes(range(256)) * 4, "ERROR", id="binary"),
        pytest.param(b"\x7fELF\x02\x01\x01" + bytes(100), "ERROR", id="program"),
        pytest.param(b"kind: Service\nmetadata: {name: [}\n", "ERROR", id="broken"),
    ],
)
async def test_run_with_a_useless_file_says_so_and_serves_the_others(
    manifests: Path, content: bytes, said: str
) -> None:
    """One file that is of no use stops nothing."""
    useless = manifests.with_name("useless.yaml")
    useless.write_bytes(content)
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", backend)])
        async with open_run(manifests.parent, "--manifests", manifests, useless) as run:
            await run.wait_ready()
            assert await dial(peers, run.dial_address()) == "a"
            assert "".join(re.findall(r" (ERROR|WARNING) .*useless\.yaml", run.log)) == said


async def test_run_names_the_label_that_an_endpoint_slice_lacks(manifests: Path) -> None:
    """A Service to which no EndpointSlice belongs: the commonest first mistake."""
    objects = [service_object(), *slice_objects("shop/web")]
    write_manifests(manifests, objects)
    async with open_run(manifests.parent, "--manifests", manifests) as run:
        await run.wait_ready()
        said = (await run.wait_for_log(r"WARNING .*shop\.yaml.*Service shop/web.*"))[0]
        assert "kubernetes.io/service-name: web" in said


async def test_run_serves_both_families(manifests: Path) -> None:
    """NodePorts answer in both, each by endpoints of its own family; an IPv6 Service has its loopback address too."""
    port = free_port()
    async with open_peers() as peers:
        four, six = peers.listen(greet(b"4")).backend, peers.listen(greet(b"6"), host="::1").backend
        dual = service_object(cluster_ips=["10.96.0.10", "fd00:96::a"], node_port=port)
        only_six = service_object("shop/six", cluster_ips=["fd00:96::b"])
        write_manifests(
            manifests,
            [dual, *slice_objects("shop/web", four, six), only_six, *slice_objects("shop/six", six)],
        )
        async with open_run(manifests.parent, "--manifests", manifests) as run:
            await run.wait_for(r"(?m)^ready: 2 services, 3 endpoints, 4 listeners, ")
            assert [await dial(peers, ("127.0.0.1", port)) for _ in range(2)] == ["4", "4"]
            assert [await dial(peers, ("::1", port)) for _ in range(2)] == ["6", "6"]
            assert await dial(peers, run.dial_address()) == "4"
            assert await dial(peers, run.dial_address("shop/six:http")) == "6"
            assert f"[fd00:96::b]:{PORT}/TCP" in run.output
            assert f"[::]:{port}" in run.output


async def test_run_serves_what_kubectl_prints(manifests: Path) -> None:
    """``kubectl get svc,endpointslices -A -o yaml`` as it is, with all that an API server adds."""
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        text = KUBECTL_OUTPUT.replace("10.244.1.7", str(backend.address)).replace("port: 8080", f"port: {backend.port}")
        put(manifests, text)
        async with open_run(manifests.parent, "--manifests", manifests) as run:
            await run.wait_ready()
            assert re.search(r"(?m)^ready: 2 services, 2 endpoints, ", run.output), run.output
            greetings = Counter([await dial(peers, run.dial_address("shop/web:http")) for _ in range(4)])
            assert greetings == {"a": 4}, "the endpoint that is not ready has got some"
            assert not re.search("WARNING|ERROR", run.log), run.log


async def test_run_logs_connections_for_machines(manifests: Path) -> None:
    """Each line is one JSON object; that of a connection says who, where to, how long and how it ended."""
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", backend)])
        async with open_run(
            manifests.parent, "--manifests", manifests, "--log-connections", "--log-format", "json"
        ) as run:
            await run.wait_ready()
            client = await peers.connect(run.dial_address())
            await client.send(b"xyz")
            assert await client.receive(4) == b"axyz"
            client_address = "{} port {}".format(*client.sock.getsockname())
            client.fin()
            await client.receive_to_end()
            await run.wait_for_log("connection ended")
            assert await run.terminate() == 0
            records = [json.loads(line) for line in run.log.splitlines()]
            (record,) = [record for record in records if record["logger"] == "connections"]
            expected = {
                "level": "INFO",
                "service": "shop/web:http",
                "client": client_address,
                "backend": str(backend),
                "reason": "--",
                "bytes_to_backend": 3,
                "bytes_to_client": 4,
            }
            assert {key: record[key] for key in expected} == expected
            assert 0 <= record["dial_duration_s"] <= record["duration_s"], "an endpoint on this node may answer at once"
            assert record["duration_s"] > 0


async def test_run_logs_no_connections_unless_told_to(manifests: Path) -> None:
    """Not at debug either: there may be a thousand a second."""
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a")).backend
        write_manifests(manifests, [service_object(), *slice_objects("shop/web", backend)])
        async with open_run(manifests.parent, "--manifests", manifests, "--log-level", "debug") as run:
            await run.wait_ready()
            assert await dial(peers, run.dial_address()) == "a"
            assert await run.terminate() == 0
            assert "connection ended" not in run.log

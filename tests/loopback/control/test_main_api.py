"""``run`` on an API server: what it says is served and followed, and what happens when it says nothing."""

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import trio
from api_run_driver import (
    NO_PROXY,
    NODE,
    health_port,
    open_api_run,
    own_address,
    says,
    slice_manifest,
    web_address,
    web_ports,
)
from apiserver.certificates import make_certificates
from apiserver.cluster import Cluster, node_manifest, service_manifest
from apiserver.double import ApiServer
from apiserver.faults import Answer, Silence
from cli_driver import DEADLINE_S, Run, dial, free_port, run_command, wait_until, wait_until_dialled
from peers import greet, open_peers

pytestmark = pytest.mark.slow


def fetch(port: int, path: str) -> tuple[int, dict[str, object]]:
    """Return status and JSON of a page."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE_S) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


async def get_json(port: int, path: str) -> tuple[int, dict[str, object]]:
    """Return status and JSON of a page, without stopping the clients and servers of the test."""
    return await trio.to_thread.run_sync(fetch, port, path)


async def wait_until_readyz(run: Run, status: int, pattern: str = "") -> str:
    """Return the page /readyz once it has a status and says something."""
    with trio.fail_after(DEADLINE_S):
        while True:
            found, text = await run.get("/readyz")
            if found == status and re.search(pattern, text):
                return text
            await trio.sleep(0.05)


async def test_run_serves_a_cluster_and_follows_its_endpoints(cluster: Cluster, tmp_path: Path) -> None:
    """Open connections stay with the endpoint they have; without endpoints clients are refused."""
    async with open_peers() as peers:
        old, new = (peers.listen(greet(name), host=str(own_address())).backend for name in (b"a", b"b"))
        cluster.create(service_manifest("web", web_ports()))
        cluster.create(slice_manifest(old))
        async with open_api_run(tmp_path, cluster.kubeconfig) as run:
            await run.wait_ready()
            assert re.search(rf"(?m)^ready: .*, API server https://\S+ as {NODE}, ", run.output)
            address = web_address(run, cluster)
            client = await peers.connect(address)
            assert await client.receive(1) == b"a"
            cluster.replace(slice_manifest(new))
            await wait_until_dialled(peers, address, "b")
            await client.send(b"x")
            assert await client.receive(1) == b"x"
            cluster.delete(slice_manifest())
            await wait_until_dialled(peers, address, "refused")
            cluster.create(slice_manifest(new))
            await wait_until_dialled(peers, address, "b")
            cluster.delete(service_manifest("web"))
            await wait_until_dialled(peers, address, "refused")
            assert says(run, "ERROR") == 0


async def test_run_serves_a_node_port_of_a_service_that_appears(cluster: Cluster, tmp_path: Path) -> None:
    """It needs no restart, and tells how long it took since the change that led to it."""
    port = 30000 + free_port() % 2768
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a"), host=str(own_address())).backend
        async with open_api_run(tmp_path, cluster.kubeconfig) as run:
            await run.wait_ready()
            cluster.create(service_manifest("web", web_ports(port), type="NodePort"))
            cluster.create(slice_manifest(backend))
            await wait_until_dialled(peers, ("127.0.0.1", port), "a")
            page = (await run.get())[1]
            assert 'userspace_proxy_api_watch_up{resource="endpointslices"} 1.0' in page
            assert re.search(r'(?m)^kubeproxy_sync_proxy_rules_duration_seconds_count\{ip_family="IPv4"\} [1-9]', page)


@pytest.mark.parametrize("resource", ["services", "endpointslices"])
async def test_h_2_run_opens_nothing_before_all_is_listed(
    double_cluster: Cluster, api_server: ApiServer, tmp_path: Path, resource: str
) -> None:
    """Half a list must not tear down what a run before has left in force."""
    port = 30000 + free_port() % 2768
    async with open_peers() as peers:
        backend = peers.listen(greet(b"a"), host=str(own_address())).backend
        double_cluster.create(service_manifest("web", web_ports(port), type="NodePort"))
        double_cluster.create(slice_manifest(backend))
        fault = api_server.order(Answer(500), resource, "list", times=None)
        async with open_api_run(tmp_path, double_cluster.kubeconfig) as run:
            await run.wait_for_log(rf"WARNING .*cannot watch the API server.*resource={resource}")
            text = await wait_until_readyz(run, 503, f"{resource} of the API server: ")
            assert text.startswith("the first complete list is not in force yet\n")
            assert await dial(peers, ("127.0.0.1", port)) == "refused"
            assert (await get_json(await health_port(run), "/livez"))[0] == 200
            fault.lift()
            await run.wait_ready()
            await wait_until_dialled(peers, ("127.0.0.1", port), "a")


@contextmanager
def gone(server: ApiServer) -> Iterator[None]:
    """Have nobody answer at the address of an API server."""
    server.refuse_connections()
    server.drop_all_connections()
    try:
        yield
    finally:
        server.accept_connections()


async def test_run_that_loses_the_api_server_serves_on(
    double_cluster: Cluster, api_server: ApiServer, tmp_path: Path
) -> None:
    """No connection is lost and new ones are served; how old the state is is told; what has changed is made up for."""
    async with open_peers() as peers:
        old, new = (peers.listen(greet(name), host=str(own_address())).backend for name in (b"a", b"b"))
        double_cluster.create(service_manifest("web", web_ports()))
        double_cluster.create(slice_manifest(old))
        double_cluster.create(node_manifest(NODE, "192.0.2.7"))
        async with open_api_run(tmp_path, double_cluster.kubeconfig) as run:
            await run.wait_ready()
            address = web_address(run, double_cluster)
            client = await peers.connect(address)
            assert await client.receive(1) == b"a"
            with gone(api_server):
                await run.wait_for_log(r"WARNING .*cannot watch the API server.*what is served goes on")
                assert (await wait_until_readyz(run, 200, "endpointslices of the API server: ")).startswith("ok\n")
                assert 'userspace_proxy_api_watch_up{resource="services"} 0.0' in (await run.get())[1]
                run.signal(signal.SIGUSR1)
                await run.wait_for_log(r'state: API server resource=services reason="current \d+ s ago; (?!is watched)')
                status, health = await get_json(await health_port(run), "/healthz")
                assert (status, health["healthy"]) == (200, True)
                assert "apiServer" in health
                assert await dial(peers, address) == "a"
            double_cluster.replace(slice_manifest(new))
            await wait_until_dialled(peers, address, "b")
            await client.send(b"x")
            assert await client.receive(1) == b"x"
            await run.wait_for_log("watching the API server again")
            await wait_until_readyz(run, 200, r"\Aok\n\Z")
            assert says(run, "ERROR|a bug") == 0


def deny_slices(server: ApiServer, path: Path) -> Path:
    """Have the proxy forbidden to list EndpointSlices."""
    server.access.deny("list", "endpointslices")
    return server.kubeconfig(path)


def be_unknown(server: ApiServer, path: Path) -> Path:
    """Have a token that the server does not know."""
    return server.kubeconfig(path, user={"token": "stale"})


def trust_another(server: ApiServer, path: Path) -> Path:
    """Trust an authority that has not signed the certificate of the server."""
    folder = path.with_suffix(".certificates")
    folder.mkdir()
    return server.kubeconfig(path, authority=make_certificates(folder).authority)


async def wait_until_failed(run: Run, *, attempts: int) -> None:
    """Wait until a resource has failed so often."""
    with trio.fail_after(DEADLINE_S):
        while True:
            counts = re.findall(r"(?m)^userspace_proxy_api_failures_total\{.*\} (\d+)", (await run.get())[1])
            if any(int(count) >= attempts for count in counts):
                return
            await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        pytest.param(deny_slices, r"resource=endpointslices .*list.*endpointslices", id="forbidden"),
        pytest.param(be_unknown, "token|credentials", id="401"),
        pytest.param(trust_another, "certificate", id="untrusted"),
        pytest.param(
            lambda server, path: server.kubeconfig(path, url=f"https://127.0.0.1:{free_port()}"),
            "refused",
            id="refused",
        ),
    ],
)
async def test_run_that_is_not_answered_says_why_and_tries_on(
    double_cluster: Cluster, api_server: ApiServer, tmp_path: Path, break_it: object, said: str
) -> None:
    """One sentence, not one for each resource or attempt; nothing ends, and nothing is opened."""
    del double_cluster  # for what it needs
    assert callable(break_it)
    kubeconfig = break_it(api_server, tmp_path / "broken.kubeconfig")
    async with open_api_run(tmp_path, kubeconfig) as run:
        warning = r"WARNING .*cannot watch the API server, trying again "
        await run.wait_for_log(f"(?i){warning}.*({said})")
        await wait_until_readyz(run, 503, "of the API server: ")
        await wait_until_failed(run, attempts=4)
        assert says(run, warning) == 1
        assert "Traceback" not in run.log
        assert await run.terminate() == 0
        assert "ready" not in run.output


def test_run_without_its_kubeconfig_ends_with_one_sentence(tmp_path: Path) -> None:
    """It names the file; trying again would be of no use."""
    done = run_command(
        *("run", "--kubeconfig", "nowhere.yaml", "--steering", "loopback", "--state-dir", "state"),
        *("--runtime-dir", "run", "--metrics-bind-address", "", "--healthz-bind-address", ""),
        cwd=tmp_path,
        env=NO_PROXY,
    )
    assert done.returncode == 3
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("userspace-proxy:")]
    assert "nowhere.yaml" in sentence
    assert "Traceback" not in done.stderr


async def test_run_told_to_stop_ends_though_the_api_server_is_silent(
    double_cluster: Cluster, api_server: ApiServer, tmp_path: Path
) -> None:
    """Threads that wait for an answer hold nothing up."""
    api_server.order(Silence(has_headers=False), "services", "list", times=None)
    async with open_api_run(tmp_path, double_cluster.kubeconfig) as run:
        await wait_until(lambda: api_server.asked("services", "list"))
        run.signal(signal.SIGTERM)
        with trio.fail_after(20):
            assert await run.wait_end() == 0


async def test_run_told_to_read_again_has_nothing_to(cluster: Cluster, tmp_path: Path) -> None:
    """SIGHUP is heard, explained, and ends nothing."""
    async with open_api_run(tmp_path, cluster.kubeconfig) as run:
        await run.wait_ready()
        run.signal(signal.SIGHUP)
        await run.wait_for_log("nothing to read again.*reason=SIGHUP")
        assert (await run.get("/readyz"))[0] == 200


async def test_run_tells_load_balancers_of_the_node_and_of_each_service(cluster: Cluster, tmp_path: Path) -> None:
    """A node that is being deleted is not eligible but alive; a Service with Local policy has a port of its own."""
    check_port = 30000 + free_port() % 2768
    node = cluster.create(node_manifest(NODE, "192.0.2.7"))
    cluster.create(
        service_manifest(
            "web",
            web_ports(),
            type="LoadBalancer",
            externalTrafficPolicy="Local",
            healthCheckNodePort=check_port,
        )
    )
    async with open_peers() as peers:
        backend = peers.listen(host=str(own_address())).backend
        cluster.create(slice_manifest(backend))
        async with open_api_run(tmp_path, cluster.kubeconfig) as run:
            await run.wait_ready()
            port = await health_port(run)
            status, health = await get_json(port, "/healthz")
            assert (status, health["healthy"], health["nodeEligible"]) == (200, True, True)
            status, health = await get_json(check_port, "/any/path")
            assert (status, health["localEndpoints"], health["serviceProxyHealthy"]) == (200, 1, True)

            taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
            cluster.patch(node, {"spec": {"taints": [taint]}})
            cluster.replace(slice_manifest(backend, node="node-2"))
            for asked in (port, check_port):
                with trio.fail_after(DEADLINE_S):
                    while (await get_json(asked, "/healthz"))[0] != 503:  # noqa: ASYNC110 - in another process
                        await trio.sleep(0.05)
            assert (await get_json(port, "/livez"))[0] == 200
            page = (await run.get())[1]
            assert re.search(r'kubeproxy_proxy_healthz_total\{code="503"\} [1-9]', page)
            assert 'no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1.0' in page


async def test_run_tells_the_owner_of_a_port_that_is_not_served(cluster: Cluster, tmp_path: Path) -> None:
    """As an Event of the Service, in the log once, and as a metric."""
    service = cluster.create(service_manifest("web", web_ports(), {"name": "assoc", "port": 3868, "protocol": "SCTP"}))
    async with open_api_run(tmp_path, cluster.kubeconfig) as run:
        await run.wait_ready()
        await wait_until(lambda: cluster.events(service))
        (event,) = cluster.events(service)
        assert (event["reason"], event["type"]) == ("ProtocolNotServed", "Warning")
        assert says(run, "assoc.*is not served") == 1
        assert 'userspace_proxy_unserved_ports{protocol="SCTP"} 1.0' in (await run.get())[1]


def test_check_of_a_cluster_says_what_a_run_would_do(cluster: Cluster, tmp_path: Path) -> None:
    """Without manifests it asks the API server once, and ends."""
    cluster.create(service_manifest("web", web_ports()))
    cluster.create(slice_manifest())
    done = run_command(
        *("check", "--steering", "loopback", "--kubeconfig", cluster.kubeconfig, "-o", "json"),
        cwd=tmp_path,
        env=NO_PROXY,
    )
    assert done.returncode == 0, done.stderr
    services = {one["service"] for one in json.loads(done.stdout)["frontends"]}
    assert f"{cluster.namespace}/web" in services


def test_check_of_a_cluster_that_does_not_answer_is_one_sentence(tmp_path: Path, api_server: ApiServer) -> None:
    """It does not wait for better times."""
    kubeconfig = api_server.kubeconfig(tmp_path / "config", url=f"https://127.0.0.1:{free_port()}")
    done = run_command("check", "--steering", "loopback", "--kubeconfig", kubeconfig, cwd=tmp_path, env=NO_PROXY)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("userspace-proxy: ")

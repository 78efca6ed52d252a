"""``check`` as a user types it: what a run would do, all that is wrong, and nothing done."""

import json
import re
from pathlib import Path

import pytest
from builders import backend
from cli_driver import PORT, free_port, open_run, run_command, service_object, slice_objects, write_manifests

from userspace_proxy.model.names import Protocol

pytestmark = pytest.mark.slow

TEN = backend("10.244.1.7:8080")
SIX = backend("[fd00:1::7]:8080")


def check(directory: Path, *arguments: str) -> tuple[int, str]:
    """Run check on shop.yaml and return its exit status and what it prints."""
    done = run_command("check", "--steering", "loopback", "--manifests", "shop.yaml", *arguments, cwd=directory)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_check_of_good_manifests_says_where_clients_dial(tmp_path: Path) -> None:
    """The steering, the table and the sum; exit status 0."""
    write_manifests(tmp_path / "shop.yaml", [service_object(), *slice_objects("shop/web", TEN)])
    status, output = check(tmp_path)
    assert status == 0
    assert output.splitlines() == [
        "steering loopback is used",
        "",
        "SERVICE        FRONTEND             DIAL",
        f"shop/web:http  10.96.0.10:{PORT}/TCP  127.102.205.38:{PORT}",
        "",
        "1 service, 1 endpoint, 0 errors, 0 warnings",
    ]


def test_check_of_bad_manifests_says_all_that_is_wrong_errors_first(tmp_path: Path) -> None:
    """Each with its place; what is good is shown all the same; exit status 3."""
    good = [service_object(), *slice_objects("shop/web", TEN)]
    no_port = service_object("shop/none", cluster_ips=["10.96.0.11"])
    no_port["spec"]["ports"] = []
    write_manifests(tmp_path / "shop.yaml", [service_object("shop/lonely", cluster_ips=["10.96.0.12"]), no_port, *good])
    (tmp_path / "broken.yaml").write_text("kind: Service\nmetadata: {name: [}\n")
    status, output = check(tmp_path, "broken.yaml")
    assert status == 3
    severities = re.findall(r"(?m)^(error|warning): ", output)
    assert severities == sorted(severities)
    assert "shop/web:http  " in output
    assert "error: broken.yaml" in output
    assert "Service shop/none: spec.ports: is empty" in output
    assert "kubernetes.io/service-name: lonely" in output
    assert output.splitlines()[-1].startswith("3 services, 1 endpoint, 2 errors, ")


def test_check_of_warnings_alone_is_no_failure(tmp_path: Path) -> None:
    """A Service without an EndpointSlice, and one without a Service: said with the label; exit status 0."""
    write_manifests(tmp_path / "shop.yaml", [service_object(), *slice_objects("shop/other", TEN)])
    status, output = check(tmp_path)
    assert status == 0
    assert "warning: shop.yaml" in output
    assert "kubernetes.io/service-name: web" in output
    assert "EndpointSlice shop/other-0: metadata.labels[kubernetes.io/service-name]: names Service shop/other" in output
    assert output.endswith("1 service, 0 endpoints, 0 errors, 2 warnings\n")


def test_check_for_programs_prints_one_document(tmp_path: Path) -> None:
    """Its keys are an interface: every Frontend with its Backends, every Problem with its parts."""
    node_port = free_port()
    dual = service_object(cluster_ips=["10.96.0.10", "fd00:96::a"], node_port=node_port)
    write_manifests(tmp_path / "shop.yaml", [dual, *slice_objects("shop/web", TEN, SIX), service_object("shop/zoo")])
    status, output = check(tmp_path, "-o", "json")
    assert status == 3
    document = json.loads(output)
    assert list(document) == ["steering", "frontends", "problems"]
    assert document["steering"] == ["steering loopback is used"]
    assert [(one["family"], one["kind"], one["frontend"], one["backends"]) for one in document["frontends"]] == [
        ("IPv4", "cluster-ip", f"10.96.0.10:{PORT}/TCP", [str(TEN)]),
        ("IPv4", "node-port", f"*:{node_port}/TCP (IPv4)", [str(TEN)]),
        ("IPv6", "node-port", f"*:{node_port}/TCP (IPv6)", [str(SIX)]),
    ]
    assert document["frontends"][2] == {
        "service": "shop/web",
        "port": "http",
        "protocol": "TCP",
        "kind": "node-port",
        "family": "IPv6",
        "frontend": f"*:{node_port}/TCP (IPv6)",
        "listener": f"[::]:{node_port}",
        "balance": "round-robin",
        "affinity_timeout_s": None,
        "udp": None,
        "source_ranges": [],
        "backends": [str(SIX)],
        "clients": {source: {"verdict": "serve", "backends": [str(SIX)]} for source in ("pod", "host", "outside")},
    }
    assert [list(one) for one in document["problems"]] == [["severity", "origin", "subject", "field", "text"]] * 2
    assert {one["severity"] for one in document["problems"]} == {"error", "warning"}


def test_check_for_programs_says_what_becomes_of_whom(tmp_path: Path) -> None:
    """With a Local policy outsiders and others may reach other Backends, or none at all."""
    local = service_object(node_port=free_port())
    local["spec"] |= {"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"}
    slices = slice_objects("shop/web", TEN)
    slices[0]["endpoints"][0]["nodeName"] = "node-2"
    write_manifests(tmp_path / "shop.yaml", [local, *slices, service_object("shop/zoo", cluster_ips=["10.96.0.11"])])
    status, output = check(tmp_path, "-o", "json", "--hostname-override", "node-1")
    assert status == 0
    frontends = json.loads(output)["frontends"]
    served, dropped = {"verdict": "serve", "backends": [str(TEN)]}, {"verdict": "drop", "backends": []}
    refused = {"verdict": "reject", "backends": []}
    assert [(one["kind"], one["clients"], one["backends"]) for one in frontends if one["family"] == "IPv4"] == [
        ("cluster-ip", {"pod": served, "host": served, "outside": served}, [str(TEN)]),
        ("node-port", {"pod": served, "host": served, "outside": dropped}, []),
        ("cluster-ip", {"pod": refused, "host": refused, "outside": refused}, []),
    ]
    assert frontends[0]["affinity_timeout_s"] == 10800


@pytest.mark.parametrize(
    ("annotations", "udp"),
    [
        ({}, {"balance": "flow", "idle_timeout_s": None}),
        (
            {"userspace-proxy.io/udp-balance": "datagram", "userspace-proxy.io/udp-idle-timeout": "1m30s"},
            {"balance": "datagram", "idle_timeout_s": 90.0},
        ),
    ],
)
def test_check_for_programs_says_how_flows_of_udp_are_treated(
    tmp_path: Path, annotations: dict[str, str], udp: dict[str, object]
) -> None:
    """Beside what is said of all Frontends; what is left to the default is null."""
    node_port = free_port()
    dns = service_object(node_port=node_port, protocol=Protocol.UDP, annotations=annotations)
    write_manifests(tmp_path / "shop.yaml", [dns, *slice_objects("shop/web", TEN, protocol=Protocol.UDP)])
    status, output = check(tmp_path, "-o", "json")
    assert status == 0
    assert {one["frontend"]: (one["protocol"], one["udp"]) for one in json.loads(output)["frontends"]} == {
        f"10.96.0.10:{PORT}/UDP": ("UDP", udp),
        f"*:{node_port}/UDP (IPv4)": ("UDP", udp),
    }


def test_check_opens_nothing_and_writes_nothing(tmp_path: Path) -> None:
    """No state, no lock, no file at all."""
    write_manifests(tmp_path / "shop.yaml", [service_object(node_port=free_port()), *slice_objects("shop/web", TEN)])
    assert check(tmp_path, "--state-dir", "state")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["shop.yaml"]


async def test_check_beside_a_run_disturbs_nobody(tmp_path: Path) -> None:
    """The ports that it would open are in use, and that is no matter: it says the same addresses as the run."""
    write_manifests(tmp_path / "shop.yaml", [service_object(node_port=free_port()), *slice_objects("shop/web", TEN)])
    async with open_run(tmp_path, "--manifests", "shop.yaml") as run:
        await run.wait_ready()
        status, output = check(tmp_path, "--state-dir", "state", "--loopback-range", "127.96.0.0/11")
        assert status == 0
        assert "{}:{}".format(*run.dial_address()) in output
        assert run.log.count("ERROR") == 0


def test_check_says_what_finds_no_place(tmp_path: Path) -> None:
    """More Services than loopback addresses: an error for each one too many, with the setting to change."""
    services = [service_object(f"shop/s{number}", cluster_ips=[f"10.96.1.{number}"]) for number in range(1, 5)]
    write_manifests(tmp_path / "shop.yaml", services)
    status, output = check(tmp_path, "--loopback-range", "127.96.0.1/32")
    assert status == 3
    assert output.count("error: Service shop/s") == 3
    assert output.count("widen --loopback-range") == 3

"""``userspace-proxy run`` on the Services of an API server. Entry point: ``open_api_run``."""

import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from apiserver.cluster import Cluster, Manifest, endpoint_slice_manifest
from apiserver.fixtures import KUBECONFIG_VARIABLE
from cli_driver import PORT, Run, open_run

from userspace_proxy.model.names import IPAddress
from userspace_proxy.plan.state import Backend
from userspace_proxy.steering.node_state import read_local_addresses

NODE = "node-1"
"""The name of the node that runs believe to be."""
NO_PROXY = {"HTTPS_PROXY": "", "https_proxy": "", "HTTP_PROXY": "", "http_proxy": ""}


def own_address() -> IPAddress:
    """Return an address for Backends: a loopback one, but with a real API server, which takes none, the machine's."""
    if KUBECONFIG_VARIABLE not in os.environ:
        return ip_address("127.0.0.1")
    usable = [one for one in read_local_addresses() if one.version == 4 and not (one.is_loopback or one.is_link_local)]
    if not usable:
        pytest.skip("this machine has no IPv4 address but that of loopback")
    return min(usable)


def web_ports(node_port: int | None = None) -> Mapping[str, object]:
    """Return the port ``http`` of a Service, for ``service_manifest``."""
    port: dict[str, object] = {"name": "http", "port": PORT, "protocol": "TCP"}
    return port if node_port is None else {**port, "nodePort": node_port}


def slice_manifest(*backends: Backend, service: str = "web", node: str = NODE) -> Manifest:
    """Return the EndpointSlice ``web-1``; all Backends have the port of the first."""
    port = {"name": "http", "protocol": "TCP", "port": backends[0].port if backends else 8080}
    endpoints = [
        {"addresses": [str(backend.address)], "conditions": {"ready": True}, "nodeName": node} for backend in backends
    ]
    return endpoint_slice_manifest(f"{service}-1", *endpoints, service=service, ports=[port])


@asynccontextmanager
async def open_api_run(directory: Path, kubeconfig: Path, *arguments: str | Path) -> AsyncIterator[Run]:
    """Yield a run that has just been started (see ``open_run``) on the API server of a kubeconfig."""
    own = ("--kubeconfig", kubeconfig, "--hostname-override", NODE, "--healthz-bind-address", "127.0.0.1:0")
    async with open_run(directory, *own, *arguments, env=NO_PROXY) as run:
        yield run


def web_address(run: Run, cluster: Cluster) -> tuple[str, int]:
    """Return where clients dial Service ``web`` of a test."""
    return run.dial_address(f"{cluster.namespace}/web:http")


async def health_port(run: Run) -> int:
    """Return the port where load balancers ask."""
    return int((await run.wait_for_log(r"serving health as kube-proxy does.*? port (\d+)"))[1])


def says(run: Run, pattern: str) -> int:
    """Return how often the log of a run matches a pattern."""
    return len(re.findall(pattern, run.log))

"""Fixtures with an API server; a folder of tests that wants them imports them in its ``conftest.py``.

``USERSPACE_PROXY_TEST_KUBECONFIG`` names the kubeconfig of an administrator of a real cluster: then ``cluster`` is that
one. Tests that need faults take ``api_server``, which is always the double.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from apiserver.access import ADMIN_TOKEN
from apiserver.certificates import Certificates, make_certificates
from apiserver.cluster import Cluster
from apiserver.double import ApiServer
from apiserver.kube_client import KubeClient

KUBECONFIG_VARIABLE = "USERSPACE_PROXY_TEST_KUBECONFIG"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return certificates for 127.0.0.1 and ::1."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl")
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def api_server(certificates: Certificates) -> Iterator[ApiServer]:
    """Run the API server double with HTTPS on 127.0.0.1."""
    with ApiServer(certificates=certificates) as server:
        yield server


@pytest.fixture
def double_cluster(api_server: ApiServer, tmp_path: Path) -> Iterator[Cluster]:
    """Return the double as a cluster."""
    admin = api_server.kubeconfig(tmp_path / "admin.kubeconfig", token=ADMIN_TOKEN)
    kubeconfig = api_server.kubeconfig(tmp_path / "proxy.kubeconfig")
    with Cluster(kubeconfig, KubeClient.from_file(admin)) as cluster:
        yield cluster


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Return the real cluster if there is one, else the double as one."""
    real = os.environ.get(KUBECONFIG_VARIABLE)
    if real is None:
        double: Cluster = request.getfixturevalue("double_cluster")
        yield double
        return
    with Cluster(Path(real), KubeClient.from_file(Path(real))) as cluster:
        yield cluster


__all__ = ["api_server", "certificates", "cluster", "double_cluster"]

"""An API server, for the tests of this folder that want one."""

from collections.abc import Iterator

import pytest
from apiserver.certificates import Certificates
from apiserver.double import ApiServer
from apiserver.fixtures import certificates, cluster, double_cluster


@pytest.fixture
def api_server(certificates: Certificates) -> Iterator[ApiServer]:
    """Run the API server double; Backends may be at loopback addresses."""
    with ApiServer(certificates=certificates, takes_loopback=True) as server:
        yield server


__all__ = ["api_server", "certificates", "cluster", "double_cluster"]

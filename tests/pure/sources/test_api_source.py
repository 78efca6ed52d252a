"""Whether the API server is reached by an address that the proxy itself is to serve."""

import pytest
from builders import service, service_port

from userspace_proxy.sources.api_source import cluster_address_warning

KUBERNETES = service("default/kubernetes", service_port("https", 443), cluster_ips=["10.96.0.1", "fd00::1"])


@pytest.mark.parametrize(
    ("server", "is_warned"),
    [
        pytest.param("https://10.96.0.1", True, id="default-port"),
        pytest.param("https://10.96.0.1:443", True, id="port"),
        pytest.param("https://[fd00::1]:443", True, id="ipv6"),
        pytest.param("https://kubernetes.default.svc", True, id="name"),
        pytest.param("https://kubernetes.default.svc.cluster.local:443", True, id="full-name"),
        pytest.param("https://kubernetes.default", True, id="short-name"),
        pytest.param("https://10.96.0.1:6443", False, id="other-port"),
        pytest.param("http://10.96.0.1", False, id="http"),
        pytest.param("https://192.0.2.1:443", False, id="other-address"),
        pytest.param("https://kubernetes.example.com", False, id="other-name"),
    ],
)
def test_cluster_address_warning_for_an_address_that_is_served(server: str, is_warned: bool) -> None:  # noqa: FBT001
    """A URL that leads to a Service of the proxy is warned of, with the way out; others are not."""
    warning = cluster_address_warning(server, [service(), KUBERNETES])
    assert bool(warning) is is_warned
    if is_warned:
        assert "Service default/kubernetes" in warning
        assert "--api-server https://HOST:6443" in warning

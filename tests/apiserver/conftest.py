"""The fixtures of ``fixtures`` for the tests of this folder."""

from apiserver.fixtures import api_server, certificates, cluster, double_cluster

__all__ = ["api_server", "certificates", "cluster", "double_cluster"]

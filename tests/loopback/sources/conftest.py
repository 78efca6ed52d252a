"""The API server double for the tests of this folder."""

from apiserver.fixtures import api_server, certificates

__all__ = ["api_server", "certificates"]

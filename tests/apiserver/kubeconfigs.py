"""Kubeconfig files for the API server double.

Source: Kubernetes documentation, "kubeconfig (v1)". Entry point: ``write_kubeconfig``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def write_kubeconfig(
    path: Path,
    url: str,
    *,
    user: Mapping[str, Any],
    authority: Path | None = None,
    is_insecure: bool = False,
) -> Path:
    """Write a kubeconfig with one cluster, user and context, and return its path.

    Args:
        path: of the file.
        url: of the server.
        user: its credentials, as the file has them: ``token``, ``tokenFile``, ``exec``, ``client-certificate``...
        authority: who signed the server's certificate.
        is_insecure: whether the certificate is not looked at.
    """
    cluster: dict[str, Any] = {"server": url}
    if authority is not None:
        cluster["certificate-authority"] = str(authority)
    if is_insecure:
        cluster["insecure-skip-tls-verify"] = True
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "double", "cluster": cluster}],
                "users": [{"name": "tester", "user": dict(user)}],
                "contexts": [{"name": "double", "context": {"cluster": "double", "user": "tester"}}],
                "current-context": "double",
            }
        ),
        encoding="utf-8",
    )
    path.chmod(0o600)
    return path

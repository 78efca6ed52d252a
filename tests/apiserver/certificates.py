"""Throw-away certificates: an authority, a server and a client, made with the openssl program.

Entry point: ``make_certificates``.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

CLIENT_NAME = "proxy"
"""Common name of the client's certificate, by which the server knows the user."""


@frozen
class Certificates:
    """Files in PEM form."""

    authority: Path
    """Signs the server and the clients."""
    other_authority: Path
    """Signs nobody here: who trusts it alone must refuse the server."""
    server: Path
    """Certificate and key."""
    client: Path
    client_key: Path


def make_certificates(folder: Path, addresses: Iterable[str] = ()) -> Certificates:
    """Make all of them in an existing folder.

    Args:
        folder: where the files go.
        addresses: IP addresses of the server besides 127.0.0.1 and ::1.
    """
    names = ",".join(["DNS:localhost", *(f"IP:{one}" for one in ("127.0.0.1", "::1", *addresses))])
    authority = _authority(folder, "authority")
    other = _authority(folder, "other-authority")
    server = _signed(folder, "server", "/CN=apiserver", f"subjectAltName={names}")
    client = _signed(folder, "client", f"/O=system:nodes/CN={CLIENT_NAME}", "extendedKeyUsage=clientAuth")
    together = folder / "server.pem"
    together.write_bytes(server.read_bytes() + server.with_suffix(".key").read_bytes())
    return Certificates(authority, other, together, client, client.with_suffix(".key"))


def _authority(folder: Path, name: str) -> Path:
    certificate = folder / f"{name}.crt"
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(certificate)),
    )
    return certificate


def _signed(folder: Path, name: str, subject: str, extension: str) -> Path:
    certificate = folder / f"{name}.crt"
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-CA", str(folder / "authority.crt"), "-CAkey", str(folder / "authority.key"), "-subj", subject),
        *("-addext", extension, "-addext", "basicConstraints=critical,CA:FALSE"),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(certificate)),
    )
    return certificate


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)

"""Which ports this process may bind, found by trying. Entry point: ``find_first_port``."""

import errno
import socket
from ipaddress import IPv4Network
from pathlib import Path

_PROBE_TIMEOUT_S = 1.0
"""Arbitrary: the kernel answers at once, but a firewall may swallow what is sent to unusual addresses."""
_UNPRIVILEGED_START = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_DEFAULT_UNPRIVILEGED_START = 1024


def find_first_port(network: IPv4Network) -> int:
    """Return the lowest port that this process may bind in a network.

    It is tried, not read off the capabilities: CAP_NET_BIND_SERVICE says nothing where the network namespace belongs
    to another user namespace.

    Raises:
        OSError: not even a free unprivileged one can be used.

    Source: ip(7), ip_unprivileged_port_start.
    """
    address = str(network[1 % network.num_addresses])
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        listening.bind((address, 0))
        listening.listen()
        client.settimeout(_PROBE_TIMEOUT_S)
        client.connect(listening.getsockname())
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as privileged:
        try:
            privileged.bind((address, 1))
        except PermissionError:
            return _unprivileged_start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return 1


def _unprivileged_start() -> int:
    try:
        return int(_UNPRIVILEGED_START.read_text())
    except FileNotFoundError:  # before Linux 4.11
        return _DEFAULT_UNPRIVILEGED_START

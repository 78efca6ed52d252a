"""Which programs listen on all addresses of this node. Reads; entry point: ``find_wildcard_listeners``.

It sees what /proc shows to this process, and is slow on a node with many processes: to be called once.
Source: proc_pid_net(5).
"""

import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from attrs import frozen

from userspace_proxy.model.names import Protocol
from userspace_proxy.processes import command_name, open_files, process_ids

_PROC = Path("/proc")
_LISTENING = {Protocol.TCP: "0A", Protocol.UDP: "07"}
"""TCP_LISTEN and TCP_CLOSE of include/net/tcp_states.h: a UDP socket in the latter is not connected."""
_TABLES = ((Protocol.TCP, "tcp"), (Protocol.TCP, "tcp6"), (Protocol.UDP, "udp"), (Protocol.UDP, "udp6"))


@frozen(order=True)
class WildcardListener:
    """A port that a program of others has at all addresses."""

    port: int
    protocol: Protocol
    program: str
    """As ``sshd (pid 612)``; ``a hidden program`` where its owner is not shown to this process."""

    def __str__(self) -> str:
        """Return ``sshd (pid 612) at 22/TCP``."""
        return f"{self.program} at {self.port}/{self.protocol}"


def find_wildcard_listeners() -> tuple[WildcardListener, ...]:
    """Return the ports at which other processes than this one can be reached at whatever address the node gets.

    Returns:
        By port; TCP sockets that listen and UDP sockets that are not connected, of both families.
    """
    places = {
        f"socket:[{inode}]": (port, protocol)
        for protocol, table in _TABLES
        for inode, port in _wildcard_sockets(protocol, table)
    }
    holders = _find_holders(places.keys())
    return tuple(
        sorted(
            {
                WildcardListener(port, protocol, holders.get(link, "a hidden program"))
                for link, (port, protocol) in places.items()
                if holders.get(link) != ""
            }
        )
    )


def _wildcard_sockets(protocol: Protocol, table: str) -> Iterator[tuple[str, int]]:
    """Yield inode and port of the sockets of one table."""
    try:
        with (_PROC / "net" / table).open(encoding="ascii") as lines:
            for line in islice(lines, 1, None):
                _slot, local, _remote, state, *rest = line.split()
                address, _, port = local.partition(":")
                if state == _LISTENING[protocol] and not address.strip("0"):
                    yield rest[5], int(port, 16)
    except OSError:  # no IPv6, or no /proc
        return


def _find_holders(links: Collection[str]) -> dict[str, str]:
    """Return who has the sockets, by the text of their links; empty for those that this process has itself.

    Where several processes share a socket it is the one with the lowest pid: the parent, as a rule.
    """
    found: dict[str, str] = {}
    for pid in process_ids():
        held = {link for link in open_files(pid) if link in links} - found.keys()
        if held:
            found.update(dict.fromkeys(held, "" if pid == os.getpid() else f"{command_name(pid)} (pid {pid})"))
    return found

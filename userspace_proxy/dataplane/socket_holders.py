"""Who holds a TCP or UDP port: the name of a process for the sentence that says that a port is in use.

Blocking, and slow on a node with many processes and open files (it reads /proc/PID/fd until it finds the holder): to be
called only after a bind has failed, and not at each retry. It sees what /proc shows to this process: without
privileges only processes of the same user, never those of another PID namespace.
Source: proc_pid_net(5). Entry point: ``describe_holder``.
"""

import os
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import islice, takewhile
from pathlib import Path

from userspace_proxy.model.names import IPAddress, Protocol
from userspace_proxy.processes import command_name, open_files, process_ids

_PROC = Path("/proc")
_LISTEN = "0A"
"""TCP_LISTEN of linux/tcp_states.h as /proc/net/tcp prints it."""
_TABLES = {Protocol.TCP: ("net/tcp", "net/tcp6"), Protocol.UDP: ("net/udp", "net/udp6")}


def describe_holder(address: IPAddress, port: int, protocol: Protocol) -> str | None:
    """Return who keeps us from listening on an address (TCP or UDP), as ``pid 812 (nginx)``.

    Where several processes share the socket it is the one with the lowest pid: the parent, as a rule. This process is
    named only if there is no other one: it may hold the port itself, in vain. None: no listening socket is in the way
    (one that is bound but does not listen is shown nowhere), or its owner is hidden.
    """
    inodes = {inode for held, inode in _listening_sockets(address, port, protocol) if _conflicts(held, address)}
    pid = _lowest_pid_with(inodes) if inodes else None
    return None if pid is None else f"pid {pid} ({command_name(pid)})"


def _conflicts(held: IPAddress, wanted: IPAddress) -> bool:
    """Return whether a socket on ``held`` is in the way of one on ``wanted`` with the same port, V6ONLY if IPv6.

    /proc does not say whether an IPv6 wildcard socket is dual-stack; it is by default, so it counts for IPv4 too.
    """
    if isinstance(held, IPv6Address):
        if held.is_unspecified:
            return True
        held = held.ipv4_mapped or held
    if held.version != wanted.version:
        return False
    return held == wanted or held.is_unspecified or wanted.is_unspecified


def _listening_sockets(wanted: IPAddress, port: int, protocol: Protocol) -> Iterator[tuple[IPAddress, str]]:
    """Yield address and inode of the sockets that have the port in the families that can be in the way.

    Of TCP those that listen, of UDP all: even one that is connected is in the way.
    """
    tables = _TABLES[protocol]
    for table in tables if isinstance(wanted, IPv4Address) else tables[1:]:
        try:
            # The kernel lists listening sockets first (tcp_seq_start in net/ipv4/tcp_ipv4.c): no need to read on
            # through what may be a hundred thousand connections.
            with (_PROC / table).open(encoding="utf-8") as lines:
                rows: Iterator[list[str]] = (line.split() for line in islice(lines, 1, None))
                if protocol is Protocol.TCP:
                    rows = takewhile(lambda row: row[3] == _LISTEN, rows)
                for row in rows:
                    address, _, held_port = row[1].partition(":")
                    if int(held_port, 16) == port:
                        yield _parse_address(address), row[9]
        except OSError:  # no IPv6, or no /proc: then nobody can be named
            continue


def _parse_address(text: str) -> IPAddress:
    """Parse an address as /proc/net/tcp and tcp6 print it: 32-bit words in the byte order of the machine."""
    packed = b"".join(int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8))
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)  # noqa: PLR2004


def _lowest_pid_with(inodes: set[str]) -> int | None:
    """Return the lowest pid that has one of the sockets open, that of this process after all others."""
    links = {f"socket:[{inode}]" for inode in inodes}
    for pid in sorted(process_ids(), key=lambda pid: (pid == os.getpid(), pid)):
        if any(link in links for link in open_files(pid)):
            return pid
    return None

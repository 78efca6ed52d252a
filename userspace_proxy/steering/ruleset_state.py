"""Whether anybody has changed netfilter rules since a moment ago, at the price of one system call. Reads only.

Entry points: ``read_generation`` (nf_tables, which iptables-nft writes too) and ``read_legacy_table``.
"""

import ctypes
import os
import socket
import struct

from userspace_proxy.model.names import Family
from userspace_proxy.steering.netlink import NLMSG_ERROR, build_message, read_errno, read_messages

_NETLINK_NETFILTER = 12
"""Source: Linux include/uapi/linux/netlink.h; module socket does not have it."""
_GET_GENERATION = (10 << 8) | 16
"""NFNL_SUBSYS_NFTABLES and NFT_MSG_GETGEN of Linux include/uapi/linux/netfilter/nf_tables.h."""
_REQUEST = build_message(_GET_GENERATION, 0, bytes(4))
_ID_OFFSET = 8
"""Behind struct nfgenmsg and the head of the first attribute, NFTA_GEN_ID (big-endian)."""
_TIMEOUT_S = 1.0
"""Arbitrary: the kernel answers at once."""

_GET_INFO = 64
"""IPT_SO_GET_INFO and IP6T_SO_GET_INFO of Linux include/uapi/linux/netfilter_ipv4/ip_tables.h."""
_INFO_BYTES = 84
"""struct ipt_getinfo: a name of 32 bytes, then valid_hooks, 5 offsets each of hooks and underflows, entries, size."""
_NAME_BYTES = 32
_LEVELS = {Family.IPV4: (socket.AF_INET, socket.IPPROTO_IP), Family.IPV6: (socket.AF_INET6, socket.IPPROTO_IPV6)}
_LIBC = ctypes.CDLL(None, use_errno=True)


def read_generation() -> int:
    """Return the generation of the nf_tables ruleset of this network namespace: each transaction adds one.

    Raises:
        OSError: not permitted, or there is no nf_tables.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.send(_REQUEST)
        answer = netlink.recv(4096)
    message = next(read_messages(answer))
    if message.kind == NLMSG_ERROR:
        number = read_errno(answer, message)
        raise OSError(number, os.strerror(number))
    generation: int = struct.unpack_from(">I", answer, message.start + _ID_OFFSET)[0]
    return generation


def read_legacy_table(family: Family, table: str) -> bytes:
    """Return what tells two states of a table of iptables-legacy apart: sizes and offsets, not the rules themselves.

    A rule that is removed or added always shows; one that replaces another of the same size does not.

    Args:
        family: Which one.
        table: It must exist: the kernel would create it.

    Raises:
        OSError: not permitted (NET_ADMIN and NET_RAW), or there is no such table.
    """
    domain, level = _LEVELS[family]
    buffer = ctypes.create_string_buffer(table.encode(), _INFO_BYTES)
    length = ctypes.c_uint32(_INFO_BYTES)
    with socket.socket(domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:  # getsockopt of Python takes no input
        if _LIBC.getsockopt(raw.fileno(), level, _GET_INFO, buffer, ctypes.byref(length)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    return buffer.raw[_NAME_BYTES:]

"""SO_REUSEPORT groups: several sockets at one place, of which the kernel chooses one for each client or flow.

The members are numbered in the order in which they joined the group: TCP sockets when they listened, UDP sockets when
they were bound. Works without privileges. Source: socket(7), SO_ATTACH_REUSEPORT_CBPF; the constants are those of
asm-generic/socket.h and linux/filter.h, for which Python has no names. Entry points: ``choose_by_source``,
``choose_by_flow``.
"""

import ctypes
import socket
import struct
from contextlib import suppress

_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_DETACH_REUSEPORT_BPF = 68

# Classic BPF: struct sock_filter is a code, two jumps and a constant.
_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")
"""struct sock_fprog: the number of instructions, and where they are."""
_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_TO_X = 0x07  # BPF_MISC | BPF_TAX
_XOR_X = 0xAC  # BPF_ALU | BPF_XOR | BPF_X
_MULTIPLY = 0x24  # BPF_ALU | BPF_MUL | BPF_K
_SHIFT_RIGHT = 0x74  # BPF_ALU | BPF_RSH | BPF_K
_MODULO = 0x94  # BPF_ALU | BPF_MOD | BPF_K
_RETURN = 0x16  # BPF_RET | BPF_A
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF
_SOURCE_WORDS = {socket.AF_INET: (12,), socket.AF_INET6: (8, 12, 16, 20)}
"""Where the words of the source address are in the header of IPv4 (RFC 791) and of IPv6 (RFC 8200)."""

_SPREAD = 0x9E3779B1
"""2^32 by the golden ratio: neighbouring addresses come far apart (Knuth, multiplicative hashing)."""


def choose_by_source(sock: socket.socket, members: int) -> None:
    """Have the kernel choose the member of a group by the address of the client alone, from now on.

    Args:
        sock: Any member of the group.
        members: How many there are; it must not have fewer, or the choice is by flow.

    Raises:
        OSError: the kernel cannot, or a sandbox forbids it.
    """
    first, *others = _SOURCE_WORDS[sock.family]
    program = [_INSTRUCTION.pack(_LOAD_WORD, 0, 0, _NETWORK_HEADER + first)]
    for offset in others:
        program += [
            _INSTRUCTION.pack(_TO_X, 0, 0, 0),
            _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _NETWORK_HEADER + offset),
            _INSTRUCTION.pack(_XOR_X, 0, 0, 0),
        ]
    program += [
        _INSTRUCTION.pack(_MULTIPLY, 0, 0, _SPREAD),
        _INSTRUCTION.pack(_SHIFT_RIGHT, 0, 0, 16),
        _INSTRUCTION.pack(_MODULO, 0, 0, members),
        _INSTRUCTION.pack(_RETURN, 0, 0, 0),
    ]
    instructions = ctypes.create_string_buffer(b"".join(program))
    option = _PROGRAM.pack(len(program), ctypes.addressof(instructions))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, option)


def choose_by_flow(sock: socket.socket) -> None:
    """Have the kernel choose the member of a group by both addresses and ports, as it does by itself."""
    with suppress(OSError):  # ENOENT: it does already
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)

"""Messages of conntrack's netlink interface, as a kernel 6.18 wrote them (little-endian)."""

import errno
import sys
from ipaddress import ip_address

import pytest

from userspace_proxy.model.names import Family
from userspace_proxy.steering.conntrack.messages import (
    Entry,
    Place,
    Result,
    build_dump,
    build_removal,
    read_answers,
)

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the kernel writes in the order of the machine")

ORIGINAL = bytes.fromhex(
    "34000180 14000180 080001000a000001 080002000a60000a 1c000280 0500010011000000 060002009c400000 0600030000350000"
)
"""10.0.0.1:40000 to 10.96.0.10:53."""
REPLY = bytes.fromhex(
    "34000280 14000180 080001007f000001 080002000a000001 1c000280 0500010011000000 060002002f150000 060003009c400000"
)
"""From 127.0.0.1:12053."""
ZONE, STATUS, IDENTITY = map(bytes.fromhex, ("0600120000070000", "08000300000001a8", "08000c00b3253023"))
IPV4 = bytes.fromhex("ac00000000012200 00000000b95f0000 02000000") + ORIGINAL + REPLY + ZONE + STATUS
IPV4 += bytes.fromhex("0800080000000000") + IDENTITY + bytes.fromhex("08000b0000000001 080007000000001d")
IPV6 = bytes.fromhex(
    "d400000000012200 00000000b95f0000 0a000000"
    "4c000180 2c000180 14000300fd000000000000000000000000000001 14000400fd00009600000000000000000000000a"
    "1c000280 0500010011000000 060002009c410000 0600030000350000"
    "4c000280 2c000180 1400030000000000000000000000000000000001 14000400fd000000000000000000000000000001"
    "1c000280 0500010011000000 060002002f160000 060003009c410000"
    "08000300000001a8 0800080000000000 08000c00f05233bc 08000b0000000001 080007000000001d"
)
"""[fd00::1]:40001 to [fd00:96::a]:53, answers from [::1]:12054."""
TCP = IPV4.replace(bytes.fromhex("0500010011000000"), bytes.fromhex("0500010006000000"))
DONE = bytes.fromhex("14000000 0300 0200 00000000 b95f0000 00000000")
NOT_PERMITTED = bytes.fromhex("24000000 0200 0000 00000000 b95f0000 ffffffff 14000000 0101 0103 00000000 00000000")


def place(address: str, port: int) -> Place:
    """Return a Place."""
    return ip_address(address).packed, port


def test_entries_of_both_families_are_read() -> None:
    """What was sent to, and where rules have led it, whatever else the kernel says."""
    ipv4, ipv6, end = read_answers(IPV4 + IPV6 + DONE)
    assert isinstance(ipv4, Entry)
    assert isinstance(ipv6, Entry)
    assert (ipv4.destination, ipv4.answers_from) == (place("10.96.0.10", 53), place("127.0.0.1", 12053))
    assert (ipv6.destination, ipv6.answers_from) == (place("fd00:96::a", 53), place("::1", 12054))
    assert end == Result(0)


def test_entries_of_tcp_are_passed_over() -> None:
    """An old kernel does not know the filter and lists all."""
    assert list(read_answers(TCP + DONE)) == [Result(0)]


def test_refusal_has_its_errno() -> None:
    """Without the right the kernel sends the request back."""
    assert list(read_answers(NOT_PERMITTED)) == [Result(errno.EPERM)]


def test_removal_names_the_entry_by_what_was_read_its_zone_and_its_number() -> None:
    """Neither one of another zone with the same addresses nor one that was made since is taken for it."""
    (entry,) = read_answers(IPV4)
    assert isinstance(entry, Entry)
    head = bytes.fromhex("58000000 0201 0500 00000000 00000000 02000000")
    assert build_removal(Family.IPV4, entry) == head + ORIGINAL + ZONE + IDENTITY


def test_dump_asks_for_udp_of_one_family() -> None:
    """The kernel leaves out the rest: a flag says that the protocol in the pattern counts, and nothing else of it."""
    pattern = bytes.fromhex("10000180 0c000280 0500010011000000")
    flags = bytes.fromhex("0c001980 0800010008000000")
    head = "30000000 0101 0103 00000000 00000000"
    assert build_dump(Family.IPV4) == bytes.fromhex(f"{head} 02000000") + pattern + flags
    assert build_dump(Family.IPV6) == bytes.fromhex(f"{head} 0a000000") + pattern + flags

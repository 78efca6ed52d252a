"""Removes UDP entries of conntrack that have outlived the rules they were made by. Effects; entry point: ``Conntrack``.

It works in a thread, which lets go of the interpreter after some hundred entries: 50,000 entries take 0.3 to 0.6 s of
CPU time, and hold up no datagram by more than a few milliseconds.
"""

import errno
import logging
import os
import socket
from collections.abc import Collection, Iterator, Mapping

import trio

from userspace_proxy.errors import SteeringError
from userspace_proxy.model.names import Family
from userspace_proxy.steering.conntrack.messages import (
    Entry,
    Place,
    Result,
    build_dump,
    build_removal,
    read_answers,
)
from userspace_proxy.steering.conntrack.stale_entries import Led, Sweep, plan_sweep
from userspace_proxy.steering.node_state import read_local_addresses

_log = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
"""Source: Linux include/uapi/linux/netlink.h; module socket does not have it."""
_RECEIVE_BYTES = 1 << 16
"""The kernel sends 32 KiB at a time, at most."""
_BATCH = 64
"""Removals asked for at a time: the answers have to fit the socket's buffer. Arbitrary."""
_TIMEOUT_S = 5.0
"""For one answer; arbitrary: the kernel gives it at once."""


class Conntrack:
    """Keeps the UDP entries of this network namespace in step with rules.

    Entries that lead where the rules do are left alone, so are those of TCP, and those of other programs unless they
    lead to a port of this node in the range of proxy ports.

    Args:
        proxy_port_range: All ports that may be proxy ports.
    """

    def __init__(self, proxy_port_range: Collection[int]) -> None:
        self._proxy_port_range = proxy_port_range
        self._led: dict[Family, Led] = {}
        """What entries are in step with; families are missing while that is unknown, as it is at the start."""
        self._has_warned = False

    async def follow(self, family: Family, proxy_ports: Mapping[Place, int]) -> None:
        """Remove what is stale now that other rules are in force, or go on without: that is said once.

        To be called again now and then: what has failed is tried again, and the node may have lost an address.

        Args:
            family: Which one.
            proxy_ports: Where the datagrams to each UDP Frontend of it go.
        """
        before = self._led.get(family)
        if before is not None and not before.proxy_ports and not proxy_ports:
            return
        self._led.pop(family, None)  # should it fail, entries of several states of the rules are there
        try:
            now = Led(proxy_ports, _local_addresses())
            sweep = plan_sweep(before, now, self._proxy_port_range)
            if sweep is not None:
                await _remove(family, sweep)
        except OSError as error:
            if before is not None or proxy_ports:
                self._warn(error)
        else:
            self._led[family] = now

    def forget(self, family: Family) -> None:
        """Take nothing for granted: it is not known what the rules of a family are."""
        self._led.pop(family, None)

    async def end(self, family: Family) -> None:
        """Remove all that leads to a port of ours, now that no rule does any more."""
        places = self._led.pop(family, Led()).proxy_ports.keys()
        try:
            await _remove(family, Sweep(Led(local_addresses=_local_addresses()), places, self._proxy_port_range))
        except OSError as error:
            if places:
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "UDP clients that never pause may stay where they were led before a Service changed: their "
                "entries in conntrack cannot be removed; give CAP_NET_ADMIN, and load nf_conntrack_netlink",
                extra={"reason": error.strerror or error},
            )


async def remove_led_to(family: Family, proxy_ports: Collection[int]) -> None:
    """Remove the entries that rules have led to some ports of this node, now that no rule does any more.

    Raises:
        SteeringError: some may be left; one clause says why.
    """
    try:
        await _remove(family, Sweep(Led(local_addresses=_local_addresses()), (), proxy_ports))
    except OSError as error:
        raise SteeringError(error.strerror or str(error)) from error


async def _remove(family: Family, sweep: Sweep) -> None:
    await trio.to_thread.run_sync(_remove_stale, family, sweep)  # not abandoned: bounded in time


def _remove_stale(family: Family, sweep: Sweep) -> None:
    """List the UDP entries of a family and remove those that are stale.

    Raises:
        OSError: not permitted, not supported, or it did not work for once.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.send(build_dump(family))
        removals = []
        failed = 0
        for answer in _receive(netlink, 1):
            if isinstance(answer, Result):
                failed = answer.errno
            elif sweep.is_stale(answer):
                removals.append(build_removal(family, answer))
        for start in range(0, len(removals), _BATCH):
            batch = removals[start : start + _BATCH]
            netlink.send(b"".join(batch))
            for answer in _receive(netlink, len(batch)):
                if isinstance(answer, Result) and answer.errno not in (0, errno.ENOENT):
                    failed = answer.errno  # one that cannot be removed does not save the others
    if failed:
        raise OSError(failed, os.strerror(failed))


def _receive(netlink: socket.socket, count: int) -> Iterator[Entry | Result]:
    """Yield all that is answered to some requests.

    Args:
        netlink: What they were sent by.
        count: How many.

    Raises:
        OSError: no answer, or more than the socket's buffer holds.
    """
    while count:
        for answer in read_answers(netlink.recv(_RECEIVE_BYTES)):
            yield answer
            count -= isinstance(answer, Result)


def _local_addresses() -> frozenset[bytes]:
    return frozenset(address.packed for address in read_local_addresses())

"""When entries of conntrack are looked at: after changes, and again where that has failed; the kernel is a fake."""

import errno
from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address

import pytest
import trio
from builders import frontend, named
from loopback.steering.fake_tool import FakeKernel as FakeTables
from loopback.steering.iptables_steering import MakeConfig, steer

from userspace_proxy.model.names import Family, IPAddress, Protocol
from userspace_proxy.steering.base import ServiceSteering, Surroundings
from userspace_proxy.steering.conntrack import conntrack
from userspace_proxy.steering.conntrack.conntrack import Conntrack
from userspace_proxy.steering.conntrack.messages import Place
from userspace_proxy.steering.conntrack.stale_entries import Sweep
from userspace_proxy.steering.iptables.steering import IptablesSteering

PORTS = range(12000, 30000)
DNS: Place = (IPv4Address("10.96.0.10").packed, 53)


class FakeKernel:
    """Notes the sweeps, and fails when told to."""

    def __init__(self) -> None:
        self.sweeps: list[Sweep] = []
        self.failures = 0
        """How many of the next sweeps fail."""
        self.has_descriptors = True
        """Without, addresses cannot be read."""
        self.addresses: set[IPAddress] = {ip_address("10.0.0.1"), ip_address("fd00::1")}

    def remove_stale(self, family: Family, sweep: Sweep) -> None:
        """Note it, or fail."""
        assert family is Family.IPV4
        self.sweeps.append(sweep)
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ENOBUFS, "no buffer space")

    def local_addresses(self) -> frozenset[IPAddress]:
        """Return the addresses of the node."""
        if not self.has_descriptors:
            raise OSError(errno.EMFILE, "too many open files")
        return frozenset(self.addresses)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """Return what takes the place of the kernel."""
    fake = FakeKernel()
    monkeypatch.setattr(conntrack, "_remove_stale", fake.remove_stale)
    monkeypatch.setattr(conntrack, "read_local_addresses", fake.local_addresses)
    return fake


async def test_sweep_that_failed_is_made_up_for_though_rules_are_as_before_again(kernel: FakeKernel) -> None:
    """Entries made in between lead to where rules have led only then."""
    entries = Conntrack(PORTS)
    states: list[Mapping[Place, int]] = [{DNS: 12053}, {DNS: 12054}, {DNS: 12053}, {DNS: 12053}]
    for state, failures in zip(states, (0, 1, 0, 0), strict=True):
        kernel.failures = failures
        await entries.follow(Family.IPV4, state)
    assert [set(sweep.changed) for sweep in kernel.sweeps] == [{DNS}] * 3
    assert kernel.sweeps[-1].led.proxy_ports == {DNS: 12053}


async def test_sweep_that_was_cancelled_is_made_up_for(kernel: FakeKernel) -> None:
    """Whoever cancels it may have other rules next."""
    entries = Conntrack(PORTS)
    await entries.follow(Family.IPV4, {DNS: 12053})
    with trio.CancelScope() as scope:
        scope.cancel()
        await entries.follow(Family.IPV4, {DNS: 12054})
    await entries.follow(Family.IPV4, {DNS: 12053})
    assert len(kernel.sweeps) == 2


async def test_sweep_without_a_descriptor_for_it_is_made_up_for(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a failure like others: said once."""
    entries = Conntrack(PORTS)
    kernel.has_descriptors = False
    await entries.follow(Family.IPV4, {DNS: 12053})
    await entries.end(Family.IPV4)
    await entries.follow(Family.IPV4, {DNS: 12053})
    assert not kernel.sweeps
    assert [vars(record)["reason"] for record in caplog.records] == ["too many open files"]
    kernel.has_descriptors = True
    await entries.follow(Family.IPV4, {DNS: 12053})
    assert len(kernel.sweeps) == 1


def test_refresh_tries_again_what_failed_and_follows_lost_addresses(
    make_config: MakeConfig, kernel: FakeKernel
) -> None:
    """IPv6 addresses are in no rule, so no rule is written when one goes; without a change nothing is done."""

    async def do(steering: IptablesSteering, tables: FakeTables) -> None:
        kernel.failures = 1
        placed = steering.place([frontend("10.96.0.10:53", protocol=Protocol.UDP)])
        await steering.apply({named(): ServiceSteering(placed)}, Surroundings())
        tables.inputs.clear()
        for expected in (2, 2):
            await steering.refresh()
            assert len(kernel.sweeps) == expected
        kernel.addresses.remove(ip_address("fd00::1"))
        for expected in (3, 3):
            await steering.refresh()
            assert len(kernel.sweeps) == expected
        assert tables.inputs == []

    steer(make_config, do)

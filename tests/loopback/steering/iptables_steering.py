"""iptables steering on fake commands."""

from collections.abc import Awaitable, Callable

import trio
from loopback.steering.fake_commands import FakeCommands

from userspace_proxy.config import Config
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.iptables import IptablesSteering, open_iptables

MakeConfig = Callable[..., Config]

IPV4 = ("iptables-nft-save", "iptables-nft-restore")
IPV6 = ("ip6tables-nft-save", "ip6tables-nft-restore")


def steer(
    commands: FakeCommands,
    make_config: MakeConfig,
    do: Callable[[IptablesSteering], Awaitable[None]],
) -> None:
    """Open iptables steering on the fakes there are, forget the calls of its probes, and do something with it."""

    async def run() -> None:
        steering = await open_iptables(Assignments(make_config()))
        commands.forget()
        await do(steering)

    trio.run(run)

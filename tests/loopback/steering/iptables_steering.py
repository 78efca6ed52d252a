"""iptables steering on tables in memory."""

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Address

import trio
from builders import frontend, named
from loopback.steering.fake_tool import FakeKernel, fake_tool

from userspace_proxy.config import Config
from userspace_proxy.model.names import Family, NamespacedName, Protocol
from userspace_proxy.plan.state import Route, SteeringRule
from userspace_proxy.steering.assignments import Assignments
from userspace_proxy.steering.base import Surroundings
from userspace_proxy.steering.iptables.steering import IptablesRules, IptablesSteering
from userspace_proxy.steering.iptables.tool import Variant
from userspace_proxy.steering.rule_steering import Conditions, PortRule, ServiceRules

MakeConfig = Callable[..., Config]

NODE = Conditions(Surroundings(), ("eth0", "lo"), IPv4Address("192.0.2.2"))
NOT_STEERED = "IPv4 addresses of Services are not steered as they should be"
NOT_KEPT_AWAY = "IPv4 clients are not kept away as they should be"


def web(host: int = 10, proxy_port: int = 12080, route: Route | None = None) -> ServiceRules:
    """Return what a Service with one cluster address asks for."""
    port = PortRule(Protocol.TCP, None, proxy_port, is_proxy_port=True, route=route)
    return ServiceRules((SteeringRule(frontend(f"10.96.0.{host}:80"), proxy_port),), (port,))


WEB, API = {named("shop/web"): web()}, {named("shop/api"): web(11, 12081)}


async def start(kernel: FakeKernel, *, variant: Variant = Variant.NFT, may_watch: bool = True) -> IptablesRules:
    """Return rules of a run that has two Services in force; what it has done so far is forgotten."""
    rules = IptablesRules(fake_tool(kernel, variant=variant, may_watch=may_watch), "")
    await rules.update({**WEB, **API}, NODE)
    kernel.inputs.clear()
    kernel.looks.clear()
    return rules


async def built(services: Mapping[NamespacedName, ServiceRules], conditions: Conditions = NODE) -> Mapping[str, object]:
    """Return our rules on a fresh node that has some Services."""
    kernel = FakeKernel()
    await IptablesRules(fake_tool(kernel), "").update(services, conditions)
    return kernel.own()


def steer(make_config: MakeConfig, do: Callable[[IptablesSteering, FakeKernel], Awaitable[None]]) -> None:
    """Open iptables steering of IPv4 and do something with it."""

    async def run() -> None:
        kernel = FakeKernel()
        rules = IptablesRules(fake_tool(kernel), "")
        steering = IptablesSteering({Family.IPV4: rules}, {Family.IPV6: "not here"}, Assignments(make_config()))
        await do(steering, kernel)

    trio.run(run)

"""The Pipeline where traffic policies, source ranges, the Node and health checks come in."""

import trio
from attrs import evolve
from builders import endpoint, endpoint_slice, named, plan_settings, service, service_port, service_port_name
from cli_driver import free_port
from pipeline_driver import Flow, open_flow
from trio.testing import MockClock

from userspace_proxy.control.pipeline import COALESCE_S, RETRY_S
from userspace_proxy.model.names import Family, IPNetwork, NamespacedName, Protocol
from userspace_proxy.model.node import Node
from userspace_proxy.model.service_port import Service, TrafficPolicy
from userspace_proxy.plan.state import HealthCheck, PolicyClass, Route, SourceClass, Verdict
from userspace_proxy.sources.base import Removed

NODE = Node("node-1")
SETTINGS = plan_settings(node_name=NODE.name)
HERE = endpoint("10.0.1.1", node_name=NODE.name)
ELSEWHERE = endpoint("10.0.1.2", node_name="node-2")
LOCAL = endpoint_slice("shop/web-1", HERE, ELSEWHERE)
REMOTE = endpoint_slice("shop/web-1", ELSEWHERE)
NOBODY = endpoint_slice("shop/web-1")


def policy_service(*, health_check_node_port: int | None = None) -> Service:
    """Return Service shop/web with a NodePort and externalTrafficPolicy Local."""
    return service(
        "shop/web",
        service_port(node_port=free_port()),
        external_policy=TrafficPolicy.LOCAL,
        health_check_node_port=health_check_node_port,
    )


def node_port_route(flow: Flow) -> Route:
    """Return the Route that the NodePort of shop/web has in force."""
    ((_, wanted),) = [(key, one) for key, one in flow.listeners._wanted.items() if key.frontend is not None]
    return wanted.route


def restricted(flow: Flow) -> list[list[str]]:
    """Return the Frontends with rules of their own, for each time that steering was told."""
    return [[str(frontend) for frontend in one] for one in flow.steering.restricted]


async def test_pipeline_change_of_a_route_touches_no_socket(autojump_clock: MockClock) -> None:
    """The last endpoint of this node goes: outsiders are dropped by the same listening sockets at once."""
    async with open_flow() as flow:
        flow.settings = SETTINGS
        await flow.sync(policy_service(), LOCAL)
        sockets = flow.sockets()
        assert node_port_route(flow).is_same_for_all is False
        await flow.feed(REMOTE)
        await trio.sleep(COALESCE_S)
        assert node_port_route(flow).target(SourceClass.OUTSIDE) is Verdict.DROP
        assert flow.sockets() == sockets
        assert flow.backends()["shop/web:http local"] == []
        await flow.feed(LOCAL)
        await trio.sleep(COALESCE_S)
        assert node_port_route(flow).target(SourceClass.OUTSIDE) is not Verdict.DROP
        assert flow.sockets() == sockets


async def test_pipeline_route_and_its_pools_change_together(autojump_clock: MockClock) -> None:
    """A change of the policy itself, which needs another Pool, opens and closes nothing either."""
    async with open_flow() as flow:
        flow.settings = SETTINGS
        before = policy_service()
        await flow.sync(before, LOCAL)
        sockets = flow.sockets()
        await flow.feed(evolve(before, external_policy=TrafficPolicy.CLUSTER))
        await trio.sleep(COALESCE_S)
        assert node_port_route(flow).is_same_for_all
        assert flow.sockets() == sockets
        await trio.sleep(2 * RETRY_S)
        assert flow.backends() == {"shop/web:http cluster": ["10.0.1.1:8080", "10.0.1.2:8080"]}


async def test_pipeline_shared_listener_has_the_route_of_its_frontends(autojump_clock: MockClock) -> None:
    """All external IPs of a port share one Listener, and follow their policy together."""
    async with open_flow() as flow:
        flow.settings = SETTINGS
        web = service("shop/web", external_ips=["192.0.2.1", "192.0.2.2"], external_policy=TrafficPolicy.LOCAL)
        await flow.sync(web, LOCAL)
        assert len(flow.sockets()) == 2
        await flow.feed(REMOTE)
        await flow.settle()
        routes = {key.policy: wanted.route for key, wanted in flow.listeners._wanted.items()}
        assert routes[PolicyClass.EXTERNAL].outside is Verdict.DROP
        assert routes[PolicyClass.INTERNAL].is_same_for_all


async def test_pipeline_tells_steering_of_restrictions_when_they_change(autojump_clock: MockClock) -> None:
    """Who is to be dropped is told, no matter that no place has changed; a change of endpoints alone is not told."""
    async with open_flow() as flow:
        flow.settings = SETTINGS
        await flow.sync(policy_service(), LOCAL)
        assert restricted(flow) == [[]]
        await flow.feed(REMOTE)
        await flow.settle()
        (frontend,) = [one.frontend for one in flow.pipeline.placements() if one.frontend.address is None]
        assert restricted(flow) == [[], [str(frontend)]]
        await flow.feed(endpoint_slice("shop/web-1", ELSEWHERE, endpoint("10.0.1.3", node_name="node-2")))
        await flow.settle()
        assert len(flow.steering.applied) == 2
        await flow.feed(LOCAL)
        await flow.settle()
        assert restricted(flow)[2:] == [[]]


async def test_pipeline_service_that_loses_all_endpoints_needs_no_rule(autojump_clock: MockClock) -> None:
    """Nobody listens, so all are refused: steering is not told, neither then nor when they come back."""
    async with open_flow() as flow:
        flow.settings = SETTINGS
        await flow.sync(service("shop/web", load_balancer_ips=["192.0.2.1"], external_ips=["192.0.2.2"]), LOCAL)
        await flow.feed(NOBODY)
        await flow.settle()
        assert flow.sockets() == {}
        await flow.feed(LOCAL)
        await flow.settle()
        assert len(flow.sockets()) == 3
        assert len(flow.steering.applied) == 1


async def test_pipeline_tells_steering_of_source_ranges(autojump_clock: MockClock) -> None:
    """They are of the load balancer Frontends alone."""
    async with open_flow() as flow:
        web = service("shop/web", load_balancer_ips=["192.0.2.1"], source_ranges=["198.51.100.0/24"])
        await flow.sync(web, LOCAL)
        assert restricted(flow) == [["192.0.2.1:80/TCP"]]
        await flow.feed(evolve(web, source_ranges=()))
        await flow.settle()
        assert restricted(flow) == [["192.0.2.1:80/TCP"], []]
        await flow.remove(web)
        await flow.settle()
        assert restricted(flow)[2:] == [[]]


async def test_pipeline_change_of_the_node_plans_anew_at_once(autojump_clock: MockClock) -> None:
    """The settings are made anew for the Node as it is now; one that is the same changes nothing."""
    async with open_flow() as flow:
        flow.settings = plan_settings()
        await flow.sync(policy_service(), LOCAL)
        assert node_port_route(flow).outside is Verdict.DROP
        reads = len(flow.nodes)
        flow.settings = SETTINGS
        await flow.feed(NODE)
        await trio.sleep(COALESCE_S)
        assert flow.pipeline.node == NODE
        assert flow.nodes[reads:] == [NODE]
        assert node_port_route(flow).outside is not Verdict.DROP
        await flow.feed(Node("node-1"))
        await trio.sleep(COALESCE_S)
        assert len(flow.nodes) == reads + 1
        await flow.pipeline.feed([Removed(Node, NamespacedName("", "node-1"))])
        await trio.sleep(COALESCE_S)
        assert flow.nodes[reads + 1 :] == [None]


async def test_pipeline_retains_the_node_only_if_a_source_that_starts_anew_knows_it(autojump_clock: MockClock) -> None:
    """As any other object."""
    async with open_flow() as flow:
        await flow.feed(NODE)
        await flow.pipeline.retain({(Node, NamespacedName("", "node-1"))})
        assert flow.pipeline.node == NODE
        await flow.pipeline.retain(frozenset())
        assert flow.pipeline.node is None


async def test_pipeline_tells_listeners_and_steering_where_pods_are(autojump_clock: MockClock) -> None:
    """A change of the addresses of the node is for listeners alone."""
    async with open_flow() as flow:
        await flow.sync(service(), LOCAL)
        flow.settings = plan_settings(local_addresses=["10.0.0.1"])
        await trio.sleep(RETRY_S)
        assert flow.listeners.sources[-1] == flow.settings.sources
        assert len(flow.steering.applied) == 1
        flow.settings = plan_settings(local_addresses=["10.0.0.1"], pod_networks=["10.244.0.0/16"])
        await trio.sleep(RETRY_S)
        assert flow.listeners.sources[-1] == flow.settings.sources
        await trio.sleep(2 * RETRY_S)
        assert len(flow.listeners.sources) == 2
        told: list[tuple[IPNetwork, ...]] = [one.pod_networks for one in flow.steering.surroundings]
        assert told == [(), flow.settings.sources.pod_networks]


async def test_pipeline_tells_of_health_checks_when_they_change(autojump_clock: MockClock) -> None:
    """Their ports are for steering too, their counts are not; the Event is set once, by a change of a health check."""
    async with open_flow() as flow:
        flow.settings = SETTINGS
        changed = flow.pipeline.health_checks_changed
        web = policy_service(health_check_node_port=32000)
        await flow.sync(web, LOCAL)
        assert flow.pipeline.health_checks == {named("shop/web"): HealthCheck(32000, {Family.IPV4: 1})}
        assert changed.is_set()
        changed = flow.pipeline.health_checks_changed
        assert [one.health_check_ports for one in flow.steering.surroundings] == [{32000}]
        await flow.feed(evolve(web, affinity_timeout_s=60))
        await trio.sleep(2 * RETRY_S)
        assert not changed.is_set()
        two = endpoint_slice("shop/web-1", HERE, endpoint("10.0.1.9", node_name=NODE.name))
        await flow.feed(two)
        await flow.settle()
        assert changed.is_set()
        assert flow.pipeline.health_checks == {named("shop/web"): HealthCheck(32000, {Family.IPV4: 2})}
        assert len(flow.steering.applied) == 1
        await flow.feed(evolve(web, health_check_node_port=32001))
        await flow.settle()
        assert [one.health_check_ports for one in flow.steering.surroundings] == [{32000}, {32001}]
        await flow.remove(web)
        await flow.settle()
        assert flow.pipeline.health_checks == {}
        assert flow.steering.surroundings[-1].health_check_ports == set()


async def test_pipeline_has_health_checks_looked_at_again_when_the_node_changes(autojump_clock: MockClock) -> None:
    """Load balancers may have to ask at another address."""
    async with open_flow() as flow:
        await flow.sync()
        changed = flow.pipeline.health_checks_changed
        flow.settings = plan_settings(node_addresses=["10.0.0.1"])
        await flow.feed(NODE)
        await flow.settle()
        assert changed.is_set()
        assert flow.pipeline.settings == flow.settings


async def test_pipeline_counts_ports_without_local_endpoints_and_ports_not_served(autojump_clock: MockClock) -> None:
    """As the objects are now: of each ServicePort once, whatever number of addresses it has."""
    async with open_flow() as flow:
        flow.settings = SETTINGS
        ports = (service_port("http", node_port=free_port()), service_port("sctp", 81, protocol=Protocol.SCTP))
        web = service(
            *("shop/web", *ports),
            external_ips=["192.0.2.1"],
            external_policy=TrafficPolicy.LOCAL,
            internal_policy=TrafficPolicy.LOCAL,
        )
        assert service_port_name("shop/web:sctp", Protocol.SCTP) in {port.name for port in web.ports}
        await flow.sync(web, REMOTE)
        no_local, unserved = flow.counters.no_local_endpoints, flow.counters.unserved_ports
        assert {key for key, count in no_local.items() if count} == {
            (PolicyClass.INTERNAL, Family.IPV4),
            (PolicyClass.EXTERNAL, Family.IPV4),
        }
        assert set(no_local.values()) == {0, 1}
        assert unserved[Protocol.SCTP] == 1
        await flow.feed(NOBODY)
        await flow.settle()
        assert set(no_local.values()) == {0}, "where nobody answers anywhere, no policy is to blame"
        await flow.feed(REMOTE)
        await flow.remove(web)
        await flow.settle()
        assert set(no_local.values()) == {0}
        assert unserved[Protocol.SCTP] == 0


async def test_pipeline_tells_of_problems_that_it_logs(autojump_clock: MockClock) -> None:
    """Each once: whoever makes Events of some of them needs no memory."""
    async with open_flow() as flow:
        await flow.sync(service("shop/web", service_port("sctp", protocol=Protocol.SCTP)))
        await trio.sleep(2 * RETRY_S)
        (problem,) = flow.problems
        assert problem.event_reason

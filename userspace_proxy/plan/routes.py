"""Where connections to the Frontends of one Service go: their Routes, and the Pools these lead to.

Knows no Problems, and of other Services only at which places they are served. Entry point: ``RouteBuilder``.
"""

from collections.abc import Mapping, Sequence
from ipaddress import ip_network

from attrs import define, evolve, field

from userspace_proxy.model.endpoint_slices import MergedEndpoint
from userspace_proxy.model.names import IPNetwork, NamespacedName, Protocol, family_of
from userspace_proxy.model.service_port import Service, TrafficPolicy
from userspace_proxy.model.topology import is_any_usable, select_cluster, select_local, select_serving
from userspace_proxy.plan.claims import find_loop
from userspace_proxy.plan.state import (
    Backend,
    Claim,
    EndpointScope,
    Frontend,
    FrontendKind,
    Holder,
    PlanSettings,
    PolicyClass,
    Pool,
    PoolKey,
    Route,
    Target,
    UdpSettings,
    Verdict,
)

_CLUSTER, _LOCAL = EndpointScope.CLUSTER, EndpointScope.LOCAL
_SCOPES: Mapping[tuple[PolicyClass, TrafficPolicy], tuple[EndpointScope, EndpointScope, EndpointScope]] = {
    (PolicyClass.INTERNAL, TrafficPolicy.CLUSTER): (_CLUSTER, _CLUSTER, _CLUSTER),
    (PolicyClass.INTERNAL, TrafficPolicy.LOCAL): (_LOCAL, _LOCAL, _LOCAL),
    (PolicyClass.EXTERNAL, TrafficPolicy.CLUSTER): (_CLUSTER, _CLUSTER, _CLUSTER),
    # who is in the cluster already need not take the detour by the load balancer to reach all of it
    (PolicyClass.EXTERNAL, TrafficPolicy.LOCAL): (_CLUSTER, _CLUSTER, _LOCAL),
}
"""Which Endpoints a pod, this node itself, and others may reach.

Source: Kubernetes documentation, Virtual IPs and Service Proxies, Traffic policies; kube-proxy's
``pkg/proxy/iptables/proxier.go`` (the short-circuit of external traffic).
"""


@define(eq=False)
class RouteBuilder:
    """Collects the Routes and Pools of one Service, ServicePort by ServicePort."""

    service: Service
    claims: Mapping[Claim, tuple[Holder, ...]]
    """Those of all Services."""
    settings: PlanSettings
    routes: dict[Frontend, Route] = field(factory=dict, init=False)
    """Of all Frontends added."""
    pools: dict[PoolKey, Pool] = field(factory=dict, init=False)
    """Those that a policy may lead a client of these Frontends to, empty ones too."""
    loops: dict[tuple[Backend, Protocol], NamespacedName] = field(factory=dict, init=False)
    """Left out of the Pools of a protocol, as a connection to them would come back here, each with the Service served
    there."""

    def add(self, frontends: Sequence[Frontend], merged: Sequence[MergedEndpoint]) -> None:
        """Add Frontends.

        Args:
            frontends: All of one ServicePort in one family, at least one.
            merged: All Endpoints of that ServicePort in that family.
        """
        by_policy: dict[PolicyClass, Route] = {}
        for frontend in frontends:
            route = by_policy.get(frontend.policy)
            if route is None:
                route = by_policy[frontend.policy] = self._route(frontend, merged)
            if frontend.kind is FrontendKind.LOAD_BALANCER and self.service.source_ranges and is_any_usable(merged):
                route = evolve(route, source_ranges=self._source_ranges(frontend))
            self.routes[frontend] = route

    def _route(self, frontend: Frontend, merged: Sequence[MergedEndpoint]) -> Route:
        is_internal = frontend.policy is PolicyClass.INTERNAL
        policy = self.service.internal_policy if is_internal else self.service.external_policy
        scopes = _SCOPES[frontend.policy, policy]
        targets = {
            scope: self._target(PoolKey(frontend.service_port, scope, frontend.family), merged)
            for scope in dict.fromkeys(scopes)
        }
        pod, host, outside = scopes
        return Route(targets[pod], targets[host], targets[outside])

    def _target(self, key: PoolKey, merged: Sequence[MergedEndpoint]) -> Target:
        """Return where clients go that may reach the Endpoints of a scope, and see to it that there is a Pool."""
        pool = self.pools.get(key)
        if pool is None:
            balance = self.service.balance or self.settings.default_balance
            backends = self._backends(key, merged)
            udp = self._udp_settings(key, merged, backends)
            pool = self.pools[key] = Pool(key, backends, balance, self.service.affinity_timeout_s, udp)
        if pool.backends:
            return pool.key
        return Verdict.DROP if key.scope is _LOCAL and is_any_usable(merged) else Verdict.REJECT

    def _backends(self, key: PoolKey, merged: Sequence[MergedEndpoint]) -> tuple[Backend, ...]:
        node_name, zone = self.settings.node_name, self.settings.zone
        is_local = key.scope is _LOCAL
        selected = select_local(merged, node_name) if is_local else select_cluster(merged, node_name, zone)
        return self._without_loops(key, selected)

    def _udp_settings(
        self, key: PoolKey, merged: Sequence[MergedEndpoint], backends: tuple[Backend, ...]
    ) -> UdpSettings | None:
        if key.service_port.protocol is not Protocol.UDP:
            return None
        serving = frozenset(self._without_loops(key, select_serving(merged))).difference(backends)
        return UdpSettings(self.service.udp_balance, self.service.udp_idle_timeout_s, serving)

    def _without_loops(self, key: PoolKey, selected: Sequence[MergedEndpoint]) -> tuple[Backend, ...]:
        """Return the Endpoints that can be dialled, and remember the others."""
        protocol, local_addresses = key.service_port.protocol, self.settings.sources.local_addresses
        found: list[Backend] = []
        for one in selected:
            backend = Backend(one.endpoint.address, one.port)
            holder = find_loop(backend, protocol, self.claims, local_addresses)
            if holder is None:
                found.append(backend)
            else:
                self.loops[backend, protocol] = holder
        other = _CLUSTER if key.scope is _LOCAL else _LOCAL
        twin = self.pools.get(PoolKey(key.service_port, other, key.family))
        if twin is None:
            return tuple(found)
        # one object for both saves memory where all Endpoints are on this node
        known = {one: one for one in twin.backends}
        return tuple(known.get(one, one) for one in found)

    def _source_ranges(self, frontend: Frontend) -> tuple[IPNetwork, ...]:
        """Return from where a load balancer address may be dialled; empty: from everywhere.

        A list without a network of the family says nothing about it. Where this node is among those who may, so is the
        load balancer's own address: the kernel takes it as the source of connections from here if the node has it.

        Source: kube-proxy's ``pkg/proxy/iptables/proxier.go`` (``loadBalancerSourceRanges``).
        """
        family = frontend.family
        ranges = {one for one in self.service.source_ranges if family_of(one) is family}
        if not all(one.prefixlen for one in ranges):
            return ()
        node = self.settings.node_addresses.get(family)
        if node is not None and frontend.address is not None and any(node in one for one in ranges):
            ranges.add(ip_network(frontend.address))
        return tuple(sorted(ranges))

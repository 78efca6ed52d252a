"""Health as kube-proxy tells it: the pages /healthz and /livez, and when this proxy counts as healthy.

Load balancers ask /healthz whether this node should get traffic, kubelet asks /livez whether this process should be
killed. Losing the API server is no reason for either: what is served stays served; /healthz says how old it is. Beyond
kube-proxy, a proxy that drains is not eligible: it accepts nobody.

Source: kube-proxy, ``pkg/proxy/healthcheck/proxy_health.go``; KEP-3836. Entry points: ``Health``, ``json_response``.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from attrs import frozen

from userspace_proxy.control.admin_http import Response, Routes
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.model.names import Family
from userspace_proxy.model.node import Node
from userspace_proxy.sources.base import ApiState, ResourceState

PENDING_LIMIT_S = 60.0
"""A change that is not in force for so long makes the proxy unhealthy: twice kube-proxy's sync period of 30 s."""
_NEVER = "0001-01-01T00:00:00Z"
"""The zero time as Go prints it."""


class Progress(Protocol):
    """How far changes have come; times are seconds since the epoch."""

    @property
    def pending_since_s(self) -> float | None:
        """When the oldest change came that is not in force; None: all are."""

    @property
    def updated_at_s(self) -> float | None:
        """When what is in force was last brought up to date; None: never."""

    @property
    def node(self) -> Node | None:
        """The Node this runs on, None while it is not known."""


@frozen
class Health:
    """Judges the health of this proxy, and builds its pages."""

    progress: Progress
    families: Callable[[], tuple[Family, ...]]
    """Returns the families served here."""
    api: ApiState | None
    """What is known of the API server's objects; None: they come from elsewhere, and there is no Node."""
    counters: ControlCounters
    wall_clock: Callable[[], float]
    """Returns seconds since the epoch."""
    is_stopping: Callable[[], bool]
    """Returns whether no client is accepted any more."""

    def is_healthy(self) -> bool:
        """Return whether changes come into force in time; true as well while nothing is in force yet."""
        if self.progress.updated_at_s is None or self.progress.pending_since_s is None:
            return True
        return self.wall_clock() - self.progress.pending_since_s <= PENDING_LIMIT_S

    def is_eligible(self) -> bool:
        """Return whether load balancers may send new traffic to this node."""
        if self.is_stopping():
            return False
        if self.api is None:
            return True
        node = self.progress.node
        return node is not None and node.is_eligible

    def routes(self) -> Routes:
        """Return the two pages."""
        return {"/healthz": self._healthz, "/livez": self._livez}

    def _healthz(self) -> Response:
        healthy, eligible = self.is_healthy(), self.is_eligible()
        document = self._document(healthy, is_ok=healthy and eligible, nodeEligible=eligible)
        if self.api is not None:
            document["apiServer"] = {name: self._age(state) for name, state in self.api.resources.items()}
        return _counted(healthy and eligible, document, self.counters.healthz)

    def _livez(self) -> Response:
        healthy = self.is_healthy()
        return _counted(healthy, self._document(healthy, is_ok=healthy), self.counters.livez)

    def _document(self, healthy: bool, *, is_ok: bool, **more: bool) -> dict[str, Any]:  # noqa: FBT001
        now_s = self.wall_clock()
        updated = _time_text(self.progress.updated_at_s)
        return {
            "lastUpdated": _time_text(now_s) if is_ok else updated,
            "currentTime": _time_text(now_s),
            "healthy": healthy,
            **more,
            "status": {family: {"lastUpdated": updated, "healthy": healthy} for family in self.families()},
        }

    def _age(self, state: ResourceState) -> Mapping[str, Any]:
        """Return how old the state of one resource is."""
        age_s = None if state.current_at_s is None else round(max(self.wall_clock() - state.current_at_s, 0.0), 3)
        return {"currentAt": _time_text(state.current_at_s), "ageSeconds": age_s, "failure": state.failure}


def json_response(status: int, document: Mapping[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Return a page as kube-proxy's health servers send theirs."""
    body = msgspec.json.encode(document) + b"\n"
    return Response(status, "application/json", body, (("X-Content-Type-Options", "nosniff"), *headers))


def _counted(is_ok: bool, document: Mapping[str, Any], counts: dict[str, int]) -> Response:  # noqa: FBT001
    status = HTTPStatus.OK if is_ok else HTTPStatus.SERVICE_UNAVAILABLE
    counts[str(int(status))] += 1
    return json_response(status, document)


def _time_text(seconds: float | None) -> str:
    """Return a time as Go's JSON has it (RFC 3339)."""
    if seconds is None:
        return _NEVER
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")

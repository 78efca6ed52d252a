"""What /healthz and /livez say, by how far changes have come and what is known of the node."""

import json
from typing import Any

import pytest
from attrs import define

from userspace_proxy.control.admin_http import Response
from userspace_proxy.control.counters import ControlCounters
from userspace_proxy.control.health import PENDING_LIMIT_S, Health
from userspace_proxy.model.names import Family
from userspace_proxy.model.node import Node
from userspace_proxy.sources.base import ApiState, ResourceState

NOW_S = 1_700_000_000.25
NOW = "2023-11-14T22:13:20.250000Z"
UPDATED_S = NOW_S - 100
UPDATED = "2023-11-14T22:11:40.250000Z"
NODE = Node("n1")
NEVER = "0001-01-01T00:00:00Z"


@define
class Facts:
    """How far changes have come, as a test wants it."""

    pending_since_s: float | None = None
    updated_at_s: float | None = UPDATED_S
    node: Node | None = NODE


def health(facts: Facts, api: ApiState | None = None, *, is_stopping: bool = False) -> Health:
    """Return the health of a proxy that serves both families."""
    return Health(facts, lambda: tuple(Family), api, ControlCounters(), lambda: NOW_S, lambda: is_stopping)


def ask(tested: Health, path: str) -> tuple[int, dict[str, Any]]:
    """Return status and document of a page."""
    response = tested.routes()[path]()
    assert isinstance(response, Response)
    assert response.content_type == "application/json"
    assert ("X-Content-Type-Options", "nosniff") in response.headers
    return response.status, json.loads(response.body)


@pytest.mark.parametrize(
    ("facts", "live", "fit"),
    [
        pytest.param(Facts(updated_at_s=None), 200, 200, id="nothing in force yet"),
        pytest.param(Facts(updated_at_s=None, pending_since_s=NOW_S - 1e6), 200, 200, id="slow to start"),
        pytest.param(Facts(), 200, 200, id="all in force"),
        pytest.param(Facts(pending_since_s=NOW_S - PENDING_LIMIT_S), 200, 200, id="still in time"),
        pytest.param(Facts(pending_since_s=NOW_S - PENDING_LIMIT_S - 0.1), 503, 503, id="late"),
        pytest.param(Facts(node=None), 200, 503, id="Node never seen"),
        pytest.param(Facts(node=Node("n1", is_eligible=False)), 200, 503, id="Node being deleted"),
    ],
)
def test_h_7_health_depends_on_pending_changes_and_on_the_node(facts: Facts, live: int, fit: int) -> None:
    """/livez asks whether changes come into force, /healthz for an eligible Node as well; both are counted."""
    tested = health(facts, ApiState())
    assert ask(tested, "/livez")[0] == live
    assert ask(tested, "/healthz")[0] == fit
    assert tested.counters.livez == {str(live): 1}
    assert tested.counters.healthz == {str(fit): 1}


def test_h_7_healthz_when_well_says_it_is_up_to_date_now() -> None:
    """The document is kube-proxy's; the families keep the time of the real update."""
    family = {"lastUpdated": UPDATED, "healthy": True}
    assert ask(health(Facts()), "/healthz")[1] == {
        "lastUpdated": NOW,
        "currentTime": NOW,
        "healthy": True,
        "nodeEligible": True,
        "status": {"IPv4": family, "IPv6": family},
    }
    assert "nodeEligible" not in ask(health(Facts()), "/livez")[1]


def test_h_7_healthz_of_a_node_being_deleted_is_healthy_but_not_eligible() -> None:
    """The last update is the real one where the answer is 503."""
    _, document = ask(health(Facts(node=Node("n1", is_eligible=False)), ApiState()), "/healthz")
    assert (document["lastUpdated"], document["healthy"], document["nodeEligible"]) == (UPDATED, True, False)
    assert ask(health(Facts(updated_at_s=None, node=None), ApiState()), "/healthz")[1]["lastUpdated"] == NEVER


@pytest.mark.parametrize("api", [None, ApiState()], ids=["manifests", "API server"])
def test_healthz_while_draining_sends_load_balancers_away(api: ApiState | None) -> None:
    """Nobody is accepted any more, but the process is to live until open connections have ended."""
    tested = health(Facts(), api, is_stopping=True)
    status, document = ask(tested, "/healthz")
    assert (status, document["healthy"], document["nodeEligible"]) == (503, True, False)
    assert ask(tested, "/livez")[0] == 200


def test_healthz_without_api_server_needs_no_node() -> None:
    """Manifests know no Nodes."""
    status, document = ask(health(Facts(node=None)), "/healthz")
    assert (status, document["nodeEligible"]) == (200, True)
    assert "apiServer" not in document


def test_healthz_while_the_api_server_is_lost_is_ok_and_says_how_old_the_state_is() -> None:
    """Nobody is sent away for it."""
    state = ApiState(
        {
            "services": ResourceState(current_at_s=NOW_S - 90.5, failure="connection refused"),
            "nodes": ResourceState(),
        }
    )
    status, document = ask(health(Facts(), state), "/healthz")
    assert status == 200
    assert document["apiServer"] == {
        "services": {"currentAt": "2023-11-14T22:11:49.750000Z", "ageSeconds": 90.5, "failure": "connection refused"},
        "nodes": {"currentAt": NEVER, "ageSeconds": None, "failure": ""},
    }

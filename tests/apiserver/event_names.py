"""How the two API groups show the same Events; they are kept as the core group has them.

Source: Kubernetes 1.36 ``pkg/apis/events/v1/conversion.go``.
Entry points: ``to_core``, ``from_core``.
"""

from collections.abc import Mapping
from typing import Any

# as the core group names a field, and as events.k8s.io does
NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "reportingComponent": "reportingController",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
}


def to_core(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an Event of events.k8s.io as one of the core group."""
    names = {new: old for old, new in NAMES.items()}
    return {names.get(name, name): value for name, value in content.items()}


def from_core(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an Event of the core group as one of events.k8s.io."""
    return {NAMES.get(name, name): value for name, value in content.items()}

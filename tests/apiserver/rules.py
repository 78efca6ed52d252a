"""What each kind of objects may hold: the rules of a real API server, as far as this double has them.

Entry point: ``standard_rules``.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from apiserver.allotment import Allotment
from apiserver.checks import Findings
from apiserver.event_rules import EventRules
from apiserver.resources import CORE_EVENTS, ENDPOINT_SLICES, NAMESPACES, NODES, SERVICES
from apiserver.service_rules import ServiceRules
from apiserver.slice_rules import EndpointSliceRules
from apiserver.statuses import invalid
from apiserver.writing import Content, Rules


class NamespaceRules:
    """A namespace is labelled with its name and is active."""

    def prepare(self, content: Content, old: Mapping[str, Any] | None, *, is_status: bool) -> Content:  # noqa: ARG002
        """Return the namespace with all that the server fills in."""
        content = deepcopy(content)
        metadata = content["metadata"]
        found = Findings()
        found.check_label("metadata.name", metadata["name"])
        if found.causes:
            raise invalid("Namespace", metadata["name"], found.causes)
        metadata["labels"] = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}
        content.setdefault("spec", {"finalizers": ["kubernetes"]})
        content.setdefault("status", {"phase": "Active"})
        return content

    def forget(self, content: Mapping[str, Any]) -> None:
        """Do nothing."""


class NodeRules:
    """A Node has a name; its addresses are in its status, which may be given when it is created."""

    def prepare(self, content: Content, old: Mapping[str, Any] | None, *, is_status: bool) -> Content:  # noqa: ARG002
        """Return the Node."""
        content = deepcopy(content)
        found = Findings()
        found.check_subdomain("metadata.name", content["metadata"]["name"])
        if found.causes:
            raise invalid("Node", content["metadata"]["name"], found.causes)
        content.setdefault("spec", {})
        content.setdefault("status", {})
        return content

    def forget(self, content: Mapping[str, Any]) -> None:
        """Do nothing."""


def standard_rules(allotment: Allotment, *, takes_loopback: bool) -> dict[str, Rules]:
    """Return the rules by plural name of the resource."""
    return {
        NAMESPACES.plural: NamespaceRules(),
        NODES.plural: NodeRules(),
        SERVICES.plural: ServiceRules(allotment),
        ENDPOINT_SLICES.plural: EndpointSliceRules(takes_loopback),
        CORE_EVENTS.plural: EventRules(),
    }

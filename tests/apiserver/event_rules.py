"""What an Event may hold.

Source: Kubernetes 1.36 ``pkg/apis/core/validation/events.go``.
Entry point: ``EventRules``.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from apiserver.checks import Findings
from apiserver.event_names import NAMES
from apiserver.statuses import invalid
from apiserver.writing import Content

MAX_REASON = 128
MAX_ACTION = 128
MAX_NOTE = 1024


class EventRules:
    """Rules for ``writing.Writer``; strict where the Event has an ``eventTime``, as a new one has."""

    def prepare(self, content: Content, old: Mapping[str, Any] | None, *, is_status: bool) -> Content:  # noqa: ARG002
        """Return the Event.

        Raises:
            ApiError: 422, a rule is broken.
        """
        content = deepcopy(content)
        content.setdefault("source", {})
        content.setdefault("reportingComponent", "")
        content.setdefault("reportingInstance", "")
        metadata, about = content["metadata"], content.setdefault("involvedObject", {})
        found = Findings()
        found.check_subdomain("metadata.name", metadata["name"])
        if (about.get("namespace") or "default") != metadata["namespace"]:
            found.invalid("involvedObject.namespace", about.get("namespace", ""), "does not match event.namespace")
        if content.get("eventTime") is not None:
            _check_new(found, content)
        if found.causes:
            raise invalid("Event", metadata["name"], found.causes)
        return content

    def forget(self, content: Mapping[str, Any]) -> None:
        """Do nothing."""


def _check_new(found: Findings, content: Content) -> None:
    for name in ("reportingComponent", "reportingInstance", "action", "reason"):
        if not content.get(name):
            found.required(NAMES.get(name, name))
    for name, most in (("reason", MAX_REASON), ("action", MAX_ACTION), ("message", MAX_NOTE)):
        if len(content.get(name) or "") > most:
            found.invalid(NAMES.get(name, name), content[name], f"can have at most {most} characters")
    found.check_supported("type", content.get("type", ""), ("Normal", "Warning"))

"""What an API server says when it refuses a request, as a sentence that says what to do.

Entry points: ``refusal``, ``right_needed``, ``Status``.
"""

import re
from collections.abc import Mapping

import msgspec
import urllib3
from attrs import frozen

from userspace_proxy.errors import ApiError
from userspace_proxy.sources.api_credentials import Credentials

MAX_RETRY_AFTER_S = 60.0
"""However long a server asks to be left alone; arbitrary."""
_MAX_STATUS_BYTES = 65536
_MAX_SAID_CHARS = 500
_REDIRECTS = range(300, 400)
_SERVER_ERRORS = range(500, 600)
_REASONS = {401: "unauthorized", 403: "forbidden", 404: "not_found", 410: "expired", 429: "overloaded"}


class _StatusDetails(msgspec.Struct, rename="camel"):
    retry_after_seconds: int | None = None


class Status(msgspec.Struct):
    """What an API server says when it does not do what it was asked for.

    Source: Kubernetes API reference, Status v1 (meta).
    """

    message: str | None = None
    reason: str | None = None
    code: int | None = None
    details: _StatusDetails | None = None


@frozen
class Asked:
    """A request that was refused."""

    method: str
    path: str
    query: Mapping[str, str]
    credentials: Credentials
    """Read anew, if others were refused a while ago."""


def refusal(response: urllib3.BaseHTTPResponse, asked: Asked) -> ApiError:
    """Return what an answer with another status than 2xx says."""
    server, code = asked.credentials.server, response.status
    status = _read_status(response)
    said = " ".join((status.message or "it gives no reason").split())[:_MAX_SAID_CHARS]
    needed = right_needed(asked.method, asked.path, asked.query)
    reason = _REASONS.get(code) or ("server_error" if code in _SERVER_ERRORS else "bad_answer")
    if code in _REDIRECTS:
        location = response.headers.get("Location", "")
        text = f"{server} answers with a redirect to '{location}', which is not followed; give that URL"
    elif reason == "unauthorized":
        text = (
            f"{server} does not accept the credentials of {asked.credentials.origin}, also after they were read anew: "
            f"{said}; "
            "the token or certificate may have expired: renew it"
        )
    elif reason == "forbidden":
        user = re.search(r'User "([^"]*)"', said)
        who = f"user {user[1]}" if user else "this user"
        text = f"{server} forbids to {needed.action}: {said}; bind {who} to a ClusterRole with {needed.rule}"
    elif reason == "not_found":
        text = f"{server} has nothing at {asked.path}: {said}; check that the URL leads to an API server"
    elif reason == "expired":
        text = f"{server} has forgotten the version asked for: {said}"
    else:
        text = f"{server} answers with status {code} to {needed.action}: {said}"
    return ApiError(text, reason, _retry_after_s(response, status))


@frozen
class RightNeeded:
    """What a request needs an API server's permission for, in words."""

    action: str
    """As ``list services``."""
    rule: str
    """The rule of a ClusterRole that permits it and what goes with it."""


def right_needed(method: str, path: str, query: Mapping[str, str]) -> RightNeeded:
    """Return what a request to a path of the API needs."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if rest[:1] == ["namespaces"] and len(rest) > 2:  # noqa: PLR2004
        rest = rest[2:]
    resource = rest[0] if rest else path
    if method == "POST":
        action, verbs = "create", "create, patch"
    else:
        action = "watch" if query.get("watch") else "get" if len(rest) > 1 else "list"
        verbs = "get, list, watch"
    rule = f'apiGroups: ["{group}"], resources: [{resource}], verbs: [{verbs}]'
    return RightNeeded(f"{action} {resource}", rule)


def _read_status(response: urllib3.BaseHTTPResponse) -> Status:
    """Return what a refusal says; empty if it says nothing that can be understood."""
    try:
        return msgspec.json.decode(response.read(_MAX_STATUS_BYTES), type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError, urllib3.exceptions.HTTPError, OSError):
        return Status()


def _retry_after_s(response: urllib3.BaseHTTPResponse, status: Status) -> float:
    """Return for how long the server asks to be left alone (RFC 9110 section 10.2.3; dates are not understood)."""
    text = response.headers.get("Retry-After", "")
    asked = float(text) if text.isdecimal() else 0.0
    if status.details is not None:
        asked = max(asked, status.details.retry_after_seconds or 0.0)
    return min(asked, MAX_RETRY_AFTER_S)

"""Status objects: how an API server says what went wrong.

Source: Kubernetes API conventions, "Response Status Kind"; ``k8s.io/apimachinery/pkg/api/errors/errors.go``.
Entry points: the functions that return an ``ApiError``; raise what they return.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

_CAUSES_IN_A_MESSAGE = 5  # arbitrary; a message stays readable

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@frozen
class Cause:
    """One field of an object that breaks a rule."""

    field: str
    """Path of the field, as ``spec.ports[0].nodePort``."""
    message: str
    reason: str = "FieldValueInvalid"


class ApiError(Exception):
    """A request is answered with a Status of failure."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after_s: int | None = None,
        continue_token: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
        self._reason = REASONS.get(code, "") if reason is None else reason
        self._details = dict(details or {})
        self._continue_token = continue_token

    def status(self) -> dict[str, Any]:
        """Return the Status object."""
        details = dict(self._details)
        if self.retry_after_s is not None:
            details["retryAfterSeconds"] = self.retry_after_s
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {} if self._continue_token is None else {"continue": self._continue_token},
            "status": "Failure",
            "message": str(self),
            "reason": self._reason,
        }
        if details:
            status["details"] = details
        return status | {"code": self.code}


def bad_request(message: str) -> ApiError:
    """Return 400: the request itself makes no sense."""
    return ApiError(400, message)


def unauthorized() -> ApiError:
    """Return 401: the credentials are wrong."""
    return ApiError(401, "Unauthorized")


def no_such_path() -> ApiError:
    """Return 404 for a path that is no resource."""
    return ApiError(404, "the server could not find the requested resource", details={"causes": []})


def not_found(resource: str, name: str) -> ApiError:
    """Return 404 for an object."""
    return ApiError(404, f'{resource} "{name}" not found', details={"name": name, "kind": resource})


def already_exists(resource: str, name: str) -> ApiError:
    """Return 409 for an object to be created."""
    return ApiError(
        409, f'{resource} "{name}" already exists', reason="AlreadyExists", details={"name": name, "kind": resource}
    )


def conflict(resource: str, name: str) -> ApiError:
    """Return 409 for an update that was made from an older state."""
    return ApiError(
        409,
        f'Operation cannot be fulfilled on {resource} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again",
        details={"name": name, "kind": resource},
    )


def invalid(kind: str, name: str, causes: Iterable[Cause]) -> ApiError:
    """Return 422 for an object that breaks rules."""
    causes = tuple(causes)
    texts = [f"{cause.field}: {cause.message}" for cause in causes[:_CAUSES_IN_A_MESSAGE]]
    listed = texts[0] if len(causes) == 1 else f"[{', '.join(texts)}]"
    return ApiError(
        422,
        f'{kind} "{name}" is invalid: {listed}',
        details={
            "name": name,
            "kind": kind,
            "causes": [{"reason": one.reason, "message": one.message, "field": one.field} for one in causes],
        },
    )


def too_old(requested: int, oldest: int) -> ApiError:
    """Return 410 for a watch from a version of which the changes since are no longer known."""
    return ApiError(410, f"too old resource version: {requested} ({oldest})")


def continue_expired(token: str) -> ApiError:
    """Return 410 for a page of a list that is no longer known; the token leads on in the state of now."""
    return ApiError(
        410,
        "The provided continue parameter is too old to display a consistent list result. Start a new list without "
        "it, or use the token in this answer for the rest as it is now, which may not fit what was listed before.",
        continue_token=token,
    )

"""Who may do what at the API server double: tokens, client certificates, denials.

Source: Kubernetes documentation, "Authenticating" and "Authorization Overview".
Entry point: ``Access``.
"""

from apiserver.exchange import Request
from apiserver.resources import Place
from apiserver.statuses import ApiError, unauthorized
from attrs import define, field, frozen

ANONYMOUS = "system:anonymous"
ADMIN = "admin"
PROXY = "proxy"
ADMIN_TOKEN = "admin-token"  # noqa: S105  of a throw-away server
PROXY_TOKEN = "proxy-token"  # noqa: S105


@frozen
class Denial:
    """A user, or all of them with None, may not do something."""

    verb: str | None
    """get, list, watch, create, update, patch, delete; None for all."""
    resource: str | None
    user: str | None


@define
class Access:
    """Valid credentials and what is denied. Tests change it in their thread at any time."""

    tokens: dict[str, str] = field(factory=lambda: {ADMIN_TOKEN: ADMIN, PROXY_TOKEN: PROXY})
    """User of each valid bearer token."""
    certificate_users: set[str] = field(factory=lambda: {PROXY})
    """Names for which a client certificate is valid."""
    _denials: list[Denial] = field(factory=list)

    def deny(self, verb: str | None = None, resource: str | None = None, user: str | None = PROXY) -> Denial:
        """Deny something, until ``allow``."""
        denial = Denial(verb, resource, user)
        self._denials.append(denial)
        return denial

    def allow(self, denial: Denial) -> None:
        """Take back a denial."""
        self._denials.remove(denial)

    def authenticate(self, request: Request) -> str:
        """Return the user.

        Raises:
            ApiError: 401, the credentials are wrong. Without any, the user is the anonymous one.
        """
        authorization = request.headers.get("authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer" or token.strip() not in self.tokens:
                raise unauthorized()
            return self.tokens[token.strip()]
        if request.peer_name is not None:
            if request.peer_name not in self.certificate_users:
                raise unauthorized()
            return request.peer_name
        return ANONYMOUS

    def authorize(self, user: str, verb: str, place: Place) -> None:
        """Return if the user may do it.

        Args:
            user: from ``authenticate``.
            verb: as in RBAC.
            place: where.

        Raises:
            ApiError: 403.
        """
        resource, group, namespace, name = place.plural, place.resource.group, place.namespace, place.name
        is_denied = user == ANONYMOUS or any(
            one.verb in {None, verb} and one.resource in {None, resource} and one.user in {None, user}
            for one in tuple(self._denials)
        )
        if not is_denied:
            return
        where = "at the cluster scope" if namespace is None else f'in the namespace "{namespace}"'
        named = f' "{name}"' if name else ""
        raise ApiError(
            403,
            f'{resource}{named} is forbidden: User "{user}" cannot {verb} resource "{resource}" '
            f'in API group "{group}" {where}',
            details={"kind": resource} | ({"group": group} if group else {}) | ({"name": name} if name else {}),
        )

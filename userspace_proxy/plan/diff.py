"""What has to be done to get from one DesiredState to another. Pure. Entry point: ``diff_states``."""

from collections.abc import Iterable

from attrs import frozen

from userspace_proxy.model.names import NamespacedName
from userspace_proxy.plan.claims import by_name
from userspace_proxy.plan.state import DesiredState, Frontend, Pool, PoolKey, Route, ServicePlan

_NO_PLAN = ServicePlan(routes={}, pools={}, problems=())


@frozen
class Diff:
    """The difference of two DesiredStates, to apply in the order of the fields.

    An address and port that goes from one Service to another is a Frontend removed and another one added.
    """

    frontends_removed: tuple[Frontend, ...]
    pools_replaced: tuple[Pool, ...]
    """New ones and changed ones, whole."""
    routes_replaced: tuple[tuple[Frontend, Route], ...]
    """Of the Frontends that were there and stay, the new Route."""
    frontends_added: tuple[Frontend, ...]
    """Their Routes are those of the desired state."""
    pools_removed: tuple[PoolKey, ...]

    def __bool__(self) -> bool:
        """Return whether there is anything to do."""
        return bool(
            self.frontends_removed
            or self.pools_replaced
            or self.routes_replaced
            or self.frontends_added
            or self.pools_removed
        )


def diff_states(previous: DesiredState, desired: DesiredState, names: Iterable[NamespacedName] | None = None) -> Diff:
    """Return what is to be done to get from ``previous`` to ``desired``; a change of Problems alone is nothing.

    Args:
        previous: What is now.
        desired: What should be.
        names: The Services to look at, so that the work is in proportion to them: ``desired.replanned`` if ``desired``
            was built from ``previous``, the union of all ``replanned`` if several builds lie between them. None: all.
    """
    if names is None:
        names = previous.services.keys() | desired.services.keys()
    removed: list[Frontend] = []
    replaced: list[Pool] = []
    rerouted: list[tuple[Frontend, Route]] = []
    added: list[Frontend] = []
    dropped: list[PoolKey] = []
    for name in sorted(names, key=by_name):
        old = previous.services.get(name, _NO_PLAN)
        new = desired.services.get(name, _NO_PLAN)
        if old is new:
            continue
        removed.extend(one for one in old.routes if one not in new.routes)
        replaced.extend(pool for key, pool in new.pools.items() if old.pools.get(key) != pool)
        for frontend, route in new.routes.items():
            before = old.routes.get(frontend)
            if before is None:
                added.append(frontend)
            elif before != route:
                rerouted.append((frontend, route))
        dropped.extend(key for key in old.pools if key not in new.pools)
    return Diff(tuple(removed), tuple(replaced), tuple(rerouted), tuple(added), tuple(dropped))

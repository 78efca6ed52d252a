"""The objects as they are now, folded from events, and which Services they touched since somebody last asked.

Holds objects, decides nothing and plans nothing. Every call costs in proportion to the object it is about, not to
their number. Entry point: ``Changes``.
"""

from collections.abc import Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType

from attrs import define, field

from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.service_port import Service

_by_name = attrgetter("name.namespace", "name.name")


@define(eq=False)
class Changes:
    """All Services and EndpointSlices, keyed by their names."""

    _services: dict[NamespacedName, Service] = field(factory=dict, init=False)
    _slices: dict[NamespacedName, EndpointSlice] = field(factory=dict, init=False)
    _slices_by_service: dict[NamespacedName, dict[NamespacedName, EndpointSlice]] = field(factory=dict, init=False)
    """Never holds an empty value."""
    _unowned: set[NamespacedName] = field(factory=set, init=False)
    """Names of Services that EndpointSlices written by hand name and that are not there. In a cluster there may be
    thousands of others, which nobody wants to hear of."""
    _dirty: set[NamespacedName] = field(factory=set, init=False)

    @property
    def services(self) -> Mapping[NamespacedName, Service]:
        """The Services there are now: a live, read-only view."""
        return MappingProxyType(self._services)

    def slices_of(self, service: NamespacedName) -> tuple[EndpointSlice, ...]:
        """Return the EndpointSlices that name a Service, sorted by their names."""
        return tuple(sorted(self._slices_by_service.get(service, {}).values(), key=_by_name))

    def owner_of(self, slice_name: NamespacedName) -> NamespacedName | None:
        """Return the Service that an EndpointSlice names, None if there is no such EndpointSlice."""
        found = self._slices.get(slice_name)
        return None if found is None else found.service

    def names(self) -> Iterator[tuple[type[Service] | type[EndpointSlice], NamespacedName]]:
        """Yield the type and name of every object."""
        for name in self._services:
            yield Service, name
        for name in self._slices:
            yield EndpointSlice, name

    def unowned_slices(self) -> Iterator[EndpointSlice]:
        """Yield the EndpointSlices with an origin that name a Service which is not there, by Service, then by name."""
        for service in sorted(self._unowned):
            yield from (one for one in self.slices_of(service) if one.origin)

    def apply(self, obj: Service | EndpointSlice) -> bool:
        """Take in an object that is new or has changed.

        Returns:
            False if it equals the one that is there, which then stays; ``triggered_at_s`` is no part of the value.
        """
        if isinstance(obj, EndpointSlice):
            return self._apply_slice(obj)
        if self._services.get(obj.name) == obj:
            return False
        self._services[obj.name] = obj
        self._touch(obj.name)
        return True

    def remove(self, type_: type[Service] | type[EndpointSlice], name: NamespacedName) -> bool:
        """Forget an object; return False if it was not there."""
        if type_ is EndpointSlice:
            return self._remove_slice(name)
        if self._services.pop(name, None) is None:
            return False
        self._touch(name)
        return True

    def checkout(self) -> frozenset[NamespacedName]:
        """Return the Services whose plan may differ since the last call, those that are gone included."""
        dirty = frozenset(self._dirty)
        self._dirty.clear()
        return dirty

    def _apply_slice(self, new: EndpointSlice) -> bool:
        old = self._slices.get(new.name)
        if old == new:
            return False
        if old is not None:
            # it may have named another Service: what it gave to that one goes with it
            self._remove_slice(old.name)
        self._slices[new.name] = new
        self._slices_by_service.setdefault(new.service, {})[new.name] = new
        self._touch(new.service)
        return True

    def _remove_slice(self, name: NamespacedName) -> bool:
        old = self._slices.pop(name, None)
        if old is None:
            return False
        siblings = self._slices_by_service[old.service]
        del siblings[name]
        if not siblings:
            del self._slices_by_service[old.service]
        self._touch(old.service)
        return True

    def _touch(self, service: NamespacedName) -> None:
        self._dirty.add(service)
        slices = self._slices_by_service.get(service, {}).values()
        if service not in self._services and any(one.origin for one in slices):
            self._unowned.add(service)
        else:
            self._unowned.discard(service)

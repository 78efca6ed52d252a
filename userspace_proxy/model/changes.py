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
    """Names of Services that EndpointSlices name and that are not there."""
    _dirty: set[NamespacedName] = field(factory=set, init=False)

    @property
    def services(self) -> Mapping[NamespacedName, Service]:
        """The Services there are now: a live, read-only view."""
        return MappingProxyType(self._services)

    def slices_of(self, service: NamespacedName) -> tuple[EndpointSlice, ...]:
        """Return the EndpointSlices that name a Service, sorted by their names."""
        return tuple(sorted(self._slices_by_service.get(service, {}).values(), key=_by_name))

    def names(self) -> Iterator[tuple[type[Service] | type[EndpointSlice], NamespacedName]]:
        """Yield the type and name of every object."""
        for name in self._services:
            yield Service, name
        for name in self._slices:
            yield EndpointSlice, name

    def unowned_slices(self) -> Iterator[EndpointSlice]:
        """Yield the EndpointSlices that name a Service which is not there, by Service, then by their own names."""
        for service in sorted(self._unowned):
            yield from self.slices_of(service)

    def apply(self, obj: Service | EndpointSlice) -> None:
        """Take in an object that is new or has changed; one equal to what is there changes nothing."""
        if isinstance(obj, EndpointSlice):
            self._apply_slice(obj)
        elif self._services.get(obj.name) != obj:
            self._services[obj.name] = obj
            self._touch(obj.name)

    def remove(self, type_: type[Service] | type[EndpointSlice], name: NamespacedName) -> None:
        """Forget an object; one that is not there changes nothing."""
        if type_ is EndpointSlice:
            self._remove_slice(name)
        elif self._services.pop(name, None) is not None:
            self._touch(name)

    def checkout(self) -> frozenset[NamespacedName]:
        """Return the Services whose plan may differ since the last call, those that are gone included."""
        dirty = frozenset(self._dirty)
        self._dirty.clear()
        return dirty

    def _apply_slice(self, new: EndpointSlice) -> None:
        old = self._slices.get(new.name)
        if old == new:
            return
        if old is not None:
            # it may have named another Service: what it gave to that one goes with it
            self._remove_slice(old.name)
        self._slices[new.name] = new
        self._slices_by_service.setdefault(new.service, {})[new.name] = new
        self._touch(new.service)

    def _remove_slice(self, name: NamespacedName) -> None:
        old = self._slices.pop(name, None)
        if old is None:
            return
        siblings = self._slices_by_service[old.service]
        del siblings[name]
        if not siblings:
            del self._slices_by_service[old.service]
        self._touch(old.service)

    def _touch(self, service: NamespacedName) -> None:
        self._dirty.add(service)
        if service in self._slices_by_service and service not in self._services:
            self._unowned.add(service)
        else:
            self._unowned.discard(service)

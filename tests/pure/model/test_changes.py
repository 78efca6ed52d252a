"""Tests of model.changes."""

from collections import defaultdict

import pytest
from attrs import evolve
from builders import endpoint_slice, named, service
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.changes import Changes
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.service_port import Service


def _changes(*objects: Service | EndpointSlice) -> Changes:
    """Return Changes that hold objects and have been checked out."""
    changes = Changes()
    for obj in objects:
        changes.apply(obj)
    changes.checkout()
    return changes


def test_changes_new_objects_dirty_their_services_once() -> None:
    """A Service and the EndpointSlices that name it are one dirty Service, until the checkout."""
    changes = Changes()
    assert changes.apply(service("shop/web"))
    assert changes.apply(endpoint_slice("shop/web-1"))
    assert changes.apply(endpoint_slice("shop/db-1", service="shop/db"))
    assert changes.checkout() == {named("shop/web"), named("shop/db")}
    assert changes.checkout() == frozenset()


def test_changes_equal_object_changes_nothing() -> None:
    """A relist that brings what is there already plans nothing anew."""
    changes = _changes(service(), endpoint_slice())
    assert not changes.apply(service())
    assert not changes.apply(endpoint_slice())
    assert changes.checkout() == frozenset()


def test_changes_slice_that_differs_in_its_trigger_time_alone_changes_nothing() -> None:
    """A controller may write the annotation anew though the endpoints are the same."""
    changes = _changes(service(), evolve(endpoint_slice(), triggered_at_s=1.0))
    assert not changes.apply(evolve(endpoint_slice(), triggered_at_s=2.0))
    assert changes.checkout() == frozenset()
    assert [one.triggered_at_s for one in changes.slices_of(named("shop/web"))] == [1.0]


def test_changes_changed_object_replaces_the_old_one() -> None:
    """The last object of a name is the one there is."""
    changes = _changes(service(), endpoint_slice("shop/web-1", "10.0.1.1"))
    assert changes.apply(service(cluster_ips=["10.96.0.11"]))
    assert changes.checkout() == {named("shop/web")}
    assert changes.apply(endpoint_slice("shop/web-1", "10.0.1.2"))
    assert changes.checkout() == {named("shop/web")}
    assert changes.services == {named("shop/web"): service(cluster_ips=["10.96.0.11"])}
    assert changes.slices_of(named("shop/web")) == (endpoint_slice("shop/web-1", "10.0.1.2"),)


def test_b_14_slice_that_moves_dirties_both_services() -> None:
    """A changed label takes the endpoints from one Service and gives them to the other."""
    changes = _changes(service("shop/web"), service("shop/db"), endpoint_slice("shop/x", service="shop/web"))
    assert changes.apply(endpoint_slice("shop/x", service="shop/db"))
    assert changes.checkout() == {named("shop/web"), named("shop/db")}
    assert changes.slices_of(named("shop/web")) == ()
    assert changes.slices_of(named("shop/db")) == (endpoint_slice("shop/x", service="shop/db"),)


def test_changes_removed_objects_are_gone() -> None:
    """What is removed dirties its Service and leaves its siblings."""
    changes = _changes(service(), endpoint_slice("shop/web-1"), endpoint_slice("shop/web-2"))
    assert changes.remove(EndpointSlice, named("shop/web-1"))
    assert changes.checkout() == {named("shop/web")}
    assert changes.slices_of(named("shop/web")) == (endpoint_slice("shop/web-2"),)
    assert changes.remove(Service, named("shop/web"))
    assert changes.checkout() == {named("shop/web")}
    assert changes.services == {}


@pytest.mark.parametrize("type_", [Service, EndpointSlice])
def test_changes_removing_what_is_not_there_changes_nothing(type_: type[Service] | type[EndpointSlice]) -> None:
    """A second removal, or one of an object that was never served, is harmless."""
    changes = _changes(service("shop/web"), endpoint_slice("shop/web-1"))
    assert not changes.remove(type_, named("shop/other"))
    assert changes.checkout() == frozenset()


def test_changes_slices_are_sorted_by_name_whatever_the_order_of_arrival() -> None:
    """Merging depends on the order, so the order must not depend on luck."""
    names = ["shop/web-2", "shop/web-10", "shop/web-1"]
    changes = _changes(*(endpoint_slice(one) for one in names))
    assert [str(one.name) for one in changes.slices_of(named("shop/web"))] == sorted(names)


def test_changes_objects_that_came_and_went_leave_nothing_behind() -> None:
    """Names that never come back cost no memory, whichever of Service and EndpointSlice goes first."""
    changes = _changes(service("shop/a"), service("shop/b"))
    for i, owner in enumerate(["shop/a", "shop/b", "shop/none"]):
        changes.apply(endpoint_slice(f"shop/s{i}", service=owner, origin="shop.yaml"))
    changes.apply(endpoint_slice("shop/s2", service="shop/b"))
    changes.remove(Service, named("shop/a"))
    for i in range(3):
        changes.remove(EndpointSlice, named(f"shop/s{i}"))
    changes.remove(Service, named("shop/b"))
    changes.checkout()
    assert [changes._services, changes._slices, changes._slices_by_service] == [{}] * 3
    assert [changes._unowned, changes._dirty] == [set()] * 2


def test_changes_services_cannot_be_written() -> None:
    """Only events change the objects."""
    with pytest.raises(TypeError):
        _changes().services[named()] = service()  # type: ignore[index]


_NAMES = st.sampled_from([named("a/x"), named("a/y"), named("b/x")])
_EVENTS = st.one_of(
    st.builds(
        lambda name, ip: service(str(name), cluster_ips=[ip]), _NAMES, st.sampled_from(["10.96.0.1", "10.96.0.2"])
    ),
    st.builds(
        lambda i, owner, ip, origin: endpoint_slice(f"{owner.namespace}/s{i}", ip, service=str(owner), origin=origin),
        st.integers(min_value=0, max_value=2),
        _NAMES,
        st.sampled_from(["10.0.1.1", "10.0.1.2"]),
        st.sampled_from(["", "shop.yaml"]),
    ),
    st.tuples(st.just(Service), _NAMES),
    st.tuples(
        st.just(EndpointSlice),
        st.builds(lambda ns, i: NamespacedName(ns, f"s{i}"), st.sampled_from("ab"), st.integers(0, 2)),
    ),
)
_View = tuple[Service | None, tuple[EndpointSlice, ...]]


@given(batches=st.lists(st.lists(_EVENTS, max_size=5), max_size=8))
def test_changes_after_any_events_are_the_last_objects_and_checkout_misses_none(
    batches: list[list[Service | EndpointSlice | tuple[type[Service] | type[EndpointSlice], NamespacedName]]],
) -> None:
    """The fold equals plain dicts keyed by type and name, and a Service that looks otherwise is always dirty."""
    changes = Changes()
    model: dict[tuple[type, NamespacedName], Service | EndpointSlice] = {}
    before: dict[NamespacedName, _View] = {}
    for batch in batches:
        for event in batch:
            if isinstance(event, tuple):
                assert changes.remove(*event) == (model.pop(event, None) is not None)
            else:
                assert changes.apply(event) == (model.get((type(event), event.name)) != event)
                model[type(event), event.name] = event
        services = {one.name: one for one in model.values() if isinstance(one, Service)}
        slices: dict[NamespacedName, list[EndpointSlice]] = defaultdict(list)
        for one in sorted((x for x in model.values() if isinstance(x, EndpointSlice)), key=lambda x: x.name):
            slices[one.service].append(one)
        after: dict[NamespacedName, _View] = {
            name: (services.get(name), tuple(slices.get(name, ()))) for name in services.keys() | slices.keys()
        }
        assert changes.services == services
        assert {name: changes.slices_of(name) for name in after} == {name: view[1] for name, view in after.items()}
        assert list(changes.unowned_slices()) == [
            one for name in sorted(slices.keys() - services.keys()) for one in slices[name] if one.origin
        ]
        nothing: _View = (None, ())
        differing = {x for x in before.keys() | after.keys() if before.get(x, nothing) != after.get(x, nothing)}
        assert changes.checkout() >= differing
        before = after


def test_changes_name_every_object_with_its_type() -> None:
    """Names are those of what is there, Services and EndpointSlices apart though they may have the same name."""
    changes = _changes(service("shop/web"), endpoint_slice("shop/web"), service("shop/db"))
    changes.remove(Service, named("shop/db"))
    assert set(changes.names()) == {(Service, named("shop/web")), (EndpointSlice, named("shop/web"))}


def test_changes_owner_of_a_slice_is_the_service_it_names_now() -> None:
    """It follows the label, and is None for an EndpointSlice that is not there."""
    changes = _changes(endpoint_slice("shop/x", service="shop/web"))
    assert changes.owner_of(named("shop/x")) == named("shop/web")
    changes.apply(endpoint_slice("shop/x", service="shop/db"))
    assert changes.owner_of(named("shop/x")) == named("shop/db")
    changes.remove(EndpointSlice, named("shop/x"))
    assert changes.owner_of(named("shop/x")) is None

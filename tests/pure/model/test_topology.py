"""Tests of model.topology: conditions, fallback, hints, and what is on this node."""

from collections.abc import Sequence

import pytest
from builders import endpoint
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.endpoint import Endpoint
from userspace_proxy.model.endpoint_slices import MergedEndpoint
from userspace_proxy.model.topology import is_any_usable, is_local, select_cluster, select_local, select_serving

_HERE, _NEAR = "here", "near"


def _merged(endpoints: Sequence[Endpoint]) -> tuple[MergedEndpoint, ...]:
    return tuple(MergedEndpoint(one, 80) for one in endpoints)


def _cluster(*endpoints: Endpoint, node_name: str = _HERE, zone: str = _NEAR) -> str:
    return _hosts(select_cluster(_merged(endpoints), node_name, zone))


def _local(*endpoints: Endpoint, node_name: str = _HERE) -> str:
    return _hosts(select_local(_merged(endpoints), node_name))


def _hosts(selected: Sequence[MergedEndpoint]) -> str:
    """Return the last bytes of the addresses, as ``1 2``."""
    return " ".join(str(one.endpoint.address.packed[-1]) for one in selected)


def _ready(host: int, **kwargs: object) -> Endpoint:
    return endpoint(f"10.0.1.{host}", **kwargs)  # type: ignore[arg-type]


def _ending(host: int, **kwargs: object) -> Endpoint:
    """Return an Endpoint that still serves while it terminates."""
    return _ready(host, ready=False, terminating=True, **kwargs)


@pytest.mark.parametrize(
    ("ready", "serving", "terminating", "alone", "beside_ready"),
    [
        (True, True, False, "1", "1 2"),
        (True, False, False, "1", "1 2"),
        (True, False, True, "1", "1 2"),  # publishNotReadyAddresses
        (True, True, True, "1", "1 2"),
        (False, True, True, "1", "2"),  # the fallback
        (False, True, False, "", "2"),
        (False, False, True, "", "2"),
        (False, False, False, "", "2"),
    ],
)
def test_b_7_b_8_usable_are_the_ready_ones_else_those_that_serve_while_terminating(
    *, ready: bool, serving: bool, terminating: bool, alone: str, beside_ready: str
) -> None:
    """Each combination of conditions, alone and beside a ready Endpoint, in both scopes."""
    one = _ready(1, ready=ready, serving=serving, terminating=terminating, node_name=_HERE)
    other = _ready(2, node_name=_HERE)
    assert (_cluster(one), _local(one)) == (alone, alone)
    assert (_cluster(one, other), _local(one, other)) == (beside_ready, beside_ready)
    assert is_any_usable(_merged([one])) == bool(alone)


@pytest.mark.parametrize(
    ("node_of_endpoint", "node_name", "local"),
    [
        ("here", "here", True),
        ("there", "here", False),
        ("Here", "here", False),
        (None, "here", False),
        ("", "here", False),
        ("", "", False),
        (None, "", False),
    ],
)
def test_b_9_local_is_what_names_this_node_exactly(
    *, node_of_endpoint: str | None, node_name: str, local: bool
) -> None:
    """An Endpoint without a node is elsewhere, and for a proxy without a node name everything is."""
    one = _ready(1, node_name=node_of_endpoint)
    assert is_local(one, node_name) is local
    assert _local(one, node_name=node_name) == ("1" if local else "")
    assert _cluster(one, node_name=node_name) == "1"


@pytest.mark.parametrize(
    ("endpoints", "cluster", "local"),
    [
        ([], "", ""),
        ([_ready(1, node_name=_HERE), _ready(2)], "1 2", "1"),
        ([_ready(1), _ready(2, node_name="there")], "1 2", ""),
        # a ready one elsewhere and only ending ones here: each set falls back for itself
        ([_ready(1, node_name="there"), _ending(2, node_name=_HERE)], "1", "2"),
        ([_ready(1, node_name=_HERE), _ending(2, node_name=_HERE)], "1", "1"),
        ([_ending(1, node_name=_HERE), _ending(2, node_name="there")], "1 2", "1"),
        ([_ending(1, node_name="there")], "1", ""),
        # one that does not serve any more is nothing to fall back to
        ([_ending(1, serving=False, node_name=_HERE), _ending(2)], "2", ""),
        ([_ending(1, serving=False, node_name=_HERE), _ready(2, ready=False)], "", ""),
    ],
)
def test_b_11_cluster_and_local_fall_back_to_terminating_ones_each_for_itself(
    endpoints: list[Endpoint], cluster: str, local: str
) -> None:
    """What is ready elsewhere does not keep this node from its last terminating Endpoints, nor the other way round."""
    assert (_cluster(*endpoints), _local(*endpoints)) == (cluster, local)
    assert is_any_usable(_merged(endpoints)) == bool(cluster)


def test_b_11_hints_never_apply_to_the_local_set() -> None:
    """An Endpoint here is local whoever else it is hinted for."""
    one = _ready(1, node_name=_HERE, hinted_zones=["far"], hinted_nodes=["there"])
    other = _ready(2, node_name="there", hinted_zones=[_NEAR], hinted_nodes=[_HERE])
    assert (_cluster(one, other), _local(one, other)) == ("2", "1")


def test_b_11_fallback_of_the_cluster_set_ignores_hints() -> None:
    """When all are ending, every one of them that serves is used."""
    endpoints = [_ending(1, hinted_zones=[_NEAR], hinted_nodes=[_HERE]), _ending(2, hinted_zones=["far"])]
    assert _cluster(*endpoints) == "1 2"


@pytest.mark.parametrize(
    ("hints", "selected"),
    [
        # every ready one is hinted, some for this zone
        ([[_NEAR], ["far"], [_NEAR]], "1 3"),
        ([[_NEAR], [_NEAR]], "1 2"),
        ([["far", _NEAR], ["far"]], "1"),
        # a single one without hints spoils all
        ([[_NEAR], [], ["far"]], "1 2 3"),
        ([[]], "1"),
        # none is for this zone
        ([["far"], ["farther"]], "1 2"),
    ],
)
def test_b_12_hints_for_zones_count_all_or_none(hints: list[list[str]], selected: str) -> None:
    """Every ready Endpoint must be hinted and one of them for this zone; else hints do not matter."""
    assert _cluster(*(_ready(i, hinted_zones=zones) for i, zones in enumerate(hints, 1))) == selected


@pytest.mark.parametrize(
    ("hints", "selected"),
    [
        ([[_HERE], ["there"]], "1"),
        ([[_HERE, "there"], [_HERE]], "1 2"),
        ([[_HERE], []], "1 2"),
        ([["there"], ["there"]], "1 2"),
    ],
)
def test_b_12_hints_for_nodes_count_all_or_none(hints: list[list[str]], selected: str) -> None:
    """The same rule as for zones."""
    assert _cluster(*(_ready(i, hinted_nodes=nodes) for i, nodes in enumerate(hints, 1))) == selected


@pytest.mark.parametrize(
    ("endpoints", "selected"),
    [
        # this node before its zone
        ([([_HERE], [_NEAR]), (["there"], [_NEAR]), (["elsewhere"], ["far"])], "1"),
        # none for this node: its zone
        ([(["there"], [_NEAR]), (["elsewhere"], ["far"])], "1"),
        # hints for nodes are incomplete: its zone
        ([([_HERE], [_NEAR]), ([], [_NEAR]), (["there"], ["far"])], "1 2"),
        # hints for nodes hold, those for zones need not
        ([([_HERE], []), (["there"], [])], "1"),
        # neither
        ([(["there"], ["far"]), (["elsewhere"], ["far"])], "1 2"),
    ],
)
def test_b_12_hints_for_nodes_come_before_those_for_zones(
    endpoints: list[tuple[list[str], list[str]]], selected: str
) -> None:
    """PreferSameNode degrades from the node to the zone to everything."""
    found = _cluster(
        *(_ready(i, hinted_nodes=nodes, hinted_zones=zones) for i, (nodes, zones) in enumerate(endpoints, 1))
    )
    assert found == selected


def test_b_12_endpoints_that_are_not_ready_do_not_spoil_the_hints() -> None:
    """A terminating Endpoint has lost its hints; those of the ready ones hold."""
    assert _cluster(_ready(1, hinted_zones=[_NEAR]), _ready(2, hinted_zones=["far"]), _ending(3)) == "1"


def test_b_12_hint_of_an_endpoint_that_is_not_ready_counts_for_nothing() -> None:
    """That the only one for this zone is ending makes the mode none, not the fallback."""
    assert _cluster(_ready(1, hinted_zones=["far"]), _ending(2, hinted_zones=[_NEAR])) == "1"


@pytest.mark.parametrize("hint", ["hinted_zones", "hinted_nodes"])
def test_b_12_node_without_name_or_zone_matches_no_hint(hint: str) -> None:
    """Not even an empty one."""
    hinted = [_ready(1, **{hint: [""]}), _ready(2, **{hint: ["far"]})]
    assert _cluster(*hinted, node_name="", zone="") == "1 2"


_ENDPOINTS = st.lists(
    st.builds(
        lambda ready, serving, terminating, node_name, zones, nodes: endpoint(
            ready=ready,
            serving=serving,
            terminating=terminating,
            node_name=node_name,
            hinted_zones=zones,
            hinted_nodes=nodes,
        ),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from([None, "here", "there"]),
        st.lists(st.sampled_from(["near", "far"]), max_size=2),
        st.lists(st.sampled_from(["here", "there"]), max_size=2),
    ),
    max_size=6,
)


@given(endpoints=_ENDPOINTS)
def test_b_11_selected_sets_are_parts_of_what_is_usable_and_empty_only_if_they_must_be(
    endpoints: list[Endpoint],
) -> None:
    """Whatever the hints, a Service that could answer is never left without Endpoints."""
    merged = tuple(MergedEndpoint(one, i) for i, one in enumerate(endpoints))
    cluster, local = select_cluster(merged, _HERE, _NEAR), select_local(merged, _HERE)
    assert bool(cluster) == is_any_usable(merged)
    assert bool(local) == is_any_usable([one for one in merged if one.endpoint.node_name == _HERE])
    for selected in (cluster, local):
        assert list(selected) == sorted(selected, key=merged.index)
        assert len({one.endpoint.ready for one in selected}) <= 1
    assert all(one.endpoint.node_name == _HERE for one in local)


@pytest.mark.parametrize(
    ("ready", "serving", "terminating", "serves"),
    [
        (True, True, False, True),
        (True, True, True, True),
        (True, False, False, True),  # publishNotReadyAddresses
        (True, False, True, True),
        (False, True, False, True),
        (False, True, True, True),
        (False, False, False, False),
        (False, False, True, False),
    ],
)
def test_f_1_serving_are_all_that_answer_still(*, ready: bool, serving: bool, terminating: bool, serves: bool) -> None:
    """Whether they terminate does not matter, nor what others do."""
    one = endpoint("10.0.1.1", ready=ready, serving=serving, terminating=terminating)
    assert _hosts(select_serving(_merged([one]))) == ("1" if serves else "")
    assert _hosts(select_serving(_merged([one, _ready(2)]))) == ("1 2" if serves else "2")


def test_f_1_serving_are_those_of_the_whole_cluster_whatever_their_hints() -> None:
    """So that what goes on outlives a change of policy or hints; the order stays."""
    far = _ready(3, node_name="there", hinted_zones=["far"])
    here = _ending(1, node_name=_HERE, hinted_nodes=["there"])
    assert _hosts(select_serving(_merged([far, here, _ready(2)]))) == "3 1 2"

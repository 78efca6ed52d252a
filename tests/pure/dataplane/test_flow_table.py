"""FlowTable: the order in which flows were used last."""

from collections import OrderedDict
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.dataplane.flow_table import FlowTable
from userspace_proxy.dataplane.udp_flow import UdpFlow


class Flow:
    """Stands for a flow: the table asks nothing of it."""


@given(
    steps=st.lists(st.tuples(st.sampled_from(["add", "touch", "remove"]), st.integers(0, 5)), max_size=60),
)
def test_flow_table_has_the_oldest_first_whatever_is_done(steps: list[tuple[str, int]]) -> None:
    """The same as a list in which whoever is used moves to the end; a second removal says so."""
    table = FlowTable(100)
    flows = [cast("UdpFlow", Flow()) for _ in range(6)]
    expected: OrderedDict[int, None] = OrderedDict()
    for step, number in steps:
        if step == "add" and number not in expected:
            table.add(flows[number])
            expected[number] = None
        elif step == "touch" and number in expected:
            table.touch(flows[number])
            expected.move_to_end(number)
        elif step == "remove":
            assert table.remove(flows[number]) == (number in expected)
            expected.pop(number, None)
        assert list(table) == [flows[one] for one in expected]
        assert len(table) == len(expected)
        assert table.oldest is (flows[next(iter(expected))] if expected else None)

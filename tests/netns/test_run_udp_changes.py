"""The real command on a node with pods: a client that never stops sending by UDP, while everything changes.

Each Chat sends numbers from one port, so that the kernel never forgets where it led them, and the tests see where each
number went. ``NodeRun.apply`` returns when a change is in force, rules included: what is sent from then on has to
follow it.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import backend
from cli_driver import service_object, slice_objects, write_manifests
from netns.node_run import NodeRun
from netns.nodes import Node
from netns.udp_driver import Chat, ChatState, UdpBackend, ask

from userspace_proxy.model.names import Protocol
from userspace_proxy.plan.state import Backend

pytestmark = [pytest.mark.netns, pytest.mark.slow]

PORT = 5300
NODE_PORT = 30053
CLUSTER_IPS = ("10.96.0.10", "fd00:96::a")
POD = [backend("10.0.1.2:9000"), backend("[fd00:1::2]:9000")]
OUTSIDE = [backend("10.0.0.2:9000"), backend("[fd00::2]:9000")]
WEB = service_object(cluster_ips=CLUSTER_IPS, port=PORT, node_port=NODE_PORT, protocol=Protocol.UDP)
CART = service_object("shop/cart", cluster_ips=["10.96.0.11"], port=PORT, protocol=Protocol.UDP)

OTHER_PORTS = ("--proxy-port-range", "20000-20009")

DIALLED = (
    ("outside", CLUSTER_IPS[0], PORT),
    ("outside", CLUSTER_IPS[1], PORT),
    ("bare pod", CLUSTER_IPS[0], PORT),
    ("node", CLUSTER_IPS[0], PORT),
    ("outside", "10.0.0.1", NODE_PORT),
)
"""Who sends where: through REDIRECT, both families; through DNAT; from the node itself; and without any rule."""
MORE = 40
"""Datagrams that each Chat sends before and after a change: for a fifth of a second."""


def slices(service: str, backends: Sequence[Backend]) -> list[dict[str, Any]]:
    """Return the EndpointSlices of a Service."""
    return slice_objects(service, *backends, protocol=Protocol.UDP)


@pytest.fixture
def quick_node(node: Node) -> Node:
    """Return a node whose kernel refuses each datagram, not one a second."""
    node.allow_all_icmp()
    return node


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a directory with the manifests of Service shop/web, whose Backend is in the pod."""
    write_manifests(tmp_path / "shop.yaml", [WEB, *slices("shop/web", POD)])
    return tmp_path


class Chats:
    """One Chat for each of DIALLED, all at the same time."""

    def __init__(self, node: Node) -> None:
        """Start them."""
        self._all = [
            Chat(node.client(client), address, port, 40001 + number)
            for number, (client, address, port) in enumerate(DIALLED)
        ]

    def __iter__(self) -> Iterator[Chat]:
        """Iterate over them in the order of DIALLED."""
        return iter(self._all)

    def sent(self) -> list[int]:
        """Return how many datagrams each has sent by now: the number of the first one that is sent after the call."""
        return [chat.state.sent for chat in self._all]

    def wait_sent(self) -> None:
        """Wait until each has sent some more."""
        for chat in self._all:
            chat.wait_sent(MORE)

    def end(self) -> list[ChatState]:
        """Have them send no more, and return how far each has come."""
        for chat in self._all:
            chat.stop()
        return [chat.result() for chat in self._all]


def test_endpoints_that_come_back_get_the_next_datagram(quick_node: Node, shop: Path) -> None:
    """One endpoint, none, one again: clients are refused while there are none, and then lose nothing more."""
    target = UdpBackend(quick_node.pod, "pod", 9000, holds_answers=True)
    run = NodeRun(quick_node, shop)
    chats = Chats(quick_node)
    for chat in chats:
        target.wait_for(chat, 10)

    run.apply([WEB])
    none_since = chats.sent()
    for client, address, port in DIALLED:
        assert ask(quick_node.client(client), address, port) == "ConnectionRefusedError"
    refused = [chat.state.errors["ConnectionRefusedError"] for chat in chats]
    chats.wait_sent()
    for chat, count in zip(chats, refused, strict=True):
        assert chat.state.errors["ConnectionRefusedError"] >= count + MORE - 1  # that of the last one may be on its way

    run.apply([WEB, *slices("shop/web", POD)])
    back_since = chats.sent()
    chats.wait_sent()
    for chat, end, none, back in zip(chats, chats.end(), none_since, back_since, strict=True):
        arrived = target.wait_for(chat, end.sent - 1)
        first_back = next(number for number in arrived if number >= none)
        until = arrived.index(first_back)
        assert arrived == [*range(until), *range(first_back, end.sent)]
        assert none + MORE <= first_back <= back


def test_late_answers_are_delivered(quick_node: Node, shop: Path) -> None:
    """An endpoint that is listed no longer answers what it was sent, and no other takes its place: all of it comes."""
    target = UdpBackend(quick_node.pod, "pod", 9000, holds_answers=True)
    run = NodeRun(quick_node, shop)
    chats = Chats(quick_node)
    for chat in chats:
        target.wait_for(chat, 10)
    run.apply([WEB])
    target.answer_held()
    for chat, end in zip(chats, chats.end(), strict=True):
        assert end.answers == {"pod": len(target.numbers(chat))}


Move = tuple[UdpBackend, UdpBackend, list[Backend]]


def to_another_node(node: Node) -> Move:
    """Return two Backends on two nodes, and the endpoints of the second one."""
    return UdpBackend(node.pod, "pod", 9000), UdpBackend(node.outside, "outside", 9000), OUTSIDE


def to_another_port(node: Node) -> Move:
    """Return two Backends on two ports, and the endpoints of the second one."""
    others = [backend("10.0.1.2:9001"), backend("[fd00:1::2]:9001")]
    return UdpBackend(node.pod, "first", 9000), UdpBackend(node.pod, "second", 9001), others


@pytest.mark.parametrize("move", [to_another_node, to_another_port])
def test_replaced_endpoint_loses_no_datagram(quick_node: Node, shop: Path, move: Callable[[Node], Move]) -> None:
    """The next datagram goes elsewhere: every one arrives once, in order, and every answer comes back."""
    before, after, moved = move(quick_node)
    run = NodeRun(quick_node, shop)
    chats = Chats(quick_node)
    for chat in chats:
        before.wait_for(chat, 10)
    run.apply([WEB, *slices("shop/web", moved)])
    moved_since = chats.sent()
    chats.wait_sent()
    for chat, end, moved_at in zip(chats, chats.end(), moved_since, strict=True):
        arrived = after.wait_for(chat, end.sent - 1)
        assert before.numbers(chat) + arrived == list(range(end.sent))
        assert arrived[0] <= moved_at
        assert sum(end.answers.values()) == end.sent
        assert end.errors == {}


def test_deleted_service_is_left_at_once_and_found_at_once(quick_node: Node, shop: Path) -> None:
    """Nothing reaches the endpoint of a Service that is gone; when there is one again, all does."""
    target = UdpBackend(quick_node.pod, "pod", 9000)
    run = NodeRun(quick_node, shop)
    chats = Chats(quick_node)
    for chat in chats:
        target.wait_for(chat, 10)

    run.apply([CART])
    gone_since = chats.sent()
    chats.wait_sent()
    for chat, gone in zip(chats, gone_since, strict=True):
        arrived = target.numbers(chat)
        assert arrived == list(range(len(arrived)))
        assert arrived[-1] < gone

    run.apply([CART, WEB, *slices("shop/web", POD)])
    back_since = chats.sent()
    chats.wait_sent()
    for chat, end, back in zip(chats, chats.end(), back_since, strict=True):
        assert_all_arrived(target.wait_for(chat, end.sent - 1), back, end)


def assert_all_arrived(arrived: Sequence[int], since: int, end: ChatState) -> None:
    """Assert that all from a number on have come, once and in order."""
    assert [number for number in arrived if number >= since] == list(range(since, end.sent))


def test_service_in_the_place_of_another_gets_its_datagrams(quick_node: Node, shop: Path) -> None:
    """The same addresses and ports, another name: the endpoint of the old one gets nothing more."""
    before, after = UdpBackend(quick_node.pod, "pod", 9000), UdpBackend(quick_node.outside, "outside", 9000)
    run = NodeRun(quick_node, shop)
    chats = Chats(quick_node)
    for chat in chats:
        before.wait_for(chat, 10)
    successor = {**WEB, "metadata": {**WEB["metadata"], "name": "new"}}
    run.apply([successor, *slices("shop/new", OUTSIDE)])
    moved_since = chats.sent()
    chats.wait_sent()
    for chat, end, moved in zip(chats, chats.end(), moved_since, strict=True):
        assert_all_arrived(after.wait_for(chat, end.sent - 1), moved, end)
        assert before.numbers(chat)[-1] < moved


def end_orderly(run: NodeRun, shop: Path) -> None:
    """End the proxy as SIGTERM does."""
    assert run.terminate() == 0


def kill(run: NodeRun, shop: Path) -> None:
    """Kill the proxy: rules stay that lead to a closed port."""
    run.kill()


def kill_and_forget(run: NodeRun, shop: Path) -> None:
    """Kill the proxy, and have it know nothing of its proxy ports when it starts again."""
    run.kill()
    shutil.rmtree(shop / "state")


@pytest.mark.parametrize("stop", [end_orderly, kill, kill_and_forget])
def test_proxy_that_starts_again_gets_the_next_datagram(
    quick_node: Node, shop: Path, stop: Callable[[NodeRun, Path], None]
) -> None:
    """However it ended, and wherever the kernel led the datagrams meanwhile: what is sent once it is ready arrives."""
    target = UdpBackend(quick_node.pod, "pod", 9000)
    chats = Chats(quick_node)
    chats.wait_sent()  # the kernel knows these clients before there is any rule
    run = NodeRun(quick_node, shop)
    first_since = chats.sent()
    for chat, first in zip(chats, first_since, strict=True):
        assert target.wait_for(chat, first + MORE)[0] <= first
    stop(run, shop)
    chats.wait_sent()
    NodeRun(quick_node, shop, *(OTHER_PORTS if stop is kill_and_forget else ()))
    ready_since = chats.sent()
    chats.wait_sent()
    for chat, end, ready in zip(chats, chats.end(), ready_since, strict=True):
        assert_all_arrived(target.wait_for(chat, end.sent - 1), ready, end)

"""Link-local addresses: the same client and local address at two links are two clients (RFC 4007)."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns.nodes import Namespace, open_namespace

pytestmark = pytest.mark.netns

HELPER = Path(__file__).with_name("udp_link_local_helper.py")


@pytest.fixture
def namespace(namespaces: None) -> Iterator[Namespace]:
    """Yield a namespace with two links, and the same link-local address at both."""
    with open_namespace("udplinks") as namespace:
        namespace.ip("link set lo up")
        for one in (0, 1):
            namespace.ip(
                f"link add near{one} type veth peer name far{one}\n"
                f"link set far{one} up\nlink set near{one} up\n"
                f"address add fe80::1/64 dev near{one} nodad"
            )
        yield namespace


def test_answers_from_a_link_local_address_leave_by_the_link_of_the_question(namespace: Namespace) -> None:
    """Each client, told apart by the interface alone, gets its own answer at a wildcard listener."""
    search_path = os.pathsep.join([str(HELPER.parents[1]), *filter(None, sys.path)])
    command = (sys.executable, "-W", "error", HELPER, "near0", "near1")
    facts = json.loads(namespace.run(*command, env={"PYTHONPATH": search_path}).stdout)
    assert facts == {"flows": 2, "answers": [["to near0"], ["to near1"]], "dropped": {}}

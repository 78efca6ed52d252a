"""Fixtures of the tests in network namespaces: they skip, and say why, where namespaces cannot be made."""

import os
import shutil
from collections.abc import Iterator

import pytest
from netns.nodes import Node, delete_orphans, open_namespace, open_node


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip unless namespaces can be made and rules written in them; delete those of runs that were killed."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make network namespaces")
    tools = ("ip", "iptables-nft", "iptables-legacy", "nft", "setpriv", "curl")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        pytest.skip(f"not on PATH: {', '.join(missing)}")
    delete_orphans()
    try:
        with open_namespace("trial"):
            pass
    except AssertionError as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")


@pytest.fixture
def node(namespaces: None) -> Iterator[Node]:
    """A node with pods, only for this test."""
    with open_node() as made:
        yield made

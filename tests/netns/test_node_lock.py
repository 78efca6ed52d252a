"""One instance that steers for each node, with real processes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_driver import COMMAND, UNPRIVILEGED, service_object, slice_objects, write_manifests
from netns.node_run import NodeRun
from netns.nodes import Namespace, Node, open_namespace

pytestmark = [pytest.mark.netns, pytest.mark.slow]

_TAKE = """
import sys
from userspace_proxy.control.instance_lock import node_lock, require_free_node
from userspace_proxy.errors import ConfigError
try:
    for _ in range(int(sys.argv[1])):
        try:
            require_free_node()
        except ConfigError:
            pass
    with node_lock():
        print("taken", flush=True)
        sys.stdin.read()
except ConfigError as error:
    print(error, flush=True)
"""


@pytest.fixture
def namespace(namespaces: None) -> Iterator[Namespace]:
    """A node without links."""
    with open_namespace("lock") as made:
        yield made


def take(namespace: Namespace, *, through: tuple[str, ...] = (), asks: int = 1) -> str:
    """Return what a process says that takes the lock and ends."""
    return namespace.run(*through, sys.executable, "-c", _TAKE, str(asks), text="").stdout


def test_lock_held_by_another_names_it_until_that_is_killed(namespace: Namespace) -> None:
    """Who is second learns whom to stop; nothing is left of one that was killed."""
    holder = namespace.start(sys.executable, "-c", _TAKE, "1")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    for _ in range(2):
        assert take(namespace) == f"another userspace-proxy (pid {holder.pid}) steers this node; stop it first\n"
    holder.kill()
    holder.wait()
    assert take(namespace) == "taken\n"


def test_lock_is_one_for_each_network_namespace(namespace: Namespace) -> None:
    """Two nodes on one machine do not know each other's rules."""
    holder = namespace.start(sys.executable, "-c", _TAKE, "1")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    with open_namespace("other") as other:
        assert take(other) == "taken\n"


@pytest.mark.parametrize(
    ("through", "asks"), [(("unshare", "--pid", "--fork", "--mount-proc"), 1), ((), 1100)], ids=["hidden", "full"]
)
def test_lock_whose_holder_cannot_be_told_is_told_without_it(
    namespace: Namespace, through: tuple[str, ...], asks: int
) -> None:
    """Its pid is of no use in another PID namespace; and after a thousand questions nobody answers any more."""
    holder = namespace.start(sys.executable, "-c", _TAKE, "1")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"
    assert take(namespace, through=through, asks=asks) == "another userspace-proxy steers this node; stop it first\n"


def test_run_by_auto_beside_another_stops_and_one_that_changes_nothing_does_not(node: Node, tmp_path: Path) -> None:
    """Nobody gets what is of less use to him without being told that somebody else is at work."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_manifests(tmp_path / name / "shop.yaml", [service_object(), *slice_objects("shop/web")])
    run = NodeRun(node, tmp_path / "one", steering="nftables")
    ruleset = node.ruleset()
    own_directories = ("--state-dir", str(tmp_path / "state"), "--runtime-dir", str(tmp_path / "run"))
    command = (*COMMAND, "run", "--manifests", str(tmp_path / "one" / "shop.yaml"), *own_directories)
    done = node.run(*UNPRIVILEGED, *command, check=False)  # without rights it would be loopback
    assert done.returncode == 3
    sentence = f"another userspace-proxy (pid {run.process.pid}) steers this node; stop it first"
    assert done.stderr == f"userspace-proxy: {sentence}\n"
    other = NodeRun(node, tmp_path / "other", steering="loopback")
    assert other.terminate() == 0
    assert node.ruleset() == ruleset
    assert run.terminate() == 0

"""``run --hosts-file`` as a user sees it: the names of Services come, follow changes, and go."""

import signal
from pathlib import Path

import pytest
from builders import backend
from cli_driver import open_run, service_object, slice_objects, wait_until, write_manifests

pytestmark = pytest.mark.slow

WEB = [service_object(), *slice_objects("shop/web", backend("10.244.1.7:8080"))]
CART = [service_object("shop/cart", cluster_ips=["10.96.0.11"])]
LOCALHOST = "127.0.0.1 localhost\n"
NAMES = "{0} {0}.shop {0}.shop.svc {0}.shop.svc.cluster.local"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a directory with the manifests of Service shop/web and a hosts file."""
    write_manifests(tmp_path / "shop.yaml", WEB)
    (tmp_path / "hosts").write_text(LOCALHOST)
    return tmp_path


ARGUMENTS = ("--manifests", "shop.yaml", "--hosts-file", "hosts")


async def test_names_lead_to_where_the_service_is_dialled_until_the_run_ends(shop: Path) -> None:
    """They follow the Services there are; all else in the file stays, and at the end nothing else is there."""
    hosts = shop / "hosts"
    async with open_run(shop, *ARGUMENTS) as run:
        await run.wait_ready()
        web = f"{run.dial_address()[0]} {NAMES.format('web')}\n"
        block = f"{LOCALHOST}# BEGIN userspace-proxy\n{web}# END userspace-proxy\n"
        await wait_until(lambda: hosts.read_text() == block)
        write_manifests(shop / "shop.yaml", [*WEB, *CART])
        await wait_until(lambda: NAMES.format("cart") in hosts.read_text())
        assert web in hosts.read_text()
        write_manifests(shop / "shop.yaml", WEB)
        await wait_until(lambda: hosts.read_text() == block)
        assert await run.terminate() == 0
    assert hosts.read_text() == LOCALHOST


async def test_names_of_a_killed_run_are_replaced_and_a_file_that_was_made_is_removed(shop: Path) -> None:
    """Also by a run that is told to end at once."""
    hosts = shop / "hosts"
    hosts.unlink()
    async with open_run(shop, *ARGUMENTS) as run:
        await wait_until(lambda: hosts.exists() and NAMES.format("web") in hosts.read_text())
        run.signal(signal.SIGKILL)
        await run.wait_end()
    write_manifests(shop / "shop.yaml", CART)
    async with open_run(shop, *ARGUMENTS) as run:
        await wait_until(lambda: NAMES.format("cart") in hosts.read_text())
        assert NAMES.format("web") not in hosts.read_text()
        run.signal(signal.SIGTERM)
        run.signal(signal.SIGTERM)
        assert await run.wait_end() == 0
    assert not hosts.exists()


async def test_file_that_cannot_be_changed_is_told_once_and_tried_again(shop: Path) -> None:
    """The run goes on meanwhile; the file may be all right some day though no Service changes any more."""
    hosts = shop / "hosts"
    hosts.write_text("# BEGIN userspace-proxy\n")
    async with open_run(shop, *ARGUMENTS) as run:
        await run.wait_for_log("WARN.*: the hosts file hosts is left alone: line 1, .*; it is tried again")
        hosts.write_text(LOCALHOST)
        await run.wait_for_log("the hosts file is written after all")
        assert run.log.count("is left alone") == 1
        hosts.write_text("# END userspace-proxy\n")
        assert await run.terminate() == 1
        assert "userspace-proxy: the hosts file hosts is left alone: line 1, '# END userspace-proxy'" in run.log

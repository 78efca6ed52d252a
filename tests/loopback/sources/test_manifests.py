"""Tests of the manifest source as a whole: real files, a real parser process, changes as people and programs make them.

That something does not happen is shown by what happens next: a change made after it must be the first to be told.
"""

import fcntl
import json
import logging
import os
import signal
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
import yaml
from manifest_driver import (
    documents,
    endpoint_slice_text,
    origin_of,
    problems_in,
    replace,
    service_text,
    summary,
    watching,
    write,
)

from userspace_proxy.errors import ConfigError
from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.problem import Severity
from userspace_proxy.model.service_port import Service
from userspace_proxy.sources.base import Applied, ProblemsFound, Removed, Synced
from userspace_proxy.sources.manifests import read_manifests

pytestmark = pytest.mark.slow

WEB = service_text("shop/web")
WEB_SLICE = endpoint_slice_text("shop/web-1")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a file with a Service and its EndpointSlice."""
    path = tmp_path / "shop.yaml"
    write(path, documents(WEB, WEB_SLICE))
    return path


async def test_read_manifests_file_gives_objects_in_order_then_synced(shop: Path) -> None:
    """A file becomes values of the model that know where they stand."""
    service, endpoint_slice, synced = await read_manifests([shop])
    assert isinstance(service, Applied)
    assert isinstance(service.object, Service)
    assert service.object.cluster_ips == (ip_address("10.96.0.10"),)
    assert origin_of(service) == f"{shop}, document 1, line 1"
    assert isinstance(endpoint_slice, Applied)
    assert isinstance(endpoint_slice.object, EndpointSlice)
    assert endpoint_slice.object.endpoints[0].address == ip_address("10.0.1.1")
    assert origin_of(endpoint_slice) == f"{shop}, document 2, line 12"
    assert synced == Synced()


async def test_read_manifests_directory_reads_manifests_directly_in_it(tmp_path: Path) -> None:
    """Of a directory count .yaml, .yml and .json files, sorted by name; not hidden ones, not subdirectories."""
    write(tmp_path / "b.yml", service_text("shop/b"))
    write(tmp_path / "c.json", json.dumps(yaml.safe_load(service_text("shop/c"))))
    write(tmp_path / "a.yaml", service_text("shop/a"))
    write(tmp_path / ".d.yaml", service_text("shop/d"))
    write(tmp_path / "e.txt", "no manifest")
    (tmp_path / "f.yaml").mkdir()
    write(tmp_path / "f.yaml" / "f.yaml", service_text("shop/f"))
    events = await read_manifests([tmp_path])
    assert list(map(summary, events)) == ["+Service shop/a", "+Service shop/b", "+Service shop/c", "synced"]


async def test_read_manifests_path_reached_twice_is_read_once(shop: Path) -> None:
    """A file named beside its directory is no duplicate of itself."""
    events = await read_manifests([shop.parent, shop, shop])
    assert list(map(summary, events)) == ["+Service shop/web", "+EndpointSlice shop/web-1", "synced"]


@pytest.mark.parametrize("in_json", [False, True], ids=["yaml", "json"])
async def test_read_manifests_list_as_kubectl_prints_it_is_taken_apart(tmp_path: Path, *, in_json: bool) -> None:
    """What ``kubectl get svc,endpointslices -o yaml`` (or json) prints is a manifest; items know their place."""
    items = [yaml.safe_load(WEB), yaml.safe_load(WEB_SLICE)]
    kubectl_list = {"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}}
    path = tmp_path / "list"
    write(path, json.dumps(kubectl_list, indent="\t") if in_json else yaml.safe_dump(kubectl_list))
    service, endpoint_slice, _ = await read_manifests([path])
    lines = path.read_text(encoding="utf-8").splitlines()
    second = next(i for i, line in enumerate(lines, start=1) if "discovery" in line or "addressType" in line)
    assert origin_of(service) == f"{path}, document 1, item 1, line {4 if in_json else 3}"
    assert origin_of(endpoint_slice) == f"{path}, document 1, item 2, line {second - in_json}"


async def test_read_manifests_path_that_leads_nowhere_is_a_config_error(tmp_path: Path) -> None:
    """A wrong --manifests ends the run at the start, with the path."""
    with pytest.raises(ConfigError, match=r"missing\.yaml: No such file or directory"):
        await read_manifests([tmp_path / "missing.yaml"])


async def test_read_manifests_path_that_is_no_file_is_a_config_error(tmp_path: Path) -> None:
    """A FIFO would be read for ever, or once only."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="neither a file nor a directory"):
        await read_manifests([tmp_path / "fifo"])


async def test_read_manifests_directory_without_manifests_is_a_warning(tmp_path: Path) -> None:
    """Probably the wrong directory was named, so it is said; the files may still come."""
    (problem,) = problems_in(await read_manifests([tmp_path]))
    assert problem.severity is Severity.WARNING
    assert problem.origin == str(tmp_path)
    assert ".yaml" in problem.text


async def test_read_manifests_relative_path_is_shown_as_given(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of an object is what the user can open; modules in the working directory are none of ours."""
    write(shop.with_name("yaml.py"), "raise SystemExit(9)")
    monkeypatch.chdir(shop.parent)
    event, _, _ = await read_manifests([Path(shop.name)])
    assert origin_of(event) == "shop.yaml, document 1, line 1"


async def test_read_manifests_name_that_is_not_unicode_can_be_shown(tmp_path: Path) -> None:
    """File names are bytes; what is said about them must be printable all the same."""
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.yaml"))
    write(path, documents(WEB, "[]"))
    service, found, _ = await read_manifests([path])
    assert isinstance(found, ProblemsFound)
    for text in (origin_of(service), found.origin, found.problems[0].origin):
        assert text.startswith(f"{tmp_path}/\\xff.yaml")


async def test_run_manifests_changed_object_alone_is_told(shop: Path) -> None:
    """Of a file that was written in place, what is equal to before causes no event."""
    async with watching(shop) as watched:
        await watched.until("synced")
        write(shop, documents(WEB, endpoint_slice_text("shop/web-1", ["10.0.1.2"])))
        assert await watched.summaries_until("+EndpointSlice shop/web-1") == ["+EndpointSlice shop/web-1"]


async def test_run_manifests_vanished_object_is_removed(shop: Path) -> None:
    """An object that is no longer in its file is no longer there."""
    async with watching(shop) as watched:
        await watched.until("synced")
        replace(shop, WEB)
        (event,) = await watched.until("-EndpointSlice shop/web-1")
        assert isinstance(event, Removed)
        assert event.type is EndpointSlice


async def test_run_manifests_vanished_file_takes_its_objects_with_it(tmp_path: Path, shop: Path) -> None:
    """A file of a directory can go, and come back."""
    write(tmp_path / "other.yaml", service_text("shop/other"))
    async with watching(tmp_path) as watched:
        await watched.until("synced")
        await trio.Path(shop).unlink()
        assert await watched.summaries_until("-EndpointSlice shop/web-1") == [
            "-Service shop/web",
            "-EndpointSlice shop/web-1",
        ]
        replace(shop, WEB)
        assert await watched.summaries_until("+Service shop/web") == ["+Service shop/web"]


async def test_run_manifests_vanished_named_file_is_told_and_may_come_back(shop: Path) -> None:
    """Of a file that the user named, it is said that it is gone, until it is there again."""
    async with watching(shop) as watched:
        await watched.until("synced")
        await trio.Path(shop).unlink()
        *_, told = await watched.until("!shop.yaml 1")
        assert "is gone" in problems_in([told])[0].text
        replace(shop, WEB)
        assert await watched.summaries_until("+Service shop/web") == ["!shop.yaml 0", "+Service shop/web"]


async def test_run_manifests_renamed_file_removes_nothing(tmp_path: Path, shop: Path) -> None:
    """An object that moves to another file is the same object: it is only said where it stands now."""
    async with watching(tmp_path) as watched:
        await watched.until("synced")
        await trio.Path(shop).rename(tmp_path / "renamed.yaml")
        events = await watched.until("+EndpointSlice shop/web-1")
        assert list(map(summary, events)) == ["+Service shop/web", "+EndpointSlice shop/web-1"]


async def test_run_manifests_broken_file_keeps_its_last_good_version(shop: Path) -> None:
    """A file that is no YAML changes nothing but what is said about it; mended, it takes effect again."""
    async with watching(shop) as watched:
        await watched.until("synced")
        write(shop, documents(service_text("shop/web", port=81), "a: [1, 2\nb: 3\n"))
        (told,) = await watched.until("!shop.yaml 1")
        (problem,) = problems_in([told])
        assert problem.severity is Severity.ERROR
        assert problem.origin == f"{shop}, document 2, line 13, column 2"
        assert problem.text.startswith("not YAML")
        assert problem.text.endswith("until then its last good version stays in force")
        write(shop, documents(service_text("shop/web", port=82), WEB_SLICE))
        events = await watched.until("!shop.yaml 0")
        assert list(map(summary, events)) == ["+Service shop/web", "!shop.yaml 0"]
        assert isinstance(events[0], Applied)
        assert isinstance(events[0].object, Service)
        assert events[0].object.ports[0].port == 82


async def test_run_manifests_broken_object_alone_keeps_its_last_good_version(shop: Path) -> None:
    """Other objects of the file take effect; the Problem says document, line and field."""
    async with watching(shop) as watched:
        await watched.until("synced")
        new_slice = endpoint_slice_text("shop/web-1", ["10.0.1.9"])
        write(shop, documents(service_text("shop/web", port=70000), new_slice))
        events = await watched.until("!shop.yaml 1")
        assert list(map(summary, events)) == ["+EndpointSlice shop/web-1", "!shop.yaml 1"]
        (problem,) = problems_in(events)
        assert (problem.subject, problem.field) == ("Service shop/web", "spec.ports[0].port")
        assert problem.origin == f"{shop}, document 1, line 10"


@pytest.fixture
def sigio_ignored() -> Iterator[None]:
    """Let the kernel tell of a broken lease without ending us."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


async def test_run_manifests_unchanged_file_is_not_opened_until_reload(
    tmp_path: Path, shop: Path, sigio_ignored: None
) -> None:
    """While other files change it is left alone; SIGHUP makes it be read though it looks the same.

    A write lease (fcntl(2)) on the file is lost as soon as anybody opens it.
    """
    other = tmp_path / "other.yaml"
    write(other, service_text("shop/other"))
    async with watching(tmp_path) as watched:
        await watched.until("synced")
        with shop.open("rb+") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            for port in (81, 82):
                replace(other, service_text("shop/other", port=port))
                await watched.until("+Service shop/other")
            assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_WRLCK
            watched.reload()
            await watched.until("!shop.yaml 1")  # the parser does not wait for the lease to be given up
            assert fcntl.fcntl(file, fcntl.F_GETLEASE) != fcntl.F_WRLCK
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


async def test_run_manifests_file_that_could_not_be_opened_is_tried_again(
    shop: Path, sigio_ignored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not the content's fault may pass without a trace in the file."""
    monkeypatch.setattr("userspace_proxy.sources.manifests._TRY_AGAIN_AFTER_S", 0.1)
    with shop.open("rb+") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        async with watching(shop) as watched:
            (told, _) = await watched.until("synced")
            assert "cannot be read" in problems_in([told])[0].text
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            assert "+Service shop/web" in await watched.summaries_until("!shop.yaml 0")


async def test_run_manifests_reload_of_unchanged_files_tells_nothing(tmp_path: Path, shop: Path) -> None:
    """SIGHUP alone changes no object."""
    async with watching(tmp_path) as watched:
        await watched.until("synced")
        watched.reload()
        replace(tmp_path / "other.yaml", service_text("shop/other"))
        assert await watched.summaries_until("+Service shop/other") == ["+Service shop/other"]


async def test_run_manifests_mounted_config_map_follows_its_symbolic_links(tmp_path: Path) -> None:
    """The kubelet swaps the link ``..data``; the names in the directory stay what they are."""
    for version, port in (("..1", 80), ("..2", 81)):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "shop.yaml", service_text("shop/web", port=port))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "shop.yaml").symlink_to("..data/shop.yaml")
    async with watching(tmp_path) as watched:
        assert await watched.summaries_until("synced") == ["+Service shop/web", "synced"]
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        (event,) = await watched.until("+Service shop/web")
        assert isinstance(event, Applied)
        assert isinstance(event.object, Service)
        assert event.object.ports[0].port == 81


async def test_run_manifests_duplicate_takes_over_when_the_first_goes(tmp_path: Path, shop: Path) -> None:
    """The first definition is in force and the second is a Problem, until the first is gone."""
    second = tmp_path / "zzz.yaml"
    write(second, service_text("shop/web", port=99))
    async with watching(tmp_path) as watched:
        events = await watched.until("synced")
        (problem,) = problems_in(events)
        assert problem.origin == f"{second}, document 1, line 1"
        assert problem.subject == "Service shop/web"
        assert f"{shop}, document 1, line 1" in problem.text
        write(shop, WEB_SLICE)
        events = await watched.until("!zzz.yaml 0")
        (service,) = [event for event in events if summary(event) == "+Service shop/web"]
        assert origin_of(service) == f"{second}, document 1, line 1"


async def test_run_manifests_other_kinds_are_named_once(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line counts what is not read; it comes again only when the kinds are others."""
    caplog.set_level(logging.INFO, "userspace_proxy.sources.manifests")
    pod, job = "apiVersion: v1\nkind: Pod\n", "apiVersion: batch/v1\nkind: Job\n"

    def named() -> list[object]:
        return [vars(record)["resource"] for record in caplog.records if record.msg.startswith("ignored")]

    async with watching(shop) as watched:
        await watched.until("synced")
        assert named() == []
        for port, others in ((81, (pod, pod)), (82, (pod, pod, pod)), (83, (pod, job)), (84, (job, pod))):
            # what is logged of a round is there when the next one is told of
            replace(shop, documents(service_text("shop/web", port=port), *others))
            await watched.until("+Service shop/web")
        assert named() == ["Pod (2)", "Job (1), Pod (1)"]

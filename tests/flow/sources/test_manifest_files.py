"""Tests of which manifest files have changed since they were read."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from userspace_proxy.sources.manifest_files import (
    FileWatch,
    Listing,
    ManifestFile,
    Signature,
    list_files,
    require_paths,
)

A, B, C = (ManifestFile(0, name) for name in "abc")


def listing(files: Mapping[ManifestFile, int], unknown: frozenset[int] = frozenset()) -> Listing:
    """Return a Listing of files whose signatures are told by a number."""
    return Listing({file: Signature(1, 1, 1, 1, number) for file, number in files.items()}, unknown, {})


@pytest.fixture
def watch() -> FileWatch:
    """Return a watch that has read A and B at 1."""
    watch = FileWatch()
    first = watch.look(listing({A: 1, B: 1}), force=True)
    assert (first.changed, first.gone, first.settling) == ((A, B), (), False)
    return watch


def test_watch_unchanged_files_are_left_alone(watch: FileWatch) -> None:
    """A look at what was read asks for nothing, however often."""
    for _ in range(3):
        changes = watch.look(listing({A: 1, B: 1}), force=False)
        assert (changes.changed, changes.gone, changes.settling) == ((), (), False)


def test_watch_file_is_read_when_two_looks_agree(watch: FileWatch) -> None:
    """While it differs from look to look, somebody is writing it."""
    for number in (2, 3):
        changes = watch.look(listing({A: number, B: 1}), force=False)
        assert (changes.changed, changes.settling) == ((), True)
    changes = watch.look(listing({A: 3, B: 1}), force=False)
    assert (changes.changed, changes.settling) == ((A,), False)
    assert not watch.look(listing({A: 3, B: 1}), force=False).changed


def test_watch_new_file_is_read_when_two_looks_agree(watch: FileWatch) -> None:
    """It may be half-written as well."""
    files = listing({A: 1, B: 1, C: 1})
    assert watch.look(files, force=False).settling
    assert watch.look(files, force=False).changed == (C,)


def test_watch_file_missing_for_one_look_is_not_gone(watch: FileWatch) -> None:
    """Some editors remove a file before they write it anew."""
    assert not watch.look(listing({B: 1}), force=False).gone
    assert not watch.look(listing({A: 2, B: 1}), force=False).changed
    assert watch.look(listing({A: 2, B: 1}), force=False).changed == (A,)


def test_watch_file_missing_for_two_looks_is_gone_once(watch: FileWatch) -> None:
    """It is told once, and it is new when it comes back."""
    assert not watch.look(listing({B: 1}), force=False).gone
    assert watch.look(listing({B: 1}), force=False).gone == (A,)
    assert not watch.look(listing({B: 1}), force=False).gone
    watch.look(listing({A: 1, B: 1}), force=False)
    assert watch.look(listing({A: 1, B: 1}), force=False).changed == (A,)


def test_watch_change_taken_back_is_none(watch: FileWatch) -> None:
    """What is as it was read need not be read."""
    assert watch.look(listing({A: 2, B: 1}), force=False).settling
    changes = watch.look(listing({A: 1, B: 1}), force=False)
    assert (changes.changed, changes.settling) == ((), False)


def test_watch_forced_look_takes_all(watch: FileWatch) -> None:
    """The user says that all is as it should be: files are read as they are, missing ones are gone."""
    changes = watch.look(listing({B: 1, C: 5}), force=True)
    assert (changes.changed, changes.gone, changes.settling) == ((B, C), (A,), False)


def test_watch_files_of_a_path_that_cannot_be_looked_at_stay(watch: FileWatch) -> None:
    """Nothing is known of them, not even that they are gone; those of other paths are looked at all the same."""
    other = ManifestFile(1, "other")
    hidden = listing({other: 1}, frozenset({0}))
    looks = [watch.look(hidden, force=force) for force in (False, False, False, True)]
    assert [changes.changed for changes in looks] == [(), (other,), (), (other,)]
    assert not any(changes.gone for changes in looks)
    assert not watch.look(listing({A: 1, B: 1, other: 1}), force=False).changed


def test_watch_forgotten_file_is_read_again(watch: FileWatch) -> None:
    """So a failed attempt to read it is repeated."""
    watch.forget([A])
    assert watch.look(listing({A: 1, B: 1}), force=False).changed == (A,)
    assert not watch.look(listing({A: 1, B: 1}), force=False).changed


def test_watch_forgotten_file_that_goes_is_gone(watch: FileWatch) -> None:
    """What was read of it before is still there to be taken back."""
    watch.forget([A])
    assert watch.look(listing({B: 1}), force=False).settling
    assert watch.look(listing({B: 1}), force=False).gone == (A,)


def test_list_files_signature_differs_after_any_change(tmp_path: Path) -> None:
    """Another content of the same size, another file of the same content, other rights: all are changes."""
    path = tmp_path / "a.yaml"

    def signature() -> Signature:
        (found,) = list_files([path]).files.values()
        return found

    path.write_text("a", encoding="utf-8")
    before = signature()
    assert signature() == before
    path.chmod(0o600)
    after_chmod = signature()
    path.rename(tmp_path / "b.yaml")
    path.write_text("a", encoding="utf-8")
    assert len({before, after_chmod, signature()}) == 3


def test_list_files_dangling_link_and_path_below_a_file_are_no_files(tmp_path: Path) -> None:
    """Links that lead nowhere occur for a moment while a ConfigMap is swapped."""
    (tmp_path / "a.yaml").symlink_to("nowhere")
    assert not list_files([tmp_path]).files
    (tmp_path / "b.yaml").write_text("", encoding="utf-8")
    below = tmp_path / "b.yaml" / "c.yaml"
    found = list_files([below])
    assert not found.files
    assert "is gone" in str(found.problems[str(below)][0])


def test_list_files_that_cannot_be_looked_at_is_left_to_the_reader(tmp_path: Path) -> None:
    """A link in a circle has no signature; the attempt to read it tells why."""
    (tmp_path / "a.yaml").symlink_to("a.yaml")
    assert list_files([tmp_path]).files == {ManifestFile(0, f"{tmp_path}/a.yaml"): Signature(0, 0, 0, 0, 0)}
    named = list_files([tmp_path / "a.yaml"])
    assert named.unknown == {0}
    assert "Too many levels of symbolic links" in str(named.problems[f"{tmp_path}/a.yaml"][0])


def test_require_paths_accepts_files_and_directories(tmp_path: Path) -> None:
    """Nothing is said of what is there."""
    (tmp_path / "a.yaml").write_text("", encoding="utf-8")
    require_paths([tmp_path, tmp_path / "a.yaml"])

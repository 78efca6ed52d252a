"""Tests of folding what files say: the last good version, the first definition, and only real changes."""

from collections.abc import Iterable, Mapping

import pytest
from builders import endpoint_slice, named, service
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Service
from userspace_proxy.sources.base import Applied, ProblemsFound, Removed, WatchEvent
from userspace_proxy.sources.manifest_files import ManifestFile
from userspace_proxy.sources.manifest_store import Definition, FileContent, ManifestStore, ObjectKey

A, B, C = (ManifestFile(0, f"{name}.yaml") for name in "abc")
WEB = ObjectKey(Service, named("shop/web"))
WEB_SLICE = ObjectKey(EndpointSlice, named("shop/web-1"))


def web(port_origin: str) -> Service:
    """Return a version of the Service shop/web."""
    return service("shop/web", origin=port_origin)


def good(object_: Service | EndpointSlice | None, origin: str = "here") -> Definition:
    """Return a definition without fault; None: of an object that is not served, such as a headless Service."""
    return Definition(object_, True, origin, ())  # noqa: FBT003


def bad(object_: Service | EndpointSlice | None = None, origin: str = "here") -> Definition:
    """Return a broken definition, with what could be made of it."""
    return Definition(object_, False, origin, (error("is bad"), warning("is odd")))  # noqa: FBT003


def error(text: str) -> Problem:
    """Return an error."""
    return Problem(Severity.ERROR, "", "", text, "there")


def warning(text: str) -> Problem:
    """Return a warning."""
    return Problem(Severity.WARNING, "", "", text, "there")


def content(*definitions: tuple[ObjectKey, Definition], problems: Iterable[Problem] = ()) -> FileContent:
    """Return what a file says; ``problems`` are those of nameless objects."""
    found = FileContent(problems=list(problems), nameless=bool(problems))
    for key, definition in definitions:
        found.add(key, definition)
    return found


@pytest.fixture
def store() -> ManifestStore:
    """Return an empty store."""
    return ManifestStore()


def events(store: ManifestStore, changes: Mapping[ManifestFile, FileContent | None]) -> list[WatchEvent]:
    """Return the events of an update."""
    return [event for event in store.update(changes) if event is not None]


def texts(event: WatchEvent) -> list[str]:
    """Return the texts of the Problems of an event."""
    assert isinstance(event, ProblemsFound)
    return [problem.text for problem in event.problems]


def test_store_object_is_applied_when_it_differs(store: ManifestStore) -> None:
    """An object that is said again is no event, another version is."""
    assert events(store, {A: content((WEB, good(web("1"))))}) == [Applied(web("1"))]
    assert events(store, {A: content((WEB, good(web("1"))))}) == []
    assert events(store, {A: content((WEB, good(web("2"))))}) == [Applied(web("2"))]


@pytest.mark.parametrize("after", [content(), None, content((WEB, good(None)))], ids=["missing", "gone", "headless"])
def test_store_object_that_is_no_longer_there_is_removed(store: ManifestStore, after: FileContent | None) -> None:
    """Its file does not have it any more, is gone, or has it as something that is not served."""
    events(store, {A: content((WEB, good(web("1"))))})
    assert events(store, {A: after}) == [Removed(Service, WEB.name)]
    assert events(store, {A: content((WEB, good(web("1"))))}) == [Applied(web("1"))]


@pytest.mark.parametrize("partial", [None, web("partial")])
def test_store_broken_object_keeps_its_last_good_version(store: ManifestStore, partial: Service | None) -> None:
    """However often it is read broken; the Problems say so, errors alone."""
    events(store, {A: content((WEB, good(web("1"))))})
    for _ in range(2):
        (told,) = events(store, {A: content((WEB, bad(partial)))})
        assert texts(told) == ["is bad; until then its last good version stays in force", "is odd"]
    assert events(store, {A: content((WEB, good(web("2"))))}) == [Applied(web("2")), ProblemsFound("a.yaml", ())]


def test_store_object_that_was_never_good_is_served_as_far_as_possible(store: ManifestStore) -> None:
    """The rest of a broken object is better than nothing, and a later rest better than an earlier one."""
    first, told = events(store, {A: content((WEB, bad(web("1"))))})
    assert first == Applied(web("1"))
    assert texts(told) == ["is bad", "is odd"]
    assert events(store, {A: content((WEB, bad(web("2"))))})[0] == Applied(web("2"))
    (told,) = events(store, {A: content((WEB, bad(None)))})
    assert "last good version" in texts(told)[0]


def test_store_failed_file_keeps_all_its_objects(store: ManifestStore) -> None:
    """Nothing can be said of it, so nothing changes; its Problems are the failure alone."""
    events(store, {A: content((WEB, good(web("1"))), (WEB_SLICE, good(endpoint_slice())))})
    for _ in range(2):
        (told,) = events(store, {A: FileContent(failure=error("no YAML"))})
        assert texts(told) == ["no YAML; until then its last good version stays in force"]
    after = content((WEB, good(web("1"))))
    assert events(store, {A: after}) == [Removed(EndpointSlice, WEB_SLICE.name), ProblemsFound("a.yaml", ())]


def test_store_file_that_failed_from_the_start_has_no_last_good_version(store: ManifestStore) -> None:
    """Then nothing is said of one."""
    (told,) = events(store, {A: FileContent(failure=error("no YAML"))})
    assert texts(told) == ["no YAML"]
    assert events(store, {A: None}) == [ProblemsFound("a.yaml", ())]


def test_store_missing_object_stays_while_something_is_nameless(store: ManifestStore) -> None:
    """A typo in a name must not take the Service away: what is broken may be what is missing."""
    events(store, {A: content((WEB, good(web("1"))), (WEB_SLICE, good(endpoint_slice())))})
    (told,) = events(store, {A: content((WEB, good(web("1"))), problems=[error("has no name")])})
    assert texts(told)[0] == "has no name"
    assert texts(told)[1] == "missing objects stay in force, as one of them may be what is broken here (missing: 1)"
    assert events(store, {A: content((WEB, good(web("1"))))}) == [
        Removed(EndpointSlice, WEB_SLICE.name),
        ProblemsFound("a.yaml", ()),
    ]


def test_store_first_definition_is_in_force(store: ManifestStore) -> None:
    """Files count in their order, whenever they came; the other is a Problem that names the first."""
    assert events(store, {B: content((WEB, good(web("b"), "in b")))}) == [Applied(web("b"))]
    applied, told = events(store, {A: content((WEB, good(web("a"), "in a")))})
    assert applied == Applied(web("a"))
    assert isinstance(told, ProblemsFound)
    assert told.origin == "b.yaml"
    (problem,) = told.problems
    assert (problem.severity, problem.subject, problem.origin) == (Severity.ERROR, "Service shop/web", "in b")
    assert problem.text.startswith("is defined already in in a, and that stays in force")
    assert events(store, {A: None}) == [Applied(web("b")), ProblemsFound("b.yaml", ())]


def test_store_duplicate_within_a_file_is_a_problem(store: ManifestStore) -> None:
    """The first of its documents is in force."""
    applied, told = events(store, {A: content((WEB, good(web("1"))), (WEB, good(web("2"), "later")))})
    assert applied == Applied(web("1"))
    assert isinstance(told, ProblemsFound)
    assert [problem.origin for problem in told.problems] == ["later"]


def test_store_duplicate_that_goes_is_no_problem_any_more(store: ManifestStore) -> None:
    """What is said of a file is brought up to date when another file changes, and only then."""
    events(store, {A: content((WEB, good(web("a")))), B: content((WEB, good(web("b"))))})
    assert events(store, {C: content((WEB_SLICE, good(endpoint_slice())))}) == [Applied(endpoint_slice())]
    assert events(store, {B: content()}) == [ProblemsFound("b.yaml", ())]


def test_store_object_that_moves_between_files_is_not_removed(store: ManifestStore) -> None:
    """Changes of one look take effect together, in the order of files."""
    events(store, {A: content((WEB, good(web("1")))), B: content((WEB_SLICE, good(endpoint_slice())))})
    moved = {A: content((WEB_SLICE, good(endpoint_slice()))), B: content((WEB, good(web("2")))), C: None}
    assert events(store, moved) == [Applied(web("2"))]


def test_store_counts_other_kinds_of_all_files(store: ManifestStore) -> None:
    """Sorted by kind, without those of files that are gone."""
    events(store, {A: FileContent(other_kinds={"Pod": 2, "Job": 1}), B: FileContent(other_kinds={"Pod": 1})})
    assert list(store.other_kinds().items()) == [("Job", 1), ("Pod", 3)]
    events(store, {A: None})
    assert store.other_kinds() == {"Pod": 1}


KEYS = [ObjectKey(Service, named(f"shop/{name}")) for name in "xyz"]
VERSIONS = st.sampled_from(["1", "2"])
CONTENTS = st.none() | st.dictionaries(st.sampled_from(KEYS), st.none() | VERSIONS, max_size=3)


@given(rounds=st.lists(st.dictionaries(st.sampled_from([A, B, C]), CONTENTS, max_size=3), max_size=6))
def test_store_events_lead_to_what_the_files_say(
    rounds: list[dict[ManifestFile, dict[ObjectKey, str | None] | None]],
) -> None:
    """Whoever applies the events has, after each update, the first definition of each object, and no needless event."""
    store = ManifestStore()
    files: dict[ManifestFile, dict[ObjectKey, str | None]] = {}
    applied: dict[tuple[object, object], object] = {}
    problems: dict[str, int] = {}
    for changes in rounds:
        update: dict[ManifestFile, FileContent | None] = {}
        for file, said in changes.items():
            files[file] = said or {}
            objects = {key: version and service(str(key.name), origin=version) for key, version in files[file].items()}
            update[file] = None if said is None else content(*((key, good(o or None)) for key, o in objects.items()))
        for event in events(store, update):
            match event:
                case Applied(object=object_):
                    assert applied.get((type(object_), object_.name)) != object_
                    applied[type(object_), object_.name] = object_
                case Removed(type=type_, name=name):
                    del applied[type_, name]
                case ProblemsFound(origin=origin, problems=found):
                    problems[origin] = len(found)
        first: dict[ObjectKey, str | None] = {}
        duplicates = dict.fromkeys(files, 0)
        for file in sorted(files):
            for key, version in files[file].items():
                duplicates[file] += key in first
                first.setdefault(key, version)
        assert applied == {key: service(str(key.name), origin=version) for key, version in first.items() if version}
        assert {path: count for path, count in problems.items() if count} == {
            file.path: count for file, count in duplicates.items() if count
        }

"""What the manifests say, folded from what each file says: which objects are in force, and what is wrong where.

Two rules are kept here. What is broken keeps its last good version: an object, or a file that cannot be read at all.
Of several definitions of one object the first is in force, in the order of files, then of documents. Pure; it works
in small steps, between which the caller may let others run. Entry points: ``FileContent``, ``ManifestStore``.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import attrs
from attrs import define, field, frozen

from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.names import NamespacedName
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Service
from userspace_proxy.sources.base import Applied, ProblemsFound, Removed, WatchEvent
from userspace_proxy.sources.manifest_files import ManifestFile, shown_path


class ObjectKey(NamedTuple):
    """Identity of an object; a tuple, as it is looked up for every object of a file."""

    type: type[Service] | type[EndpointSlice]
    name: NamespacedName

    def __str__(self) -> str:
        """Return ``Service namespace/name``."""
        return f"{self.type.__name__} {self.name}"


@frozen
class Definition:
    """One object as one document defines it."""

    object: Service | EndpointSlice | None
    """None: broken, or not one to be served."""
    is_good: bool
    """The object is all that was asked for."""
    origin: str
    problems: tuple[Problem, ...]


@define
class FileContent:
    """What one file says."""

    definitions: dict[ObjectKey, Definition] = field(factory=dict)
    """In the order of the file; the first of each object."""
    problems: list[Problem] = field(factory=list)
    """Those that are not about one definition."""
    nameless: bool = False
    """Something in it is broken so badly that it may be any object."""
    other_kinds: Mapping[str, int] = field(factory=dict)
    """How many objects there are of kinds that are not read."""
    failure: Problem | None = None
    """Why nothing can be said; the rest is empty then."""
    try_again: bool = False
    """The failure is not the content's: a later attempt may succeed though the file is the same."""

    def add(self, key: ObjectKey, definition: Definition) -> None:
        """Take in the next definition."""
        first = self.definitions.setdefault(key, definition)
        if first is not definition:
            self.problems.append(_duplicate(key, definition, first))


@define(eq=False)
class ManifestStore:
    """What all files say together."""

    _contents: dict[ManifestFile, FileContent] = field(factory=dict, init=False)
    _holders: dict[ObjectKey, list[ManifestFile]] = field(factory=dict, init=False)
    """The files that define each object, sorted."""
    _in_force: dict[ObjectKey, Service | EndpointSlice] = field(factory=dict, init=False)
    _duplicates: dict[ManifestFile, dict[ObjectKey, Problem]] = field(factory=dict, init=False)
    """Of definitions that are not in force, as another file has an earlier one."""
    _reported: set[ManifestFile] = field(factory=set, init=False)
    """Files with Problems that were yielded."""

    def update(self, changes: Mapping[ManifestFile, FileContent | None]) -> Iterator[WatchEvent | None]:
        """Take in what files say now (None: the file is gone) and yield what that changes.

        All of ``changes`` take effect together: an object that moves from one file to another is never removed.

        Yields:
            ``Applied`` and ``Removed`` in the order of files, only for objects that are different now;
            ``ProblemsFound`` for each file of ``changes`` that has some or had some, and for those whose duplicates
            are different; None after each other step, which takes about 10 microseconds.
        """
        touched: dict[ObjectKey, None] = {}
        to_report = set(changes)
        for file in sorted(changes):
            yield from self._replace(file, changes[file], touched)
        for key in touched:
            self._find_duplicates(key, to_report)
            yield self._put_in_force(key)
        for file in sorted(to_report):
            yield from self._report(file)

    def other_kinds(self) -> Mapping[str, int]:
        """Return how many objects there are of kinds that are not read, sorted by kind."""
        total: Counter[str] = Counter()
        for content in self._contents.values():
            total.update(content.other_kinds)
        return dict(sorted(total.items()))

    def _replace(
        self, file: ManifestFile, content: FileContent | None, touched: dict[ObjectKey, None]
    ) -> Iterator[None]:
        """Replace what a file says; note in ``touched`` all objects that it said or says something about."""
        before = self._contents.pop(file, FileContent()).definitions
        now: Mapping[ObjectKey, Definition] = {}
        if content is None:
            self._duplicates.pop(file, None)
        else:
            yield from _keep_last_good(content, before)
            self._contents[file] = content
            now = content.definitions
        for key in [*before, *now]:
            touched[key] = None
            if key not in now:
                self._holders[key].remove(file)
                self._duplicates.get(file, {}).pop(key, None)
            elif key not in before:
                insort(self._holders.setdefault(key, []), file)
            yield None
        while before:  # to free thousands of objects at once takes long
            before.popitem()
            yield None

    def _find_duplicates(self, key: ObjectKey, to_report: set[ManifestFile]) -> None:
        """Bring the Problems of all definitions of an object but the first up to date; note the files they are in."""
        if not self._holders[key]:
            return
        first, *others = self._holders[key]
        if self._duplicates.get(first, {}).pop(key, None):
            to_report.add(first)
        for file in others:
            definitions = self._contents[file].definitions
            problem = _duplicate(key, definitions[key], self._contents[first].definitions[key])
            if self._duplicates.setdefault(file, {}).get(key) != problem:
                self._duplicates[file][key] = problem
                to_report.add(file)

    def _put_in_force(self, key: ObjectKey) -> Applied | Removed | None:
        """Put the first definition of an object in force; return the event if that is a change."""
        holders = self._holders[key]
        new = self._contents[holders[0]].definitions[key].object if holders else None
        if not holders:
            del self._holders[key]
        if new == self._in_force.get(key):
            return None
        if new is None:
            del self._in_force[key]
            return Removed(key.type, key.name)
        self._in_force[key] = new
        return Applied(new)

    def _report(self, file: ManifestFile) -> Iterator[ProblemsFound | None]:
        """Yield all Problems of a file, if it has some or had some."""
        problems: list[Problem] = []
        content = self._contents.get(file)
        if content is not None and content.failure is not None:
            problems.append(content.failure)
        elif content is not None:
            problems += content.problems
            for definition in content.definitions.values():
                problems += definition.problems
                yield None
        problems += self._duplicates.get(file, {}).values()
        if problems or file in self._reported:
            yield ProblemsFound(shown_path(file.path), tuple(problems))
        (self._reported.add if problems else self._reported.discard)(file)


def _keep_last_good(content: FileContent, before: Mapping[ObjectKey, Definition]) -> Iterator[None]:
    """Put what was good before in the place of what is broken now."""
    if content.failure is not None:
        content.definitions.update(before)
        content.failure = _soothe(content.failure) if before else content.failure
        return
    kept = 0
    for key, old in before.items():
        new = content.definitions.get(key)
        if old.object is None:
            pass
        elif new is None:
            if content.nameless:
                content.definitions[key] = old
                kept += 1
        elif not new.is_good and (old.is_good or new.object is None):
            content.definitions[key] = attrs.evolve(old, origin=new.origin, problems=tuple(map(_soothe, new.problems)))
        yield None
    if kept:
        text = f"missing objects stay in force, as one of them may be what is broken here (missing: {kept})"
        content.problems.append(Problem(Severity.WARNING, "", "", text, content.problems[0].origin))


def _soothe(problem: Problem) -> Problem:
    """Return the Problem of something whose last good version is kept."""
    if problem.severity is not Severity.ERROR:
        return problem
    return attrs.evolve(problem, text=f"{problem.text}; until then its last good version stays in force")


def _duplicate(key: ObjectKey, definition: Definition, first: Definition) -> Problem:
    text = f"is defined already in {first.origin}, and that stays in force; remove or rename one of them"
    return Problem(Severity.ERROR, str(key), "", text, definition.origin)

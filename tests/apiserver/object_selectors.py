"""Label and field selectors, as in the query of a list or a watch.

Source: Kubernetes documentation, "Labels and Selectors" and "Field Selectors"; ``k8s.io/apimachinery/pkg/labels``.
Entry point: ``parse_selectors``.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from apiserver.statuses import bad_request

Object = Mapping[str, Any]
Matches = Callable[[Object], bool]

_LABEL_REQUIREMENT = re.compile(
    r"""\s*(?:
        !\s*(?P<absent>[\w./-]+)
      | (?P<key>[\w./-]+)\s*(?:
            (?P<operator>==|=|!=)\s*(?P<value>[\w.-]*)
          | (?P<set_operator>in|notin)\s*\((?P<values>[^)]*)\)  # codespell:ignore notin
        )?
    )\s*(?:,|$)""",
    re.VERBOSE,
)


def parse_selectors(labels: str, fields: str, field_paths: Mapping[str, str]) -> Matches:
    """Return what says whether an object matches both selectors; an empty text matches all.

    Args:
        labels: a label selector.
        fields: a field selector.
        field_paths: the field labels that the resource knows, with the value of a field that is not set.

    Raises:
        ApiError: 400, a text is no selector or asks for an unknown field.
    """
    requirements = [*_label_requirements(labels), *_field_requirements(fields, field_paths)]
    return lambda candidate: all(matches(candidate) for matches in requirements)


def _label_requirements(text: str) -> list[Matches]:
    requirements: list[Matches] = []
    position = 0
    while position < len(text):
        found = _LABEL_REQUIREMENT.match(text, position)
        if not found:
            raise bad_request(f"unable to parse requirement: found '{text[position:]}', expected: identifier")
        requirements.append(_label_requirement(found))
        position = found.end()
    return requirements


def _label_requirement(found: re.Match[str]) -> Matches:
    if absent := found["absent"]:
        return lambda candidate: absent not in _labels(candidate)
    key = found["key"]
    if operator := found["operator"]:
        wanted = {found["value"]}
    elif operator := found["set_operator"]:
        wanted = {value.strip() for value in found["values"].split(",")}
    else:
        return lambda candidate: key in _labels(candidate)
    if operator in {"!=", "notin"}:  # true also where the label is missing  # codespell:ignore notin
        return lambda candidate: _labels(candidate).get(key) not in wanted
    return lambda candidate: _labels(candidate).get(key) in wanted


def _labels(candidate: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = candidate["metadata"].get("labels") or {}
    return labels


def _field_requirements(text: str, field_paths: Mapping[str, str]) -> list[Matches]:
    requirements: list[Matches] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"([\w.]+?)\s*(!=|==|=)\s*(.*)", part)
        if not found:
            raise bad_request(f"invalid selector: '{part}'; can't understand '{part}'")
        path, operator, value = found.groups()
        if path not in field_paths:
            raise bad_request(f'field selector "{text}": field label not supported: {path}')
        requirements.append(_field_requirement(path, value, field_paths[path], is_wanted=operator != "!="))
    return requirements


def _field_requirement(path: str, value: str, unset: str, *, is_wanted: bool) -> Matches:
    steps = path.split(".")

    def matches(candidate: Object) -> bool:
        found: Any = candidate
        for step in steps:
            found = found.get(step) if isinstance(found, Mapping) else None
        return ((unset if found is None else str(found)) == value) == is_wanted

    return matches

"""Tests of reading JSON: several documents, and where things stand."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from userspace_proxy.errors import ManifestError
from userspace_proxy.sources.manifest_json import JsonElement, read_json

SCALARS = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


def elements(element: JsonElement) -> list[JsonElement]:
    """Return an element and all below it, found by the way that leads to each."""
    value: Any = element.value()
    below = element.items() or []
    if isinstance(value, dict):
        below = [member for member in map(element.member, value) if member is not None]
        assert len(below) == len(value)
    return [element, *(found for child in below for found in elements(child))]


def scalars(value: Any) -> list[object]:
    """Return all values below one, in order, itself first."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(found for child in below for found in scalars(child))]


@given(documents=st.lists(VALUES, max_size=3), indent=st.sampled_from([None, 1, "\t"]), ascii_only=st.booleans())
@example(documents=[-(10**18)], indent=None, ascii_only=False)
def test_elements_are_found_one_by_one(documents: list[object], indent: int | str | None, *, ascii_only: bool) -> None:
    """Several documents in a row are read whole, and each part of them can be reached by its own way."""
    text = "\n".join(json.dumps(one, indent=indent, ensure_ascii=ascii_only) for one in documents)
    found = list(read_json(text))
    assert [element.value() for element in found] == documents
    for element, document in zip(found, documents, strict=True):
        assert [each.value() for each in elements(element)] == scalars(document)


def test_element_knows_its_line() -> None:
    """A member is where its key stands, an item where it begins."""
    (document,) = read_json('\n{\n"a": 1, "spec": {"ports"\n:\n[{\n}, {}\n]}}')
    spec = document.member("spec")
    assert spec is not None
    ports = spec.member("ports")
    assert ports is not None
    items = ports.items()
    assert items is not None
    assert (document.line, spec.line, ports.line, [item.line for item in items]) == (2, 3, 3, [5, 6])
    assert document.items() is None
    assert ports.member("spec") is None
    assert spec.member("other") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", 2**63 - 1),
        ("-9223372036854775809", -(2**63) + 1),
        ("1" * 5000, 2**63 - 1),
        ("-" + "1" * 5000, -(2**63) + 1),
    ],
)
def test_integers_end_at_64_bits(text: str, expected: int) -> None:
    """More does not fit a message, and no field of the API holds more."""
    (document,) = read_json(text)
    assert document.value() == expected


@pytest.mark.parametrize("text", ["{", "[1,]", "{} x", "{'a': 1}", "[" * 100_000])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    """The place is that of the decoder."""
    with pytest.raises(ManifestError, match="not JSON") as caught:
        list(read_json(text))
    assert caught.value.line == 1

"""Tests of reading YAML: what plain scalars mean, where things stand, and the bounds on hostile texts."""

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from userspace_proxy.errors import ManifestError
from userspace_proxy.sources.manifest_yaml import MAX_ALIASED, MAX_DEPTH, YamlElement, read_yaml

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=20
)


class Dumper(yaml.SafeDumper):
    """A YAML library that quotes whatever may look like a number to others.

    This one takes fewer texts for numbers than kubectl does, and so than we do: ``0E0`` is none, as it has no point.
    """


def _represent_text(dumper: Dumper, text: str) -> yaml.Node:
    style = '"' if re.match(r"[-+.]*[0-9]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


Dumper.add_representer(str, _represent_text)


def root(text: str) -> YamlElement:
    """Return the only document of a text."""
    (document,) = read_yaml(text)
    assert isinstance(document, YamlElement)
    return document


def value(text: str) -> Any:
    """Return the value of the only document of a text."""
    return root(text).value()


@given(documents=st.lists(VALUES, max_size=3), flow=st.booleans())
def test_value_of_what_a_yaml_library_writes_is_what_was_written(documents: list[object], *, flow: bool) -> None:
    """Whatever JSON can say survives, in block and in flow style."""
    text = yaml.dump_all(documents, Dumper=Dumper, default_flow_style=flow, allow_unicode=True)
    found = [document.value() for document in read_yaml(text) if isinstance(document, YamlElement)]
    assert found == documents


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("yes", True),
        ("Off", False),
        ("0", 0),
        ("-12", -12),
        ("+3", 3),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 15),
        ("0b101", 5),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("9" * 30, 2**63 - 1),
        ("-" + "9" * 30, -(2**63) + 1),
        ("-" + "9" * 5000, -(2**63) + 1),
        ("08", 8.0),
        ("1_000", "1_000"),
        ("10.96.0.1", "10.96.0.1"),
        ("2001-12-14", "2001-12-14"),
        ("2026-05-04T10:10:10Z", "2026-05-04T10:10:10Z"),
        ("12:30", "12:30"),
        ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"),
        ("=", "="),
        ("y", "y"),
        ("'80'", "80"),
        ('"yes"', "yes"),
        ("!!str 80", "80"),
        ("!!int '80'", 80),
        ("!!float 80", 80.0),
        ("!!bool 'no'", False),
        ("!!null ''", None),
    ],
)
def test_value_of_a_scalar_is_what_kubectl_makes_of_it(text: str, expected: object) -> None:
    """YAML 1.1, but for timestamps and for numbers to the base of 60: they are texts; integers end at 64 bits."""
    found = value(f"- {text}")[0]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("text", ["!!int x", "!!bool x", "!!null x", "!!float x", "!!timestamp 2001-12-14", "!x y"])
def test_value_of_a_scalar_with_a_tag_that_does_not_fit_is_refused(text: str) -> None:
    """An explicit tag is believed only if the text bears it out."""
    with pytest.raises(ManifestError, match=r"the tag .* does not fit here") as caught:
        value(f"a:\n- {text}")
    assert caught.value.line == 2


@pytest.mark.parametrize("text", ["!!set {a}", "!!omap [a: 1]", "!mine [a]"])
def test_value_of_a_collection_with_a_tag_is_refused(text: str) -> None:
    """JSON has no such values, so the API has none."""
    with pytest.raises(ManifestError, match="means nothing here"):
        value(text)


def test_value_of_a_key_is_its_text() -> None:
    """JSON has no other keys; an unquoted number is one nevertheless, as for kubectl."""
    assert value("80: a\nyes: b\n~: c\n") == {"80": "a", "yes": "b", "~": "c"}


def test_value_of_a_merge_key_is_merged_with_lower_precedence() -> None:
    """``<<`` takes one mapping or several, of which the first wins; keys of the mapping itself win over all."""
    text = """\
- &a {x: 1, y: 1, z: 1}
- &b {<<: *a, y: 2}
- {<<: [*b, {z: 3, w: 3}], x: 4}
"""
    assert value(text) == [{"x": 1, "y": 1, "z": 1}, {"x": 1, "y": 2, "z": 1}, {"x": 4, "y": 2, "z": 1, "w": 3}]


def test_value_of_a_merge_of_something_else_is_refused() -> None:
    """Only mappings can be merged."""
    with pytest.raises(ManifestError, match="what << merges is no mapping"):
        value("<<: [a]")


def test_element_knows_its_line_and_its_parts() -> None:
    """A member is where its key stands, an item where it begins."""
    document = root("# comment\na: 1\nspec:\n\n  ports:\n  - name: x\n  - y\n")
    spec = document.member("spec")
    assert spec is not None
    ports = spec.member("ports")
    assert ports is not None
    items = ports.items()
    assert items is not None
    assert (document.line, spec.line, ports.line, [item.line for item in items]) == (2, 3, 5, [6, 7])
    assert items[0].value() == {"name": "x"}
    assert document.items() is None
    assert ports.member("spec") is None
    assert spec.member("other") is None


def test_documents_after_a_refused_one_are_read() -> None:
    """Aliases that recurse or stand for too much cost their own document."""
    refused, good = read_yaml("a: &a [*a]\n---\nb: 1\n")
    assert isinstance(refused, ManifestError)
    assert isinstance(good, YamlElement)
    assert good.value() == {"b": 1}


@pytest.mark.parametrize(("copies", "is_refused"), [(100, False), (101, True)])
def test_aliases_may_stand_for_a_bounded_number_of_nodes(copies: int, *, is_refused: bool) -> None:
    """Up to the bound they are what they stand for; the anchor itself does not count."""
    size = MAX_ALIASED // 100
    text = f"a: &a [{', '.join('x' * (size - 1))}]\nb: [{', '.join(['*a'] * copies)}]\n"
    (document,) = read_yaml(text)
    assert isinstance(document, ManifestError) is is_refused


@pytest.mark.parametrize(("depth", "is_refused"), [(MAX_DEPTH, False), (MAX_DEPTH + 1, True)])
def test_nesting_is_bounded(depth: int, *, is_refused: bool) -> None:
    """One level more than allowed is an error at that place, before it can hurt the C library."""
    text = "[" * depth + "]" * depth
    if not is_refused:
        value(text)
        return
    with pytest.raises(ManifestError, match="nested deeper") as caught:
        value(text)
    assert (caught.value.line, caught.value.column) == (1, MAX_DEPTH)


def test_reading_without_libyaml_gives_the_same() -> None:
    """PyYAML may be built without it; then all is slower and nothing else is different."""
    text = "a: &a [1, yes, 'no', 10.0.0.1]\nb:\n  - *a\n---\n- x: 1:2\n"
    script = f"""
import yaml
vars(yaml).pop("CSafeLoader", None)
from userspace_proxy.sources import manifest_yaml
assert manifest_yaml._SafeLoader is yaml.SafeLoader
for document in manifest_yaml.read_yaml({text!r}):
    print(document.line, document.value())
for broken in ("[" * 101, "a: [", "a: \\x07"):
    try:
        list(manifest_yaml.read_yaml(broken))
    except manifest_yaml.ManifestError as error:
        print(error.line, error.column)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode().splitlines() == [
        "1 {'a': [1, True, 'no', '10.0.0.1'], 'b': [[1, True, 'no', '10.0.0.1']]}",
        "5 [{'x': '1:2'}]",
        f"1 {MAX_DEPTH}",
        "1 5",
        "1 4",
    ]

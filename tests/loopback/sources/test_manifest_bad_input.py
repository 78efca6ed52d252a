"""Bad manifests, read as a user would have them read: each is a clear Problem, and what is good beside it is served."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from manifest_driver import documents, endpoint_slice_text, problems_in, service_text, summary, write

from userspace_proxy.model.endpoint import EndpointSlice
from userspace_proxy.model.problem import Problem, Severity
from userspace_proxy.model.service_port import Service
from userspace_proxy.sources.base import Applied, WatchEvent
from userspace_proxy.sources.manifest_messages import FileEnd, MessageReader, ServiceFound, Started
from userspace_proxy.sources.manifests import read_manifests

GOOD = service_text("shop/good", cluster_ip="10.96.0.99")

ALIAS_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
"""Twelve lines that stand for a million million nodes."""
TEXT_BOMB = f"a: &a {'x' * 1_000_000}\nb: [{', '.join(['*a'] * 1000)}]\n"
"""A megabyte that stands for a gigabyte."""
DEEP_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))
RECURSIVE_ALIAS = "a: &a\n  b:\n  - *a\n"


async def read_text(path: Path, text: str | bytes) -> list[WatchEvent]:
    """Return the events for a file with this content."""
    write(path, text)
    return await read_manifests([path])


async def only_problem(path: Path, text: str | bytes) -> Problem:
    """Return the one Problem of a file that says nothing else."""
    events = await read_text(path, text)
    assert list(map(summary, events)) == [f"!{path.name} 1", "synced"]
    (problem,) = problems_in(events)
    assert problem.severity is Severity.ERROR
    return problem


YAML_NOTHINGS = ["", "\n \n", "# a comment\n", "---\n", "---\n---\n# nothing\n---\n...\n", "null\n", "\ufeff"]
JSON_NOTHINGS = ["", "\n\t\n", "null", "\ufeff"]


@pytest.mark.parametrize(
    ("name", "text"),
    [*(("x.yaml", text) for text in YAML_NOTHINGS), *(("x.json", text) for text in JSON_NOTHINGS)],
)
async def test_file_without_any_object_says_nothing(tmp_path: Path, name: str, text: str) -> None:
    """Empty files, empty documents and comments are no errors."""
    assert list(map(summary, await read_text(tmp_path / name, text))) == ["synced"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\x7fELF\x02\x01\x01\0\0\0", "is a binary file; a manifest is YAML or JSON text in UTF-8"),
        (GOOD.encode("utf-16"), "is a binary file; a manifest is YAML or JSON text in UTF-8"),
        (b"\x1f\x8b\x08\n", "is not UTF-8 from line 1 on; a manifest is YAML or JSON text in UTF-8"),
        (b"kind: List\n# \xff", "is not UTF-8 from line 2 on; a manifest is YAML or JSON text in UTF-8"),
        (b"# " + b"x" * 32 * 2**20, "is larger than 32 MiB; split it"),
    ],
    ids=["elf", "utf-16", "gzip", "latin-1", "huge"],
)
async def test_file_that_is_no_text_is_one_problem(tmp_path: Path, content: bytes, text: str) -> None:
    """Whatever the bytes are, one sentence says that this is no manifest."""
    problem = await only_problem(tmp_path / "x.yaml", content)
    assert problem.text == text
    assert problem.origin == f"{tmp_path}/x.yaml"


@pytest.mark.parametrize(
    ("name", "content", "where", "text"),
    [
        ("x.yaml", "a: [1,\n", "document 1, line 2, column 1", "not YAML: while parsing a flow node"),
        ("x.yaml", "a: 1\n---\n\tb: 1\n", "document 2, line 3, column 1", "not YAML: a tab where only spaces may"),
        ("x.yaml", "a: *b\n", "document 1, line 1, column 4", "not YAML: found undefined alias"),
        ("x.yaml", "a: 1\nb: \x07\n", "document 1, line 2, column 4", "not YAML: control characters"),
        ("x.yaml", "a: " + "[" * 100_000, "document 1, line 1, column 102", "not YAML: nested deeper than 100 levels"),
        ("x.yaml", "[" * 100_000, "document 1, line 1", "not JSON: nested too deeply"),
        ("x.yaml", "- " * 100_000, "document 1, line 1, column 199", "not YAML: nested deeper than 100 levels"),
        ("x.json", '{"a": 1,\n"b": ?}', "document 1, line 2, column 6", "not JSON: expecting value"),
        ("x.json", "{} {]", "document 2, line 1, column 5", "not JSON: expecting property name"),
        ("x.json", '{"a": {"b": 1, "b": 2}}', "", "the key 'b' stands twice in one object"),
        ("x.json", "[" * 100_000, "document 1, line 1", "not JSON: nested too deeply"),
        ("x", '{}\n{"a": 1,\n\t"b": "c" "d"}', "document 2, line 3, column 11", "not JSON: expecting ',' delimiter"),
    ],
    ids=lambda text: text[:20],  # older pytest puts the whole into the environment, where it does not fit
)
async def test_text_that_is_broken_is_a_problem_with_its_place(
    tmp_path: Path, name: str, content: str, where: str, text: str
) -> None:
    """A file that is neither YAML nor JSON is told with document, line and column, however it is broken."""
    problem = await only_problem(tmp_path / name, content)
    assert problem.origin == ", ".join(part for part in (f"{tmp_path}/{name}", where) if part)
    assert problem.text.startswith(text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (ALIAS_BOMB, "its aliases (*) stand for more than 100000 nodes"),
        (TEXT_BOMB, "its aliases (*) stand for more than 100000 nodes"),
        (DEEP_ALIASES, "its aliases (*) nest deeper than 100 levels"),
        (RECURSIVE_ALIAS, "an alias (*) stands inside the node that it names"),
        ("a: 1\na: 2\n", "the key a stands twice"),
        ("? [a]\n: 1\n", "a key is no text"),
        ("a: !!python/name:os.system 1\n", "the tag tag:yaml.org,2002:python/name:os.system does not fit here"),
        ("a: !mine {}\n", "the tag !mine means nothing here"),
        ("- a\n", "is no mapping, so it is no Kubernetes object"),
        ("text\n", "is no mapping, so it is no Kubernetes object"),
        ("metadata: {}\n", "is missing; write what object this is"),
        ("kind: List\nitems: text\n", "is not a list"),
    ],
    ids=lambda value: value[:12] if len(value) < 80 else "long",
)
async def test_document_that_is_refused_leaves_others_alone(tmp_path: Path, content: str, text: str) -> None:
    """A bomb, a cycle or nonsense costs its own document, not the next one."""
    events = await read_text(tmp_path / "x.yaml", documents(content, GOOD))
    assert list(map(summary, events)) == ["+Service shop/good", "!x.yaml 1", "synced"]
    (problem,) = problems_in(events)
    assert problem.text == text
    assert problem.origin.startswith(f"{tmp_path}/x.yaml, document 1, line ")


@pytest.mark.parametrize(
    ("bad", "subject", "field", "line"),
    [
        (service_text(port=0), "Service shop/web", "spec.ports[0].port", 10),
        (service_text(port=65536), "Service shop/web", "spec.ports[0].port", 10),
        (service_text(port=10**40), "Service shop/web", "spec.ports[0].port", 10),
        (service_text(port="-" + "9" * 5000), "Service shop/web", "spec.ports[0].port", 10),
        (service_text(port="'80'"), "Service shop/web", "spec.ports[0].port", 10),
        (service_text(port="http"), "Service shop/web", "spec.ports[0].port", 10),
        (service_text(cluster_ip="10.96.0.256"), "Service shop/web", "spec.clusterIP", 7),
        (service_text(cluster_ip="[10.96.0.1]"), "Service shop/web", "spec.clusterIP", 7),
        (service_text("shop/Web"), "", "metadata.name", 4),
        (service_text("shop/web").replace("name: web", "name: 5"), "", "metadata.name", 4),
        (service_text().replace("v1", "v2"), "Service shop/web", "apiVersion", 1),
        (service_text().replace("apiVersion: v1\n", ""), "Service shop/web", "apiVersion", 1),
        (
            endpoint_slice_text(addresses=["10.0.0.1", "10.0.0"]),
            "EndpointSlice shop/web-1",
            "endpoints[1].addresses[0]",
            14,
        ),
        (endpoint_slice_text(addresses=["1.5"]), "EndpointSlice shop/web-1", "endpoints[0].addresses[0]", 13),
        (
            endpoint_slice_text().replace("k8s.io/v1", "k8s.io/v1beta1"),
            "EndpointSlice shop/web-1",
            "apiVersion",
            1,
        ),
        (endpoint_slice_text(addresses=["10.0.0.1"] * 1001), "EndpointSlice shop/web-1", "endpoints", 12),
    ],
)
async def test_object_that_is_bad_is_a_problem_with_line_and_field(
    tmp_path: Path, bad: str, subject: str, field: str, line: int
) -> None:
    """Ports out of range, wrong addresses, wrong types and versions: the line is that of the field."""
    events = await read_text(tmp_path / "x.yaml", documents(bad, GOOD))
    assert "+Service shop/good" in map(summary, events)
    (problem,) = problems_in(events)
    assert problem.severity is Severity.ERROR
    assert (problem.subject, problem.field) == (subject, field)
    assert problem.origin == f"{tmp_path}/x.yaml, document 1, line {line}"


async def test_object_that_no_cluster_could_store_is_a_problem(tmp_path: Path) -> None:
    """Its size alone would hold up the control process."""
    large = GOOD.replace("metadata:\n", f"metadata:\n  annotations: {{note: {'x' * 2_000_000}}}\n")
    problem = await only_problem(tmp_path / "x.yaml", large)
    assert (problem.subject, problem.text.partition(",")[0]) == ("Service shop/good", "is larger than 1572864 bytes")


async def test_object_with_half_a_character_is_a_problem(tmp_path: Path) -> None:
    r"""JSON can write ``\ud800`` alone, which is no text in any encoding."""
    bad = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "labels": {"a": "\ud800"}}}
    problem = await only_problem(tmp_path / "x.json", json.dumps(bad) + json.dumps({"kind": "\ud800"}))
    assert (problem.subject, problem.text[:18]) == ("Service default/web", "a text in it holds")


async def test_json_like_text_that_is_yaml_is_read_as_yaml(tmp_path: Path) -> None:
    """YAML in flow style begins as JSON does."""
    text = "{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}}"
    assert list(map(summary, await read_text(tmp_path / "x.yaml", text))) == ["+Service default/x", "synced"]


async def test_object_with_unknown_fields_is_served(tmp_path: Path) -> None:
    """A newer API may have fields that this release does not know."""
    text = GOOD.replace("spec:\n", "spec:\n  newField: {a: [1, x]}\n") + "newerField: 1\n"
    assert list(map(summary, await read_text(tmp_path / "x.yaml", text))) == ["+Service shop/good", "synced"]


async def test_object_of_somebody_elses_api_is_another_kind(tmp_path: Path) -> None:
    """Knative has Services of its own, which are none of ours and no error."""
    text = documents(service_text().replace("v1", "serving.knative.dev/v1"), GOOD)
    assert list(map(summary, await read_text(tmp_path / "x.yaml", text))) == ["+Service shop/good", "synced"]


async def test_object_defined_twice_in_a_file_is_a_problem_of_the_later_one(tmp_path: Path) -> None:
    """The first stays in force, and the Problem says where it stands."""
    text = documents(service_text(port=80), GOOD, service_text(port=81))
    events = await read_text(tmp_path / "x.yaml", text)
    first, _, _, _ = events
    assert isinstance(first, Applied)
    assert isinstance(first.object, Service)
    assert first.object.ports[0].port == 80
    (problem,) = problems_in(events)
    assert problem.subject == "Service shop/web"
    assert problem.origin == f"{tmp_path}/x.yaml, document 3, line 23"
    assert f"{tmp_path}/x.yaml, document 1, line 1" in problem.text


async def test_item_of_a_list_that_is_bad_leaves_other_items_alone(tmp_path: Path) -> None:
    """Items of lists are objects like others; typed lists need not repeat the kind; nulls and nested lists occur."""
    text = """\
kind: ServiceList
items:
- metadata: {name: one}
  spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
- metadata: {name: two}
  spec: {clusterIP: 10.96.0.2, ports: [{port: 80, port: 81}]}
- kind: List
  items:
  - apiVersion: v1
    kind: Service
    metadata: {name: three}
    spec: {clusterIP: nonsense, ports: [{port: 80}]}
- null
---
kind: List
items:
"""
    events = await read_text(tmp_path / "x.yaml", text)
    assert list(map(summary, events)) == ["+Service default/one", "!x.yaml 3", "synced"]
    assert [(problem.origin, problem.field) for problem in problems_in(events)] == [
        (f"{tmp_path}/x.yaml, document 1, item 2, line 6", ""),
        (f"{tmp_path}/x.yaml, document 1, item 4, line 13", ""),
        (f"{tmp_path}/x.yaml, document 1, item 3.1, line 12", "spec.clusterIP"),
    ]


async def test_endpoint_slice_of_the_largest_size_arrives_whole(tmp_path: Path) -> None:
    """It crosses to the control process in parts; none is lost, doubled or reordered."""
    addresses = [f"10.0.{i // 250}.{i % 250 + 1}" for i in range(1000)]
    event, _ = await read_text(tmp_path / "x.yaml", endpoint_slice_text(addresses=addresses))
    assert isinstance(event, Applied)
    assert isinstance(event.object, EndpointSlice)
    assert [str(endpoint.address) for endpoint in event.object.endpoints] == addresses
    assert len(event.object.ports) == 1


@pytest.mark.slow
async def test_file_of_ten_thousand_documents_is_read(tmp_path: Path) -> None:
    """Each document is counted, good and bad ones."""
    text = documents(*(service_text(f"shop/s{i}", port=80 if i % 1000 else 0) for i in range(10_000)))
    events = await read_text(tmp_path / "x.yaml", text)
    assert sum(isinstance(event, Applied) for event in events) == 10_000
    assert [problem.origin for problem in problems_in(events)] == [
        f"{tmp_path}/x.yaml, document {i + 1}, line {i * 11 + 10}" for i in range(0, 10_000, 1000)
    ]


@pytest.mark.slow
def test_path_that_may_not_be_read_is_one_problem(tmp_path: Path) -> None:
    """A file and a directory are named, with the reason; other files are served."""
    for name in ("a.yaml", "b.yaml"):
        write(tmp_path / name, GOOD)
    (tmp_path / "a.yaml").chmod(0)
    (tmp_path / "closed").mkdir(0)
    without_rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    script = """
import pathlib, sys, trio
from userspace_proxy.sources.manifest_messages import FileEnd, MessageReader, ServiceFound, Started
from userspace_proxy.sources.manifests import read_manifests
for event in trio.run(read_manifests, [*map(pathlib.Path, sys.argv[1:])]):
    print(*getattr(event, "problems", [type(event).__name__]))
"""
    paths = [str(tmp_path), str(tmp_path / "closed")]
    done = subprocess.run([*without_rights, sys.executable, "-c", script, *paths], stdout=subprocess.PIPE, check=True)
    refused = "cannot be looked at: Permission denied; until it can, all that was read there stays in force"
    assert done.stdout.decode().splitlines() == [
        "Applied",
        f"{tmp_path}/a.yaml: cannot be read: Permission denied; let uid {os.geteuid()} read it",
        f"{tmp_path}/closed: {refused}",
        "Synced",
    ]


@pytest.mark.slow
def test_parser_that_reaches_its_memory_limit_goes_on_with_the_next_file(tmp_path: Path) -> None:
    """A file that would take all memory is refused; the limit is lower here than the parser's own."""
    large, good = tmp_path / "large.yaml", tmp_path / "good.yaml"
    write(large, "- a\n" * 700_000)
    write(good, GOOD)
    parser = [sys.executable, "-m", "userspace_proxy.sources.manifest_parser"]
    names = b"\0".join(map(os.fsencode, (large, good)))
    done = subprocess.run(["prlimit", "--as=200000000", *parser], input=names, stdout=subprocess.PIPE, check=True)
    started, refused, service, end = MessageReader().feed(done.stdout)
    assert isinstance(started, Started)
    assert isinstance(refused, FileEnd)
    assert refused.failure is not None
    assert refused.failure.origin == f"{large}, document 1"
    assert "MiB" in refused.failure.text
    assert isinstance(service, ServiceFound)
    assert end == FileEnd({}, None, try_again=False)


def test_parser_imports_nothing_of_the_control_process() -> None:
    """It starts in a fraction of a second, as changes shall take effect within one."""
    script = "import sys, userspace_proxy.sources.manifest_parser; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    loaded = {module.partition(".")[0] for module in done.stdout.decode().split()}
    assert not loaded & {"asyncio", "click", "kubernetes", "prometheus_client", "subprocess", "trio"}
